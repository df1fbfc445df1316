"""The texts of a stage's batches as packed rows for one encoder: its tokens, its prompts, its few static shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jasper_jax.batches.batch_sizes import BatchSizes
from jasper_jax.data.texts import Row
from jasper_jax.encoders.packing import Packing, choose_rows, fill_rows, pack
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.runtime.errors import UserError


class Rows:
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
        """``sizes``: of every batch there will be; ``shapes`` bounds the numbers of rows, which are multiples of
        ``multiple``; ``leave_prompts_out`` tells the pooling where prompts end."""
        self.tokenizer, self.prompts = tokenizer, prompts
        self.row, self.texts_per_row = sizes.row, int(sizes.texts.max())
        self.row_counts = choose_rows(-(-sizes.rows // multiple) * multiple, shapes)
        self._prompt_lengths = (
            {k: tokenizer.prompt_length(p) for k, p in prompts.items()} if leave_prompts_out else None
        )

    def place(self, lengths: np.ndarray, *, largest: bool = False) -> tuple[Packing, int]:
        """Where the texts of a batch of these token counts ``[B]`` go, and in how many rows; ``largest``: always the
        most."""
        packing = pack(lengths, self.row)
        counts = self.row_counts[-1:] if largest else self.row_counts
        return packing, int(counts[np.searchsorted(counts, packing.rows)])

    def assemble(
        self, packing: Packing, lengths: np.ndarray, rows: slice, which: np.ndarray, texts: Sequence[Row]
    ) -> dict[str, Any]:
        """The arrays of ``encoders.packed.Packed``: of a batch placed by ``packing`` the ``rows``, in which the
        texts number ``which`` of the batch stand; ``slots`` are those of the whole batch.

        Raises:
          UserError: a text has another number of tokens than was counted.
        """
        tokens = self.tokenizer.encode([self.prompts[t.kind] + t.text for t in texts])
        if wrong := [i for i, one in zip(which, tokens) if len(one) != lengths[i]]:
            raise UserError(
                f"token_counts: text {wrong[0]} of a batch was counted with {lengths[wrong[0]]} tokens and has another"
                " number now; delete the folder token_counts of the run and run again"
            )
        here = Packing(packing.row[which] - rows.start, packing.place[which], packing.column[which])
        shape = (rows.stop - rows.start, self.row)
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
