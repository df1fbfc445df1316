"""The losses, by the names that users import."""

from jasper_jax.losses.distillation import cosine_loss, relative_loss, similarity_loss
from jasper_jax.losses.geometry import normalize, pair_similarities, teacher_order
from jasper_jax.losses.per_head import HeadLoss, distillation_losses, reduce_heads
from jasper_jax.losses.sigmoid import sigmoid_loss

__all__ = [
    "HeadLoss",
    "cosine_loss",
    "distillation_losses",
    "normalize",
    "pair_similarities",
    "reduce_heads",
    "relative_loss",
    "sigmoid_loss",
    "similarity_loss",
    "teacher_order",
]
