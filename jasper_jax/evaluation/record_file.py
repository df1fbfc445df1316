"""JSON files of an evaluation, as pydantic models with a checksum over all other keys."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import is_whole
from jasper_jax.runtime.json_text import parse_json

Form = TypeVar("Form", bound=BaseModel)


def read_record(path: Path, form: type[Form], what: str, command: str = "jasper evaluate") -> Form:
    """The content of ``path`` as ``form``; without a checksum too, as people's own programs write it.

    ``what``: what the file should be, such as "an evaluation of format 1". ``command``: what writes it.

    Raises:
      UserError: no such file, or one that is damaged or does not fit ``form``; with the key.
    """
    remedy = f"`{command}` writes a new one"
    try:
        tree = parse_json(read_record_bytes(path))
        if isinstance(tree, dict):
            if not is_whole(tree):
                raise UserError(f"{path}: damaged (its checksum differs); {remedy}")
            tree.pop("checksum", None)
        return form.model_validate(tree)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    except ValueError as error:
        problem = f"the file: Invalid JSON ({error})"
    raise UserError(f"{path}: not {what}: {problem}; {remedy}")
