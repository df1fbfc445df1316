"""The distillation losses, by the names that users import."""

from jasper_jax.losses.distillation import (
    HeadLoss,
    cosine_loss,
    distillation_losses,
    normalize,
    pair_similarities,
    reduce_heads,
    relative_loss,
    similarity_loss,
    teacher_order,
)

__all__ = [
    "HeadLoss",
    "cosine_loss",
    "distillation_losses",
    "normalize",
    "pair_similarities",
    "reduce_heads",
    "relative_loss",
    "similarity_loss",
    "teacher_order",
]
