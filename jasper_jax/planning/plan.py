"""One step, compiled for a machine that need not exist: whether it fits and what it costs.

Nothing here knows of recipes. A step comes as a lowered program with what is to be said of it, and goes out as a
:class:`StagePlan`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jasper_jax.parameters.sharding import Placement, mesh_sizes_of
from jasper_jax.planning.estimate import Estimate, estimate
from jasper_jax.planning.machine import Target
from jasper_jax.planning.memory import DoesNotFit, does_not_fit
from jasper_jax.planning.work import Analysis, analyse
from jasper_jax.runtime.errors import UserError, first_line


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """What a plan needs to know of a stage beside its program.

    batch_size:  texts (or images) of one step, on all devices together.
    rows:        rows of one step, of which ``empty`` only fill up, so that every device has as many.
    state_bytes: bytes on one device of what lasts from step to step: ``trained`` and ``frozen`` parameters,
                 ``optimizer``, ``teachers``.
    model_flops: operations of a step, over all devices, that the model needs (``training.model_flops``); None: unknown.
    leaves:      each parameter: where it lies, the shape of a device's part, its bytes (``sharding.parts``).
    """

    name: str
    batch_size: int
    steps: int
    rows: int
    empty: int
    state_bytes: Mapping[str, int]
    model_flops: float | None
    leaves: tuple[tuple[Placement, tuple[int, ...], int], ...]


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """A stage on a machine. Either ``analysis`` and ``estimate`` are set, or ``too_large`` is.

    mesh_sizes: (data, fsdp, tensor).
    settings:   changes to the recipe, as ``key=value``, that the program was compiled with; empty for the recipe's own.
    """

    stage: PlannedStage
    mesh_sizes: tuple[int, int, int]
    analysis: Analysis | None
    estimate: Estimate | None
    too_large: DoesNotFit | None
    compile_seconds: float
    settings: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the program fits into a device's memory."""
        return self.estimate is not None and self.estimate.fits

    def likely_mfu(self, target: Target) -> float | None:
        """The model's operations over what ``target`` could do at its peak in the likely time."""
        assert self.estimate is not None
        if self.stage.model_flops is None:
            return None
        peak = target.chip.per_device.peak_flops * target.devices
        return self.stage.model_flops / (self.estimate.likely_seconds * peak)

    @property
    def hours(self) -> float:
        """Hours of the whole stage at its estimated step time."""
        assert self.estimate is not None
        return self.stage.steps * self.estimate.step_seconds / 3600


def plan_program(stage: PlannedStage, lowered: Any, mesh: Mesh, target: Target) -> StagePlan:
    """Compile ``lowered`` (of ``jax.jit(...).lower(...)``) for ``mesh`` on ``target``, and account for it.

    Raises:
      UserError: the compiler refuses the program for another reason than its size.
    """
    began = time.monotonic()
    analysis, bounds, too_large = None, None, None
    try:
        compiled = lowered.compile(target.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        too_large = does_not_fit(error)
        if too_large is None:
            reason = f"the compiler refuses the step for {target}: {first_line(error)}"
            raise UserError(f"{stage.name}: {reason}") from error
        seconds = time.monotonic() - began
    else:
        seconds = time.monotonic() - began
        analysis = analyse(compiled, mesh, device=target.chip.per_device)
        bounds = estimate(analysis, target.chip, stage.batch_size)
    return StagePlan(stage, mesh_sizes_of(mesh), analysis, bounds, too_large, seconds)
