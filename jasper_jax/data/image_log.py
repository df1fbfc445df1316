"""What one source of images gave and what was left out of it, by reason, with the first names of each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from jasper_jax.data.source_files import SourceFile, as_it_is
from jasper_jax.recipe.config_sources import IMAGE_SOURCE_KINDS, ImageSource
from jasper_jax.runtime.errors import UserError

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
    """Images of a group never lie on both sides of a split."""
    eligible: bool = True
    """Whether it may be held out or tested."""


def label(source: ImageSource) -> str:
    """A source's short name in counts, e.g. ``webdataset:shards/*.tar``."""
    kind = next(k for k in IMAGE_SOURCE_KINDS if getattr(source, k) is not None)
    return f"{kind}:{getattr(source, kind)}"


class SourceLog:
    """The count of one source; ``key`` is where it stands in the recipe (``images.sources[0]``)."""

    def __init__(self, source: ImageSource, key: str):
        self.key, self.label = key, label(source)
        self.given = 0
        self.skipped: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}
        self.files: dict[str, SourceFile] = {}

    def skip(self, reason: str, name: str) -> None:
        self.skipped[reason] += 1
        if len(names := self.first.setdefault(reason, [])) < FIRST:
            names.append(name)

    def note(self, path: Path) -> None:
        """Record a local file as it is before it is read."""
        if str(path) not in self.files:
            self.files[str(path)] = as_it_is(path)

    def as_json(self) -> dict[str, Any]:
        return {reason: {"count": n, "first": self.first[reason]} for reason, n in self.skipped.items()}

    def refuse_many(self, share: float) -> None:
        """UserError when more than ``share`` of what the source holds was left out, or when it gave nothing."""
        left_out = self.skipped.total()
        seen = self.given + left_out
        if not seen:
            raise UserError(f"{self.key}: {self.label} gives no pairs at all")
        if left_out > share * seen:
            reasons = "; ".join(
                f"{n:,} {reason} ({', '.join(self.first[reason])}{', ...' if n > FIRST else ''})"
                for reason, n in self.skipped.items()
            )
            raise UserError(
                f"{self.key}: {left_out:,} of {seen:,} in {self.label} are left out, more than images.skip_share "
                f"{share:g} allows: {reasons}; mend them, or raise images.skip_share to {left_out / seen + 5e-5:.4f}"
            )
