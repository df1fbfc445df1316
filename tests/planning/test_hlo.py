"""The text of a compiled program: shapes, windows, loops without a noted length, forms that only a TPU's has."""

from __future__ import annotations

import itertools

import pytest

from jasper_jax.planning.flops import matmul_flops, passes
from jasper_jax.planning.hlo import Shape, parse_module, parse_shapes
from jasper_jax.planning.loops import trip_count


def test_shapes():
    text = "(bf16[8,256]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/(f32[]{:T(256)}, pred[3]{0}), s4[5]{0:E(4)}, u32[<=7]{0})"
    assert parse_shapes(text) == (
        Shape("bf16", (8, 256), 1),
        Shape("f32", ()),
        Shape("pred", (3,)),
        Shape("s4", (5,)),
        Shape("u32", (7,)),
    )
    assert [shape.bytes for shape in parse_shapes(text)] == [4096, 4, 3, 3, 28]
    assert Shape("f8e4m3fn", (10,)).bytes == 10


def test_a_line_that_is_not_understood_is_an_error():
    with pytest.raises(ValueError, match="no operands"):
        parse_module("ENTRY %main (x: f32[]) -> f32[] {\n  %a = f32[] something\n}")
    with pytest.raises(ValueError, match="no entry"):
        parse_module("HloModule empty")


def convolution(inputs: str, kernel: str, output: str, rest: str) -> int:
    lines = [
        "ENTRY %main (a: f32[1], b: f32[1]) -> f32[1] {",
        f"  %a = {inputs} parameter(0)",
        f"  %b = {kernel} parameter(1)",
        f"  ROOT %c = {output} convolution(%a, %b), {rest}",
        "}",
    ]
    entry = parse_module("\n".join(lines)).entry
    return matmul_flops(entry.root, entry)


def test_convolution_of_an_image_as_counted_position_by_position():
    """7x9 image, 3x2 kernel, strides 2 and 1, padding 1 and 0 before, 1 and 1 behind."""
    count = 0
    for o0, o1, k0, k1 in itertools.product(range(4), range(9), range(3), range(2)):
        count += 0 <= 2 * o0 + k0 - 1 < 7 and 0 <= o1 + k1 < 9
    found = convolution(
        "f32[5,7,9,4]{3,2,1,0}",
        "f32[3,2,4,6]{3,2,1,0}",
        "f32[5,4,9,6]{3,2,1,0}",
        "window={size=3x2 stride=2x1 pad=1_1x0_1}, dim_labels=b01f_01io->b01f",
    )
    assert found == 2 * 5 * 4 * 6 * count


def test_batched_products_of_a_tpu_count_as_products():
    """Batch 8 and heads 4 as windows of which one position does work: three ways the compiler wrote them."""
    product = 2 * 8 * 4 * 256 * 256 * 64
    assert product == convolution(
        "bf16[8,256,4,64]",
        "bf16[8,256,4,64]",
        "bf16[8,4,256,256]",
        "window={size=8x4 stride=7x3 lhs_dilate=8x4}, dim_labels=0b1f_0o1i->01bf",
    )
    assert product == convolution(
        "bf16[8,256,4,256]",
        "bf16[8,4,256,64]",
        "bf16[8,4,256,64]",
        "window={size=8x4 stride=8x4 pad=7_7x3_3 lhs_dilate=7x3 rhs_reversal=1x1}, dim_labels=0f1b_01io->01bf",
    )
    unfolded = convolution(
        "bf16[8,256,1,1,128]",
        "bf16[3,4,64,128,1]",
        "bf16[8,256,3,4,64]",
        "window={size=1x3x4 pad=0_0x2_2x3_3 rhs_reversal=0x1x1}, dim_labels=0b12f_12oi0->0b12f",
    )
    assert unfolded == 2 * 8 * 256 * 128 * 768


