"""Small programs whose operations and collectives are known on paper, and one compiled for a TPU and kept as text.

``PYTHONPATH=. python -m tests.planning.programs`` writes ``tpu_step.hlo.gz`` anew; it needs libtpu.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

STORED = Path(__file__).with_name("tpu_step.hlo.gz")
AXES = {"data": 2, "fsdp": 4, "tensor": 2}
TOPOLOGY = "v5e:4x4"
N, B, L, D, F, H = 3, 16, 128, 256, 512, 4


def array(mesh, shape, *parts, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*parts)))


def _layer(h, p):
    v = (h @ p["v"]).reshape(*h.shape[:2], H, D // H)
    s = jnp.einsum("blhe,bmhe->bhlm", v, v)
    h = h + jnp.einsum("bhlm,bmhe->blhe", jnp.tanh(s), v).reshape(h.shape)
    return h + jnp.tanh(h @ p["up"]) @ p["down"], None


def _loss(params, x):
    h, _ = jax.lax.scan(_layer, x, params)
    e = h.astype(jnp.float32).mean(1)
    return (jnp.matmul(e, e.T, precision="highest") ** 2).mean()


def compile_step(mesh):
    """The gradient of a three-layer encoder with attention and a loss on the batch's similarities, fully sharded."""
    params = {
        "v": array(mesh, (N, D, D), None, "fsdp", "tensor"),
        "up": array(mesh, (N, D, F), None, "fsdp", "tensor"),
        "down": array(mesh, (N, F, D), None, "tensor", "fsdp"),
    }
    x = array(mesh, (B, L, D), ("data", "fsdp"), None, None)
    shardings = jax.tree.map(lambda s: s.sharding, params)
    return jax.jit(jax.grad(_loss), out_shardings=shardings).lower(params, x).compile()


def step_flops() -> tuple[int, int]:
    """Of one device: (encoder in bfloat16, loss in float32). The backward pass is two products for each forward one."""
    products = B * L * N * 2 * (D * D + 2 * D * F)
    attention = N * 2 * (2 * B * L * L * D)
    devices = 16
    return 3 * (products + attention) // devices, 3 * 2 * B * B * D // devices


def stored_step() -> SimpleNamespace:
    """The step as the TPU compiler left it, with the interface of a compiled program that is read."""
    text = gzip.decompress(STORED.read_bytes()).decode()
    sizes = ("argument", "output", "alias", "temp", "generated_code")
    stats = SimpleNamespace(**{f"{name}_size_in_bytes": 0 for name in sizes})
    return SimpleNamespace(as_text=lambda: text, memory_analysis=lambda: stats)


def store_step(text: str) -> None:
    """Without what is not read, so that the file stays small; the schedule's hints are most of the text."""
    text = re.sub(r", backend_config=\{.*\}$", "", text, flags=re.M)
    text = re.sub(r"(?s)\n\nFileNames.*?\n\n\n", "\n\n", text)
    STORED.write_bytes(gzip.compress(re.sub(r" stack_frame_id=\d+", "", text).encode(), 9, mtime=0))


if __name__ == "__main__":
    from jasper_jax.planning.topology import Topology, topology_mesh

    store_step(compile_step(topology_mesh(Topology.parse(TOPOLOGY), AXES)).as_text())
