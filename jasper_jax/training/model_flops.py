"""The operations that a step's model needs, which MFU (model FLOPs utilisation) refers to.

Counted are the matrix products of encoder layers, attention and heads on real tokens (PaLM, arXiv 2204.02311, appendix
B). Padding and recomputation (``remat``, ``micro_batch``) are not, so both lower the utilisation; nor are losses,
embeddings, norms and teachers that run in the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jasper_jax.student.student import Student

LAYERS = "encoder/layers"


class TextStepFlops:
    """Operations of one step on texts, over all devices; a multiply-add counts as two."""

    def __init__(self, student: Student, trained: Mapping[str, Any], frozen: Mapping[str, Any]):
        """``trained`` and ``frozen``: flat arrays or shapes by leaf name, as ``Partition.split`` gives them."""
        config = student.encoder.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_heads
        # A trained product runs three times: forward, and the gradients of its input and of its kernel. A frozen layer
        # lies below all trained ones, so it has a forward pass alone.
        layers = [(trained, 3), (frozen, 1)]
        self._per_token = sum(2 * times * _kernels(leaves, LAYERS) for leaves, times in layers)
        attention = 4 * config.num_heads * head_dim  # scores and their product with the values
        self._per_pair = sum(times * attention * _depth(leaves) for leaves, times in layers)
        trains_encoder = any(name.startswith("encoder/") for name in trained)
        heads = [(trained, 3 if trains_encoder else 2), (frozen, 2 if trains_encoder else 1)]
        self._per_text = sum(2 * times * _kernels(leaves, "heads/") for leaves, times in heads)

    def __call__(self, texts: int, tokens: int, pairs: int) -> float:
        """Of a batch with ``tokens`` real tokens in ``texts`` texts; ``pairs``: sum of the squares of their lengths (a
        causal encoder needs half of the attention)."""
        return float(self._per_text * texts + self._per_token * tokens + self._per_pair * pairs)


def _kernels(leaves: Mapping[str, Any], prefix: str) -> int:
    return sum(math.prod(x.shape) for name, x in leaves.items() if name.startswith(prefix) and name.endswith("kernel"))


def _depth(leaves: Mapping[str, Any]) -> int:
    """Layers among ``leaves``, which are stacked along their first axis."""
    return max(
        (x.shape[0] for name, x in leaves.items() if name.startswith(LAYERS) and name.endswith("kernel")), default=0
    )
