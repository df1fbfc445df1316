"""Batches of texts: batch k of a stage is a pure function of (recipe, seed, k).

A batch is B consecutive draws of the shuffled records (``draws``), whatever their lengths: the similarity and
relative losses live on the pairs within a batch, so bucketing by length would change the loss. For each encoder the
texts are packed into rows of static shape (``row_packer``). A position in the data is the one number k; there is no
iterator state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.batches.batch_sizes import BatchLengths, BatchSizes, TokenCounts, batch_sizes
from jasper_jax.batches.draws import BatchDraws
from jasper_jax.batches.loading import WHOLE_BATCH, LoadedBatch, ProcessShare, StageBatches
from jasper_jax.batches.row_packer import RowPacker
from jasper_jax.data.texts import TextStore
from jasper_jax.encoders.packing import WHOLE, Packing, RowDivision
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.vectors import TeacherView, concatenate


class Batches(StageBatches[TextStore]):
    """The batches of a stage that learns from texts."""

    def __init__(
        self,
        texts: TextStore,
        view: TeacherView | None,
        tokenizer: Tokenizer,
        prompts: Mapping[str, str],
        counts: TokenCounts,
        *,
        draws: BatchDraws,
        steps: int,
        shapes: int,
        folder: Path,
        row: int | None = None,
        share: ProcessShare = WHOLE_BATCH,
        division: RowDivision = WHOLE,
        tile: int = 1,
    ):
        """Choose the static shapes from the sizes of all batches.

        Args:
          texts: the text store.
          view: the teachers, cached or online; None where no head of the stage learns from them.
          tokenizer: the student's, at its maximum length; ``prompts`` are the student's, by kind of text.
          counts: token counts under that tokenizer and those prompts.
          draws: which rows each batch has.
          shapes: the maximum number of row counts, each a compiled program, of training batches.
          folder: caches the teachers' token counts and the sizes of batches.
          row: tokens in a row of the student; None: chosen from the texts, a multiple of ``tile``.
          share: the rows that this process loads.
          division: fills up row counts; its shards are a multiple of ``share.parts``.

        Raises:
          UserError: nothing to do.
        """
        super().__init__(texts, draws, steps=steps, share=share)
        if not steps + self.held_out_batches:
            raise UserError("stages[].steps: 0 steps and too few held-out texts leave nothing to do")
        self._counts = {"": counts.by_split}

        def sizes(counts: TokenCounts, row: int | None = None) -> BatchSizes:
            lengths = BatchLengths(counts, draws, steps, self.held_out_batches)
            return batch_sizes(lengths, folder, row=row, tile=tile)

        self.packer = RowPacker(tokenizer, prompts, sizes(counts, row), shapes=shapes, division=division)
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
                division=division,
            )
        self._weights = view.weights if view else []
        self._stores = view.stored() if view else []  # worker processes get a copy: leave out teachers' parameters

    def shown(self, indices: np.ndarray) -> list[dict[str, Any]]:
        return [{"kind": row.kind, "text": row.text} for row in self.store.read("train", indices)]

    def _assemble(self, split: str, number: int, indices: np.ndarray) -> LoadedBatch:
        """Packed rows for each encoder, and teacher vectors. Reads only the texts in rows of this process."""
        encoders = {"": self.packer, **self.online}
        lengths = {name: self._counts[name][split][indices] for name in encoders}
        rows: dict[str, int] = {}
        placed: dict[str, tuple[Packing, np.ndarray, np.ndarray, np.ndarray]] = {}
        for name, packer in encoders.items():
            packing, rows[name] = packer.place(lengths[name], largest=split == "held_out")
            share = self._share.of_rows(rows[name])
            which = np.flatnonzero(np.isin(packing.row, share))
            placed[name] = packing, lengths[name], share, which
        wanted = np.unique(np.concatenate([which for *_, which in placed.values()]))
        texts = dict(zip(wanted.tolist(), self.store.read(split, indices[wanted])))
        packed = {name: packer.assemble(*placed[name], texts) for name, packer in encoders.items()}
        arrays = packed.pop("")
        own = self._own(indices)
        vectors = {store.name: store.read(split, own) for store in self._stores}
        if self.online:
            arrays["cached"], arrays["online"] = vectors, packed
        elif vectors:
            arrays["teachers"] = concatenate(list(vectors.values()), self._weights)
        slots = rows[""] * self.packer.row_length
        own_lengths = lengths[""].astype(np.int64)
        tokens, pairs = int(own_lengths.sum()), int((own_lengths**2).sum())
        return LoadedBatch(number, arrays, indices, tokens=tokens, slots=slots, pairs=pairs)

    def _own(self, values: np.ndarray) -> np.ndarray:
        """This process's part of ``values``, which the last value fills up to a number that all devices share."""
        missing = -len(values) % self._share.parts
        filled = np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
        return filled[self._share.of_rows(len(filled))]
