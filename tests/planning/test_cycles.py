"""The compiler's estimates, added up over loops and branches."""

from __future__ import annotations

from jasper_jax.planning.cycles import estimated_cycles

PROGRAM = """HloModule test

%twice (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %add = f32[8]{0} add(%x, %x)
}

%body (of: (s32[], f32[8])) -> (s32[], f32[8]) {
  %of = (s32[], f32[8]{0}) parameter(0)
  %n = s32[] get-tuple-element(%of), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%n, %one)
  %v = f32[8]{0} get-tuple-element(%of), index=1
  %f = f32[8]{0} fusion(%v), kind=kLoop, calls=%twice, backend_config={"estimated_cycles":"100","x":{}}
  %s = f32[8]{0} sort(%f), dimensions={0}, to_apply=%twice
  ROOT %pair = (s32[], f32[8]{0}) tuple(%next, %s)
}

%condition (of.1: (s32[], f32[8])) -> pred[] {
  %of.1 = (s32[], f32[8]{0}) parameter(0)
  %n.1 = s32[] get-tuple-element(%of.1), index=0
  %five = s32[] constant(5)
  ROOT %less = pred[] compare(%n.1, %five), direction=LT
}

%idle (of.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  ROOT %of.2 = (s32[], f32[8]{0}) parameter(0)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %buffer = f32[8]{0} custom-call(), custom_call_target="AllocateBuffer"
  %k = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call"
  %c = f32[8]{0} copy(%k), backend_config={"estimated_cycles":"7"}
  %start = (s32[], f32[8]{0}) tuple(%zero, %c)
  %loop = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_counts_as_often_as_it_runs():
    """What has no estimate is listed with its executions; a buffer is no work."""
    found = estimated_cycles(PROGRAM)
    assert found.estimated == 5 * 100 + 7
    assert {name: times for name, (_, times) in found.uncounted.items()} == {"s": 5, "k": 1}
    assert found.unknown_loops == ()


def test_a_loop_of_unknown_length_is_named():
    found = estimated_cycles(PROGRAM.replace("constant(5)", "parameter(1)"))
    assert found.estimated == 107
    assert found.unknown_loops == ("loop",)


def test_branches_count_as_the_longest():
    branch = PROGRAM.replace(
        "while(%start), condition=%condition, body=%body", "conditional(%zero, %start, %start, %start), XX"
    )
    found = estimated_cycles(branch.replace("XX", "branch_computations={%idle, %body, %idle}"))
    assert found.estimated == 107
