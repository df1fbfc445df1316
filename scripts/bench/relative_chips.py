"""The relative-similarity loss alone, compiled for TPUs, without a TPU: its form, memory, compile time.

    python scripts/bench/relative_chips.py [--output docs/results/relative-chips.md]

Value and gradient for four heads, from [B, 1024] vectors, by the TPU compiler (extra `plan`). Which form is taken, and
whether the devices share its comparisons, is `jasper_jax.losses.relative`'s own choice.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from jasper_jax.planning.topology import Topology, prepare_compiler, topology_mesh

prepare_compiler()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from jasper_jax.losses import HeadLoss, distillation_losses  # noqa: E402
from jasper_jax.parameters.sharding import WIDE, constrain, mesh_axes, present  # noqa: E402
from jasper_jax.planning.work import analyse  # noqa: E402

HEADS, WIDTH = 4, 1024
BATCHES = (128, 512, 1024, 2048, 4096)
SLICES = ("v5e:4x4", "v5e:16x16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--topology", nargs="+", default=SLICES)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for text in options.topology:
        topology = Topology.parse(text)
        mesh = topology_mesh(topology, mesh_axes((1, topology.devices, 1)))
        for batch in options.batch:
            rows.append(measure(text, mesh, batch))
            print(" | ".join(rows[-1]), flush=True)
    if options.output:
        options.output.write_text(page(rows))


def measure(text: str, mesh: jax.sharding.Mesh, batch: int) -> list[str]:
    """One row of the table."""
    spec = {f"fc{n}": HeadLoss(cosine=0.0, similarity=0.0) for n in range(1, HEADS + 1)}

    def loss(students: dict[str, jax.Array], teacher: jax.Array) -> jax.Array:
        wide = {name: constrain(vectors, None, WIDE) for name, vectors in students.items()}
        terms = distillation_losses(wide, dict.fromkeys(wide, constrain(teacher, None, WIDE)), spec)
        return sum((found["total"] for found in terms.values()), jnp.float32(0))

    wide = NamedSharding(mesh, PartitionSpec(None, present(WIDE, mesh)))
    vectors = jax.ShapeDtypeStruct((batch, WIDTH), jnp.float32, sharding=wide)
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.value_and_grad(loss)).lower(dict.fromkeys(spec, vectors), vectors)
    began = time.monotonic()
    compiled = lowered.compile()
    seconds = time.monotonic() - began
    found = analyse(compiled, mesh)
    pairs = batch * (batch - 1) // 2
    tiled = "sort(" not in compiled.as_text()
    share = pairs**2 / (mesh.size if tiled else 1)
    sent = sum(one.total_sent for one in found.collectives)
    compared = f"{HEADS * share:.1e}" if tiled else "none: sorted, the same on every chip"
    return [
        *(text, f"{batch:,}", f"{pairs:,}", "tiled" if tiled else "partitioned", compared, f"{seconds:.0f}"),
        *(f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:,.0f}", f"{sent / 1e6:,.1f}"),
    ]


def page(rows: list[list[str]]) -> str:
    head = [
        "slice",
        "B",
        "pairs P",
        "form",
        "comparisons a chip and step",
        "compile s",
        "temporaries MiB",
        "sent MB a chip",
    ]
    table = "\n".join(
        f"| {' | '.join(row)} |"
        for row in (head, ["---", "---:", "---:", "---", "---:", "---:", "---:", "---:"], *rows)
    )
    return f"""# The relative loss on many chips

`python scripts/bench/relative_chips.py --output docs/results/relative-chips.md`, jax {jax.__version__}, on
{os.cpu_count()} cores, no TPU: the programs are compiled by the TPU compiler, not run. {HEADS} heads of {WIDTH:,}
dimensions against one teacher, value and gradient.

{table}

The tiled form makes P² comparisons a head. On a mesh the devices share them out from B = 92 on; the similarities
[B, B] themselves are the same on every chip (an explicit constraint). One TPU chip takes the partitioned form above
2^19 pairs (B = 1,024), n chips above n · 2^19: from 16 chips on, no batch up to 4,096.
"""


if __name__ == "__main__":
    main()
