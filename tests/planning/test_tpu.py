"""Programs compiled by the TPU compiler itself; no TPU is needed, only libtpu."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jasper_jax.planning.estimate import estimate
from jasper_jax.planning.links import mesh_links
from jasper_jax.planning.topology import Topology, topology_devices, topology_mesh
from jasper_jax.planning.work import analyse
from jasper_jax.runtime.errors import UserError
from tests.planning import programs

pytest.importorskip("libtpu")


@pytest.mark.parametrize(
    ("text", "axes", "sides"),
    [
        ("v5e:1x1", {"data": 1, "fsdp": 1, "tensor": 1}, {"data": [], "fsdp": [], "tensor": []}),
        ("v5e:4x4", {"data": 1, "fsdp": 4, "tensor": 4}, {"data": [], "fsdp": [4], "tensor": [4]}),
        ("v5e:16x16", {"data": 1, "fsdp": 256, "tensor": 1}, {"data": [], "fsdp": [16, 16], "tensor": []}),
        ("v5e:16x16", {"data": 2, "fsdp": 32, "tensor": 4}, {"data": [2], "fsdp": [2, 16], "tensor": [4]}),
        ("v4:2x2x2", {"data": 2, "fsdp": 2, "tensor": 2}, {"data": [2], "fsdp": [2], "tensor": [2]}),
        ("v5p:4x4x4", {"data": 4, "fsdp": 16, "tensor": 1}, {"data": [4], "fsdp": [4, 4], "tensor": []}),
        ("v6e:8x16", {"data": 2, "fsdp": 64, "tensor": 1}, {"data": [2], "fsdp": [4, 16], "tensor": []}),
        ("tpu7x:2x2x1", {"data": 2, "fsdp": 2, "tensor": 2}, {"data": [2], "fsdp": [2], "tensor": []}),
    ],
)
def test_every_generation_gives_a_mesh(text, axes, sides):
    mesh = topology_mesh(Topology.parse(text), axes)
    assert dict(mesh.shape) == axes
    assert len({d.id for d in mesh.devices.flat}) == mesh.size
    found = mesh_links(mesh).sides
    assert {axis: sorted(span for _, span in found[axis]) for axis in axes} == sides


def test_the_compiler_has_the_last_word():
    with pytest.raises(UserError, match="refused by the TPU compiler"):
        topology_devices(Topology(Topology.parse("v5e:4x4").chip, (3, 3)))


def test_the_stored_step_is_what_the_compiler_makes():
    """If not, a new compiler writes new forms: run tests.planning.programs, and see that the counts still hold."""
    slice_ = Topology.parse(programs.TOPOLOGY)
    mesh = topology_mesh(slice_, programs.AXES)
    compiled = programs.compile_step(mesh)
    analysis = analyse(compiled, mesh)
    encoder, loss = programs.step_flops()
    assert analysis.flops == encoder + loss
    assert analysis.bf16_flops == encoder + 6 * loss
    weights = programs.N * (programs.D**2 + 2 * programs.D * programs.F)
    inputs = programs.B * programs.L * programs.D
    assert analysis.memory.arguments == 2 * (weights // 8 + inputs // 8)  # bfloat16
    assert analysis.sent_bytes == analyse(programs.stored_step(), mesh).sent_bytes
    floors = estimate(analysis, slice_.chip, programs.B)
    assert floors.compute_seconds == analysis.bf16_flops / slice_.chip.peak_flops
    assert floors.fits


def test_a_scan_of_a_tpu_program_reads_every_layer_once():
    mesh = topology_mesh(Topology.parse("v5e:1x1"), {"data": 1, "fsdp": 1, "tensor": 1})
    layers, width, rows = 40, 2048, 256
    stack = programs.array(mesh, (layers, width, width))
    x = programs.array(mesh, (rows, width))

    def forward(x, stack):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, stack)[0]

    analysis = analyse(jax.jit(forward).lower(x, stack).compile(), mesh)
    assert analysis.flops == 2 * rows * width * width * layers
    weights = layers * width * width * 2
    assert weights <= analysis.hbm_bytes < 1.1 * weights


def test_flash_attention_kernels_are_counted():
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention

    mesh = topology_mesh(Topology.parse("v5e:1x1"), {"data": 1, "fsdp": 1, "tensor": 1})
    batch, heads, length, width = 2, 4, 512, 128
    q = programs.array(mesh, (batch, heads, length, width))
    gradient = jax.grad(lambda *qkv: flash_attention(*qkv).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    analysis = analyse(jax.jit(gradient).lower(q, q, q).compile(), mesh)
    assert len(analysis.kernels) == 3
    assert not analysis.unknown_kernels
    assert analysis.flops == pytest.approx((2 + 4 + 3) * 2 * batch * heads * length**2 * width, rel=0.01)
    blind = analyse(jax.jit(gradient).lower(q, q, q).compile(), mesh, kernel_flops=lambda kernel: None)
    assert len(blind.unknown_kernels) == 3
