"""How many pairs an image source gave, and how many were skipped, by reason, with the first names of each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from jasper_jax.data.source_files import SourceFile, as_it_is, label
from jasper_jax.recipe.config_sources import ImageSource
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.shown import visible

FIRST = 5
"""Names kept for each reason."""
NO_CAPTION = "without a caption"
NO_IMAGE = "captions without an image"
EMPTY = "with an empty caption"
NOT_TEXT = "with a caption that is not UTF-8 text"
UNUSABLE = "that cannot be used as images"


class Example(NamedTuple):
    """A pair as a source gives it."""

    image: bytes
    """Encoded, as in the source."""
    caption: str
    name: str
    group: str
    """All images of a group are in one split."""
    eligible: bool = True
    """Whether it may be held out or tested."""


class SourceLog:
    """The counts of one source; ``key`` is its place in the recipe (``images.sources[0]``)."""

    def __init__(self, source: ImageSource, key: str):
        self.key, self.label = key, label(source)
        self.given = 0
        self.skipped: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}
        self.files: dict[str, SourceFile] = {}

    def skip(self, reason: str, name: str) -> None:
        """Count ``name``, which may be a file's that is not UTF-8."""
        self.skipped[reason] += 1
        if len(names := self.first.setdefault(reason, [])) < FIRST:
            names.append(visible(name))

    def note(self, path: Path) -> None:
        """Record the state of a local file before it is read."""
        if str(path) not in self.files:
            self.files[str(path)] = as_it_is(path)

    def as_json(self) -> dict[str, Any]:
        return {reason: {"count": n, "first": self.first[reason]} for reason, n in self.skipped.items()}

    def refuse_many(self, share: float) -> None:
        """UserError if more than ``share`` of the source was skipped, or if it gave nothing."""
        skipped = self.skipped.total()
        seen = self.given + skipped
        if not seen:
            raise UserError(f"{self.key}: {self.label} gives no pairs")
        if skipped > share * seen:
            reasons = "; ".join(
                f"{n:,} {reason} ({', '.join(self.first[reason])}{', ...' if n > FIRST else ''})"
                for reason, n in self.skipped.items()
            )
            raise UserError(
                f"{self.key}: {skipped:,} of {seen:,} in {self.label} were skipped, more than images.skip_share "
                f"{share:g} allows: {reasons}; repair them, or raise images.skip_share to {skipped / seen + 5e-5:.4f}"
            )
