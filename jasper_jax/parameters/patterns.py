"""Names of leaves and patterns over them: the one mechanism behind freezing, weight decay and sharding.

A leaf's name is its path joined by ``/``: ``encoder/layers/attention/query/kernel``. A pattern is such a path in
which ``*`` stands for anything within one component and ``**`` for any number of components. A component that holds
stacked layers may carry a slice up to the end, ``encoder/layers[-3:]/**``: the last three layers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from jasper_jax.runtime.errors import UserError, nearest

_SLICE = re.compile(r"^(?P<name>[^\[\]]+)\[(?P<start>-?\d+):\]$")


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A compiled pattern; ``layers`` is the component that carries a slice and ``start`` where the slice begins."""

    text: str
    regex: re.Pattern[str]
    start: int | None

    def matches(self, name: str) -> bool:
        return self.regex.fullmatch(name) is not None


def compile_pattern(text: str, where: str) -> Pattern:
    """``text`` as a :class:`Pattern`; ``where`` names the recipe key in errors."""
    start: int | None = None
    out = ""
    parts = text.split("/")
    for i, part in enumerate(parts):
        found = _SLICE.match(part)
        if found:
            if start is not None:
                raise UserError(f"{where}: pattern {text!r} slices twice; one slice is allowed")
            part, start = found["name"], int(found["start"])
        elif "[" in part or "]" in part:
            raise UserError(f"{where}: pattern {text!r}: a slice runs to the end, e.g. encoder/layers[-3:]/**")
        if part == "**":
            out += "(?:.+)" if i == len(parts) - 1 else "(?:[^/]+/)*"
            continue
        out += re.escape(part).replace(r"\*", "[^/]*") + ("/" if i < len(parts) - 1 else "")
    return Pattern(text, re.compile(out), start)


def trained_leaves(patterns: Sequence[str], leaves: Mapping[str, tuple[int, ...]], where: str) -> dict[str, int]:
    """Which leaves ``patterns`` train, each with the first layer that is trained (0 for a leaf that is not sliced).

    Args:
      patterns: as in a stage's ``train``.
      leaves: name -> shape of every leaf; stacked leaves have the layers as first axis.
      where: the recipe key, for errors.

    Raises:
      UserError: a pattern matches nothing, or slices a leaf beyond its layers, or two slices differ.
    """
    trained: dict[str, int] = {}
    starts: set[int] = set()
    for i, text in enumerate(patterns):
        here = f"{where}[{i}]"
        pattern = compile_pattern(text, here)
        matched = [name for name in leaves if pattern.matches(name)]
        if not matched:
            groups = sorted({_group(name) for name in leaves})
            raise UserError(
                f"{here}: pattern {text!r} matches no parameter; groups of parameters are {', '.join(groups)}"
                + nearest(text, groups)
            )
        for name in matched:
            start = 0
            if pattern.start is not None:
                layers = leaves[name][0]
                start = pattern.start if pattern.start >= 0 else layers + pattern.start
                if not 0 <= start < layers:
                    raise UserError(
                        f"{here}: pattern {text!r} slices {layers} layers; allowed: -{layers} to {layers - 1}"
                    )
                starts.add(start)
            trained[name] = min(start, trained.get(name, start))
    if len(starts) > 1:
        raise UserError(f"{where}: slices begin at different layers {sorted(starts)}; a stage has one")
    return trained


def first_match(table: Sequence[tuple[str, object]], name: str) -> object:
    """The value of the first row of ``table`` whose pattern matches ``name``; a leaf no row covers is an error."""
    for text, value in table:
        if compile_pattern(text, "table").matches(name):
            return value
    raise KeyError(f"no pattern covers the leaf {name!r}")


def _group(name: str) -> str:
    parts = name.split("/")
    return "/".join(parts[:2]) + ("/**" if len(parts) > 2 else "")
