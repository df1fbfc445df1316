"""The file format, against the safetensors library, and against files that lie."""

from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jasper_jax.encoders.safetensors import TensorFile, write_safetensors
from jasper_jax.runtime.errors import UserError

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.array([1.5, -2], np.float16),
    "c": np.arange(4, dtype=np.int64),
    "empty": np.zeros((0, 3), np.float32),
}


def test_both_ways_with_the_library(tmp_path):
    save_file(TENSORS, tmp_path / "theirs", metadata={"format": "pt"})
    file = TensorFile(tmp_path / "theirs")
    assert file.metadata == {"format": "pt"}
    write_safetensors(tmp_path / "ours", {**TENSORS, "a": np.asfortranarray(TENSORS["a"])})
    back = load_file(tmp_path / "ours")
    assert set(file) == set(back) == set(TENSORS)
    for name, expected in TENSORS.items():
        for found in (file[name], back[name]):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    assert [path.name for path in tmp_path.iterdir() if "writing" in path.name] == []


def test_bfloat16(tmp_path):
    values = np.array([[1, 2.5], [-3, 0.125]], ml_dtypes.bfloat16)
    write_safetensors(tmp_path / "file", {"x": values.T})
    np.testing.assert_array_equal(TensorFile(tmp_path / "file")["x"], values.T)


def test_every_truncation_is_noticed(tmp_path):
    save_file(TENSORS, tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for length in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(UserError, match="cut: not a whole safetensors file"):
            TensorFile(tmp_path / "cut")


def craft(path, header, data=bytes(24)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"x": entry([2, 4], 0, 24)}, r"x is F32 \[2, 4\] but is given 24 bytes"),
        ({"x": entry([2, 3], 0, 24), "y": entry([2], 0, 8)}, "expected"),  # overlap
        ({"x": entry([3], 0, 12), "y": entry([2], 16, 24)}, "y starts at byte 16, where 12 was expected"),
        ({"x": entry([3], 0, 12)}, "describes 12 bytes of data, 24 are there"),
        ({"x": entry([9], 0, 36)}, "describes 36 bytes of data, 24 are there"),
        ({"x": entry([-6], 0, -24)}, "entry of x is malformed"),
        ({"x": entry([6.0], 0, 24)}, "entry of x is malformed"),
        ({"x": {"dtype": "F32"}}, "entry of x is malformed"),
        ({"x": 3}, "entry of x is malformed"),
        ({"x": entry([1] * 65, 0, 4)}, "entry of x is malformed"),
        ({"x": entry([0, 2**70], 0, 0)}, "which no file can hold"),
        ({"x": entry([2**40, 0, 2**40], 0, 0)}, "which no file can hold"),
        ([1], "not an object"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"x": {}, "x": {}}', "names a tensor twice"),
        ({"x": entry([24], 0, 24, "F8_E4M3")}, "x is stored as F8_E4M3"),
    ],
)
def test_headers_that_lie(tmp_path, header, message):
    craft(tmp_path / "file", header)
    with pytest.raises(UserError, match=message) as raised:
        TensorFile(tmp_path / "file")
    assert str(tmp_path / "file") in str(raised.value)


def test_a_header_longer_than_the_file(tmp_path):
    (tmp_path / "file").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(UserError, match="10 bytes long and its header claims 1152921504606846976"):
        TensorFile(tmp_path / "file")


def test_a_correct_crafted_file(tmp_path):
    """The crafted headers above fail for what they say, not for how they are written."""
    craft(tmp_path / "file", {"x": entry([2, 3], 0, 24)})
    np.testing.assert_array_equal(TensorFile(tmp_path / "file")["x"], np.zeros((2, 3), np.float32))
