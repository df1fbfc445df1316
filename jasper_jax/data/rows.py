"""The texts of a stage's batches as packed rows for one encoder: its tokens, its prompts, its few static shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jasper_jax.data.packing import choose_rows, fill_rows, pack, row_length
from jasper_jax.data.texts import Row
from jasper_jax.errors import UserError
from jasper_jax.tokenization import Tokenizer


class Rows:
    """How batches are packed for one encoder (see ``jasper_jax.data.packing``)."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Mapping[str, str],
        known: Sequence[np.ndarray],
        *,
        shapes: int,
        row: int | None = None,
        leave_prompts_out: bool = False,
    ):
        """``known``: token counts ``[B]`` of every batch there will be; ``shapes`` bounds the numbers of rows; ``row``
        is the tokens of a row (None: chosen from the texts); ``leave_prompts_out`` tells the pooling where prompts end.

        Raises:
          UserError: a text does not fit ``row``.
        """
        self.tokenizer, self.prompts = tokenizer, prompts
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
        self._prompt_lengths = (
            {k: tokenizer.prompt_length(p) for k, p in prompts.items()} if leave_prompts_out else None
        )

    def assemble(self, texts: Sequence[Row], *, largest: bool = False) -> tuple[dict[str, Any], int]:
        """The arrays of ``jasper_jax.student.Packed`` for a batch, and its tokens; ``largest``: always in the most
        rows."""
        tokens = self.tokenizer.encode([self.prompts[t.kind] + t.text for t in texts])
        packing = pack(np.array([len(t) for t in tokens]), self.row)
        counts = self.row_counts[-1:] if largest else self.row_counts
        rows = int(counts[np.searchsorted(counts, packing.rows)])
        ids, lengths = fill_rows(tokens, packing, (rows, self.row), self.texts_per_row, self.tokenizer.pad_id)
        arrays: dict[str, Any] = {
            "ids": ids,
            "lengths": lengths,
            "slots": packing.row * self.texts_per_row + packing.place,
        }
        if self._prompt_lengths is not None:
            arrays["prompts"] = np.zeros_like(lengths)
            arrays["prompts"][packing.row, packing.place] = [self._prompt_lengths[text.kind] for text in texts]
        return arrays, sum(map(len, tokens))
