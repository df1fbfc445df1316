"""The code blocks of README.md and docs/: found in one place, so that tests run or parse every one of them.

A Python block has a mark in the line before it: ``<!-- run: GROUP ... -->``, and a test runs the blocks of GROUP in the
order of the page with :func:`run_group`; or ``<!-- parsed: why it is not run -->``.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>.+?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class Block:
    """``where`` is its page and line. ``mark`` is what the comment before it says."""

    page: Path
    line: int
    language: str
    mark: str
    code: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(language: str | None = None) -> list[Block]:
    """All blocks, or those of one language, by page."""
    found: list[Block] = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in _BLOCK.finditer(text):
            line = text[: match.start("code")].count("\n")
            found.append(Block(page, line, match["language"], match["mark"] or "", match["code"]))
    return [block for block in found if language in (None, block.language)]


def group(name: str) -> list[Block]:
    """The Python blocks with the mark ``run: name``, which may be followed by other words."""
    return [block for block in blocks("python") if block.mark.split()[:2] == ["run:", name]]


def run_block(block: Block, names: dict[str, Any]) -> None:
    """Run a block as it stands, in the namespace ``names``."""
    exec(compile(block.code, block.where, "exec"), names)


def run_group(name: str) -> dict[str, Any]:
    """Run the blocks of a group, those of a page in one namespace; returns the last."""
    names: dict[str, Any] = {}
    before = None
    for block in group(name):
        if block.page != before:
            names, before = {}, block.page
        run_block(block, names)
    assert names, f"no page has the group {name}"
    return names
