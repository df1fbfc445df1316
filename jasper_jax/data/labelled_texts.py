"""Texts with labels, for a classification test."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jasper_jax.data.libraries import Row, require
from jasper_jax.data.rows import strings, table_rows
from jasper_jax.recipe.config_evaluation import Classification, file_kind
from jasper_jax.runtime.errors import UserError

MOST_LABELS = 2_000
"""Of a test; benchmarks have up to 150. The probe has some tables of 8 texts of each label by labels, of 256 MB."""


def read_labels(spec: Classification, key: str) -> dict[str, str]:
    """The distinct texts of a file, each with its label; ``key`` is where the recipe names the file.

    Raises:
      UserError: no such file or column, an empty text or label, a text with two labels, fewer than two labels or more
        than ``MOST_LABELS``, or a label with one text, which cannot be both trained on and tested.
    """
    labels: dict[str, str] = {}
    columns = list(dict.fromkeys([spec.text, spec.label]))
    for row in table_rows(file_kind(spec.file), spec.file, columns, key):
        require(columns, list(row.values), row.where)
        text, label = _cell(row, spec.text), _cell(row, spec.label)
        if labels.setdefault(text, label) != label:
            raise UserError(
                f"{row.where}: the text has label {label!r}, and {labels[text]!r} in another row; remove one"
            )
    counts = Counter(labels.values())
    if len(counts) < 2:
        seen = f"one label, {next(iter(counts))!r}" if counts else "no texts"
        raise UserError(f"{key}: {spec.file} has {seen}; a classification test needs two labels or more")
    if len(counts) > MOST_LABELS:
        raise UserError(
            f"{key}: {spec.file} has {len(counts):,} labels in the column {spec.label!r}; at most {MOST_LABELS:,}, is"
            " it the column of the labels?"
        )
    if rare := [label for label, count in counts.items() if count < 2]:
        raise UserError(
            f"{key}: {spec.file} has {len(labels):,} texts of {len(counts):,} labels, and one text of {rare[0]!r};"
            " a label needs at least two, one to learn from and one to be tested by"
        )
    return labels


def _cell(row: Row, column: str) -> str:
    value: Any = row.values[column]
    if isinstance(value, int):  # a label as JSON and Parquet have it, true and false too
        return str(value)
    found = strings(value, column, row.where)
    if len(found) != 1 or not found[0].strip():
        raise UserError(f"{row.where}: column {column!r} holds no text or several; expected one")
    return found[0].strip()
