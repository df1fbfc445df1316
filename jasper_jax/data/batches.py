"""Batches: batch k of a stage is a pure function of (recipe, seed, k).

The records are shuffled by Grain, a batch is B consecutive records of that order, whatever their lengths: the
similarity and relative losses live on the pairs within a batch, so a batch bucketed by length would be another loss.
For the encoder the texts are packed into rows of static shape (``jasper_jax.data.packing``).
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

from jasper_jax.data.packing import choose_rows, pack, row_length
from jasper_jax.data.texts import TextStore
from jasper_jax.data.vectors import TeacherView
from jasper_jax.errors import UserError
from jasper_jax.files import read_cached_array, write_cached_array
from jasper_jax.tokenization import Tokenizer

Split = str


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """A batch on the host: ``arrays`` is what the step takes (``jasper_jax.training.step.Batch``)."""

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
            counts = read_cached_array(path)
            if counts is None or counts.shape != (size,):  # not there, or damaged
                counts = np.zeros(size, np.int32)
                for start in range(0, size, 4096):
                    rows = texts.read(split, range(start, min(size, start + 4096)))
                    counts[start : start + len(rows)] = tokenizer.lengths([prompts[r.kind] + r.text for r in rows])
                write_cached_array(path, counts)
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
        shapes: int,
        row: int | None = None,
    ):
        """``seed`` is the stage's own; ``steps`` how many batches there are; ``shapes`` bounds the row counts;
        ``row`` is the tokens of a row (None: chosen from the texts).

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
        train = [counts.by_split["train"][self.indices(k)] for k in range(steps)]
        rest = counts.by_split["held_out"][: self.held_out_batches * batch_size].reshape(-1, batch_size)
        known = [*train, *rest]
        if not known:
            raise UserError("stages[].steps: 0 steps and too few held-out texts leave nothing to do")
        longest = max(int(lengths.max()) for lengths in known)
        if row is not None and row < longest:
            raise UserError(
                f"training.row_length: {row}, but a text of {longest} tokens has to fit; give at least that or lower"
                f" training.max_length"
            )
        self.row = row or row_length(longest, float(np.mean([lengths.sum() for lengths in known])))
        packings = [pack(lengths, self.row) for lengths in known]
        self.texts_per_row = max(packing.texts for packing in packings)
        self.row_counts = choose_rows(np.array([packing.rows for packing in packings]), shapes)

    def indices(self, number: int) -> np.ndarray:
        """Record numbers ``[B]`` of batch ``number`` in the training split, in drawing order."""
        start = number * self.batch_size
        return np.fromiter((self._records[i] for i in range(start, start + self.batch_size)), np.int64)

    def load(self, number: int) -> LoadedBatch:
        """Batch ``number``, read, tokenised and packed."""
        return self._assemble("train", number, self.indices(number), self.row_counts)

    def held_out(self, number: int) -> LoadedBatch:
        """Batch ``number`` of the held-out texts, in store order; all have one shape."""
        start = number * self.batch_size
        return self._assemble("held_out", number, np.arange(start, start + self.batch_size), self.row_counts[-1:])

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

    def _assemble(self, split: Split, number: int, indices: np.ndarray, row_counts: np.ndarray) -> LoadedBatch:
        texts = self.texts.read(split, indices)
        tokens = self.tokenizer.encode([self.prompts[t.kind] + t.text for t in texts])
        packing = pack(np.array([len(t) for t in tokens]), self.row)
        rows = int(row_counts[np.searchsorted(row_counts, packing.rows)])
        ids = np.full((rows, self.row), self.tokenizer.pad_id, np.int32)
        lengths = np.zeros((rows, self.texts_per_row), np.int32)
        for one, row, place, column in zip(tokens, packing.row, packing.place, packing.column):
            ids[row, column : column + len(one)] = one
            lengths[row, place] = len(one)
        arrays: dict[str, Any] = {
            "ids": ids,
            "lengths": lengths,
            "slots": packing.row * self.texts_per_row + packing.place,
        }
        if self.view is not None:
            arrays["teachers"] = self.view.read(split, indices)
        return LoadedBatch(number, arrays, indices, tokens=sum(map(len, tokens)), slots=ids.size)
