"""Collectives of sharded programs on eight simulated devices, and of a step compiled for 16 TPU chips."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from jasper_jax.planning.collectives import crossing
from jasper_jax.planning.work import analyse
from tests.planning import programs

CHILD = """
    import json
    import jax, jax.numpy as jnp
    from jax import lax
    from jax.sharding import NamedSharding, PartitionSpec as P
    from jasper_jax.planning.work import analyse

    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)

    def array(shape, *parts):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*parts)))

    def found(function, *arguments, out=None):
        shardings = None if out is None else NamedSharding(mesh, P(*out))
        analysis = analyse(jax.jit(function, out_shardings=shardings).lower(*arguments).compile(), mesh)
        fields = ("kind", "bytes", "executions", "devices", "axes", "sent")
        return {"flops": analysis.flops, "sent": sorted(map(str, analysis.sent_bytes.items())),
                "collectives": [[getattr(c, f) for f in fields] for c in analysis.collectives]}

    def mapped(function, spec):
        return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)

    x, w = array((64, 256), "data", "fsdp"), array((256, 512), "fsdp", "tensor")
    gathered = array((256, 512), "fsdp", None)
    every = P(("data", "fsdp", "tensor"))
    rows = array((512, 32), ("data", "fsdp", "tensor"), None)
    stack = array((5, 256, 256), None, "fsdp", "tensor")

    def scattered(x):
        return jnp.tile(lax.psum_scatter(x, "tensor", tiled=True), (2, 1))

    def scanned(x, stack):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, stack)[0]

    print(json.dumps({
        "contracted": found(lambda x, w: x @ w, x, w, out=("data", "tensor")),
        "gathered": found(lambda x, w: x @ w, array((64, 256), "data", None), gathered, out=("data", None)),
        "psum": found(mapped(lambda x: lax.psum(x, ("data", "tensor")), every), rows),
        "all_gather": found(mapped(lambda x: lax.all_gather(x, "fsdp").sum(0), every), rows),
        "psum_scatter": found(mapped(scattered, every), rows),
        "all_to_all": found(mapped(lambda x: lax.all_to_all(x, "data", 0, 0, tiled=True), every), rows),
        "ppermute": found(mapped(lambda x: lax.ppermute(x, "tensor", [(0, 1), (1, 0)]), every), rows),
        "scanned": found(scanned, array((64, 256), "data", "tensor"), stack, out=("data", "tensor")),
    }))
"""


@pytest.fixture(scope="module")
def found():
    """Programs of a mesh 2 x 2 x 2; the number of devices is fixed when JAX starts, hence a process of its own."""
    import os

    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def only(found: dict, name: str) -> SimpleNamespace:
    assert len(found[name]["collectives"]) == 1, found[name]
    fields = ("kind", "bytes", "executions", "devices", "axes", "sent")
    return SimpleNamespace(**dict(zip(fields, found[name]["collectives"][0])))


def test_a_product_over_a_sharded_dimension_is_summed_over_its_axis(found):
    one = only(found, "contracted")
    payload = (64 // 2) * (512 // 2) * 4
    assert (one.kind, one.axes, one.devices, one.executions) == ("all-reduce", ["fsdp"], 2, 1)
    assert (one.bytes, one.sent) == (payload, payload)  # 2 (n-1)/n of it
    assert found["contracted"]["flops"] == 2 * (64 // 2) * (256 // 2) * (512 // 2)


def test_a_sharded_weight_is_gathered(found):
    one = only(found, "gathered")
    assert (one.kind, one.axes, one.bytes, one.sent) == ("all-gather", ["fsdp"], 256 * 512 * 4, 256 * 512 * 4 / 2)


ROWS = 512 // 8 * 32 * 4


@pytest.mark.parametrize(
    ("name", "kind", "axes", "devices", "payload", "share"),
    [
        ("psum", "all-reduce", ["data", "tensor"], 4, ROWS, 2 * 3 / 4),
        ("all_gather", "all-gather", ["fsdp"], 2, 2 * ROWS, 1 / 2),
        ("psum_scatter", "reduce-scatter", ["tensor"], 2, ROWS, 1 / 2),
        ("all_to_all", "all-to-all", ["data"], 2, ROWS, 1 / 2),
        ("ppermute", "collective-permute", ["tensor"], 2, ROWS, 1),
    ],
)
def test_explicit_collectives(found, name, kind, axes, devices, payload, share):
    one = only(found, name)
    assert (one.kind, one.axes, one.devices, one.executions) == (kind, axes, devices, 1)
    assert (one.bytes, one.sent) == (payload, payload * share)


def test_collectives_of_a_scan_run_in_every_iteration(found):
    assert found["scanned"]["collectives"]
    assert {executions for _, _, executions, *_ in found["scanned"]["collectives"]} == {5}


@pytest.mark.parametrize(
    ("kind", "groups", "share"),
    [
        ("all-gather", [[0, 1], [2, 3]], 0.0),  # inside the nodes
        ("all-gather", [[0, 2], [1, 3]], 1 / 2),  # between them
        ("all-gather", [[0, 1, 2, 3]], 1 / 4),  # two devices of a node share the crossing
        ("all-to-all", [[0, 1, 2, 3]], 1 / 2),
        ("collective-permute", [[1, 2], [0, 1]], 1.0),
    ],
)
def test_what_a_collective_sends_between_nodes(kind: str, groups, share: float) -> None:
    assert crossing(kind, np.array([0, 0, 1, 1])[np.array(groups)]) == share


def test_a_tpu_step_counts_to_the_last_operation():
    devices = np.full((2, 4, 2), SimpleNamespace(platform="cpu", process_index=0), object)
    mesh = SimpleNamespace(shape=programs.AXES, axis_names=tuple(programs.AXES), devices=devices)
    analysis = analyse(programs.stored_step(), mesh)
    encoder, loss = programs.step_flops()
    assert analysis.flops == encoder + loss
    assert analysis.bf16_flops == encoder + 6 * loss
    assert not analysis.unknown_loops
    assert not analysis.unknown_kernels
    # Per layer and weight, in bfloat16 and cut by the tensor axis alone: gathered in the forward and in the backward
    # pass, the gradient scattered; the compiler spreads each over a chain of fusions, and calls the last an all-reduce.
    weights = (programs.D**2 // 2 * 2, programs.D * programs.F // 2 * 2, programs.D * programs.F // 2 * 2)
    seen: Counter = Counter()
    for one in analysis.collectives:
        if one.axes == ("fsdp",):
            assert one.devices == 4
            assert one.sent == one.bytes * 3 / 4
            seen[one.kind, one.bytes] += int(one.executions)
    for size, copies in Counter(weights).items():
        assert seen["all-gather", size] == 2 * copies * programs.N
        assert seen["reduce-scatter", size] == copies * programs.N
    assert sum(seen.values()) == 9 * programs.N
