"""The ranges of a student's int8 vectors, measured on held-out texts of its run."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from jasper_jax.data.texts import TextRecord, TextStore
from jasper_jax.encoders.quantization import measure_ranges
from jasper_jax.student.heads import Params, project_rows
from jasper_jax.teachers.vectors import normalize_rows

LEAST_TEXTS = 100
"""Of fewer texts the largest component says little about that of others."""
MOST_TEXTS = 1000


def calibration_texts(store: TextStore | None) -> list[TextRecord]:
    """The texts that ranges are measured on: the first ``MOST_TEXTS`` held-out ones; [] if there are too few."""
    number = 0 if store is None else min(store.size("held_out"), MOST_TEXTS)
    return [] if store is None or number < LEAST_TEXTS else list(store.read("held_out", range(number)))


def head_ranges(heads: Iterable[tuple[int, Params]], pooled: np.ndarray) -> dict[int, np.ndarray]:
    """Dimension -> ranges ``[2, E]``, of the heads' vectors of ``pooled [n, D]``, normalised."""
    return {dim: measure_ranges(normalize_rows(project_rows(head, pooled))) for dim, head in heads}
