"""What an exported folder promises servers about its dimensions.

A server of one folder (Text Embeddings Inference, vLLM) answers a request's ``dimensions`` by cutting the vector of the
default dimension and normalising again. vLLM does so only where config.json has ``is_matryoshka``, and only to
``matryoshka_dimensions``. Both are written where these cuts were trained, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jasper_jax.encoders.hf_config import read_object
from jasper_jax.export.model import TrainedStudent, write_json
from jasper_jax.recipe.stages import ResolvedStage, nested_heads
from jasper_jax.student.dimensions import cut_dimensions


def promised_dimensions(trained: TrainedStudent, stages: Sequence[ResolvedStage]) -> tuple[int, ...]:
    """The dimensions that a server may make by cutting, the default first; () if it may not cut."""
    return cut_dimensions(trained.served, trained.default, nested_heads(stages))


def declare_dimensions(folder: Path, dims: Sequence[int]) -> None:
    """Add the fields for ``dims`` to config.json, in which they are absent; no dimensions, no fields."""
    if dims:
        file = folder / "config.json"
        write_json(file, {**read_object(file), "is_matryoshka": True, "matryoshka_dimensions": list(dims)})


def dimensions_note(trained: TrainedStudent, stages: Sequence[ResolvedStage]) -> str:
    """A sentence of the model card: whether vectors may be cut."""
    if dims := promised_dimensions(trained, stages):
        return (
            f"Vectors of {trained.default} dimensions may be cut to their first {', '.join(map(str, dims[1:]))} and"
            " normalised again: in a server these are allowed values of a request's `dimensions`, and no others."
        )
    return f"Vectors of {trained.default} dimensions were not trained to be cut: leave a request's `dimensions` out."
