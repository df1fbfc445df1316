"""Vectors in fewer bits, with the names and the byte layout of ``sentence_transformers.quantize_embeddings``.

binary and ubinary keep the sign of each component, eight to a byte. int8 and uint8 divide a range of each dimension
into 256 steps. The ranges are measured once, on held-out texts, and kept in the model's folder: those of the vectors at
hand would differ from call to call, and of a single text give zeros.

Indices compare int8 codes as they are, so :func:`measure_ranges` gives all dimensions one step, and 0 the code 0: the
cosine of two codes is that of their vectors, up to rounding. Letters: ``E`` dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jasper_jax.encoders.hf_config import read_object
from jasper_jax.runtime.errors import UserError

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
RANGES = "vector_ranges.json"
"""The file with the ranges in a model folder: ``{"texts": 512, "ranges": {"256": [[lowest ...], [highest ...]]}}``."""
_REMEDY = "`jasper export` of the run writes it again"


def measure_ranges(vectors: np.ndarray) -> np.ndarray:
    """Ranges ``[2, E]`` float32 (lowest, highest) for vectors like ``vectors [n, E]``.

    With s, 1/126 of the largest magnitude, they are such that ``floor((x - lowest) / step) - 128`` is x/s rounded.
    """
    step = max(float(np.abs(vectors).max()), 1e-12) / 126
    bounds = np.array([[-128.5 * step], [126.5 * step]], np.float32)
    return np.repeat(bounds, vectors.shape[1], axis=1)


def quantize(vectors: np.ndarray, precision: str, ranges: np.ndarray | None = None) -> np.ndarray:
    """``vectors [..., E]`` float32 in ``precision``.

    float32: as they are; int8, uint8: ``[..., E]``, values outside ``ranges [2, E]`` clipped; binary (int8, offset by
    -128) and ubinary (uint8): ``[..., ceil(E / 8)]``, bit 1 for a component above 0, the first in the highest bit.
    """
    if precision == "float32":
        return vectors
    if precision in ("binary", "ubinary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if ranges is None:
        raise ValueError(f"{precision} needs ranges")
    lowest = ranges[0]
    step = (ranges[1] - lowest) / 255
    codes = np.clip(np.floor((vectors - lowest) / np.where(step == 0, 1, step)), 0, 255)
    return codes.astype(np.uint8) if precision == "uint8" else (codes - 128).astype(np.int8)


def quantizer(precision: str, dim: int, ranges: Mapping[int, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """:func:`quantize` of vectors of ``dim``, with the ranges of a model.

    Raises:
      UserError: an unknown precision; int8 or uint8 of a dimension without ranges.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if precision in ("int8", "uint8") and dim not in ranges:
        known = f", which has {', '.join(map(str, ranges))}" if ranges else ""
        raise UserError(
            f"precision is {precision!r}, which needs the ranges of {dim} dimensions in {RANGES} of the model folder"
            f"{known}; export it again from a run with held-out texts, or choose binary or float32"
        )
    return lambda vectors: quantize(vectors, precision, ranges.get(dim))


def read_ranges(folder: Path) -> dict[int, np.ndarray]:
    """Dimension -> ranges ``[2, E]`` of a model folder; {} without the file. UserError: it cannot be used."""
    file = folder / RANGES
    if not file.is_file():
        return {}
    found = {}
    try:
        for dim, bounds in read_object(file)["ranges"].items():
            array = np.array(bounds, np.float32)
            if array.shape != (2, int(dim)) or not np.isfinite(array).all() or (array[0] > array[1]).any():
                raise ValueError(f"{dim} dimensions: expected two rows of {dim} numbers, the lowest and the highest")
            found[int(dim)] = array
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not the ranges of vectors ({error}); {_REMEDY}") from None
    return found
