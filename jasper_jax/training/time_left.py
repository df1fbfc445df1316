"""The time until the last stage is trained: this stage at its own rate, later ones by the operations of their steps.

A guess: it takes later batches for texts as long as this stage's, and leaves out compiling, evaluating and saving.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jasper_jax.training.model_flops import StepFlops, TextStepFlops, step_flops
from jasper_jax.training.partition import make_partition
from jasper_jax.training.stage_kind import StageKind


class TimeLeft:
    """Of the stages from the first of ``kinds`` on, which is being trained."""

    def __init__(self, kinds: Sequence[StageKind]):
        self._stages = [kind.stage for kind in kinds]
        self._flops = [_flops(kind) for kind in kinds]

    def seconds(self, step: int, per_step: float, tokens: float) -> float:
        """After ``step`` steps of this stage that took ``per_step`` seconds each; ``tokens``: of a text, on average."""
        costs = [
            flops(stage.width, round(stage.width * tokens), round(stage.width * tokens**2))
            for stage, flops in zip(self._stages, self._flops, strict=True)
        ]
        later = sum(stage.steps * cost for stage, cost in zip(self._stages[1:], costs[1:], strict=True))
        return per_step * (self._stages[0].steps - step + later / costs[0])


def _flops(kind: StageKind) -> StepFlops:
    active = kind.active(kind.student.shapes())
    partition = make_partition(kind.stage.train, active, f"stages[{kind.stage.index}].train")
    trained, frozen = jax.eval_shape(partition.split, active)
    # Of labelled pairs MFU is not counted; they are texts.
    return step_flops(kind.stage, kind.student, trained, frozen) or TextStepFlops(kind.student, trained, frozen)
