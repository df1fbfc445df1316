"""The log of a stage: its steps and evaluations as events, and the end of the run at a loss that is not finite."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jasper_jax.batches.loading import LoadedBatch
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import write_atomic
from jasper_jax.runtime.progress import Bar, say
from jasper_jax.runtime.timings import duration
from jasper_jax.training.events import read_events
from jasper_jax.training.hooks import Moment
from jasper_jax.training.metrics import Metrics
from jasper_jax.training.stage_kind import StageBatches
from jasper_jax.training.step import CompiledPrograms
from jasper_jax.training.time_left import TimeLeft
from jasper_jax.training.utilisation import Utilisation, device_peak_bytes, process_peak_bytes


class StageLog:
    """Each step is read one step late, so that the device never waits for the log."""

    def __init__(
        self,
        stage: ResolvedStage,
        programs: CompiledPrograms,
        metrics: Metrics,
        batches: StageBatches,
        folder: Path,
        bar: Bar,
        utilisation: Utilisation,
        time_left: TimeLeft,
    ):
        """``folder``: where a batch with a bad loss is written. ``bar``: advances with the steps."""
        self._time_left, self._seconds = time_left, 0.0
        self._utilisation = utilisation
        self.stage, self.programs, self.metrics, self.batches, self.folder = stage, programs, metrics, batches, folder
        self._bar, self._note, self._held_out = bar, "", ""
        self.first_loss = self.last_loss = math.nan
        self._pending: Moment | None = None
        self._steps = self._tokens = self._slots = 0
        self._input_wait = 0.0
        self.restart_clock()

    @property
    def padding_share(self) -> float:
        """Share of padding over the steps logged so far."""
        return 1.0 - self._tokens / self._slots if self._slots else 0.0

    def step(self, moment: Moment) -> None:
        """Log the step before this one; this one is logged at the next call or at :meth:`flush`."""
        self.flush()
        self._pending = moment
        self._bar.advance(note=self._note)

    def flush(self) -> None:
        """Log the last step; waits for its metrics.

        Raises:
          UserError: its loss is not finite.
        """
        moment, self._pending = self._pending, None
        if moment is None:
            return
        assert moment.batch is not None
        assert moment.metrics is not None
        batch = moment.batch
        numbers = {k: float(v) for k, v in jax.device_get(dict(moment.metrics)).items()}
        bad = [k for k, v in numbers.items() if not math.isfinite(v)]
        if bad:
            self._not_finite(bad, numbers, moment.step, batch)
        seconds = time.monotonic() - self._clock - (self.programs.seconds - self._compiled_before)
        self.restart_clock()
        mfu = self._utilisation.mfu(batch, seconds)
        self.metrics.goodput.add(seconds)
        self._input_wait += moment.input_wait
        self._steps += 1
        self._seconds += seconds
        self._tokens += batch.tokens
        self._slots += batch.slots
        loss = numbers.pop("loss")
        self.first_loss = loss if math.isnan(self.first_loss) else self.first_loss
        self.last_loss = loss
        device_bytes = device_peak_bytes()
        self._note = f"loss {loss:.4g}{self._held_out}{self._outlook(moment.step, device_bytes)}"
        self._note += "" if mfu is None else f", MFU {mfu:.0%}"
        self._write(
            "step",
            moment,
            loss=loss,
            grad_norm=numbers.pop("grad_norm"),
            learning_rate=numbers.pop("learning_rate"),
            terms=numbers,
            texts_per_second=len(batch.indices) / seconds if seconds > 0 else None,
            tokens_per_second=batch.tokens / seconds if seconds > 0 else None,
            seconds=seconds,
            input_wait=moment.input_wait,
            mfu=mfu,
            device_bytes=device_bytes,
            goodput=self.metrics.goodput.share(),
            padding_share=batch.padding_share,
            programs=self.programs.count,
        )

    def evaluation(self, moment: Moment, losses: dict[str, float]) -> None:
        """Log losses on the held-out data."""
        self._held_out = f", held out {losses['loss']:.4g}"
        self._write("evaluation", moment, loss=losses.pop("loss"), terms=losses)
        self.restart_clock()

    def held_out_losses(self) -> list[float]:
        """The stage's losses on held-out data so far, those of earlier commands among them."""
        events = read_events(self.metrics.path)
        return [
            e["loss"] for e in events if e.get("event") == "evaluation" and e.get("stage_index") == self.stage.index
        ]

    def summary(self, seconds: float) -> None:
        """One line at the end of the stage, on the steps of this command, and one more where the stage made the student
        worse."""
        held_out = self.held_out_losses()
        of = f" of {self.stage.steps:,}" if self._steps < self.stage.steps else ""
        line = (
            f"{self.stage.name}: {self._steps:,}{of} steps in {seconds:,.0f} s, {self.programs.seconds:,.0f} s of them"
            f" compiling {self.programs.count} programs"
        )
        if self._steps:
            line += f"; padding {self.padding_share:.1%}; loss {self.first_loss:.4g} -> {self.last_loss:.4g}"
            line += f"; waited {self._input_wait:,.0f} s for batches"
            if (goodput := self.metrics.goodput.share()) is not None:
                line += f"; goodput {goodput:.0%}"
        if held_out:
            line += f"; held out {held_out[0]:.4g} -> {held_out[-1]:.4g}"
        say(line)
        if held_out and held_out[-1] > held_out[0]:
            where = f"stages[{self.stage.index}]"
            say(
                f"{self.stage.name}: the loss on held-out data is higher after this stage than before it; lower"
                f" {where}.learning_rate, raise {where}.warmup_steps, or leave the stage out"
            )

    def _outlook(self, step: int, device_bytes: int | None) -> str:
        """The time until the last stage is trained, and the most memory so far, of a device or else of the process."""
        tokens = self._tokens / (self._steps * self.stage.width)
        left = self._time_left.seconds(step, self._seconds / self._steps, tokens)
        return f", all stages {duration(left)} left, {(device_bytes or process_peak_bytes()) / 2**30:.1f} GiB"

    def _write(self, event: str, moment: Moment, **values: Any) -> None:
        position = {"step": moment.step, "global_step": moment.global_step}
        stage = {"stage": self.stage.name, "stage_index": self.stage.index}
        self.metrics.write({"event": event, **stage, **position, **values})

    def restart_clock(self) -> None:
        """The time until now belongs to no step: it was spent on evaluating or saving."""
        self._clock, self._compiled_before = time.monotonic(), self.programs.seconds

    def _not_finite(self, bad: list[str], numbers: Mapping[str, float], step: int, batch: LoadedBatch) -> None:
        terms = [name for name in bad if "/" in name and not name.endswith("/total")] or bad
        rows = [{"record": int(i), **row} for i, row in zip(batch.indices, self.batches.shown(batch.indices))]
        path = self.folder / "not_finite.json"
        values = {k: str(v) for k, v in numbers.items()}
        record = {"stage": self.stage.name, "step": step, "values": values, "texts": rows}
        write_atomic(path, json.dumps(record, indent=1, ensure_ascii=False))
        raise UserError(
            f"{self.stage.name}, step {step}: {', '.join(terms)} (head/term) not finite; the batch's"
            f" {len(rows)} texts are in {path}, the first is {rows[0]['text'][:60]!r}; the last checkpoint is intact:"
            f" lower stages[{self.stage.index}].learning_rate or remove the texts"
        )
