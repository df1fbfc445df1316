"""The events of ``metrics.jsonl``, read within bounds: the file may come from somebody else's run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.json_text import parse_json
from jasper_jax.runtime.text_files import LONGEST

_Whole = Annotated[int, Field(ge=0, le=2**53)]


def _encodable(text: str) -> str:
    text.encode()  # ValueError for half a surrogate pair
    return text


_Text = Annotated[str, AfterValidator(_encodable)]


class _Event(BaseModel):
    """The keys of an event that are used again; others are kept as they are."""

    model_config = ConfigDict(strict=True, extra="allow")

    event: _Text = ""
    stage: _Text | _Whole = ""
    stage_index: _Whole = 0
    step: _Whole = 0
    global_step: _Whole = 0
    loss: float | None = None
    terms: dict[_Text, float | None] = {}
    time: float = 0.0
    seconds: float | None = None


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a metrics file, without a last line that a kill cut short.

    Raises:
      UserError: a line before the last is not a JSON object, or any line has a value that no event has.
    """
    if not path.is_file():
        return []
    events = []
    for number, line, last in _lines(path):
        if not line.strip():
            continue
        try:
            event = parse_json(line)
            if not isinstance(event, dict):
                raise ValueError
        except ValueError:
            if not last:
                raise UserError(f"{path}:{number}: not a JSON line; the file is damaged, move it away") from None
            continue
        try:
            _Event.model_validate(event)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(f"{path}:{number}: {key}: {first['msg']}; the file is damaged, move it away") from None
        events.append(event)
    return events


def _lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    """The lines with their numbers, from 1, and whether each is the last. UserError: one is longer than any event."""
    with path.open("rb") as file:
        line, number = file.readline(LONGEST + 1), 1
        while line:
            if len(line) > LONGEST:
                raise UserError(f"{path}:{number}: longer than {LONGEST:,} bytes; the file is damaged, move it away")
            following = file.readline(LONGEST + 1)
            yield number, line.decode(errors="replace"), not following
            line, number = following, number + 1
