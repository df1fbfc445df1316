"""The world of the campaign: tiny models and texts, commands as processes of their own, and what makes runs equal.

Commands are forked from a process that has imported everything and started nothing, so a command costs seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from fault_campaign.inject import Moment, Plan, install

LIMIT = 240.0
STEPS = 6
"""Steps of each stage."""
STAGES = (1, 3)
FORK = multiprocessing.get_context("fork")


@dataclasses.dataclass
class Row:
    """A line of the result: what was done, what came of it, whether that is as it should be."""

    kind: str
    what: str
    outcome: str
    good: bool
    lost: int | None = None
    """Steps that a kill undid."""


@dataclasses.dataclass
class Ended:
    """A command that has ended: its exit code (negative: the signal), output, events, and when it ended."""

    code: int
    output: str
    events: list[tuple[str, Moment, float]]
    at: float

    def strike(self) -> Moment | None:
        """The moment at which it was struck, None when that moment never came."""
        return next((moment for kind, moment, _ in self.events if kind == "strike"), None)

    def message(self) -> str:
        """The line that says why it ended."""
        return next((line for line in reversed(self.output.splitlines()) if line.startswith("jasper: ")), "")


class World:
    """A folder with a recipe and all it needs; every run of it has a folder of its own."""

    def __init__(self, place: Path):
        self.place = place
        self.recipe = place / "recipe.yaml"
        self.undisturbed = place / "undisturbed"

    def build(self) -> None:
        """Write models, texts, the retrieval test and the recipe."""
        sys.path.append(str(Path(__file__).resolve().parents[3]))
        from tests.tiny import recipe_tree, sentences

        self.place.mkdir(parents=True, exist_ok=True)
        tree = recipe_tree(self.place)
        stage = {"steps": STEPS, "batch_size": 16, "learning_rate": 1e-2}
        tree["teachers"][1]["dtype"] = "int8"
        tree["stages"] = [{"stage": number, **stage} for number in STAGES]
        tree["training"] |= {"save_every": 2, "evaluate_every": 3, "keep": 2}
        test, texts = self.place / "beir", sentences(40, seed=7)
        (test / "qrels").mkdir(parents=True, exist_ok=True)
        for name, rows in {"corpus": texts[:28], "queries": texts[28:]}.items():
            lines = [json.dumps({"_id": f"{name}{i}", "title": "", "text": text}) for i, text in enumerate(rows)]
            (test / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        pairs = "".join(f"queries{i}\tcorpus{2 * i}\t1\n" for i in range(12))
        (test / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + pairs)
        tree["evaluation"] = {"retrieval": [{"name": "tiny", "beir": str(test)}]}
        self.recipe.write_text(yaml.safe_dump(tree))

    # ------------------------------------------------------------------ commands

    def start(self, run: Path, *command: str, **plan: Any) -> Command:
        """Start ``jasper command`` (default: run) on the run folder; ``plan`` is what :class:`Plan` takes."""
        words = list(command) or ["run"]
        if words[0] != "encode":
            words += [str(self.recipe), f"run_dir={run}"]
        return Command(self.place, words, Plan(run=run, log=_fresh(self.place / "logs", "events"), **plan))

    def call(self, run: Path, *command: str, **plan: Any) -> Ended:
        """Start a command and wait for its end."""
        return self.start(run, *command, **plan).wait()

    # ------------------------------------------------------------------ equality

    def fingerprint(self, run: Path) -> dict[str, str]:
        """sha256 of every parameter after every stage, of every exported file, of the scores and of the losses."""
        result = _fresh(self.place / "logs", "fingerprint")
        process = FORK.Process(target=_fingerprint, args=(self.recipe, run, result, self.place))
        process.start()
        process.join()
        return json.loads(result.read_text()) if process.exitcode == 0 else {"fingerprint": f"exit {process.exitcode}"}

    def differences(self, run: Path) -> list[str]:
        """What of ``run`` is not as in the undisturbed run, to the bit."""
        kept = self.place / "fingerprint.json"
        if not kept.exists():
            kept.write_text(json.dumps(self.fingerprint(self.undisturbed)))
        expected, found = json.loads(kept.read_text()), self.fingerprint(run)
        return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))

    def saved(self, run: Path) -> int:
        """Steps, counted over all stages, after which ``run`` would go on."""
        from jasper_jax.checkpoints.checkpoint import Checkpoints

        at = Checkpoints(run / "checkpoints", [f"stage-{number}" for number in STAGES], 2).latest()
        return STEPS * at.stage + at.step

    def damaged_programs(self) -> list[str]:
        """Entries of the cache of compiled programs that are cut short."""
        import zlib

        found = []
        for path in (self.place / "cache" / "compiled").glob("*-cache"):
            try:
                zlib.decompress(path.read_bytes())
            except zlib.error:
                found.append(path.name)
        return found


class Command:
    """A running command."""

    def __init__(self, place: Path, words: list[str], plan: Plan):
        self.plan, self._output = plan, plan.log.with_suffix(".out")
        self.process = FORK.Process(target=_child, args=(place, words, plan, self._output))
        self.process.start()

    def wait(self) -> Ended:
        """Its end; one that does not come in ``LIMIT`` seconds is made, and told from others by its exit code."""
        self.process.join(LIMIT)
        if self.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid or 0, signal.SIGABRT)
            self.process.join()
        at = time.monotonic()
        assert self.process.exitcode is not None
        output = self._output.read_text(errors="replace") if self._output.exists() else ""
        return Ended(self.process.exitcode, output, _read_events(self.plan.log), at)

    def wait_until(self, happened: Callable[[], bool]) -> bool:
        """Wait until ``happened`` or the end; whether it happened while the command was running."""
        while self.process.is_alive():
            if happened():
                return True
            time.sleep(0.005)
        return False


def _child(place: Path, words: list[str], plan: Plan, output: Path) -> None:
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(file, number)
    os.environ |= {"JASPER_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "140"}
    install(plan)
    from jasper_jax.cli import main

    sys.argv = ["jasper", *words]
    main()


def _fingerprint(recipe: Path, run_folder: Path, result: Path, place: Path) -> None:
    os.environ["JASPER_CACHE"] = str(place / "cache")
    import numpy as np

    from jasper_jax.checkpoints.checkpoint import abstract
    from jasper_jax.parameters.trees import flatten
    from jasper_jax.recipe.load import load_recipe
    from jasper_jax.run import Run
    from jasper_jax.student.start import make_student

    run = Run(load_recipe(recipe, [f"run_dir={run_folder}"]), progress=False)
    checkpoints = run.run_folder.checkpoints()
    template = make_student(run.recipe, run.teacher_dim, run.student).shapes()
    found: dict[str, bytes] = {}
    for path in (checkpoints.start(), *map(checkpoints.final, range(len(run.stages)))):
        name = str(path.relative_to(checkpoints.folder))
        tree = flatten(checkpoints.load(path, abstract(template)))
        found |= {f"{name}: {leaf}": np.asarray(value).tobytes() for leaf, value in tree.items()}
    for path in sorted((run_folder / "export").rglob("*")):
        if path.is_file():
            found[str(path.relative_to(run_folder))] = path.read_bytes()
    found["evaluation.json"] = (run_folder / "evaluation.json").read_bytes()
    events = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    losses = [[e["event"], e["stage_index"], e["step"], e["loss"], e["terms"]] for e in events if "loss" in e]
    found["losses in metrics.jsonl"] = json.dumps(losses).encode()
    result.write_text(json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in found.items()}))


def _read_events(log: Path) -> list[tuple[str, Moment, float]]:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    found = []
    for line in lines:
        kind, phase, stage, step, n, what, at = line.split("\t")
        found.append((kind, Moment(phase, int(stage), int(step), int(n), what), float(at)))
    return found


def _fresh(folder: Path, name: str) -> Path:
    """A new file name, also among processes."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{os.getpid()}-{time.monotonic_ns()}"


