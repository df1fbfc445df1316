"""Patterns over names of leaves, for freezing, weight decay and sharding.

A leaf's name is its path, ``encoder/layers/attention/query/kernel``. ``*`` matches within one component and
``**`` any number of components. The component of stacked layers may have a slice up to the end,
``encoder/layers[-3:]/**``: the last three layers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from jasper_jax.runtime.errors import UserError, nearest

_SLICE = re.compile(r"^(?P<name>[^\[\]]+)\[(?P<start>-?\d+):\]$")


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A compiled pattern; ``start`` is where its slice of layers begins."""

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
        if match := _SLICE.match(part):
            if start is not None:
                raise UserError(f"{where}: pattern {text!r} slices twice; one slice is allowed")
            part, start = match["name"], int(match["start"])
        elif "[" in part or "]" in part:
            raise UserError(f"{where}: pattern {text!r}: a slice runs to the end, e.g. encoder/layers[-3:]/**")
        if part == "**":
            out += "(?:.+)" if i == len(parts) - 1 else "(?:[^/]+/)*"
            continue
        out += re.escape(part).replace(r"\*", "[^/]*") + ("/" if i < len(parts) - 1 else "")
    return Pattern(text, re.compile(out), start)


def trained_leaves(patterns: Sequence[str], leaves: Mapping[str, tuple[int, ...]], where: str) -> dict[str, int]:
    """The leaves that ``patterns`` train, each with its first trained layer (0 if not sliced).

    ``leaves``: name -> shape of every leaf; the first axis of stacked leaves is the layer. ``where``: for errors.
    UserError: a pattern matches nothing or slices beyond a leaf's layers, or two slices differ.
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
    """The value of the first row of ``table`` whose pattern matches ``name``. KeyError: no row does."""
    for text, value in table:
        if compile_pattern(text, "table").matches(name):
            return value
    raise KeyError(f"no pattern covers the leaf {name!r}")


def _group(name: str) -> str:
    parts = name.split("/")
    return "/".join(parts[:2]) + ("/**" if len(parts) > 2 else "")
