"""The float32 weights in an ONNX file and what reads them: enough of the format to take a model's parameters out.

ONNX is protobuf; of its messages (onnx.proto3) five fields matter here, so they are read from the wire directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_FLOAT = 1


class Node(NamedTuple):
    """An operation: its name, kind, and the names of what it reads and makes."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_onnx(path: Path) -> tuple[dict[str, np.ndarray], list[Node]]:
    """``{name: float32 array}`` of the file's weights, and its operations in order. ValueError: it is no ONNX file."""
    try:
        graph = next(value for number, value in _fields(memoryview(path.read_bytes())) if number == _GRAPH)
        weights: dict[str, np.ndarray] = {}
        nodes: list[Node] = []
        for number, value in _fields(graph):
            if number == _INITIALIZER:
                tensor = _tensor(value)
                if tensor is not None:
                    weights[tensor[0]] = tensor[1]
            elif number == _NODE:
                nodes.append(_node(value))
        return weights, nodes
    except (StopIteration, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not an ONNX file ({type(error).__name__})") from None


def _tensor(message: memoryview) -> tuple[str, np.ndarray] | None:
    dims: list[int] = []
    name, kind, raw = "", 0, b""
    for number, value in _fields(message):
        if number == 1:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif number == 2:
            kind = value
        elif number == 8:
            name = bytes(value).decode()
        elif number in (4, 9):  # float_data, packed, or raw_data: little-endian either way
            raw = value
    return (name, np.frombuffer(raw, "<f4").reshape(dims)) if kind == _FLOAT else None


def _node(message: memoryview) -> Node:
    inputs, outputs, name, kind = [], [], "", ""
    for number, value in _fields(message):
        if number == 1:
            inputs.append(bytes(value).decode())
        elif number == 2:
            outputs.append(bytes(value).decode())
        elif number == 3:
            name = bytes(value).decode()
        elif number == 4:
            kind = bytes(value).decode()
    return Node(name, kind, tuple(inputs), tuple(outputs))


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message: a number, or the bytes of what has a length."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
        elif wire == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        else:
            size = 8 if wire == 1 else 4
            value, at = message[at : at + size], at + size
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _varints(message: memoryview) -> Iterator[int]:
    at = 0
    while at < len(message):
        value, at = _varint(message, at)
        yield value
