"""What happens between two steps of a stage: evaluating, saving, profiling. Each hook has its own interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jasper_jax.batches.loading import LoadedBatch
from jasper_jax.runtime import processes
from jasper_jax.runtime.progress import say
from jasper_jax.training.stage_kind import StageBatches


@dataclasses.dataclass(frozen=True)
class Moment:
    """Where a stage stands: ``step`` of its steps are done, ``global_step`` of the recipe's.

    ``last``: no step is left. ``stopping``: training ends here, before the last one. ``batch`` and ``metrics``: of the
    step just done, None before the first; the metrics are still on the device. ``input_wait``: seconds that the step
    waited for its batch.
    """

    step: int
    global_step: int
    last: bool = False
    stopping: bool = False
    batch: LoadedBatch | None = None
    metrics: Mapping[str, jax.Array] | None = None
    input_wait: float = 0.0


class Hook(Protocol):
    """Called between two steps, where it is due."""

    def due(self, moment: Moment) -> bool:
        """Whether to be called at this moment."""
        ...

    def __call__(self, moment: Moment) -> None: ...


def every(interval: int | None, moment: Moment) -> bool:
    """Whether an interval of steps ends at the moment; None has no end."""
    return bool(interval and moment.step and moment.step % interval == 0)


class Evaluate:
    """The losses on held-out batches: before the first step, at each interval, and after the last step."""

    def __init__(
        self,
        interval: int | None,
        batches: StageBatches,
        evaluate: Callable[[Any], Mapping[str, jax.Array]],
        write: Callable[[Moment, dict[str, float]], None],
    ):
        """``evaluate(arrays)`` gives the losses of a batch, ``write`` takes their means."""
        self._interval, self._batches, self._evaluate, self._write = interval, batches, evaluate, write

    def due(self, moment: Moment) -> bool:
        wanted = not moment.step or moment.last or every(self._interval, moment)
        return bool(self._batches.held_out_batches) and wanted

    def __call__(self, moment: Moment) -> None:
        values: dict[str, list[float]] = {}
        for number in range(self._batches.held_out_batches):
            for name, value in self._evaluate(self._batches.held_out(number).arrays).items():
                values.setdefault(name, []).append(float(value))
        self._write(moment, {name: float(np.mean(of_batches)) for name, of_batches in values.items()})


class Save:
    """A checkpoint at each interval, and where training stops; the end of a stage has one of its own."""

    def __init__(self, interval: int, save: Callable[[int], None]):
        """``save(step)`` starts writing it."""
        self._interval, self._save = interval, save

    def due(self, moment: Moment) -> bool:
        return not moment.last and (moment.stopping or every(self._interval, moment))

    def __call__(self, moment: Moment) -> None:
        self._save(moment.step)


class Profile:
    """A JAX profile of ``steps`` steps, from the fifth of this command on: the first ones compile. XProf opens the
    folder (``*.xplane.pb``), ui.perfetto.dev the file ``perfetto_trace.json.gz`` in it.

    Of several processes each has a folder of its own, ``process-N``: they end their profiles in the same second, so JAX
    would put them into one, and it writes no trace for Perfetto beside those of other hosts but raises ValueError.
    """

    AFTER = 4

    def __init__(self, steps: int, first_step: int, folder: Path):
        """``first_step``: where this command began the stage."""
        self._begin, self._end = first_step + self.AFTER, first_step + self.AFTER + steps
        several = processes.count() > 1
        self._folder, self._running = folder / f"process-{processes.index()}" if several else folder, False

    def due(self, moment: Moment) -> bool:
        if self._running:
            return moment.step >= self._end or moment.last or moment.stopping
        ends = moment.last or moment.stopping
        return self._begin < self._end and (moment.step <= self._begin if ends else moment.step == self._begin)

    def __call__(self, moment: Moment) -> None:
        if self._running:
            jax.block_until_ready(moment.metrics)
            self.close()
            say(f"Profile of steps {self._begin + 1} to {moment.step}: {self._folder}")
        elif moment.last or moment.stopping:
            say(
                f"No profile: training.profile_steps begins after {self.AFTER} steps of a command, and this one ended"
                f" at step {moment.step}"
            )
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True

    def close(self) -> None:
        """End a profile that still runs."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
