"""GPUs that need not be there: their description, the forms of XLA's GPU compiler, and programs that it compiles."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jasper_jax.encoders.attention import attend, using
from jasper_jax.parameters.nodes import node_of
from jasper_jax.planning import machine
from jasper_jax.planning.chips import GPUS
from jasper_jax.planning.flops import is_product, matmul_flops, passes
from jasper_jax.planning.gpu import CARDS, describe, gpu_devices
from jasper_jax.planning.hlo import parse_module
from jasper_jax.planning.kernels import known_flops, read_kernel
from jasper_jax.planning.machine import Machine, parse_target
from jasper_jax.planning.traffic import moved_bytes
from jasper_jax.planning.work import analyse
from jasper_jax.runtime.errors import UserError

PRODUCT = """ENTRY %main (a: f32[64,32], b: f32[32,16]) -> f32[64,16] {
  %a = f32[64,32]{1,0} parameter(0)
  %b = f32[32,16]{1,0} parameter(1)
  ROOT %c = (f32[64,16]{1,0}, s8[33554432]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"]},"precision_config":{"operand_precision":["HIGHEST","HIGHEST"]}}}
}"""
ATTENTION = """ENTRY %main (q: bf16[2,512,12,128], k: bf16[2,512,2,128]) -> bf16[2,12,512,128] {
  %q = bf16[2,512,12,128]{3,2,1,0} parameter(0)
  %k = bf16[2,512,2,128]{3,2,1,0} parameter(1)
  ROOT %c = (bf16[2,12,512,128]{3,1,2,0}, u8[64]{0}) custom-call(%q, %k, %k), \
custom_call_target="__cudnn$fmhaSoftmax", \
backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", \
"dimensions": ["2", "12", "512", "512"]}}}
}"""


def test_a_product_of_cublas() -> None:
    module = parse_module(PRODUCT)
    call = module.entry.root
    assert is_product(call)
    assert matmul_flops(call, module.entry) == 2 * 64 * 32 * 16
    assert passes(call, module.entry, GPUS["h100"].float32_cost) == pytest.approx(989.4 / 66.9)
    assert moved_bytes(call, module.entry, module) == 4 * (64 * 32 + 32 * 16 + 64 * 16)  # without scratch memory


@pytest.mark.parametrize(("target", "products"), [("fmhaSoftmax", 2), ("fmhaSoftmaxBackward", 5)])
def test_attention_of_cudnn(target: str, products: int) -> None:
    module = parse_module(ATTENTION.replace("fmhaSoftmax", target))
    kernel = read_kernel(module.entry.root, module.entry)
    assert kernel is not None
    assert known_flops(kernel) == products * 2 * 2 * 12 * 512 * 512 * 128


def test_every_card_is_described() -> None:
    assert CARDS.keys() == GPUS.keys()
    text = describe(GPUS["a6000"])
    assert "cuda_compute_capability { major: 8 minor: 6 }" in text
    assert "device_memory_size: 51041271808" in text


def test_what_jax_may_take_of_a_card(monkeypatch) -> None:
    monkeypatch.delenv(machine.FRACTION, raising=False)
    card = GPUS["l4"].usable_memory
    assert parse_target("2xl4").chip.usable_memory == int(0.75 * card)
    monkeypatch.setenv(machine.FRACTION, ".9")
    assert parse_target("2xl4").chip.usable_memory == int(0.9 * card)
    for text in ("much", "0", "1.5"):
        monkeypatch.setenv(machine.FRACTION, text)
        with pytest.raises(UserError, match=f"{machine.FRACTION}: '{text}' is not a share"):
            parse_target("2xl4")


def test_several_nodes() -> None:
    target = parse_target("2x8xh100")
    assert isinstance(target, Machine)
    assert (target.nodes, target.devices, target.chips, str(target)) == (2, 16, 16, "2x8xh100")
    with pytest.raises(UserError, match="no network rate of l4 between nodes is published"):
        parse_target("2x8xl4")
    with pytest.raises(UserError, match="expected 1 to 4096 GPUs, got 8000"):
        parse_target("1000x8xh100")


def test_without_the_compiler_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"8xh100 needs XLA's GPU compiler.*pip install 'jasper-jax\[plan-gpu\]'"):
        gpu_devices(GPUS["h100"], 8)


@pytest.fixture
def compiler() -> None:
    pytest.importorskip("jax_cuda13_plugin")


@pytest.mark.parametrize("name", GPUS)
def test_every_card_can_be_compiled_for(compiler, name: str) -> None:
    devices = gpu_devices(GPUS[name], 2)
    assert len(devices) == 2
    assert devices[0].compute_capability == ".".join(map(str, CARDS[name].capability))


def test_the_nodes_of_described_gpus(compiler) -> None:
    devices = gpu_devices(GPUS["h100"], 8, 2)
    assert [node_of(device) for device in devices] == [0] * 4 + [1] * 4


def test_a_sharded_layer_for_two_gpus(compiler) -> None:
    """A projection sharded by its input, and attention: cuDNN's kernel, the all-reduce, and every operation."""
    target = Machine(GPUS["h100"], 2)
    mesh = target.mesh((1, 2, 1))
    B, L, H, d = 4, 128, 2, 64

    def layer(x, kernel):
        q = (x @ kernel).reshape(B, L, H, d)
        with using("cuda"):
            return attend(q, q, q).sum(axis=0)

    placed = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), (None, None))]
    shapes = [(B, L, H * d), (H * d, H * d)]
    arrays = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=p) for s, p in zip(shapes, placed)]
    with jax.set_mesh(mesh):
        compiled = jax.jit(layer, out_shardings=placed[1]).lower(*arrays).compile(target.compiler_options)
    found = analyse(compiled, mesh, device=target.chip)
    assert [kernel.target for kernel in found.kernels] == ["__cudnn$fmhaSoftmax"]
    assert not found.unknown_kernels
    products, attention = 2 * (B // 2) * L * (H * d) ** 2, 2 * 2 * (B // 2) * H * L * L * d
    assert found.flops == products + attention
    assert [(one.kind, one.axes) for one in found.collectives] == [("all-reduce", ("fsdp",))]
    assert found.serial_seconds >= 0.999 * found.hbm_bytes / target.chip.bandwidth
