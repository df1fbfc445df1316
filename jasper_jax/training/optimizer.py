"""AdamW with warm-up, decay and clipping (paper table of settings; Loshchilov & Hutter 2019)."""

from __future__ import annotations

import optax

from jasper_jax.parameters.patterns import first_match
from jasper_jax.recipe.config_training import Stage
from jasper_jax.training.partition import Flat

WEIGHT_DECAY: tuple[tuple[str, bool], ...] = (
    ("losses/**", False),
    ("**/bias", False),
    ("**/scale", False),
    ("**/class_token", False),
    ("**/kernel", True),
    ("**/embedding", True),
    ("**/positions", True),
)
"""(pattern, whether weight decay applies); the first row that matches counts, and every leaf needs one."""


def learning_rate(stage: Stage) -> optax.Schedule:
    """Learning rate by step: linear warm-up to the peak, then ``schedule`` down to ``final_rate`` of the peak."""
    peak, final = stage.learning_rate, stage.learning_rate * stage.final_rate
    rising = stage.steps // 10 if stage.warmup_steps is None else stage.warmup_steps
    falling = max(stage.steps - rising, 1)
    if stage.schedule == "constant":
        after: optax.Schedule = optax.constant_schedule(peak)
    elif stage.schedule == "linear":
        after = optax.linear_schedule(peak, final, falling)
    else:
        after = optax.cosine_decay_schedule(peak, falling, alpha=stage.final_rate)
    if not rising:
        return after
    # The first step already moves: warm-up counts from 1, not from a rate of 0.
    warmup = optax.linear_schedule(peak / rising, peak, max(rising - 1, 1))
    return optax.join_schedules([warmup, after], [rising])


def make_optimizer(stage: Stage, dtype: str = "float32") -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW with decay on matrices only.

    ``dtype``: of the first moment. The second is float32 in any case: with b2 = 0.999 a step changes it by a
    thousandth, less than the distance of two numbers in bfloat16, and it would stand still.
    """

    def decayed(params: Flat) -> dict[str, bool]:
        return {name: bool(first_match(WEIGHT_DECAY, name)) for name in params}

    adamw = optax.adamw(
        learning_rate(stage),
        b1=stage.b1,
        b2=stage.b2,
        eps=stage.eps,
        weight_decay=stage.weight_decay,
        mask=decayed,
        mu_dtype=dtype,
    )
    return optax.chain(optax.clip_by_global_norm(stage.clip_norm), adamw) if stage.clip_norm else adamw
