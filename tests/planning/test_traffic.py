"""Bytes of main memory that a program moves, from text written by hand."""

from __future__ import annotations

import pytest

from jasper_jax.planning.hlo import parse_module
from jasper_jax.planning.traffic import moved_bytes

TEXT = """
%rename (p: f32[64,8]) -> f32[8,64] {
  %p = f32[64,8] parameter(0)
  ROOT %other = f32[8,64] bitcast(%p)
}

%product (a: f32[64,8], b: f32[64,8]) -> f32[64,64] {
  %a = f32[64,8] parameter(0)
  %b = f32[64,8]{1,0:S(1)} parameter(1)
  %left = f32[8,64] fusion(%a), kind=kLoop, calls=%rename
  ROOT %d = f32[64,64] dot(%left, %b), lhs_contracting_dims={0}, rhs_contracting_dims={1}
}

%one_layer (stack: f32[10,64,8], i: s32[]) -> f32[64,8] {
  %stack = f32[10,64,8] parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,64,8] dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,64,8}
  ROOT %layer = f32[64,8] bitcast(%slice)
}

%save (stack.1: f32[10,64,8], layer.1: f32[1,64,8], i.1: s32[]) -> f32[10,64,8] {
  %stack.1 = f32[10,64,8] parameter(0)
  %layer.1 = f32[1,64,8] parameter(1)
  %i.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %saved = f32[10,64,8] dynamic-update-slice(%stack.1, %layer.1, %i.1, %zero.1, %zero.1)
}

ENTRY %main (x: f32[64,8], s: f32[10,64,8], j: s32[]) -> f32[64,64] {
  %x = f32[64,8] parameter(0)
  %s = f32[10,64,8] parameter(1)
  %j = s32[] parameter(2)
  %on_chip = f32[64,8]{1,0:S(1)} copy(%x)
  %multiplied = f32[64,64] fusion(%x, %on_chip), kind=kOutput, calls=%product
  %sliced = f32[64,8] fusion(%s, %j), kind=kLoop, calls=%one_layer
  %as_layer = f32[1,64,8] bitcast(%sliced)
  %updated = f32[10,64,8] fusion(%s, %as_layer, %j), kind=kLoop, calls=%save
  %fetch = (f32[64,8]{1,0:S(1)}, f32[64,8], u32[]) copy-start(%sliced)
  %fetched = f32[64,8]{1,0:S(1)} copy-done(%fetch)
  %between = f32[64,8]{1,0:S(1)} add(%on_chip, %fetched)
  ROOT %sum = f32[64,64] add(%multiplied, %multiplied)
}
"""

LAYER, SQUARE, INDEX = 64 * 8 * 4, 64 * 64 * 4, 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("on_chip", LAYER),
        ("multiplied", LAYER + SQUARE),  # The renamed operand is read, the one on the chip is not.
        ("sliced", LAYER + INDEX + LAYER),
        ("as_layer", 0),
        ("updated", LAYER + INDEX + LAYER),
        ("fetch", LAYER),
        ("fetched", 0),
        ("between", 0),
        ("sum", 3 * SQUARE),
    ],
)
def test_bytes_moved(name: str, expected: int):
    module = parse_module(TEXT)
    assert moved_bytes(module.entry.instructions[name], module.entry, module) == expected
