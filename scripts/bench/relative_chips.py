"""The relative-similarity loss alone, compiled for TPUs, without a TPU: its form, time by the compiler, memory.

    python scripts/bench/relative_chips.py [--output docs/results/relative-chips.md]

Value and gradient for four heads, from [B, 1024] vectors, by the TPU compiler (extra `plan`). Which form is taken is
`jasper_jax.losses.relative`'s own choice; where that is the merging form, the tiled one is compiled beside it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from tpu_bundles import schedule_cycles, write_schedules

from jasper_jax.planning.topology import Topology, prepare_compiler, topology_mesh

SCHEDULES = Path(tempfile.mkdtemp())
write_schedules(SCHEDULES)
prepare_compiler()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from jasper_jax.losses import HeadLoss, distillation_losses, relative  # noqa: E402
from jasper_jax.parameters.sharding import AXES, WIDE, constrain, present  # noqa: E402
from jasper_jax.planning.cycles import estimated_cycles  # noqa: E402
from jasper_jax.planning.estimate import estimate  # noqa: E402
from jasper_jax.planning.work import analyse  # noqa: E402
from jasper_jax.training.run_mesh import MOST_SHARDS  # noqa: E402

HEADS, WIDTH = 4, 1024
SIZES = {"v5e:4x4": (128, 512), "v5e:16x16": (128, 2048), "v5p:8x8x16": (8192,)}
"""Slice -> batches: the recipe's, and 8 texts a chip or more."""
TILED_AT_MOST = 2048
"""Larger batches are not compiled in the tiled form too."""
CLOCK = {"v5e": 1.5e9, "v5p": 1.75e9}
"""Cycles a second: the 197 Tflop/s of a v5e are 4 matrix units of 128 x 128 products and sums, the 459 of a v5p 8."""
STEP_FLOPS = 4.122e13 / 8
"""Operations of matrix products per text in stage 3 of configs/jasper_2b.yaml (docs/results/pods.md)."""
TILED = relative.TILED_COMPARISONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for text in options.topology:
        topology = Topology.parse(text)
        shards = min(topology.devices, MOST_SHARDS)
        mesh = topology_mesh(topology, dict(zip(AXES, (topology.devices // shards, shards, 1))))
        for batch in SIZES[text]:
            both = batch <= TILED_AT_MOST and (batch * (batch - 1) // 2) ** 2 > TILED * mesh.size
            for tiled in (False, True) if both else (False,):
                relative.TILED_COMPARISONS = 1 << 62 if tiled else TILED
                rows.append(measure(topology, mesh, batch))
                print(f"| {' | '.join(rows[-1])} |", flush=True)
    if options.output:
        options.output.write_text(page(rows))
    shutil.rmtree(SCHEDULES)


def measure(topology: Topology, mesh: jax.sharding.Mesh, batch: int) -> list[str]:
    """One row of the table."""
    spec = {f"fc{n}": HeadLoss(cosine=0.0, similarity=0.0) for n in range(1, HEADS + 1)}

    def loss(students: dict[str, jax.Array], teacher: jax.Array) -> jax.Array:
        wide = {name: constrain(vectors, None, WIDE) for name, vectors in students.items()}
        terms = distillation_losses(wide, dict.fromkeys(wide, constrain(teacher, None, WIDE)), spec)
        return sum((found["total"] for found in terms.values()), jnp.float32(0))

    wide = NamedSharding(mesh, PartitionSpec(None, present(WIDE, mesh)))
    vectors = jax.ShapeDtypeStruct((batch, WIDTH), jnp.float32, sharding=wide)
    jax.clear_caches()  # the form is chosen while tracing
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.value_and_grad(loss)).lower(dict.fromkeys(spec, vectors), vectors)
    for path in SCHEDULES.iterdir():
        path.unlink()
    began = time.monotonic()
    compiled = lowered.compile()
    seconds = time.monotonic() - began
    text = compiled.as_text()
    links = estimate(analyse(compiled, mesh), topology.chip, batch).interconnect_seconds
    counted = estimated_cycles(text)
    if counted.unknown_loops:
        raise AssertionError(f"loops of unknown length: {counted.unknown_loops}")
    scheduled = sum(
        times * schedule_cycles(SCHEDULES, name)
        for name, (instruction, times) in counted.uncounted.items()
        if instruction.opcode == "sort" or "pallas_call" in instruction.op_name
    )
    clock = CLOCK[topology.chip.name]
    total = (counted.estimated + scheduled) / clock + links
    products = STEP_FLOPS * batch / mesh.size / topology.chip.peak_flops
    form = "merged" if "bitonic_merge" in text else "partitioned" if "sort(" in text else "tiled"
    times = (counted.estimated / clock, scheduled / clock, links, total, products)
    return [
        *(str(topology), f"{batch:,}", f"{batch * (batch - 1) // 2:,}", form),
        *(f"{1e3 * value:,.1f}" for value in times),
        *(f"{100 * total / products:,.0f}%", f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:,.0f}"),
        f"{seconds:.0f}",
    ]


def page(rows: list[list[str]]) -> str:
    head = ["slice", "B", "pairs P", "form", "fusions ms", "sorts and kernels ms", "links ms", "total ms"]
    head += ["step's products ms", "share", "temporaries MiB", "compile s"]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, [*["---"] * 4, *["---:"] * 8], *rows))
    return f"""# The relative loss on many chips

`python scripts/bench/relative_chips.py --output docs/results/relative-chips.md`, jax {jax.__version__}, on
{os.cpu_count()} cores, no TPU: the programs are compiled by the TPU compiler, not run, on the mesh of `mesh: auto`.
{HEADS} heads of {WIDTH:,} dimensions against one teacher, value and gradient, one chip's time. Fusions: the compiler's
estimated cycles, at 1.5 GHz (v5p 1.75). Sorts and kernels, for which it gives no estimate: the bundles of its schedule,
times the loops around them. Links: bytes sent at the published rate. The total takes nothing to overlap, and counts
neither latency nor waiting for memory. The step's products are those of stage 3 of configs/jasper_2b.yaml at the chip's
peak ([pods](pods.md)).

{table}

The tiled form makes P² comparisons a head; the devices share them out from B = 92 on. The merging form
(`losses/relative_merged.py`) counts while it sorts, in a network of O(P log² P) steps that the devices share; on TPU it
is taken above 2^26 comparisons a device and head. There the similarities too lie over the devices by rows
(`losses/relative_rows.py`), where their number is a power of 2 that divides B. The partitioned form gathers P log P
times, the same on every chip: it is left to CPUs and GPUs.
"""


if __name__ == "__main__":
    main()
