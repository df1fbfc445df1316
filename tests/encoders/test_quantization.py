"""Vectors in fewer bits: sentence-transformers' own function is the oracle; ranges do not depend on the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jasper_jax.encoders.quantization import PRECISIONS, RANGES, measure_ranges, quantize, quantizer, read_ranges
from jasper_jax.runtime.errors import UserError


def vectors(number: int, dim: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(number, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("dim", [16, 13])
def test_the_bytes_are_those_of_sentence_transformers(dim: int) -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    x = vectors(50, dim)
    x[0, :3] = 0
    unequal = np.stack([x[:40].min(axis=0), x[:40].max(axis=0)])
    unequal[:, 2] = 0  # a dimension without a range
    for ranges in (unequal, measure_ranges(x[:40])):
        for precision in PRECISIONS:
            ours, theirs = quantize(x, precision, ranges), quantize_embeddings(x, precision, ranges=ranges)
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(quantize(x[7], precision, ranges), ours[7])


def test_codes_are_the_vectors_over_one_step_so_that_their_cosine_is_the_vectors() -> None:
    x = vectors(200, 64)
    x[:, 0] *= 3  # a dimension much wider than the others
    step = np.abs(x).max() / 126
    codes = quantize(x, "int8", measure_ranges(x)).astype(np.float64)
    assert np.abs(codes - x / step).max() <= 0.5 + 1e-3
    assert not quantize(np.zeros(64, np.float32), "int8", measure_ranges(x)).any()

    def cosines(rows: np.ndarray) -> np.ndarray:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit @ unit.T

    # Rounding adds step/sqrt(12) to each component of both vectors: 0.41 steps to an inner product of unit vectors.
    assert (cosines(codes) - cosines(x.astype(np.float64))).std() < 0.45 * step


def test_a_value_outside_the_range_is_clipped() -> None:
    ranges = measure_ranges(np.full((1, 2), 0.5, np.float32))
    far = np.array([[-9.0, 9.0]], np.float32)
    np.testing.assert_array_equal(quantize(far, "int8", ranges), [[-128, 127]])
    np.testing.assert_array_equal(quantize(far, "uint8", ranges), [[0, 255]])


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(UserError, match="precision is 'int4'; expected one of float32, int8"):
        quantizer("int4", 8, {})
    for precision in ("int8", "uint8"):
        with pytest.raises(UserError, match="needs the ranges of 8 dimensions.*export it again"):
            quantizer(precision, 8, {})
    assert quantizer("binary", 8, {})(vectors(3, 8)).shape == (3, 1)


def test_ranges_of_a_folder(tmp_path: Path) -> None:
    assert read_ranges(tmp_path) == {}
    for content, message in {
        "[]": "",
        "{}": "ranges",
        '{"ranges": {"2": [[0, 1]]}}': "2 dimensions: expected two rows of 2 numbers",
        '{"ranges": {"1": [[1], [0]]}}': "1 dimensions",
        '{"ranges": {"1": [["a"], [0]]}}': "could not convert",
        '{"ranges": {"x": [[0], [1]]}}': "'x'",
        '{"ranges": 5}': "",
    }.items():
        (tmp_path / RANGES).write_text(content)
        with pytest.raises(UserError, match=f"{RANGES}.*{message}"):
            read_ranges(tmp_path)
    (tmp_path / RANGES).write_text(json.dumps({"texts": 3, "ranges": {"2": [[-1, -2], [1, 2.5]]}}))
    np.testing.assert_array_equal(read_ranges(tmp_path)[2], np.array([[-1, -2], [1, 2.5]], np.float32))
