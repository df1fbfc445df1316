"""Recipes whose models have random weights, and batches of random tokens: nothing is read or fetched."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from accelerator_checks.check import REPOSITORY
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import load_recipe
from jasper_jax.run import Run
from jasper_jax.student.source import StudentSource
from jasper_jax.student.start import make_student
from jasper_jax.student.student import Student
from jasper_jax.training.lowering import abstract_teachers
from jasper_jax.training.stage_kind import StageKind
from jasper_jax.training.teaching import Teaching

SMALL_DIM = 96
ROOMY = 32 * 2**30
"""Bytes of device memory above which stella_400m needs no micro-batches (its recipe says so)."""


def described(name: str) -> tuple[Recipe, Student, Teaching]:
    """``small``, or a recipe of ``configs/``, with its student and teachers as shapes."""
    if name == "small":
        recipe = small_recipe()
        student = make_student(recipe, SMALL_DIM, StudentSource(recipe.student, describe=True, progress=False))
        return recipe, student, Teaching({"teacher": SMALL_DIM})
    overrides = []
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    if name == "stella_400m" and memory > ROOMY:
        overrides.append("training.micro_batch=null")
    recipe = load_recipe(REPOSITORY / "configs" / f"{name}.yaml", overrides)
    run = Run(recipe, describe=True, progress=False)
    student = make_student(recipe, run.teacher_dim, run.student)
    return recipe, student, abstract_teachers(run.vectors)[0]


def small_recipe() -> Recipe:
    """Grouped queries and packed rows of 128 tokens, in four layers of 256."""
    config = {
        "model_type": "qwen2",
        "vocab_size": 500,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 512,
        "max_position_embeddings": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "is_causal": False,
    }
    stage = {"steps": 100, "batch_size": 16, "learning_rate": 1e-4}
    return Recipe.model_validate(
        {
            "name": "small",
            "texts": {"sources": [{"jsonl": "none.jsonl"}]},
            "teachers": [{"name": "teacher", "model": "none"}],
            "student": {"config": config, "tokenizer": "none", "max_length": 128, "pooling": "mean", "remat": "full"},
            "heads": {"fc1": {"dim": "teachers"}, "fc2": {"dim": 32, "nested": [16]}},
            "stages": [{"stage": 1, **stage}, {"stage": 3, **stage}],
        }
    )


def random_batch(kind: StageKind, teaching: Teaching, rows: int | None = None) -> dict[str, Any]:
    """Host arrays of the stage's largest batch: every row one text of the full length, in a random order."""
    shapes, length = kind.abstract_batch(rows or kind.stage.batch_size, teaching)
    rng = np.random.default_rng(0)
    texts = kind.stage.batch_size
    made = {
        "ids": lambda s: rng.integers(3, kind.student.encoder.vocab_size, s.shape),
        "lengths": lambda s: np.full(s.shape, length),
        "slots": lambda s: rng.permutation(s.shape[0]),
        "teachers": lambda s: rng.standard_normal(s.shape),
    }
    batch = {name: made[name](shape).astype(shape.dtype) for name, shape in shapes.items()}
    assert len(batch["slots"]) == texts
    return batch
