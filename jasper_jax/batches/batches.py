"""Batches: batch k of a stage is a pure function of (recipe, seed, k).

The records are shuffled by Grain, a batch is B consecutive records of that order, whatever their lengths: the
similarity and relative losses live on the pairs within a batch, so a batch bucketed by length would be another loss.
For the encoder the texts are packed into rows of static shape (``jasper_jax.encoders.packing``).
A position in the data is the one number k; no iterator state exists.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grain
import numpy as np

from jasper_jax.batches.rows import Rows
from jasper_jax.batches.share import ALL, Share
from jasper_jax.data.texts import TextStore
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import read_cached_array, write_cached_array
from jasper_jax.teachers.vectors import TeacherView, concatenate

if TYPE_CHECKING:
    from jasper_jax.teachers.online import OnlineVectors

Split = str


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """A batch on the host: ``arrays`` is what the step takes (``jasper_jax.training.step.Batch``), of which a process
    has its share of the rows; ``tokens`` and ``slots`` count those of the whole batch."""

    number: int
    arrays: dict[str, Any]
    indices: np.ndarray
    tokens: int
    slots: int

    @property
    def padding_share(self) -> float:
        """Share of the encoder's token slots that hold padding."""
        return 1.0 - self.tokens / self.slots


def prepared_ahead(
    load: Callable[[int], LoadedBatch], start: int, steps: int, workers: int = 0
) -> Iterator[LoadedBatch]:
    """``load(start) .. load(steps - 1)``, prepared ahead in threads, or in ``workers`` processes."""
    numbers = grain.MapDataset.range(start, steps)
    loaded = numbers.map(load).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=6))
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        loaded = loaded.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(loaded)


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
            whole = processes.gather(np.array([counts is not None and counts.shape == (size,)]))
            if counts is None or not whole.all():  # some process has none, or a damaged one
                counts = self._count(texts, split, tokenizer, prompts)
                write_cached_array(path, counts)
            self.by_split[split] = counts

    @staticmethod
    def _count(texts: TextStore, split: Split, tokenizer: Tokenizer, prompts: Mapping[str, str]) -> np.ndarray:
        """Counted by all processes, each its own stretch of the texts."""
        size = texts.size(split)
        stretch = -(-size // processes.count())
        first = processes.index() * stretch
        counts = np.zeros(stretch, np.int32)
        for start in range(first, min(first + stretch, size), 4096):
            rows = texts.read(split, range(start, min(first + stretch, size, start + 4096)))
            lengths = tokenizer.lengths([prompts[r.kind] + r.text for r in rows])
            counts[start - first : start - first + len(rows)] = lengths
        return processes.gather(counts).reshape(-1)[:size]


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
        folder: Path,
        row: int | None = None,
        share: Share = ALL,
        multiple: int = 1,
        tile: int = 1,
    ):
        """``seed`` is the stage's own; ``steps`` how many batches there are; ``shapes`` bounds the row counts;
        ``folder`` keeps token counts; ``row`` is the tokens of a row (None: chosen from the texts); ``share`` are the
        rows that this process loads; numbers of rows are multiples of ``multiple``, itself one of ``share.parts``;
        a row length chosen here is one of ``tile``.

        Raises:
          UserError: fewer texts than a batch holds, or nothing to do.
        """
        size = texts.size("train")
        if size < batch_size:
            raise UserError(
                f"stages[].batch_size: {batch_size} exceeds the {size} training texts; lower it or add texts"
            )
        self.texts = texts
        self.batch_size, self.steps = batch_size, steps
        epochs = max(1, -(-steps * batch_size // size))
        self._records = grain.MapDataset.range(size).shuffle(seed=seed).repeat(epochs)
        self.held_out_batches = texts.size("held_out") // batch_size
        if not steps + self.held_out_batches:
            raise UserError("stages[].steps: 0 steps and too few held-out texts leave nothing to do")
        self._train = [self.indices(k) for k in range(steps)]
        self._share, self._multiple, self._tile = share, multiple, tile
        self._counts = {"": counts.by_split}
        self.rows = Rows(tokenizer, prompts, self._known(counts), shapes=shapes, row=row, multiple=multiple, tile=tile)
        self.online = {one.name: self._rows_of(one, folder, shapes) for one in (view.online if view else ())}
        self._stores = view.stored() if view else []  # no teacher's parameters: worker processes get a copy of this

    def _known(self, counts: TokenCounts) -> list[np.ndarray]:
        """Token counts ``[B]`` of every batch, training and held out."""
        train = [counts.by_split["train"][indices] for indices in self._train]
        rest = counts.by_split["held_out"][: self.held_out_batches * self.batch_size]
        return [*train, *rest.reshape(-1, self.batch_size)]

    def _rows_of(self, teacher: OnlineVectors, folder: Path, shapes: int) -> Rows:
        """How batches are packed for a teacher that runs in the step."""
        embedder = teacher.embedder
        counts = TokenCounts(self.texts, embedder.tokenizer, teacher.prompts, folder)
        self._counts[teacher.name] = counts.by_split
        return Rows(
            embedder.tokenizer,
            teacher.prompts,
            self._known(counts),
            shapes=shapes,
            leave_prompts_out=not embedder.pooling.include_prompt,
            multiple=self._multiple,
            tile=self._tile,
        )

    def indices(self, number: int) -> np.ndarray:
        """Record numbers ``[B]`` of batch ``number`` in the training split, in drawing order."""
        start = number * self.batch_size
        return np.fromiter((self._records[i] for i in range(start, start + self.batch_size)), np.int64)

    def shown(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """Training texts, for people."""
        return [{"kind": row.kind, "text": row.text} for row in self.texts.read("train", indices)]

    def load(self, number: int) -> LoadedBatch:
        """Batch ``number``, read, tokenised and packed."""
        return self._assemble("train", number, self.indices(number))

    def held_out(self, number: int) -> LoadedBatch:
        """Batch ``number`` of the held-out texts, in store order; all have one shape."""
        start = number * self.batch_size
        return self._assemble("held_out", number, np.arange(start, start + self.batch_size), largest=True)

    def iterate(self, start: int, workers: int = 0) -> Iterator[LoadedBatch]:
        """Batches ``start .. steps``, prepared ahead in threads, or in ``workers`` processes."""
        return prepared_ahead(self.load, start, self.steps, workers)

    def _assemble(self, split: Split, number: int, indices: np.ndarray, *, largest: bool = False) -> LoadedBatch:
        """A batch of these records, of which only this process's share is read: each encoder's rows, and vectors."""
        encoders = {"": self.rows, **self.online}
        lengths = {name: self._counts[name][split][indices] for name in encoders}
        placed = {name: rows.place(lengths[name], largest=largest) for name, rows in encoders.items()}
        shares = {name: self._share.of_rows(rows) for name, (_, rows) in placed.items()}
        here = {
            name: np.flatnonzero((packing.row >= shares[name].start) & (packing.row < shares[name].stop))
            for name, (packing, _) in placed.items()
        }
        wanted = np.unique(np.concatenate(list(here.values())))
        texts = dict(zip(wanted.tolist(), self.texts.read(split, indices[wanted])))
        packed = {
            name: rows.assemble(
                placed[name][0], lengths[name], shares[name], here[name], [texts[i] for i in here[name].tolist()]
            )
            for name, rows in encoders.items()
        }
        arrays = packed.pop("")
        own = indices[self._share.of_rows(len(indices))]
        vectors = {store.name: store.read(split, own) for store in self._stores}
        if self.online:
            arrays["cached"], arrays["online"] = vectors, packed
        elif vectors:
            arrays["teachers"] = concatenate(list(vectors.values()))
        slots = placed[""][1] * self.rows.row
        return LoadedBatch(number, arrays, indices, tokens=int(lengths[""].sum()), slots=slots)
