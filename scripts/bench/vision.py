"""How well a text student learns to see: variants of configs/quickstart_vision.yaml side by side, one table.

    python scripts/bench/vision.py [--student runs/quickstart/export] [--steps 20] [--only LABEL ...]

All with the same pairs, the same step budget and, but where it is the question, the same settings; each variant in a
run folder of its own, so that killed or run again it continues. Settings were chosen on held-out pairs, which are not
the 500 of the test. The table goes to ``docs/results/vision.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RECIPE = "configs/quickstart_vision.yaml"
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}
TRAINED = "stages.0.train=[vision/layers[-4:]/**{}]"
WITH_PROJECTOR = TRAINED.format(",projector/**")
FASTER = "stages.0.learning_rate=3e-4"
"""The rate of what begins at random."""


@dataclass(frozen=True)
class Variant:
    label: str
    changes: tuple[str, ...] = ()
    seed: int = 0


VARIANTS = (
    Variant("joint projector, closed form (the recipe)"),
    Variant("one matrix for every token, closed form", ("student.vision.projector=linear",)),
    Variant(
        "joint projector, random start, trained too",
        ("student.vision.projector_init=random", WITH_PROJECTOR, FASTER),
    ),
    Variant("parameter-free pooler", ("student.vision.projector=none", FASTER)),
    Variant("random backbone, closed form", ("student.vision.weights=random", FASTER)),
    *(
        Variant(
            f"with the contrastive loss, seed {seed}",
            ("stages.0.contrastive=1.0", TRAINED.format(",contrastive/**"), "images.seed=0"),
            seed,
        )
        for seed in (0, 1, 2)
    ),
    *(Variant(f"without it, seed {seed}", ("images.seed=0",), seed) for seed in (1, 2)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="runs/quickstart/export", help="the text student that learns to see")
    parser.add_argument("--runs", type=Path, default=Path("runs/vision"), help="folder of the variants' runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/vision.md"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="*", help="labels of the variants to run; the table has those that are done")
    options = parser.parse_args()
    for number, variant in enumerate(VARIANTS):
        if not options.only or variant.label in options.only:
            work(options, folder_of(options, number), variant)
    done = [(v, f) for n, v in enumerate(VARIANTS) if (f := folder_of(options, n)) and is_done(f, changes(options, v))]
    options.output.write_text(page(done, options))
    return 0


def folder_of(options: argparse.Namespace, number: int) -> Path:
    return options.runs / f"{number:02d}"


def changes(options: argparse.Namespace, variant: Variant) -> list[str]:
    return [
        f"student.model={options.student}",
        f"stages.0.steps={options.steps}",
        f"stages.0.warmup_steps={max(options.steps // 6, 1)}",
        "training.evaluate_every=null",
        "training.save_every=1000",
        "evaluation.retrieval=[]",
        "evaluation.similarity=[]",
        f"seed={variant.seed}",
        *variant.changes,
    ]


def is_done(folder: Path, wanted: Sequence[str]) -> bool:
    done = folder / "vision.json"
    return done.is_file() and json.loads(done.read_text()) == list(wanted)


def work(options: argparse.Namespace, folder: Path, variant: Variant) -> None:
    """A variant trained and evaluated; one that ended before is left as it is."""
    wanted = changes(options, variant)
    if is_done(folder, wanted):
        return
    print(f"== {variant.label}", flush=True)
    for command in ("train", "evaluate"):
        arguments = [sys.executable, "-m", "jasper_jax.cli", command, RECIPE, f"run_dir={folder}", *wanted]
        subprocess.run(arguments, check=True, env=ENVIRONMENT)
    (folder / "vision.json").write_text(json.dumps(wanted))


def rows(folder: Path) -> list[dict[str, Any]]:
    """The student's rows at the largest dimension: before the stage, after it."""
    found = [row for row in json.loads((folder / "evaluation.json").read_text())["rows"] if row.get("images")]
    most = max(row["dim"] for row in found)
    return [row for row in found if row["dim"] == most]


def seconds_a_step(folder: Path, batch: int = 64) -> float:
    """The median over the steps after the first five."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [e["texts_per_second"] for e in events if e["event"] == "step" and e["step"] > 5]
    return float(np.median([batch / rate for rate in rates])) if rates else float("nan")


def page(done: Sequence[tuple[Variant, Path]], options: argparse.Namespace) -> str:
    lines = [
        "# A text student learns to see",
        "",
        f"`python scripts/bench/vision.py --steps {options.steps}`: {RECIPE} with {options.steps} steps of 64 pictures,"
        " on two cores. Text to image; 500 pictures of the test, 128 held out, neither trained on; 1,152 dimensions."
        " Chance: Recall@10 0.020, Recall@1 0.002. Nothing was chosen by what the test says.",
        "",
        "| | test R@1, start | R@10, start | test R@1, trained | R@10, trained | held out R@10, trained | s a step |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for variant, folder in done:
        first, *_, last = (row["images"] for row in rows(folder))
        cells = [
            *(one["test"]["text_to_image"][f"recall{k}"] for one in (first, last) for k in (1, 10)),
            last["held_out"]["text_to_image"]["recall10"],
        ]
        step = seconds_a_step(folder)
        lines.append(f"| {variant.label} | {' | '.join(f'{cell:.3f}' for cell in cells)} | {step:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
