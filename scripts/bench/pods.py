"""The large recipes' train steps on pods, without a pod: memory, communication, likely time, compile time.

    python scripts/bench/pods.py [--only TEXT ...] [--minutes M]

The steps are those of `jasper plan` (extras `plan` and `plan-gpu`), compiled and not run. A compiled row is a line of
docs/results/pods.jsonl, so that the command goes on where it was stopped; docs/results/pods.md is made of all rows.
Delete the rows to measure again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jasper_jax.planning.gpu import prepare_gpu_compiler
from jasper_jax.planning.topology import prepare_compiler
from jasper_jax.runtime.compilers import use_cpu

use_cpu()
prepare_compiler()
prepare_gpu_compiler()

import jax  # noqa: E402
from train_bench.report import Section, write  # noqa: E402

from jasper_jax.commands.validation import validate  # noqa: E402
from jasper_jax.planning.estimate import REACHED  # noqa: E402
from jasper_jax.planning.machine import parse_target  # noqa: E402
from jasper_jax.recipe.load import load_recipe  # noqa: E402
from jasper_jax.run import Run  # noqa: E402
from jasper_jax.training.plan_stages import plan_stage  # noqa: E402
from jasper_jax.training.run_mesh import mesh_needs, mesh_sizes  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "pods.md"
GIB = 2**30
STAGES = {"jasper_2b": 4, "stella_400m": 3}
TARGETS = ("8xh100", "v5e:4x4", "v5p:4x4x4", "2xv5e:4x4", "v6e:16x16", "v5p:8x8x16", "2x8xh100")


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: stage ``number`` (from 1) of a recipe on ``target``."""

    recipe: str
    target: str
    number: int
    overrides: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return " ".join([self.recipe, self.target, f"stage-{self.number}", *self.overrides])


def cases() -> Iterator[Case]:
    """All rows, those that matter most first. From 256 chips on, a text stage takes 8 texts a chip, at once: a batch of
    128 would leave chips without one. Jasper's third stage without recomputation says what a lighter ``remat`` costs.
    """
    for target in TARGETS:
        devices = parse_target(target).devices
        for recipe, stages in STAGES.items():
            for number in range(1, stages + 1):
                larger = (f"stages.{number - 1}.batch_size={8 * devices}", "training.micro_batch=null")
                yield Case(recipe, target, number, larger if devices >= 256 and number < 4 else ())
        larger = (f"stages.2.batch_size={8 * devices}",) if devices >= 256 else ()
        yield Case("jasper_2b", target, 3, (*larger, "student.remat=none"))
    yield Case("jasper_2b", "v5e:4x4", 3, ("teachers.0.mode=online",))


COLUMNS = (
    "stage",
    "batch",
    "mesh",
    "state GiB",
    "peak of usable GiB",
    "inside GB",
    "between GB",
    "TFLOP",
    "over the model's",
    "floor ms",
    "by",
    f"likely ms at {REACHED:.0%}",
    f"likely MFU at {REACHED:.0%}",
    "compile s",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", help="compile only rows whose key has one of these, e.g. 'jasper_2b v5e:4x4'"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no row after this many minutes")
    options = parser.parse_args()
    rows_file, began = PAGE.with_suffix(".jsonl"), time.monotonic()
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()] if rows_file.exists() else []
    done = {row["key"] for row in rows}
    for case in cases():
        wanted = not options.only or any(part in case.key for part in options.only)
        if case.key in done or not wanted or time.monotonic() - began > 60 * options.minutes:
            continue
        rows.append(measure(case))
        with rows_file.open("a") as out:
            out.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    write_page({row["key"]: row for row in rows})
    return 0


