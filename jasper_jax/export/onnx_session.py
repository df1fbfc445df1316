"""An exported ONNX file, run by onnxruntime on this machine's processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.export.onnx_in_torch import INPUTS


class OnnxModel:
    """``file`` with the tokenizer of its folder. ``threads`` of one operation; 0: as many as there are cores."""

    def __init__(self, file: Path, tokenizer: Tokenizer, threads: int = 0):
        import onnxruntime  # type: ignore[import-not-found]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin for work starve those of other programs, and each other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.tokenizer = tokenizer

    def inputs(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """``texts`` as one batch, padded on the right: int64 ``[B, L]`` ids and mask."""
        ids = self.tokenizer.encode(list(texts))
        width = max(map(len, ids))
        batch = np.full((len(ids), width), self.tokenizer.pad_id, np.int64)
        mask = np.zeros_like(batch)
        for row, tokens in enumerate(ids):
            batch[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return dict(zip(INPUTS, (batch, mask), strict=True))

    def run(self, texts: Sequence[str], outputs: Sequence[str]) -> list[np.ndarray]:
        """Each of ``outputs`` of ``texts`` as one padded batch."""
        return [np.asarray(array) for array in self.session.run(list(outputs), self.inputs(texts))]

    def vectors(self, texts: Sequence[str], outputs: Sequence[str], batch_size: int = 16) -> list[np.ndarray]:
        """Each of ``outputs`` ``[len(texts), E]``, in batches of texts of similar length."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        made = [self.run([texts[int(i)] for i in part], outputs) for part in parts]
        place = np.argsort(order, kind="stable")
        return [np.concatenate(column)[place] for column in zip(*made, strict=True)]
