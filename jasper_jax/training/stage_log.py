"""What a stage does beside its arithmetic: compile its programs once a shape, log its steps, notice a bad loss."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jasper_jax.batches.batches import Batches
from jasper_jax.batches.image_batches import ImageBatches
from jasper_jax.batches.loading import LoadedBatch
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import write_atomic
from jasper_jax.training.mesh import put_batch, share_of
from jasper_jax.training.metrics import Metrics
from jasper_jax.training.step import StageProgram


class Compiled:
    """The stage's programs on a mesh, compiled when a shape is first seen; counts them and the seconds it took."""

    def __init__(self, program: StageProgram, mesh: Mesh):
        self._program, self._mesh, self._share = program, mesh, share_of(mesh)
        self._known: dict[Any, Any] = {}
        self.seconds = 0.0

    @property
    def count(self) -> int:
        """Programs compiled so far, the evaluation's among them."""
        return len(self._known)

    def step(self, *args: Any) -> Any:
        return self._call("step", self._program.step, args, 4)

    def evaluate(self, *args: Any) -> Any:
        return self._call("evaluate", self._program.evaluate, args, 3)

    def _call(self, name: str, function: Any, args: tuple[Any, ...], which: int) -> Any:
        """``which`` of the arguments is the batch, as loaded."""
        batch = put_batch(args[which], self._mesh, self._share)
        args = (*args[:which], batch, *args[which + 1 :])
        key = (name, *(np.shape(leaf) for leaf in jax.tree.leaves(batch)))
        if key not in self._known:
            began = time.monotonic()
            with jax.set_mesh(self._mesh):
                self._known[key] = function.lower(*args).compile()
            self.seconds += time.monotonic() - began
        return self._known[key](*args)


class StageLog:
    """Turns a stage's device metrics into events, and stops the run at a loss that is not finite."""

    def __init__(
        self,
        stage: ResolvedStage,
        compiled: Compiled,
        metrics: Metrics,
        shown: Callable[[np.ndarray], list[dict[str, Any]]],
        folder: Path,
    ):
        """``shown(records)`` and ``folder``: what a batch with a bad loss held, and where that is written."""
        self.stage, self.compiled, self.metrics, self.shown, self.folder = stage, compiled, metrics, shown, folder
        self.note = ""
        self.first_loss = self.last_loss = math.nan
        self._tokens = self._slots = 0
        self._clock = time.monotonic()
        self._compiled_before = 0.0

    @property
    def padding_share(self) -> float:
        """Share of padding over the steps logged so far."""
        return 1.0 - self._tokens / self._slots if self._slots else 0.0

    def step(self, global_step: int, batch: LoadedBatch, values: Mapping[str, jax.Array]) -> None:
        """Log one step; waits for its values."""
        numbers = {k: float(v) for k, v in jax.device_get(dict(values)).items()}
        bad = [k for k, v in numbers.items() if not math.isfinite(v)]
        if bad:
            self._not_finite(bad, numbers, batch)
        now = time.monotonic()
        seconds = now - self._clock - (self.compiled.seconds - self._compiled_before)
        self._clock, self._compiled_before = now, self.compiled.seconds
        self._tokens += batch.tokens
        self._slots += batch.slots
        loss = numbers.pop("loss")
        self.first_loss = loss if math.isnan(self.first_loss) else self.first_loss
        self.last_loss = loss
        self.note = f"loss {loss:.4g}"
        self.metrics.write(
            {
                "event": "step",
                "stage": self.stage.name,
                "stage_index": self.stage.index,
                "step": batch.number + 1,
                "global_step": global_step,
                "loss": loss,
                "grad_norm": numbers.pop("grad_norm"),
                "learning_rate": numbers.pop("learning_rate"),
                "terms": numbers,
                "texts_per_second": len(batch.indices) / seconds if seconds > 0 else None,
                "tokens_per_second": batch.tokens / seconds if seconds > 0 else None,
                "padding_share": batch.padding_share,
                "programs": self.compiled.count,
            }
        )

    def evaluation(
        self,
        global_step: int,
        step: int,
        batches: Batches | ImageBatches,
        evaluate: Callable[[Any], Mapping[str, jax.Array]],
    ) -> None:
        """The stage's losses on the held-out texts, averaged over their batches."""
        if not batches.held_out_batches:
            return
        totals: dict[str, list[float]] = {}
        for number in range(batches.held_out_batches):
            for name, value in evaluate(batches.held_out(number).arrays).items():
                totals.setdefault(name, []).append(float(value))
        means = {name: float(np.mean(values)) for name, values in totals.items()}
        self.metrics.write(
            {
                "event": "evaluation",
                "stage": self.stage.name,
                "stage_index": self.stage.index,
                "step": step,
                "global_step": global_step,
                "loss": means.pop("loss"),
                "terms": means,
            }
        )
        self._clock = time.monotonic()
        self._compiled_before = self.compiled.seconds

    def _not_finite(self, bad: list[str], numbers: Mapping[str, float], batch: LoadedBatch) -> None:
        terms = [name for name in bad if "/" in name and not name.endswith("/total")] or bad
        rows = [{"record": int(i), **row} for i, row in zip(batch.indices, self.shown(batch.indices))]
        path = self.folder / "not_finite.json"
        record = {
            "stage": self.stage.name,
            "step": batch.number + 1,
            "values": {k: str(v) for k, v in numbers.items()},
            "texts": rows,
        }
        write_atomic(path, json.dumps(record, indent=1, ensure_ascii=False))
        raise UserError(
            f"{self.stage.name}, step {batch.number + 1}: {', '.join(terms)} (head/term) not finite; the batch's"
            f" {len(rows)} texts are in {path}, the first is {rows[0]['text'][:60]!r}; the last checkpoint is intact:"
            f" lower stages[{self.stage.index}].learning_rate or remove the texts"
        )
