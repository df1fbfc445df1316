"""A recipe's train steps on pods, without a pod: memory, communication, operations, compile time.

    python scripts/bench/pods.py [--only TEXT ...] [--output docs/results/pods.md]

The steps are those of `jasper plan`, compiled by the TPU compiler (extra `plan`), not run. Each case compiles what its
line says of configs/jasper_2b.yaml; a row is a stage.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jasper_jax.planning.topology import Topology, prepare_compiler

prepare_compiler()

import jax  # noqa: E402
from rich.console import Console  # noqa: E402
from train_bench.report import Section, show, write  # noqa: E402

from jasper_jax.check import validate  # noqa: E402
from jasper_jax.recipe.load import load_recipe  # noqa: E402
from jasper_jax.recipe.stages import ResolvedStage  # noqa: E402
from jasper_jax.run import Run  # noqa: E402
from jasper_jax.student.student import Student  # noqa: E402
from jasper_jax.training.lowering import LoweredStep, lower_step  # noqa: E402
from jasper_jax.training.plan_stages import plan_stage  # noqa: E402
from jasper_jax.training.run_mesh import attention_heads, mesh_sizes  # noqa: E402

RECIPE = "configs/jasper_2b.yaml"
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """``stages``: their numbers; None for all."""

    title: str
    topology: str
    overrides: tuple[str, ...] = ()
    stages: tuple[int, ...] | None = None


TEXT_BATCHES = tuple(f"stages.{stage}.batch_size={{}}" for stage in range(3))
CASES = (
    Case("16 chips, the recipe: 8 texts a chip", "v5e:4x4"),
    Case("256 chips, the recipe", "v5e:16x16"),
    Case("256 chips, 8 texts a chip", "v5e:16x16", tuple(one.format(2048) for one in TEXT_BATCHES), (1, 2, 3)),
    Case("256 chips, 4,096 texts", "v5e:16x16", ("stages.2.batch_size=4096",), (3,)),
    Case("16 chips, NV-Embed-v2 in the step", "v5e:4x4", ("teachers.0.mode=online",), (3,)),
)
COLUMNS = (
    "stage",
    "batch",
    "rows",
    "mesh",
    "state GiB",
    "peak GiB",
    "sent GB",
    "operations",
    "of the analytic count",
    "least ms a step",
    "compile s",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", help="parts of the titles of the cases to compile")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    console, sections = Console(width=160), []
    for case in CASES:
        if options.only and not any(part in case.title for part in options.only):
            continue
        run = Run(load_recipe(RECIPE, list(case.overrides)), describe=True)
        student, _ = validate(run)
        rows = [
            row(run, stage, student, Topology.parse(case.topology))
            for stage in run.stages
            if case.stages is None or stage.index + 1 in case.stages
        ]
        changed = f" ({', '.join(case.overrides)})" if case.overrides else ""
        sections.append(Section(f"{case.title}: {case.topology}{changed}", COLUMNS, rows))
        show(sections[-1], console)
    introduction = [
        f"{RECIPE}, texts of 512 tokens, jax {jax.__version__}, compiled on this machine without a TPU. All figures",
        "are of one chip and step: state is parameters, optimizer and teachers; peak is of 15.75 GiB usable; sent is",
        "what leaves the chip; rows of images are filled up to the devices; operations are those of matrix products in",
        "the compiled program, then over the count by hand of all rows (a frozen layer once, a trained one three",
        "times, and once more where it is recomputed); the least time is the largest floor of compute, memory and",
        "links at the chip's published rates.",
    ]
    write(options.output, "Many chips, by the TPU compiler", introduction, sections)
    return 0


def row(run: Run, stage: ResolvedStage, student: Student, topology: Topology) -> tuple[str, ...]:
    sizes = mesh_sizes(run.recipe.mesh, topology.devices, run.stages, attention_heads(student, run.vectors))
    mesh = topology.mesh(sizes)
    plan = plan_stage(run.recipe, run.vectors, stage, student, mesh, topology)
    assert plan.analysis is not None, f"{stage.name} does not fit on {topology}"
    assert plan.estimate is not None
    step = lower_step(run.recipe, run.vectors, stage, student, mesh, "tpu")  # seconds, beside compiling it
    by_hand = analytic(stage, student, step) / topology.devices
    return (
        stage.name,
        f"{stage.batch_size:,}",
        f"{step.rows:,}",
        "×".join(map(str, sizes)),
        f"{sum(plan.stage.state_bytes.values()) / GIB:.3f}",
        f"{plan.estimate.needed_bytes / GIB:.2f}",
        f"{sum(one.total_sent for one in plan.analysis.collectives) / 1e9:.2f}",
        f"{plan.analysis.flops:.3e}",
        "" if step.teachers else f"{plan.analysis.flops / by_hand:.2f}",
        f"{plan.estimate.step_seconds * 1e3:,.0f}",
        f"{plan.compile_seconds:.0f}",
    )


def analytic(stage: ResolvedStage, student: Student, step: LoweredStep) -> float:
    """Operations of the step's matrix products over all chips, counted by hand."""
    text, vision_model, B = student.encoder.config, student.vision_model, stage.batch_size
    trains_text = any(name.startswith("encoder/") for name in step.trained)
    tokens, total = step.rows * step.length, 0.0
    # A frozen encoder under a trained one has a forward pass alone; over what is trained, the gradient passes through.
    frozen = (2 + (student.remat == "full")) if stage.learns_from("images") else 1
    width = text.num_heads * (text.head_dim or text.hidden_size // text.num_heads)
    total += times(step.trained, "encoder/", tokens, 4 * step.length * width) * (3 + (student.remat == "full"))
    total += times(step.frozen, "encoder/", tokens, 4 * step.length * width) * frozen
    if stage.learns_from("images") and vision_model is not None:
        vision = vision_model.encoder.config
        patches = (vision.image_size // vision.patch_size) ** 2
        one = times(step.trained, "vision/layers", step.rows * patches, 4 * patches * vision.hidden_size)
        total += one * (3 + (vision_model.remat == "full"))
        total += (
            2 * step.rows * patches * 3 * vision.patch_size**2 * vision.hidden_size * 2
        )  # no gradient of the pixels
    heads = [student.heads[name] for name in stage.heads]
    pooled = text.hidden_size
    products = 2 + (
        trains_text or stage.learns_from("images")
    )  # forward, the heads' gradient or the caption's vector, and back
    for head in heads:
        total += products * 2 * B * pooled * head.dim + sum(3 * 2 * B * B * dim for dim in head.dims)
    return total


def times(leaves: Mapping[str, jax.ShapeDtypeStruct], prefix: str, tokens: int, attention: int) -> float:
    """One forward pass of the layers among ``leaves``."""
    kernels = {n: x.shape for n, x in leaves.items() if n.startswith(prefix) and "layers" in n and n.endswith("kernel")}
    layers = max((shape[0] for name, shape in kernels.items() if "attention/output" in name), default=0)
    return tokens * (2.0 * sum(math.prod(shape) for shape in kernels.values()) + layers * attention)


if __name__ == "__main__":
    sys.exit(main())
