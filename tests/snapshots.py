"""What a folder holds, to see that a command has left it alone."""

from __future__ import annotations

from pathlib import Path

from jasper_jax.runtime.files import sha256_file


def snapshot(folder: Path) -> dict[str, str]:
    """Relative path -> sha256, or ``folder``, or ``other`` (a pipe, which waits for a writer); without the empty files
    that processes lock."""
    found = [p for p in sorted(folder.rglob("*")) if p.suffix != ".lock" and p.name != ".lock"]
    kinds = {p: "folder" if p.is_dir() else sha256_file(p) if p.is_file() else "other" for p in found}
    return {str(p.relative_to(folder)): kind for p, kind in kinds.items()}
