"""Run folders as commands leave them, with made-up numbers: no model is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.assets.corpora import RetrievalTest
from jasper_jax.checkpoints.run_folder import HEADER
from jasper_jax.evaluation.agreement import score_agreement
from jasper_jax.evaluation.by_text import FILE, ByText, Provider, write
from jasper_jax.evaluation.disagreement import densities, text_map
from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow, to_json
from jasper_jax.evaluation.gained_lost import compare_retrieval
from jasper_jax.evaluation.retrieval import score_retrieval
from jasper_jax.evaluation.text_tests import Texts
from jasper_jax.recipe.load import dump_recipe, parse_recipe

HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>{{ 7 * 7 }} & \u202e<b>"
"""Text that a page must show, and never obey."""
ORIGIN = {"tests": {"retrieval": []}, "recipe_sha256": "0", "stages": 2}
QUERIES, PASSAGES, HELD_OUT = 40, 60, 80
PROVIDERS = [
    Provider(name="after stage-2", dim=24, role="student"),
    Provider(name="after stage-2", dim=8, role="student"),
    Provider(name="teacher a", dim=32, role="teacher"),
    Provider(name="teacher b", dim=16, role="teacher"),
]


def recipe_text(name: str, **changes: Any) -> str:
    stage = {"steps": 20, "batch_size": 16, "learning_rate": 1e-2}
    tree: dict[str, Any] = {
        "name": name,
        "run_dir": "runs/elsewhere",
        "texts": {"sources": [{"jsonl": "/home/somebody/secret/texts.jsonl"}], "held_out": HELD_OUT},
        "teachers": [{"name": "a", "model": "all-mpnet-base-v2"}, {"name": "b", "model": "<img src=x>"}],
        "student": {"model": "all-MiniLM-L6-v2"},
        "heads": {"fc1": {"dim": "teachers"}, "fc2": {"dim": 8}},
        "stages": [{"stage": 1, **stage}, {"stage": 3, **stage}],
    }
    return HEADER + dump_recipe(parse_recipe({**tree, **changes}, where="test"))


def retrieval() -> RetrievalTest:
    queries = {f"q{i}": f"question {i}" for i in range(QUERIES)}
    return RetrievalTest(
        passages={f"p{i}": f"passage {i} {HOSTILE if i % 3 == 0 else ''}" for i in range(PASSAGES)},
        queries={q: HOSTILE + text for q, text in queries.items()},
        relevant={f"q{i}": {f"p{i}": 1} for i in range(QUERIES)},
    )


def vectors(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each provider: queries, passages, held-out texts."""
    rng = np.random.default_rng(seed)
    meaning = rng.normal(size=(PASSAGES, 32)), rng.normal(size=(HELD_OUT, 32))
    found = []
    for provider, noise in zip(PROVIDERS, (1.5, 0.4, 2.2, 2.2)):
        mix = rng.normal(size=(32, provider.dim))
        passages, held_out = (x @ mix for x in meaning)
        queries = (meaning[0][:QUERIES] + noise * rng.normal(size=(QUERIES, 32))) @ mix
        found.append((queries, passages, held_out))
    return found


def texts_found(seed: int = 0) -> ByText:
    made = vectors(seed)
    held_out = Texts([f"text {i} {HOSTILE}" for i in range(HELD_OUT)], ["query", "passage"] * (HELD_OUT // 2))
    return ByText(
        origin=dict(ORIGIN),
        providers=PROVIDERS,
        retrieval={"forum <i>": compare_retrieval(retrieval(), PROVIDERS, [(q, p) for q, p, _ in made], each=4)},
        densities=densities(PROVIDERS, [h for *_, h in made]),
        map=text_map(held_out, PROVIDERS, [h for *_, h in made]),
    )


def scores(seed: int = 0) -> Evaluation:
    made, rows = vectors(seed), []
    for provider, (queries, passages, held_out) in zip(PROVIDERS, made):
        student = provider.role == "student"
        rows.append(
            EvaluationRow(
                provider=provider.name,
                role=provider.role,
                dim=provider.dim,
                weights=1000 if student else 9000,
                head=("fc1" if provider.dim == 24 else "fc2") if student else None,
                stage=2 if student else None,
                retrieval={"forum <i>": score_retrieval(queries, passages, retrieval())},
                agreement=score_agreement(held_out, made[2][2]),
            )
        )
    free = rows[2].model_copy(update={"provider": "teacher a, SVD", "role": "baseline", "dim": 8})
    return Evaluation(rows=[*rows[2:], free, *rows[:2]], metadata={"recipe": "x", **ORIGIN})


def events() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in range(1, 41):
        stage = 0 if step <= 20 else 1
        at = {"stage": f"stage-{stage + 1}{HOSTILE}", "stage_index": stage, "global_step": step}
        terms = {"fc1/cosine": 1 / step, "fc1/similarity": 0.3}
        loss = float("nan") if step == 40 else 3 / step
        found.append({"event": "step", **at, "loss": loss, "terms": terms, "texts_per_second": 100.0 + step})
        if step % 10 == 0:
            found.append({"event": "evaluation", **at, "loss": 4 / step, "terms": terms})
    return found


def write_run(folder: Path, name: str = "tiny", seed: int = 0, **changes: Any) -> Path:
    """A finished run."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe_text(name, **changes), "utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events()), "utf-8")
    (folder / "timings.json").write_text(
        json.dumps({"texts": 1.5, f"embedding: {HOSTILE}": 60.0, "training": 20.25}), "utf-8"
    )
    to_json(scores(seed), folder / "evaluation.json")
    write(texts_found(seed), folder / FILE)
    return folder
