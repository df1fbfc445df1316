"""Floors from counts, with numbers small enough to check by head."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from jasper_jax.planning.chips import TPUS
from jasper_jax.planning.collectives import Collective
from jasper_jax.planning.estimate import estimate
from jasper_jax.planning.hlo import Shape
from jasper_jax.planning.kernels import Kernel, known_flops
from jasper_jax.planning.links import Links, mesh_links
from jasper_jax.planning.memory import Memory, does_not_fit
from jasper_jax.planning.work import Analysis

V5E = TPUS["v5e"]


def analysis(**changes) -> Analysis:
    plain = Analysis(
        flops=0.0,
        bf16_flops=0.0,
        hbm_bytes=0.0,
        serial_seconds=0.0,
        collectives=(),
        memory=Memory(2**30, 2**30, 2**30, 2**30, 0),
        kernels=(),
        unknown_kernels=(),
        unknown_loops=(),
        links=Links((4, 4), {"data": (), "fsdp": ((0, 4),), "tensor": ((1, 4),)}),
    )
    return dataclasses.replace(plain, **changes)


def sends(axes, sent, executions=1) -> Collective:
    return Collective("all-gather", 0, executions, 4, axes, sent)


def test_the_largest_floor_is_the_step():
    one = estimate(analysis(bf16_flops=197e12, hbm_bytes=819e9 * 2, collectives=(sends(("fsdp",), 50e9),)), V5E, 64)
    assert (one.compute_seconds, one.memory_seconds, one.interconnect_seconds) == (1.0, 2.0, 1.0)
    assert (one.bound_by, one.step_seconds, one.texts_per_second) == ("memory", 2.0, 32.0)


def test_the_likely_time_is_no_less_than_the_floor():
    assert estimate(analysis(bf16_flops=197e12, serial_seconds=2.1), V5E, 64).likely_seconds == pytest.approx(3.0)
    assert estimate(analysis(bf16_flops=197e12, serial_seconds=0.1), V5E, 64).likely_seconds == 1.0


def test_collectives_along_one_axis_add_up_and_other_axes_run_beside():
    found = (sends(("fsdp",), 50e9, executions=3), sends(("tensor",), 50e9), sends(("fsdp", "tensor"), 100e9))
    one = estimate(analysis(collectives=found), V5E, 1)
    assert one.axis_seconds == {("fsdp",): 3.0, ("tensor",): 1.0, ("fsdp", "tensor"): 1.0}
    assert (one.interconnect_seconds, one.bound_by) == (4.0, "interconnect")


def test_what_crosses_between_nodes_counts_by_the_network_and_not_by_links():
    both = dataclasses.replace(sends(("data", "fsdp"), 55e9), between=5e9)
    one = estimate(analysis(collectives=(both, both)), V5E, 1)
    assert one.axis_seconds == {("data", "fsdp"): 2.0}
    assert (one.network_seconds, one.bound_by) == (2 * 5 / 3.125, "network")


def test_axes_that_were_not_understood_have_one_link():
    one = estimate(analysis(collectives=(sends(("?",), 50e9),)), V5E, 1)
    assert one.interconnect_seconds == 1.0


def test_memory():
    assert estimate(analysis(), V5E, 1).needed_bytes == 2 * 2**30
    assert estimate(analysis(), V5E, 1).fits
    assert not estimate(analysis(memory=Memory(16 * 2**30, 0, 0, 0, 0)), V5E, 1).fits


def test_a_chip_of_two_devices_is_shared():
    chip = TPUS["tpu7x"]
    links = Links((2, 2, 1), {"data": ((0, 2),), "fsdp": ((1, 2),), "tensor": ()})
    one = estimate(analysis(bf16_flops=chip.peak_flops, links=links, collectives=(sends(("tensor",), 1e9),)), chip, 1)
    assert one.compute_seconds == 2.0
    assert one.usable_bytes == chip.usable_memory // 2
    assert one.interconnect_seconds == 0.0  # Along "tensor" lie the two devices of a chip: no link is crossed.


def devices(*shape: int):
    """A mesh over chips whose coordinates are their places."""
    grid = np.empty(shape, object)
    for place in np.ndindex(*shape):
        grid[place] = SimpleNamespace(coords=place)
    return grid


def test_rings_and_lines():
    whole = mesh_links(SimpleNamespace(devices=devices(16, 16), axis_names=("fsdp", "tensor")))
    assert whole == Links((16, 16), {"fsdp": ((0, 16),), "tensor": ((1, 16),)})
    assert whole.ways(("fsdp",), V5E) == 2.0  # A side of 16 closes to a ring.
    assert whole.ways(("fsdp", "tensor"), V5E) == 4.0
    part = mesh_links(SimpleNamespace(devices=devices(16, 16).reshape(16, 8, 2), axis_names=("a", "b", "c")))
    assert (part.ways(("b",), V5E), part.ways(("c",), V5E)) == (1.0, 1.0)
    small = mesh_links(SimpleNamespace(devices=devices(4, 4).reshape(1, 16), axis_names=("data", "fsdp")))
    assert (small.ways(("fsdp",), V5E), small.sides["data"]) == (2.0, ())  # Two lines.
    cube = mesh_links(SimpleNamespace(devices=devices(4, 4, 4), axis_names=("a", "b", "c")))
    assert cube.ways(("a",), TPUS["v5p"]) == 2.0
    flat = mesh_links(SimpleNamespace(devices=devices(4, 4, 2), axis_names=("a", "b", "c")))
    assert flat.ways(("a",), TPUS["v5p"]) == 1.0  # Not a torus: one side is no multiple of 4.


def kernel(op_name: str, stated: float | None = None) -> Kernel:
    query, key = Shape("bf16", (2, 8, 512, 64)), Shape("bf16", (2, 2, 256, 64))
    return Kernel("k", "tpu_custom_call", op_name, (query, key, key), (query,), stated)


@pytest.mark.parametrize(
    ("op_name", "products"),
    [("flash_attention/pallas_call", 2), ("flash_mha_bwd_dkv_block_q=128", 4), ("flash_mha_bwd_dq_block_q=128", 3)],
)
def test_flash_attention_by_its_shapes(op_name, products):
    assert known_flops(kernel(op_name)) == products * 2 * 2 * 8 * 512 * 256 * 64
    assert known_flops(kernel(op_name, stated=7.0)) == 7.0


def test_other_kernels_are_unknown():
    assert known_flops(kernel("my_kernel/pallas_call")) is None


def test_the_compilers_refusal_is_read():
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (723.75G) exceeds"
        " available HBM (15.75G)."
    )
    refusal = does_not_fit(RuntimeError(text))
    assert refusal is not None
    assert (refusal.needed, refusal.available) == (723.75 * 2**30, 15.75 * 2**30)
    used = does_not_fit(RuntimeError("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 512.0M of 0.5G hbm."))
    assert used is not None
    assert used.needed == used.available
    assert does_not_fit(RuntimeError("INVALID_ARGUMENT: something else")) is None
