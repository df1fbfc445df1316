"""The student's pooled vectors of the tests, before training and after each stage. All processes make them together."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any, NamedTuple

import jax
import numpy as np

from jasper_jax.checkpoints.checkpoint import Checkpoints, abstract
from jasper_jax.checkpoints.run_folder import RunFolder
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.evaluation.image_tests import ImageTests, ImageVectors
from jasper_jax.evaluation.text_tests import TextTests, encode_list
from jasper_jax.recipe.stage_data import needs
from jasper_jax.runtime.progress import say
from jasper_jax.student.start import student_embedder
from jasper_jax.student.student import Student


class StudentVectors(NamedTuple):
    """What scores the student after a number of stages."""

    stages: int
    """0: before training."""
    heads: Mapping[str, Any]
    """Parameters by head."""
    pooled: Mapping[str, np.ndarray]
    """``[n, D]`` by list of the tests."""
    reworded: Mapping[str, np.ndarray]
    """As ``pooled``, of the tests' ``reworded`` lists; of the last of these stages alone."""
    images: Mapping[str, ImageVectors] | None
    """By split of the image-caption pairs; None where it has not learned from images, nor does next."""


def when(run: RunFolder, stages: int) -> str:
    return f"after {run.stages[stages - 1].name}" if stages else "before training"


def student_vectors(
    run: RunFolder, student: Student, tokenizer: Tokenizer, tests: TextTests, images: ImageTests | None, *, taught: bool
) -> list[StudentVectors]:
    """Of the finished stages that ``evaluation.stages`` asks for. ``taught``: whether teachers' vectors are learned.

    Texts are encoded again only if the encoder has changed (not in stage 1).
    """
    checkpoints, shapes = run.checkpoints(), abstract(student.shapes())
    made: list[StudentVectors] = []
    encoder: Any = None
    pooled: dict[str, np.ndarray] = {}
    done = _stages_done(run, checkpoints, taught=taught)
    for stages in done:
        say(f"Evaluating the student {when(run, stages)}")
        params = checkpoints.load(checkpoints.final(stages - 1) if stages else checkpoints.start(), shapes)
        # Images are scored as soon as a stage has learned from them, or the next one will.
        sees = images is not None and needs(run.stages[: stages + 1], "images")
        same = encoder is not None and _equal(encoder, params["encoder"])
        again = bool(tests.reworded) and stages == done[-1]
        pictures, reworded = None, {}
        if sees or again or not same:
            embedder = student_embedder(student, params, tokenizer)
            if not same:
                encoder = params["encoder"]
                pooled = {name: encode_list(embedder.pooled, listed) for name, listed in tests.lists.items()}
            if sees and images is not None:
                pictures = images.encode(embedder)
            if again:
                reworded = tests.encode_reworded(embedder, lambda model, listed: encode_list(model.pooled, listed))
        made.append(StudentVectors(stages, jax.device_get(params["heads"]), pooled, reworded, pictures))
    return made


def _stages_done(run: RunFolder, checkpoints: Checkpoints, *, taught: bool) -> list[int]:
    """The numbers of finished stages after which the student is scored, as ``evaluation.stages`` says; 0 is before
    training."""
    finished = takewhile(lambda number: checkpoints.has(checkpoints.final(number)), range(len(run.stages)))
    numbers = [0, *(number + 1 for number in finished)]
    if run.recipe.evaluation.stages == "last" and len(numbers) > 1:
        # Without teachers the student is compared with the model before training.
        return [numbers[-1]] if taught else [0, numbers[-1]]
    return numbers


def _equal(one: Any, other: Any) -> bool:
    """Whether two trees of parameters are equal to the bit."""
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), one, other)))