@pytest.mark.parametrize(("precision", "expected"), [("", 1), ("{high,high}", 3), ("{highest,highest}", 6)])
def test_passes_of_a_float32_product(precision: str, expected: int):
    rest = f", operand_precision={precision}" if precision else ""
    for dtype, times in (("f32", expected), ("bf16", 1)):
        lines = [
            "ENTRY %main (a: f32[2,2]) -> f32[2,2] {",
            f"  %a = {dtype}[2,2] parameter(0)",
            f"  ROOT %c = f32[2,2] dot(%a, %a), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}{rest}",
            "}",
        ]
        entry = parse_module("\n".join(lines)).entry
        assert passes(entry.root, entry) == times


LOOP = """
%add_fusion (p: s32[], q: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %q = s32[] parameter(1)
  ROOT %sum = s32[] add(%p, %q)
}

%body (state: (f32[4], s32[], s32[])) -> (f32[4], s32[], s32[]) {
  %state = (f32[4]{0}, s32[], s32[]) parameter(0)
  %x = f32[4]{0} get-tuple-element(%state), index=0
  %i = s32[] get-tuple-element(%state), index=1
  %limit = s32[] get-tuple-element(%state), index=2
  %step = s32[] constant(STEP)
  %next = s32[] fusion(%i, %step), kind=kLoop, calls=%add_fusion
  %copied = s32[] copy(%next)
  ROOT %out = (f32[4]{0}, s32[], s32[]) tuple(%x, %copied, %limit)
}

%condition (state.1: (f32[4], s32[], s32[])) -> pred[] {
  %state.1 = (f32[4]{0}, s32[], s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=1
  %limit.1 = s32[] get-tuple-element(%state.1), index=2
  ROOT %test = pred[] compare(ORDER), direction=DIRECTION
}

ENTRY %main (x.2: f32[4]) -> (f32[4], s32[], s32[]) {
  %x.2 = f32[4]{0} parameter(0)
  %start = s32[] constant(START)
  %end = s32[] constant(END)
  %start.1 = (s32[], s32[], u32[]) copy-start(%start)
  %start.2 = s32[] copy-done(%start.1)
  %init = (f32[4]{0}, s32[], s32[]) tuple(%x.2, %start.2, %end)
  ROOT %loop = (f32[4]{0}, s32[], s32[]) while(%init), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize("reversed_operands", [False, True])
@pytest.mark.parametrize(
    ("start", "end", "step", "direction", "python"),
    [
        (0, 12, 1, "LT", range(12)),
        (3, 12, 2, "LT", range(3, 12, 2)),
        (0, 12, 5, "LE", range(0, 13, 5)),
        (9, 0, -2, "GT", range(9, 0, -2)),
        (9, 0, -3, "GE", range(9, -1, -3)),
        (0, 8, 2, "NE", range(0, 8, 2)),
        (7, 3, 1, "LT", range(0)),
        (0, 12, 0, "LT", None),
        (0, 9, 2, "NE", None),
    ],
)
def test_loops_without_a_noted_length(start, end, step, direction, python, reversed_operands: bool):
    if reversed_operands:
        direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
    text = LOOP
    for word, value in {
        "ORDER": "%limit.1, %i.1" if reversed_operands else "%i.1, %limit.1",
        "DIRECTION": direction,
        "START": start,
        "STEP": step,
        "END": end,
    }.items():
        text = text.replace(word, str(value))
    module = parse_module(text)
    assert trip_count(module.entry.root, module.entry, module) == (None if python is None else len(python))


def test_a_changing_limit_is_unknown():
    text = LOOP.replace("ORDER", "%i.1, %limit.1").replace("DIRECTION", "LT").replace("STEP", "1")
    text = (
        text.replace("START", "0").replace("END", "5").replace("tuple(%x, %copied, %limit)", "tuple(%x, %i, %copied)")
    )
    module = parse_module(text)
    assert trip_count(module.entry.root, module.entry, module) is None
