"""The table of labelled pairs beside a text store: which rows of a split are a query, its answer and its negatives."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from jasper_jax.data.shards import SPLITS
from jasper_jax.runtime.errors import UserError, first_line
from jasper_jax.runtime.files import write_atomic
from jasper_jax.runtime.unpacking import DAMAGED

NAME = "pairs.npz"


@dataclasses.dataclass(frozen=True)
class PairTable:
    """The n pairs of one split, in row numbers of that split of the text store.

    query, passage: ``[n]`` int32; the passage answers the query.
    negatives: ``[n, K]`` int32, passages that the labels say do not; -1 fills up.
    score: ``[n]`` float32, the label's weight in the loss.
    source: ``[n]`` int32, the number of the pair's source in the recipe.
    """

    query: np.ndarray
    passage: np.ndarray
    negatives: np.ndarray
    score: np.ndarray
    source: np.ndarray

    @classmethod
    def of(
        cls,
        query: Sequence[int],
        passage: Sequence[int],
        negatives: Sequence[Sequence[int]],
        score: Sequence[float],
        source: Sequence[int],
    ) -> PairTable:
        """The table of these columns; ``negatives`` may differ in number."""
        filled = np.full((len(query), max(map(len, negatives), default=0)), -1, np.int32)
        for row, rows in enumerate(negatives):
            filled[row, : len(rows)] = rows
        query_rows, passage_rows, sources = (np.array(column, np.int32) for column in (query, passage, source))
        return cls(query_rows, passage_rows, filled, np.array(score, np.float32), sources)

    def __len__(self) -> int:
        return len(self.query)

    @cached_property
    def passages(self) -> np.ndarray:
        """The distinct rows that are a passage or a negative of some pair, ascending."""
        rows = np.unique(np.concatenate([self.passage, self.negatives.ravel()]))
        return rows[rows >= 0]

    @cached_property
    def _sorted(self) -> PairTable:
        order = np.lexsort((self.passage, self.query))
        return PairTable(*(getattr(self, field.name)[order] for field in dataclasses.fields(self)))

    def answers_of(self, query: int) -> np.ndarray:
        """The rows of all passages that answer a query's row, ascending."""
        first, last = np.searchsorted(self._sorted.query, [query, query + 1])
        return self._sorted.passage[first:last]

    def scores_of(self, queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
        """``[B]`` float32: the scores of these pairs, which the table has."""
        keys = self._sorted.query.astype(np.int64) << 32 | self._sorted.passage
        return self._sorted.score[np.searchsorted(keys, queries.astype(np.int64) << 32 | passages)]

    def answers(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """``[Q, C]`` bool: True where the row ``candidates [C]`` answers the row ``queries [Q]``."""
        places: dict[int, list[int]] = {}
        for place, row in enumerate(candidates.tolist()):
            places.setdefault(row, []).append(place)
        out = np.zeros((len(queries), len(candidates)), bool)
        for number, query in enumerate(queries.tolist()):
            for row in self.answers_of(query).tolist():
                out[number, places.get(row, [])] = True
        return out


def write_tables(folder: Path, tables: Mapping[str, PairTable]) -> dict[str, str | int]:
    """Write the tables by split; the file's name, bytes and sha256, for the manifest."""
    columns = [field.name for field in dataclasses.fields(PairTable)]
    buffer = io.BytesIO()
    np.savez(buffer, **{f"{split}/{name}": getattr(tables[split], name) for split in SPLITS for name in columns})
    data = buffer.getvalue()
    write_atomic(folder / NAME, data)
    return {"file": NAME, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def read_tables(folder: Path, sha256: str, remedy: str) -> dict[str, PairTable]:
    """What :func:`write_tables` wrote. UserError: the file is missing or damaged."""
    path = folder / NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {remedy}") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{path}: damaged (its sha256 is not the manifest's); {remedy}")
    columns = [field.name for field in dataclasses.fields(PairTable)]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > len(data):
                raise ValueError("it unpacks to more than its size")
        with np.load(io.BytesIO(data)) as arrays:
            return {split: PairTable(**{name: arrays[f"{split}/{name}"] for name in columns}) for split in SPLITS}
    except (*DAMAGED, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a table of pairs ({first_line(error)}); {remedy}") from None
