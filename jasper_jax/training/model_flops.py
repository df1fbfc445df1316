"""The operations that a step's model needs, which MFU (model FLOPs utilisation) refers to.

Counted are the matrix products of encoder layers, attention and heads on real tokens (PaLM, arXiv 2204.02311, appendix
B). Padding and recomputation (``remat``, ``micro_batch``) are not, so both lower the utilisation; nor are losses,
embeddings, norms and teachers that run in the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.student.student import Student

StepFlops = Callable[[int, int, int], float]
"""(texts or images, tokens, pairs) -> operations of the model's step."""

LAYERS, VISION_LAYERS = "encoder/layers", "vision/layers"


def step_flops(
    stage: ResolvedStage, student: Student, trained: Mapping[str, Any], frozen: Mapping[str, Any]
) -> StepFlops | None:
    """Of a stage on texts or on images; None for one on labelled pairs, whose operations are not counted."""
    if stage.learns_from("images"):
        return ImageStepFlops(student, trained, frozen)
    return TextStepFlops(student, trained, frozen) if stage.learns_from("texts") else None


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
        self._per_pair = sum(times * attention * _depth(leaves, LAYERS) for leaves, times in layers)
        trains_encoder = any(name.startswith("encoder/") for name in trained)
        heads = [(trained, 3 if trains_encoder else 2), (frozen, 2 if trains_encoder else 1)]
        self._per_text = sum(2 * times * _kernels(leaves, "heads/") for leaves, times in heads)

    def __call__(self, texts: int, tokens: int, pairs: int) -> float:
        """Of a batch with ``tokens`` real tokens in ``texts`` texts; ``pairs``: sum of the squares of their lengths (a
        causal encoder needs half of the attention)."""
        return float(self._per_text * texts + self._per_token * tokens + self._per_pair * pairs)


class ImageStepFlops:
    """Operations of one step on images, over all devices, as :class:`TextStepFlops`.

    Each image runs through the vision encoder, the projector and, as one text, the text encoder. All three may be
    frozen, but the gradient passes through what is frozen above the first trained one. Captions come from the cache as
    pooled vectors: only the heads take them. Real rows are counted, not those that fill up the devices.
    """

    def __init__(self, student: Student, trained: Mapping[str, Any], frozen: Mapping[str, Any]):
        """``trained`` and ``frozen`` as for :class:`TextStepFlops`."""
        assert student.vision_model is not None
        text, model = student.encoder.config, student.vision_model
        vision, tokens, positions = model.encoder.config, model.encoder.config.num_tokens, len(model.alone)
        text_width = text.num_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_heads)
        below = {name: any(leaf.startswith(name) for leaf in trained) for name in ("vision/", "projector/", "encoder/")}
        passes_text = below["vision/"] or below["projector/"]
        passes_heads = passes_text or below["encoder/"]
        total = 0.0
        for leaves, of_kernel in ((trained, 1), (frozen, 0)):
            # A layer's products: forward, the gradient of its kernel if trained, that of its input if needed below.
            attention = 4 * tokens * vision.hidden_size * _depth(leaves, VISION_LAYERS)
            per_token = 2 * _kernels(leaves, VISION_LAYERS) + attention
            total += per_token * tokens * (3 if of_kernel else 1 + below["vision/"])
            total += 2 * _kernels(leaves, "vision/patches") * vision.side**2 * (1 + of_kernel)
            repeats = 1 if model.projector == "joint" else model.tokens
            total += 2 * _kernels(leaves, "projector/") * repeats * (1 + of_kernel + below["vision/"])
            per_token = 2 * _kernels(leaves, LAYERS) + 4 * positions * text_width * _depth(leaves, LAYERS)
            total += per_token * positions * (1 + of_kernel + (passes_text or of_kernel))
            heads = 2 * _kernels(leaves, "heads/")
            total += heads * (1 + of_kernel + passes_heads) + heads * (1 + of_kernel)  # the image's, the caption's
        self._per_image = total

    def __call__(self, images: int, tokens: int, pairs: int) -> float:
        """Of a batch of ``images``; every image has as many tokens, so the other two do not matter."""
        return self._per_image * images


def _kernels(leaves: Mapping[str, Any], prefix: str) -> int:
    return sum(math.prod(x.shape) for name, x in leaves.items() if name.startswith(prefix) and name.endswith("kernel"))


def _depth(leaves: Mapping[str, Any], prefix: str) -> int:
    """Layers among ``leaves``, which are stacked along their first axis."""
    return max(
        (x.shape[0] for name, x in leaves.items() if name.startswith(prefix) and name.endswith("kernel")), default=0
    )
