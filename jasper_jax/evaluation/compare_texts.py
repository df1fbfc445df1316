"""From the vectors of the final student and its teachers to ``evaluation-texts.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jasper_jax.evaluation.by_text import ByText, Provider, Vectors, pairs_of
from jasper_jax.evaluation.disagreement import densities, text_map
from jasper_jax.evaluation.gained_lost import compare_retrieval, examples_each
from jasper_jax.evaluation.text_tests import HELD_OUT, TextTests


def compare_texts(
    students: Sequence[Vectors], teachers: Sequence[Vectors], tests: TextTests, origin: Mapping[str, Any]
) -> ByText:
    """Compare each of ``students`` with each of ``teachers``, those of all of them; nothing without teachers.

    ``teachers``: the last is the one whose vectors place the texts of the map: all concatenated, if there are several.
    """
    found = [*students, *teachers]
    people = [vectors.provider for vectors in found]
    comparisons = len(pairs_of(people))
    if not comparisons:
        return ByText(origin=dict(origin))
    asked = tests.all_retrieval
    each = examples_each(len(asked), comparisons)
    held_out = [v.lists[HELD_OUT] for v in found if HELD_OUT in v.lists]
    complete = bool(tests.held_out) and len(held_out) == len(found)
    return ByText(
        origin=dict(origin),
        providers=people,
        retrieval={
            name: compare_retrieval(
                test, people, [(v.lists[f"{name}/queries"], v.lists[f"{name}/passages"]) for v in found], each
            )
            for name, test in asked.items()
        },
        densities=densities(people, held_out) if complete else [],
        map=text_map(tests.lists[HELD_OUT], people, held_out) if complete else [],
    )


def scored_teachers(vectors: Mapping[tuple[str, ...], tuple[str, Mapping[str, np.ndarray]]]) -> list[Vectors]:
    """``TeacherScores.vectors`` as providers; all concatenated come last."""
    return [
        Vectors(Provider(name=name, dim=next(iter(lists.values())).shape[1], role="teacher"), lists)
        for name, lists in vectors.values()
        if lists
    ]