def measure(case: Case) -> dict[str, Any]:
    """Lower and compile one stage's step."""
    overrides = list(case.overrides)
    recipe = load_recipe(f"configs/{case.recipe}.yaml", overrides)
    run = Run(recipe, describe=True)
    student, _ = validate(run)
    target, stage = parse_target(case.target), run.stages[case.number - 1]
    sizes = mesh_sizes(recipe.mesh, target.devices, [stage], mesh_needs(student, run.vectors), target.nodes)
    plan = plan_stage(recipe, run.vectors, stage, student, target.mesh(sizes), target)
    row: dict[str, Any] = {
        "key": case.key,
        **dataclasses.asdict(case),
        "jax": jax.__version__,
        "batch": stage.batch_size,
        "mesh": list(sizes),
        "state_bytes": sum(plan.stage.state_bytes.values()),
        "usable_bytes": target.chip.per_device.usable_memory,
        "model_flops": plan.stage.model_flops,
        "compile_seconds": round(plan.compile_seconds, 1),
    }
    if plan.analysis is None or plan.estimate is None:
        assert plan.too_large is not None
        return {**row, "peak_bytes": plan.too_large.needed}
    return {
        **row,
        "peak_bytes": plan.estimate.needed_bytes,
        "inside_bytes": sum(one.inside * one.executions for one in plan.analysis.collectives),
        "between_bytes": plan.analysis.between_bytes,
        "flops": plan.analysis.flops,
        "over_model": None
        if case.overrides[:1] == ("teachers.0.mode=online",)
        else plan.analysis.flops * target.devices / plan.stage.model_flops,
        "floor_seconds": plan.estimate.step_seconds,
        "bound_by": plan.estimate.bound_by,
        "likely_seconds": plan.estimate.likely_seconds,
        "likely_mfu": plan.likely_mfu(target),
    }


def write_page(rows: dict[str, dict[str, Any]]) -> None:
    """docs/results/pods.md: a table for each recipe and target, and the rows that are missing."""
    sections, missing = [], []
    listed = list(cases())
    for recipe, target in dict.fromkeys((case.recipe, case.target) for case in listed):
        own = [case for case in listed if (case.recipe, case.target) == (recipe, target)]
        missing += [case.key for case in own if case.key not in rows]
        if found := [cells(rows[case.key]) for case in own if case.key in rows]:
            sections.append(Section(f"{recipe} on {target}", COLUMNS, found))
    introduction = [
        f"Steps of texts of 512 tokens, gradients summed in float32, jax {jax.__version__}: compiled for",
        "these machines by libtpu and XLA:GPU on a CPU, and never run. All figures are of one device and step.",
        "State is parameters, optimizer and teachers; usable is what a program may take (of a GPU, the 75% that",
        "JAX takes). Inside and between: bytes that leave a device inside its node or slice, and for another one.",
        "TFLOP are matrix products of the program, then over those that the model needs (recomputation, filled",
        "rows and losses are the rest). The floor is the largest of compute, memory, links and network at the",
        "published rates. Likely is a guess, not a measurement: kernels run one after another at",
        f"{REACHED:.0%} of the rates and hide all communication; MFU refers to the model's operations, every",
        "text at its full length.",
        *(["", "Not compiled yet: " + "; ".join(missing) + "."] if missing else []),
    ]
    write(PAGE, "Many chips, by their compilers", introduction, sections, "scripts/bench/pods.py")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the page."""
    settings = [one for one in row["overrides"] if not re.search("batch_size|micro_batch", one)]
    start = (
        " ".join([f"stage-{row['number']}", *settings]),
        f"{row['batch']:,}",
        "×".join(map(str, row["mesh"])),
        f"{row['state_bytes'] / GIB:.3f}",
        f"{row['peak_bytes'] / GIB:.2f} of {row['usable_bytes'] / GIB:.2f}",
    )
    if "flops" not in row:
        return (*start, *[""] * 4, "does not fit", *[""] * 3, f"{row['compile_seconds']:.0f}")
    return (
        *start,
        f"{row['inside_bytes'] / 1e9:.2f}",
        f"{row['between_bytes'] / 1e9:.2f}",
        f"{row['flops'] / 1e12:.3f}",
        "" if row["over_model"] is None else f"{row['over_model']:.2f}",
        f"{row['floor_seconds'] * 1e3:,.0f}",
        row["bound_by"],
        f"{row['likely_seconds'] * 1e3:,.0f}",
        f"{row['likely_mfu']:.0%}",
        f"{row['compile_seconds']:.0f}",
    )


if __name__ == "__main__":
    sys.exit(main())
