"""Which texts make each batch of labelled pairs: B queries, their B answers, n negatives of each, and plain texts.

Batch k is a pure function of (pairs, seed, k). The pairs of each source are drawn by a shuffle of their own, as many of
a batch as its weight says; negatives are drawn anew each time a pair is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jasper_jax.batches.draws import BatchDraws
from jasper_jax.data.draw_order import DrawOrder
from jasper_jax.data.pair_table import PairTable
from jasper_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class DrawnPairs:
    """The labelled pairs of a text store as draws see them, by split.

    pools: negatives ``[n, K]`` of each pair, -1 for none.
    rows: the number of texts of the split, of which plain texts are drawn.
    """

    tables: Mapping[str, PairTable]
    pools: Mapping[str, np.ndarray]
    rows: Mapping[str, int]


class PairDraws(BatchDraws):
    """Rows ``[N]`` of a batch: queries ``[B]``, passages ``[B]``, negatives ``[B·n]`` pair by pair, plain texts."""

    def __init__(
        self,
        pairs: DrawnPairs,
        weights: Sequence[float],
        *,
        batch_size: int,
        negatives: int,
        plain: int,
        seed: int,
        key: str,
    ):
        """``weights``: of the sources; ``plain``: the number of plain texts; ``key``: a hash of ``pairs``.

        Raises:
          UserError: a source has no share of a batch, or there are fewer pairs or passages than a batch needs.
        """
        table = pairs.tables["train"]
        super().__init__("pairs", len(table), len(pairs.tables["held_out"]), batch_size=batch_size, seed=seed)
        self.negatives, self.plain, self.pairs = negatives, plain, pairs
        self._seed, self._key = seed, key
        seeds = np.random.SeedSequence(seed).generate_state(len(weights) + 1, np.uint32) >> 1
        self._plain_order = DrawOrder(pairs.rows["train"], int(seeds[-1]))
        self._of = [np.flatnonzero(table.source == number) for number in range(len(weights))]
        given = np.array([weight if len(of) else 0.0 for weight, of in zip(weights, self._of)])
        self._bounds = np.concatenate([[0.0], np.cumsum(given / given.sum())])
        self._bounds[-1] = 1.0
        self._orders = [DrawOrder(len(of), int(seed)) for of, seed in zip(self._of, seeds)]
        for number, share in enumerate(np.diff(self._bounds)):
            if 0 < share * batch_size < 1:
                raise UserError(
                    f"texts.pairs[{number}].weight: {weights[number]:g} is less than one pair in a batch of"
                    f" {batch_size}; raise it or the batch size"
                )
        self._refuse_few_passages()

    def _refuse_few_passages(self) -> None:
        passages = len(self.pairs.tables["train"].passages)
        if self.negatives >= passages:
            raise UserError(
                f"stages[].negatives: {self.negatives} negatives for each query, but the pairs have {passages:,}"
                f" passages altogether; lower negatives or add pairs"
            )

    @property
    def width(self) -> int:
        return self.batch_size * (2 + self.negatives) + self.plain

    @property
    def key(self) -> str:
        return repr((self._key, self._seed, self.batch_size, self.negatives, self.plain, self._bounds.tolist()))

    def split_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the rows ``[N]`` of a batch its queries ``[B]``, passages ``[B]`` and candidates ``[B(1+n)]``: passages,
        then the negatives."""
        B = self.batch_size
        return rows[:B], rows[B : 2 * B], rows[B : B * (2 + self.negatives)]

    def records(self, first: int, last: int) -> np.ndarray:
        return self._rows("train", range(first, last))

    def held_out_records(self, first: int, last: int) -> np.ndarray:
        return self._rows("held_out", range(first, last))

    def _rows(self, split: str, batches: range) -> np.ndarray:
        rows = np.empty((len(batches), self.width), np.int64)
        for place, number in enumerate(batches):
            chosen = self._drawn(number) if split == "train" else super().held_out_records(number, number + 1)[0]
            table = self.pairs.tables[split]
            negatives = self._negatives(split, number, chosen)
            plain = self._plain(split, number)
            rows[place] = np.concatenate([table.query[chosen], table.passage[chosen], negatives.ravel(), plain])
        return rows

    def _drawn(self, batch: int) -> np.ndarray:
        """The pairs ``[B]`` of a training batch, in random order."""
        first, last = (
            np.floor(self._bounds * (k * self.batch_size) + 1e-6).astype(np.int64) for k in (batch, batch + 1)
        )
        first, last = np.diff(first), np.diff(last)  # draws of each source before this batch and after it
        drawn = [of[order.records(int(a), int(b))] for of, order, a, b in zip(self._of, self._orders, first, last)]
        return self._random("order", batch).permutation(np.concatenate(drawn))

    def _negatives(self, split: str, batch: int, chosen: np.ndarray) -> np.ndarray:
        """Negatives ``[B, n]`` of the pairs ``chosen``: different ones of each pair's pool, filled up with passages
        drawn from all."""
        if not self.negatives:
            return np.empty((len(chosen), 0), np.int64)
        pool, passages = self.pairs.pools[split][chosen], self.pairs.tables[split].passages
        rng = self._random(f"negatives {split}", batch)
        order = np.argsort(np.where(pool >= 0, rng.random(pool.shape), 2.0), axis=1, kind="stable")
        taken = np.take_along_axis(pool, order[:, : self.negatives], axis=1).astype(np.int64)
        taken = np.pad(taken, ((0, 0), (0, self.negatives - taken.shape[1])), constant_values=-1)
        return np.where(taken >= 0, taken, passages[rng.integers(len(passages), size=taken.shape)])

    def _plain(self, split: str, batch: int) -> np.ndarray:
        first = batch * self.plain
        if split == "train":
            return self._plain_order.records(first, first + self.plain)
        return np.arange(first, first + self.plain) % self.pairs.rows[split]

    def _random(self, purpose: str, batch: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, batch, *purpose.encode()])
