"""Batches: batch k of a stage is a pure function of (recipe, seed, k).

The records are shuffled by Grain, a batch is B consecutive records of that order, whatever their lengths: the
similarity and relative losses live on the pairs within a batch, so a batch bucketed by length would be another loss.
For the encoder the batch is then sorted by length and cut into groups of static shape (``jasper_jax.data.shapes``).
A position in the data is the one number k; no iterator state exists.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np

from jasper_jax.data.shapes import choose_row, group_sizes, needed_lengths, shape_table
from jasper_jax.data.texts import TextStore
from jasper_jax.data.vectors import TeacherView
from jasper_jax.errors import UserError
from jasper_jax.files import write_array
from jasper_jax.tokenization import Tokenizer

Split = str


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """A batch on the host: ``arrays`` is what the step takes, rows ordered by length."""

    number: int
    arrays: dict[str, Any]
    indices: np.ndarray
    tokens: int
    slots: int

    @property
    def padding_share(self) -> float:
        """Share of the encoder's token slots that hold padding."""
        return 1.0 - self.tokens / self.slots


class TokenCounts:
    """Token counts of every text under the student's tokenizer and prompts, kept beside the text store."""

    def __init__(self, texts: TextStore, tokenizer: Tokenizer, prompts: Mapping[str, str], folder: Path):
        key = hashlib.sha256(
            repr((texts.fingerprint, tokenizer.fingerprint(), tokenizer.max_length, sorted(prompts.items()))).encode()
        ).hexdigest()[:16]
        self.by_split: dict[Split, np.ndarray] = {}
        for split in ("train", "held_out"):
            path = folder / f"{split}-{key}.npy"
            size = texts.size(split)
            if path.is_file():
                counts = np.load(path)
                if counts.shape != (size,):
                    raise UserError(f"{path}: damaged ({counts.shape} for {size} texts); delete it and run again")
            else:
                counts = np.zeros(size, np.int32)
                for start in range(0, size, 4096):
                    rows = texts.read(split, range(start, min(size, start + 4096)))
                    counts[start : start + len(rows)] = tokenizer.lengths([prompts[r.kind] + r.text for r in rows])
                write_array(path, counts)
            self.by_split[split] = counts


class Batches:
    """The batches of one stage."""

    def __init__(
        self,
        texts: TextStore,
        view: TeacherView | None,
        tokenizer: Tokenizer,
        prompts: Mapping[str, str],
        counts: TokenCounts,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        groups: int,
        shapes: int,
    ):
        """``seed`` is the stage's own; ``steps`` how many batches there are; ``shapes`` bounds the table's rows.

        Raises:
          UserError: fewer texts than a batch holds, or nothing to do.
        """
        size = texts.size("train")
        if size < batch_size:
            raise UserError(
                f"stages[].batch_size: {batch_size} exceeds the {size} training texts; lower it or add texts"
            )
        self.texts, self.view, self.tokenizer, self.prompts = texts, view, tokenizer, prompts
        self.batch_size, self.steps = batch_size, steps
        epochs = max(1, -(-steps * batch_size // size))
        self._records = grain.MapDataset.range(size).shuffle(seed=seed).repeat(epochs)
        self.held_out_batches = texts.size("held_out") // batch_size
        train = np.stack([counts.by_split["train"][self.indices(k)] for k in range(steps)]) if steps else None
        rest = counts.by_split["held_out"][: self.held_out_batches * batch_size].reshape(-1, batch_size)
        known = [c for c in (train, rest) if c is not None and len(c)]
        if not known:
            raise UserError("stages[].steps: 0 steps and too few held-out texts leave nothing to do")
        self.sizes = group_sizes(known[0], groups)
        self.table = shape_table(needed_lengths(np.concatenate(known), self.sizes), self.sizes, shapes)
        # Evaluation uses one row, large enough for all: one program more, not one a row.
        self.evaluation_row = int((self.table * self.sizes).sum(axis=1).argmax())
        if rest.size and (self.table[self.evaluation_row] < needed_lengths(rest, self.sizes).max(axis=0)).any():
            self.table = np.concatenate([self.table, self.table.max(axis=0, keepdims=True)])
            self.evaluation_row = len(self.table) - 1

    def indices(self, number: int) -> np.ndarray:
        """Record numbers ``[B]`` of batch ``number`` in the training split, in drawing order."""
        start = number * self.batch_size
        return np.fromiter((self._records[i] for i in range(start, start + self.batch_size)), np.int64)

    def load(self, number: int) -> LoadedBatch:
        """Batch ``number``, read, tokenised and grouped."""
        return self._assemble("train", number, self.indices(number), None)

    def held_out(self, number: int) -> LoadedBatch:
        """Batch ``number`` of the held-out texts, in store order."""
        start = number * self.batch_size
        return self._assemble("held_out", number, np.arange(start, start + self.batch_size), self.evaluation_row)

    def iterate(self, start: int, workers: int = 0) -> Iterator[LoadedBatch]:
        """Batches ``start .. steps``, prepared ahead in threads, or in ``workers`` processes."""
        numbers = grain.MapDataset.range(start, self.steps)
        loaded = numbers.map(self.load).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=6))
        if workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            loaded = loaded.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        return iter(loaded)

    def _assemble(self, split: Split, number: int, indices: np.ndarray, row: int | None) -> LoadedBatch:
        rows = self.texts.read(split, indices)
        tokens = self.tokenizer.encode([self.prompts[r.kind] + r.text for r in rows])
        lengths = np.array([len(t) for t in tokens])
        order = np.argsort(lengths, kind="stable")
        if row is None:
            row = choose_row(self.table, needed_lengths(lengths[None], self.sizes)[0])
        starts = np.cumsum((0, *self.sizes))
        groups = tuple(
            self.tokenizer.pad([tokens[i] for i in order[start : start + size]], size, int(length))
            for start, size, length in zip(starts, self.sizes, self.table[row])
        )
        arrays: dict[str, Any] = {"groups": groups}
        if self.view is not None:
            arrays["teachers"] = self.view.read(split, indices[order])
        return LoadedBatch(
            number=number,
            arrays=arrays,
            indices=indices[order],
            tokens=int(lengths.sum()),
            slots=int((self.table[row] * self.sizes).sum()),
        )
