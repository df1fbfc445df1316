"""Packed rows for one encoder: a batch of texts as token arrays of one of a few static shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jasper_jax.batches.batch_sizes import BatchSizes
from jasper_jax.data.texts import TextRecord
from jasper_jax.encoders.packing import WHOLE, Packing, RowDivision, choose_rows, fill_rows, pack
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.runtime.errors import UserError


class RowPacker:
    """How batches are packed for one encoder (see ``jasper_jax.encoders.packing``)."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Mapping[str, str],
        sizes: BatchSizes,
        *,
        shapes: int,
        leave_prompts_out: bool = False,
        division: RowDivision = WHOLE,
    ):
        """Args:
        tokenizer: the encoder's, at its maximum length.
        prompts: prepended to a text, by its kind.
        sizes: of every batch of the stage.
        shapes: the maximum number of different row counts.
        leave_prompts_out: add the lengths of prompts to the arrays, so that pooling excludes prompts.
        division: fills up row counts.
        """
        self.tokenizer, self.prompts = tokenizer, prompts
        self.row_length, self.texts_per_row = sizes.row_length, int(sizes.texts.max())
        self.row_counts = choose_rows(division.fill(sizes.rows), shapes)
        self._prompt_lengths = (
            {k: tokenizer.prompt_length(p) for k, p in prompts.items()} if leave_prompts_out else None
        )

    def place(self, lengths: np.ndarray, *, largest: bool = False) -> tuple[Packing, int]:
        """The packing of a batch with these token counts ``[B]``, and the row count of its program.

        ``largest``: the program with the most rows.
        """
        packing = pack(lengths, self.row_length)
        counts = self.row_counts[-1:] if largest else self.row_counts
        return packing, int(counts[np.searchsorted(counts, packing.rows)])

    def assemble(
        self,
        packing: Packing,
        lengths: np.ndarray,
        rows: np.ndarray,
        which: np.ndarray,
        texts: Mapping[int, TextRecord],
    ) -> dict[str, Any]:
        """The arrays of ``encoders.packed.Packed`` for some ``rows`` of a batch, ``slots`` for all its texts.

        Args:
          packing: of the whole batch.
          lengths: token counts ``[B]`` of the whole batch.
          rows: the numbers of those to assemble, ascending.
          which: the positions in the batch of the texts in these rows.
          texts: the texts at these positions, by position.

        Raises:
          UserError: a text's number of tokens differs from its cached count.
        """
        records = [texts[i] for i in which.tolist()]
        tokens = self.tokenizer.encode([self.prompts[record.kind] + record.text for record in records])
        for i, ids in zip(which, tokens):
            if len(ids) != lengths[i]:
                raise UserError(
                    f"token_counts: text {i} of a batch has {len(ids)} tokens, its cached count is {lengths[i]}; delete"
                    " the folder token_counts of the run and run again"
                )
        here = Packing(np.searchsorted(rows, packing.row[which]), packing.place[which], packing.column[which])
        shape = (len(rows), self.row_length)
        ids, per_text = fill_rows(tokens, here, shape, self.texts_per_row, self.tokenizer.pad_id)
        arrays: dict[str, Any] = {
            "ids": ids,
            "lengths": per_text,
            "slots": packing.row * self.texts_per_row + packing.place,
        }
        if self._prompt_lengths is not None:
            arrays["prompts"] = np.zeros_like(per_text)
            arrays["prompts"][here.row, here.place] = [self._prompt_lengths[record.kind] for record in records]
        return arrays