# ------------------------------------------------------------------------------------------ several at a time


def in_parallel(
    tasks: Sequence[Callable[[], list[Row]]], jobs: int, place: Path, done: Callable[[list[Row]], None]
) -> None:
    """Run tasks in processes of their own, ``jobs`` at a time; ``done`` gets each task's rows as it ends."""
    waiting, running = list(tasks), []
    while waiting or running:
        while waiting and len(running) < jobs:
            result = _fresh(place / "logs", "rows")
            process = FORK.Process(target=_task, args=(waiting.pop(0), result))
            process.start()
            running.append((process, result))
        for process, result in [pair for pair in running if not pair[0].is_alive()]:
            running.remove((process, result))
            process.join()
            if process.exitcode:
                done([Row("campaign", "a task of the campaign itself", f"broke down: exit {process.exitcode}", False)])
            else:
                done([Row(**row) for row in json.loads(result.read_text())])
        time.sleep(0.02)


def in_process_of_its_own(work: Callable[[], None]) -> None:
    """Do ``work`` in a process that is forked for it."""
    process = FORK.Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0


def _task(task: Callable[[], list[Row]], result: Path) -> None:
    try:
        result.write_text(json.dumps([dataclasses.asdict(row) for row in task()]))
    except BaseException:
        traceback.print_exc()
        raise
