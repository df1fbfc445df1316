"""The file format, against the safetensors library, and against files that lie."""

from __future__ import annotations

import errno
import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jasper_jax.encoders.safetensors import TensorFile, write_safetensors
from jasper_jax.runtime.errors import UserError

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.array([1.5, -2], np.float16),
    "c": np.arange(4, dtype=np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "number": np.array(2.5, np.float32),
}


def test_both_ways_with_the_library(tmp_path):
    save_file(TENSORS, tmp_path / "theirs", metadata={"format": "pt"})
    file = TensorFile(tmp_path / "theirs")
    write_safetensors(tmp_path / "ours", {**TENSORS, "a": np.asfortranarray(TENSORS["a"])})
    back = load_file(tmp_path / "ours")
    with safe_open(tmp_path / "ours", "np") as written:
        assert written.metadata() == {"format": "pt"}  # transformers asks for it
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
        with pytest.raises(UserError, match="cut: incomplete or invalid safetensors file"):
            TensorFile(tmp_path / "cut")


def craft(path, header, data=bytes(24)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"x": entry([2, 4], 0, 24)}, "invalid shape, data type, or offset"),
        ({"x": entry([2, 3], 0, 24), "y": entry([2], 0, 8)}, "invalid offset"),  # overlap
        ({"x": entry([3], 0, 12), "y": entry([2], 16, 24)}, "invalid offset for tensor `y`"),
        ({"x": entry([3], 0, 12)}, "file not fully covered"),
        ({"x": entry([9], 0, 36)}, "file not fully covered"),
        ({"x": entry([-6], 0, -24)}, "invalid value: integer `-6`"),
        ({"x": entry([6.0], 0, 24)}, r"floating point `6\.0`"),
        ({"x": {"dtype": "F32"}}, "missing field `shape`"),
        ({"x": 3}, "invalid type: integer `3`"),
        ({"x": entry([0, 2**70], 0, 0)}, "invalid JSON"),
        ({"x": entry([2**40, 0, 2**40], 0, 0)}, "file not fully covered"),
        ([1], "invalid type: sequence"),
        (b"{", "invalid JSON"),
        (b"\xff\xfe", "invalid UTF-8"),
    ],
)
def test_headers_that_lie(tmp_path, header, message):
    craft(tmp_path / "file", header)
    with pytest.raises(UserError, match=message) as raised:
        TensorFile(tmp_path / "file")
    assert str(raised.value).startswith(f"{tmp_path / 'file'}: incomplete or invalid safetensors file (")
    assert "\n" not in str(raised.value)


def test_a_dtype_that_cannot_be_read(tmp_path):
    craft(tmp_path / "file", {"x": entry([24], 0, 24, "F8_E4M3")})
    with pytest.raises(UserError, match="file: x is stored as F8_E4M3; F64, F32, "):
        TensorFile(tmp_path / "file")


@pytest.mark.parametrize("shape", [[1] * 65 + [6], [0, 2**62, 2]])
def test_shapes_that_no_array_can_have(tmp_path, shape):
    size = 24 if 0 not in shape else 0
    craft(tmp_path / "file", {"x": entry(shape, 0, size)}, bytes(size))
    with pytest.raises(UserError, match="file: incomplete or invalid safetensors file"):
        _ = TensorFile(tmp_path / "file")["x"]


def test_the_header_alone_and_parts(tmp_path):
    write_safetensors(tmp_path / "file", TENSORS)
    file = TensorFile(tmp_path / "file")
    assert {name: file.shape(name) for name in file} == {name: x.shape for name, x in TENSORS.items()}
    assert {name: file.dtype(name) for name in file} == {
        "a": "F32",
        "b.weight": "F16",
        "c": "I64",
        **dict.fromkeys(("empty", "number"), "F32"),
    }
    np.testing.assert_array_equal(file.rows("a", 1, 2), TENSORS["a"][1:2])
    with pytest.raises(KeyError):
        _ = file["d"]


def test_a_written_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "other").touch()
    write_safetensors(tmp_path / "file", TENSORS)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_disk_that_is_full(tmp_path):
    """The error has its number and the file's name, and nothing is left behind."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as raised:
            write_safetensors(tmp_path / "file", {"x": np.zeros(10_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(tmp_path / "file"))
    assert list(tmp_path.iterdir()) == []


def test_a_correct_crafted_file(tmp_path):
    """The crafted headers above fail for what they say, not for how they are written."""
    craft(tmp_path / "file", {"x": entry([2, 3], 0, 24)})
    np.testing.assert_array_equal(TensorFile(tmp_path / "file")["x"], np.zeros((2, 3), np.float32))
