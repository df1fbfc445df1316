"""Packed rows for one encoder: a batch of texts as token arrays of one of a few static shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jasper_jax.batches.batch_sizes import BatchSizes
from jasper_jax.data.texts import TextRecord
from jasper_jax.encoders.packing import Packing, choose_rows, fill_rows, pack
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
        multiple: int = 1,
    ):
        """Args:
        tokenizer: the encoder's, at the length at which texts are cut.
        prompts: put before a text, by its kind.
        sizes: of every batch of the stage.
        shapes: the most different row counts.
        leave_prompts_out: pass the lengths of prompts, which pooling then leaves out.
        multiple: row counts are multiples of it.
        """
        self.tokenizer, self.prompts = tokenizer, prompts
        self.row_length, self.texts_per_row = sizes.row_length, int(sizes.texts.max())
        self.row_counts = choose_rows(-(-sizes.rows // multiple) * multiple, shapes)
        self._prompt_lengths = (
            {k: tokenizer.prompt_length(p) for k, p in prompts.items()} if leave_prompts_out else None
        )

    def place(self, lengths: np.ndarray, *, largest: bool = False) -> tuple[Packing, int]:
        """The packing of a batch with these token counts ``[B]``, and the row count of the program that takes it.

        ``largest``: take the program with the most rows.
        """
        packing = pack(lengths, self.row_length)
        counts = self.row_counts[-1:] if largest else self.row_counts
        return packing, int(counts[np.searchsorted(counts, packing.rows)])

    def assemble(
        self, packing: Packing, lengths: np.ndarray, rows: slice, which: np.ndarray, texts: Sequence[TextRecord]
    ) -> dict[str, Any]:
        """The arrays of ``encoders.packed.Packed`` for some ``rows`` of a batch, ``slots`` for all its texts.

        Args:
          packing: of the whole batch.
          lengths: token counts ``[B]`` of the whole batch.
          rows: those to assemble.
          which: the positions in the batch of the texts in these rows.
          texts: the texts at these positions.

        Raises:
          UserError: a text does not have the number of tokens that was counted.
        """
        tokens = self.tokenizer.encode([self.prompts[t.kind] + t.text for t in texts])
        if wrong := [i for i, one in zip(which, tokens) if len(one) != lengths[i]]:
            raise UserError(
                f"token_counts: text {wrong[0]} of a batch was counted with {lengths[wrong[0]]} tokens and has another"
                " number now; delete the folder token_counts of the run and run again"
            )
        here = Packing(packing.row[which] - rows.start, packing.place[which], packing.column[which])
        shape = (rows.stop - rows.start, self.row_length)
        ids, per_text = fill_rows(tokens, here, shape, self.texts_per_row, self.tokenizer.pad_id)
        arrays: dict[str, Any] = {
            "ids": ids,
            "lengths": per_text,
            "slots": packing.row * self.texts_per_row + packing.place,
        }
        if self._prompt_lengths is not None:
            arrays["prompts"] = np.zeros_like(per_text)
            arrays["prompts"][here.row, here.place] = [self._prompt_lengths[text.kind] for text in texts]
        return arrays
