"""``jasper push``: an export as a model of the hub, and the texts and vectors of its run as a data set."""

from __future__ import annotations

from pathlib import Path

from jasper_jax.checkpoints.export_marker import MARKER, own_files, read_marker, refuse_damaged
from jasper_jax.publishing.repository import Repository
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import file_inside
from jasper_jax.runtime.progress import bar


def push_export(folder: Path, name: str, *, private: bool) -> str:
    """Send the export in ``folder`` to the model repository ``name``; its address.

    Sent are the files that the marker names, each checked against its sha256; nothing else of the folder.

    Raises:
      UserError: no export, or one that was changed; see :class:`Repository`.
    """
    read_marker(folder)
    refuse_damaged(folder)
    own = sorted(own_files((folder / MARKER).read_bytes()))
    files = {file: file_inside(folder / file, folder) for file in own if (folder / file).exists()}
    if missing := next((file for file in own if file not in files and file != "README.md"), None):
        raise UserError(f"{folder / missing}: missing; `jasper export` writes the folder again")
    repository = Repository(name, "model", MARKER, private=private, named=own_files)
    repository.prepare()
    with bar(f"sending {name}", len(files), "files") as progress:
        for file, path in files.items():
            repository.send(path, file)
            progress.advance(note=file)
    return repository.commit("An export by jasper_jax")
