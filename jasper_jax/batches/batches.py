"""Batches of texts: batch k of a stage is a pure function of (recipe, seed, k).

A batch is B consecutive draws of the shuffled records (``draw_order``), whatever their lengths: the similarity and
relative losses live on the pairs within a batch, so bucketing by length would change the loss. For each encoder the
texts are packed into rows of static shape (``row_packer``). A position in the data is the one number k; there is no
iterator state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.batches.batch_sizes import BatchLengths, BatchSizes, batch_sizes
from jasper_jax.batches.draw_order import DrawOrder
from jasper_jax.batches.loading import LoadedBatch, prepared_ahead
from jasper_jax.batches.process_share import WHOLE_BATCH, ProcessShare
from jasper_jax.batches.row_packer import RowPacker
from jasper_jax.batches.token_counts import TokenCounts
from jasper_jax.data.texts import TextStore
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.vectors import TeacherView, concatenate

Split = str


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
        share: ProcessShare = WHOLE_BATCH,
        multiple: int = 1,
        tile: int = 1,
    ):
        """Chooses the static shapes, from the sizes of all batches.

        Args:
          texts: the text store.
          view: the teachers, cached or online; None where no head of the stage learns from them.
          tokenizer: the student's, at the length at which texts are cut.
          prompts: the student's, by kind of text.
          counts: token counts under that tokenizer and those prompts.
          batch_size: texts in a batch.
          steps: training batches.
          seed: of this stage's draw order.
          shapes: the most row counts, each a compiled program, that training batches may use.
          folder: caches the teachers' token counts and the sizes of batches.
          row: tokens of a row of the student; None: chosen from the texts.
          share: the rows that this process loads.
          multiple: row counts are multiples of it; itself a multiple of ``share.parts``.
          tile: a row length chosen here is a multiple of it.

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
        self._order = DrawOrder(size, seed)
        self.held_out_batches = texts.size("held_out") // batch_size
        if not steps + self.held_out_batches:
            raise UserError("stages[].steps: 0 steps and too few held-out texts leave nothing to do")
        self._share = share
        self._counts = {"": counts.by_split}

        def sizes(counts: TokenCounts, row: int | None = None) -> BatchSizes:
            lengths = BatchLengths(counts, self._order, batch_size, steps, self.held_out_batches)
            return batch_sizes(lengths, folder, row=row, tile=tile)

        self.packer = RowPacker(tokenizer, prompts, sizes(counts, row), shapes=shapes, multiple=multiple)
        self.online: dict[str, RowPacker] = {}
        for teacher in view.online if view else ():
            embedder = teacher.embedder
            own = TokenCounts(texts, embedder.tokenizer, teacher.prompts, folder)
            self._counts[teacher.name] = own.by_split
            self.online[teacher.name] = RowPacker(
                embedder.tokenizer,
                teacher.prompts,
                sizes(own),
                shapes=shapes,
                leave_prompts_out=not embedder.pooling.include_prompt,
                multiple=multiple,
            )
        self._stores = view.stored() if view else []  # no teacher's parameters: worker processes get a copy of this

    def indices(self, number: int) -> np.ndarray:
        """Record numbers ``[B]`` of batch ``number`` in the training split, in drawing order."""
        return self._order.records(number * self.batch_size, (number + 1) * self.batch_size)

    def shown(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """Training texts, to show to people."""
        return [{"kind": row.kind, "text": row.text} for row in self.texts.read("train", indices)]

    def load(self, number: int) -> LoadedBatch:
        """Batch ``number``, read, tokenised and packed."""
        return self._assemble("train", number, self.indices(number))

    def held_out(self, number: int) -> LoadedBatch:
        """Batch ``number`` of the held-out texts, in store order; all have one shape."""
        start = number * self.batch_size
        return self._assemble("held_out", number, np.arange(start, start + self.batch_size), largest=True)

    def iterate(self, start: int, workers: int = 0) -> Iterator[LoadedBatch]:
        """Batches ``start .. steps - 1``, loaded ahead in two threads, or in ``workers`` processes if not 0."""
        return prepared_ahead(self.load, start, self.steps, workers)

    def _assemble(self, split: Split, number: int, indices: np.ndarray, *, largest: bool = False) -> LoadedBatch:
        """The batch of these records: packed rows for each encoder, and teacher vectors. Only texts in rows of this
        process are read."""
        encoders = {"": self.packer, **self.online}
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
        slots = placed[""][1] * self.packer.row_length
        return LoadedBatch(number, arrays, indices, tokens=int(lengths[""].sum()), slots=slots)
