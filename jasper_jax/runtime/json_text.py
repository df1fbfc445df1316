"""JSON of others, in which nothing is too large or too deep for what reads it."""

from __future__ import annotations

import json
from typing import Any

_MOST_DIGITS = 300
"""Of a whole number in JSON; float64 holds 308."""
_DEEPEST = 100
"""Levels of lists and objects in JSON. Nothing that is read has a tenth; Python gives up at a few hundred."""


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} digits; at most {_MOST_DIGITS}")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


def parse_json(text: str | bytes) -> Any:
    """``json.loads``, but JSON that is nested too deeply for functions that call themselves, or has a whole number that
    no float can hold, raises ValueError as well."""
    try:
        if isinstance(text, str) and not text.startswith("\ufeff"):
            value = _DECODER.decode(text)  # ``loads`` would make a decoder for each text
        else:
            value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    opened = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if opened > _DEEPEST:
        _refuse_deep(value)
    return value


def _refuse_deep(value: Any) -> None:
    """ValueError: more than ``_DEEPEST`` lists and objects in one another."""
    level = [value]
    for _ in range(_DEEPEST):
        parts = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [item for part in parts for item in part if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"nested too deeply, in more than {_DEEPEST} levels")
