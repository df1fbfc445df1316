"""The quality protocol: trains the variants of a question, each on the same texts, and writes what came out.

    python scripts/bench/quality.py quickstart|quickstart_full    the recipe as it stands, on Reddit
    python scripts/bench/quality.py seeds                         six layers, three seeds, on Reddit
    python scripts/bench/quality.py init|heads|losses|batch       one thing changed at a time, on Amazon
    python scripts/bench/quality.py pairs                         the quickstart, and labelled pairs after it, on Reddit
    python scripts/bench/quality.py all

Variants share the text store and the teachers' vectors of ``--stores`` (made there by the first that needs them).
Killed or run again, it continues; what is done is not done again. Results go to ``docs/results/``.

Amazon is where settings are chosen, Reddit where the claims are reported: nothing is chosen by what Reddit says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pair_report import write_pairs
from quality_report import write_curves, write_dimensions, write_run, write_seeds, write_table

SIX, PAIRS = "configs/quickstart_6layer.yaml", "configs/quickstart_pairs.yaml"
AMAZON = (
    "evaluation.retrieval=[{name: amazon, asset: squad-shifts, split: amazon, passages: 400, queries_per_passage: 2}]"
)
REDDIT = "evaluation.retrieval=[{name: reddit, asset: squad-shifts, split: reddit}]"
LAST = "evaluation.stages=last"
TEXTS, RATE = 8192, 2e-4
"""Texts of stage 3, and its rate at batch 128, where variants are compared with each other."""


@dataclass(frozen=True)
class Variant:
    label: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """``variants`` of ``recipe``, all with the ``common`` changes."""

    title: str
    variants: tuple[Variant, ...]
    common: tuple[str, ...]
    note: str


def short(batch: int = 128) -> tuple[str, ...]:
    """Stage 3 alone, from the heads' start, on ``TEXTS`` texts: the rate goes by the square root of the batch size."""
    steps = TEXTS // batch
    return (
        AMAZON,
        LAST,
        "training.evaluate_every=null",
        "training.save_every=1000",
        "stages.0.steps=0",
        "stages.1.steps=0",
        f"stages.2.steps={steps}",
        f"stages.2.batch_size={batch}",
        f"stages.2.warmup_steps={max(1, steps // 8)}",
        f"stages.2.learning_rate={RATE * (batch / 128) ** 0.5:.3g}",
    )


ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}
"""Large pages for the memory of the train step, as in scripts/environment.sh."""
WHOLE = ("quickstart", "quickstart_full")
BASE = Variant("all losses, ridge start, heads taught by the teachers, B=128")
WEIGHTS = "losses={{cosine: {}, similarity: {}, relative: {}}}"

QUESTIONS = {
    "init": Question(
        "Heads from the closed-form start or at random",
        (BASE, Variant("random heads", tuple(f"heads.fc{i}.init=random" for i in (1, 2, 3)))),
        short(),
        "`init: ridge` against `init: random`, everything else equal: stage 3 alone, without the stages before it.",
    ),
    "heads": Question(
        "Short heads taught by the teachers or by the student's long head",
        (BASE, Variant("short heads taught by fc1", ("heads.fc2.target=fc1", "heads.fc3.target=fc1"))),
        short(),
        "The paper proposes self-distillation of the short heads (its section 2.4) and does not evaluate it.",
    ),
    "losses": Question(
        "Each of the three losses left out",
        (
            BASE,
            Variant("without cosine", (WEIGHTS.format(0, 200, 20),)),
            Variant("without similarity", (WEIGHTS.format(10, 0, 20),)),
            Variant("without relative", (WEIGHTS.format(10, 200, 0),)),
        ),
        short(),
        "Random heads would make this a question about the start; these begin with the closed form.",
    ),
    "batch": Question(
        "Batch sizes at the same number of texts",
        tuple(Variant(f"B={b}", short(b)) if b != 128 else BASE for b in (64, 128, 512, 1024)),
        short(),
        "The learning rate goes with the square root of the batch size, so the two change together. The relative loss"
        " compares 2 million pairs of pairs at B=64 and 137 billion at B=1024; it is exact at each.",
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=[*WHOLE, "seeds", "pairs", *QUESTIONS, "all"])
    parser.add_argument("--stores", default="runs/quickstart_full", help="run folder whose stores are shared")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"), help="folder of the variants' runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in [*WHOLE, "seeds", "pairs", *QUESTIONS] if options.question == "all" else [options.question]:
        if name in WHOLE:
            recipe = f"configs/{name}.yaml"
            subprocess.run([sys.executable, "-m", "jasper_jax.cli", "run", recipe], check=True, env=ENVIRONMENT)
            write_run(options.output / f"{name}.md", Path("runs") / name, f"jasper run {recipe}")
        elif name == "seeds":
            folders = [work(options, f"six-{seed}", (f"seed={seed}", LAST)) for seed in range(options.seeds)]
            write_seeds(options.output / "six-layers.md", folders, f"python scripts/bench/quality.py {name}")
        elif name == "pairs":
            pairs(options)
        else:
            answer(options, name, QUESTIONS[name])
    return 0


def answer(options: argparse.Namespace, name: str, question: Question) -> None:
    """Train the variants of a question and write its table and curves."""
    folders = {
        variant.label: work(
            options,
            "base" if variant is BASE else f"{name}-{number}",
            (*question.common, *variant.changes),
        )
        for number, variant in enumerate(question.variants)
    }
    text = write_table(folders, question.title, question.note, f"python scripts/bench/quality.py {name}")
    (options.output / f"{name}.md").write_text(text)
    write_curves(folders, options.output / f"{name}-curves.png")
    write_dimensions(folders, options.output / f"{name}-dimensions.png")


def pairs(options: argparse.Namespace) -> None:
    """The quickstart scored on the whole of Reddit, then runs on labelled pairs that start from its student."""
    runs = [Path("runs") / f"pairs-{seed}" for seed in range(options.seeds)]
    commands = [("run", "configs/quickstart.yaml"), ("evaluate", "configs/quickstart.yaml", REDDIT)]
    for seed, folder in enumerate(runs):
        commands.append(("run", PAIRS, f"seed={seed}", f"run_dir={folder}", "stores=runs/quickstart_pairs"))
    for command in commands:
        subprocess.run([sys.executable, "-m", "jasper_jax.cli", *command], check=True, env=ENVIRONMENT)
    scores = Path("runs/quickstart/evaluation.json")
    write_pairs(options.output / "pairs.md", scores, runs, "reddit", "python scripts/bench/quality.py pairs")


def work(options: argparse.Namespace, name: str, changes: tuple[str, ...]) -> Path:
    """A variant trained and evaluated, in its own run folder; a variant that ended before is left as it is."""
    folder = options.runs / name
    done, wanted = folder / "quality.json", json.dumps(changes)
    if done.is_file() and done.read_text() == wanted:
        return folder
    print(f"== {folder}: {' '.join(changes)}", flush=True)
    arguments = [SIX, f"run_dir={folder}", f"stores={options.stores}", *changes]
    for command in ("embed", "train", "evaluate"):
        subprocess.run([sys.executable, "-m", "jasper_jax.cli", command, *arguments], check=True, env=ENVIRONMENT)
    done.write_text(wanted)
    return folder


if __name__ == "__main__":
    sys.exit(main())
