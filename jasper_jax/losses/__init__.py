"""The losses, by the names that users import."""

from jasper_jax.losses.contrastive import contrastive_loss, spread_loss
from jasper_jax.losses.distillation import cosine_loss, relative_loss, similarity_loss
from jasper_jax.losses.geometry import normalize, pair_similarities, teacher_order
from jasper_jax.losses.per_head import HeadLoss, distillation_losses, reduce_heads
from jasper_jax.losses.ranking import margin_loss, ranking_loss
from jasper_jax.losses.sigmoid import sigmoid_loss

__all__ = [
    "HeadLoss",
    "contrastive_loss",
    "cosine_loss",
    "distillation_losses",
    "margin_loss",
    "normalize",
    "pair_similarities",
    "ranking_loss",
    "reduce_heads",
    "relative_loss",
    "sigmoid_loss",
    "similarity_loss",
    "spread_loss",
    "teacher_order",
]
