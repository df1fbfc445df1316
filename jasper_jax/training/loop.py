"""Training, told from top to bottom: every stage that is not done yet, from the exact batch where it stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jasper_jax.checkpoints.checkpoint import Checkpoints, Position
from jasper_jax.checkpoints.run_folder import RunFolder
from jasper_jax.data.pairs import PairStore
from jasper_jax.data.texts import TextStore
from jasper_jax.parameters.trees import flatten
from jasper_jax.recipe.stage_data import no_held_out_losses
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.runtime.environment import environment
from jasper_jax.runtime.progress import bar, say
from jasper_jax.runtime.timings import Timings
from jasper_jax.student.source import StudentSource
from jasper_jax.student.start import make_student, make_tokenizer, starting_params
from jasper_jax.teachers.negatives import Negatives
from jasper_jax.teachers.vectors import TeacherView
from jasper_jax.training.hooks import Evaluate, Hook, Moment, Profile, Save
from jasper_jax.training.loggers import make_sinks
from jasper_jax.training.mesh import abstract_params, put_params
from jasper_jax.training.metrics import Metrics
from jasper_jax.training.model_flops import step_flops
from jasper_jax.training.partition import Partition, make_partition
from jasper_jax.training.stage_kind import Inputs, Params, StageBatches, StageKind, make_kind
from jasper_jax.training.stage_log import StageLog
from jasper_jax.training.stage_state import StageState
from jasper_jax.training.step import CompiledPrograms, make_program
from jasper_jax.training.teaching import Teaching
from jasper_jax.training.time_left import TimeLeft
from jasper_jax.training.utilisation import Utilisation, with_wait
from jasper_jax.training.watchdog import Watchdog


def train(
    run_folder: RunFolder,
    source: StudentSource,
    mesh: Mesh,
    texts: TextStore | None,
    teachers: TeacherView | None,
    timings: Timings,
    stop: Callable[[int], bool],
    pairs: PairStore | None = None,
    negatives: Negatives | None = None,
    *,
    progress: bool = True,
) -> bool:
    """Train all stages; True when the last one is finished, False when ``stop`` asked to leave (state is saved).

    ``source``: where the student starts; only the first command of a run reads its weights. ``mesh``: from
    :func:`~jasper_jax.training.run_mesh.run_mesh`. ``texts`` may be None where no stage learns from texts, ``pairs``
    where none learns from images, ``negatives`` where none are mined. ``stop(step)`` is called once after every step,
    counted over all stages, and returns the same in every process.

    Raises:
      UserError: the recipe does not fit the student, a checkpoint is damaged, a loss is not finite.
    """
    recipe, stages = run_folder.recipe, run_folder.stages
    student = make_student(recipe, teachers.dim if teachers else None, source)
    tokenizer = make_tokenizer(student, source)
    kinds = [make_kind(recipe, stage, student) for stage in stages]
    inputs = Inputs(mesh, tokenizer, run_folder.path, texts, pairs, teachers, negatives, progress)
    checkpoints = run_folder.checkpoints()
    position, has_start = checkpoints.latest(), checkpoints.has(checkpoints.start())
    if position.stage == len(stages) and has_start:
        return True
    before = checkpoints.final(position.stage - 1) if position.stage else checkpoints.start()
    # Validated before ``Metrics`` truncates metrics.jsonl.
    if has_start:
        checkpoints.metadata(before)
    if position.step:
        checkpoints.metadata(checkpoints.step(position.stage, position.step))
    begin = sum(stage.steps for stage in stages[: position.stage]) + position.step
    sinks = make_sinks(list(recipe.training.loggers), run_folder.path, recipe.name, begin)
    metrics = Metrics(run_folder.path / "metrics.jsonl", sinks, keep_before=(position.stage, position.step))
    metrics.write({"event": "start", "time": time.time()})
    metadata = {"recipe": recipe.model_dump(mode="json"), "environment": environment()}
    try:
        if not has_start:  # the first command, or a damaged checkpoint was deleted
            _save_start(kinds[0], source, inputs, checkpoints, metadata)
        params = checkpoints.load(before, abstract_params(student.shapes(), mesh))
        for kind in kinds[position.stage :]:
            first_step = position.step if kind.stage.index == position.stage else 0
            time_left = TimeLeft(kinds[kind.stage.index :])
            trainer = StageTrainer(kind, stages, inputs, checkpoints, metrics, metadata, time_left)
            trained = trainer.train(params, first_step, timings, stop)
            if trained is None:
                return False
            params = trained
    finally:
        try:
            checkpoints.wait()
        finally:
            metrics.close()
    return True


def _save_start(
    first: StageKind, source: StudentSource, inputs: Inputs, checkpoints: Checkpoints, metadata: Mapping[str, Any]
) -> None:
    """The parameters before the first step, as the checkpoint ``start``: what evaluation calls "before training"."""
    with jax.default_device(host_device()):
        params = starting_params(first.recipe, first.student, source)
    begun = first.begin(inputs, put_params(params, inputs.mesh), [])
    checkpoints.save(checkpoints.start(), begun, {"stage": 0, "step": 0, **metadata})
    checkpoints.wait()


class StageTrainer:
    """One stage of a run."""

    def __init__(
        self,
        kind: StageKind,
        stages: list[ResolvedStage],
        inputs: Inputs,
        checkpoints: Checkpoints,
        metrics: Metrics,
        metadata: Mapping[str, Any],
        time_left: TimeLeft,
    ):
        """``metadata``: kept with every checkpoint."""
        self.time_left = time_left
        self.kind, self.stage, self.settings = kind, kind.stage, kind.recipe.training
        self.earlier, self.is_final = stages[: kind.stage.index], kind.stage.index == len(stages) - 1
        self.inputs, self.checkpoints, self.metrics, self.metadata = inputs, checkpoints, metrics, metadata

    def train(self, params: Params, first_step: int, timings: Timings, stop: Callable[[int], bool]) -> Params | None:
        """From ``first_step`` on; the canonical parameters after the stage, or None when asked to stop."""
        began = time.monotonic()
        stage, steps_before = self.stage, sum(earlier.steps for earlier in self.earlier)
        active = self.kind.active(params)
        partition = make_partition(stage.train, active, f"stages[{stage.index}].train")
        restores_new_parts = first_step > 0 and self._in_step_checkpoints(partition, active)
        if stage.index and not restores_new_parts:  # the first stage's new parts are in the checkpoint ``start``
            params = self.kind.begin(self.inputs, params, self.earlier)
        batches = self.kind.batches(self.inputs, params)
        state, programs = self._prepare(params, partition, batches, first_step)
        step, stopping = first_step, False
        with bar(stage.name, stage.steps, "steps", start=step, enabled=self.inputs.progress) as progress:
            flops = step_flops(self.kind.stage, self.kind.student, state.trained, state.frozen)
            utilisation = Utilisation(flops, self.inputs.mesh)
            folder = self.inputs.folder
            log = StageLog(stage, programs, self.metrics, batches, folder, progress, utilisation, self.time_left)
            hooks = self._hooks(state, programs, batches, log, first_step)
            with Watchdog(stage.name, step) as watchdog, hooks as call_hooks:
                if not step:
                    call_hooks(Moment(0, steps_before, last=not stage.steps))
                for batch, input_wait in with_wait(batches.iterate(step, self.settings.workers)):
                    metrics = state.step(programs, batch.arrays, batch.number)
                    step, last = batch.number + 1, batch.number + 1 == stage.steps
                    stopping = stop(steps_before + step)
                    moment = Moment(step, steps_before + step, last, stopping and not last, batch, metrics, input_wait)
                    log.step(moment)
                    watchdog.beat(step)
                    self.checkpoints.settle()
                    call_hooks(moment)
                    if stopping:
                        break
        seconds = time.monotonic() - began
        timings.add("compiling", programs.seconds)
        timings.add(f"training: {stage.name}", seconds - programs.seconds)
        trained = None if step < stage.steps else state.canonical()
        if trained is not None:
            self.checkpoints.save_final(stage.index, trained, self.metadata)
            log.summary(seconds)
        if trained is None or (stopping and not self.is_final):
            self.checkpoints.wait()
            say(f"Stopped after step {step} of {stage.name}; saved. Run the same command to continue.")
            return None
        return trained

    def _in_step_checkpoints(self, partition: Partition, active: Params) -> bool:
        """Whether a checkpoint within the stage, which holds what the stage trains, has all of its new parts."""
        new = tuple(f"{part}/" for part in self.kind.new_parts(self.earlier))
        return all(name in partition.trained for name in flatten(active) if name.startswith(new))

    def _prepare(
        self, params: Params, partition: Partition, batches: StageBatches, first_step: int
    ) -> tuple[StageState, CompiledPrograms]:
        """The stage's state, begun or restored, and its programs. ``params`` are taken over."""
        mesh, view = self.inputs.mesh, self.inputs.teachers
        program = make_program(self.kind, partition, Teaching.of(view), mesh)
        online = {t.name: t.params for t in (view.online if view else ()) if t.name in batches.online}
        state = StageState(self.kind, program, params, mesh, online)
        if first_step:
            path = self.checkpoints.step(self.stage.index, first_step)
            _report_environment(self.checkpoints.metadata(path))
            state.restore(self.checkpoints.load(path, state.abstract))
        else:
            state.begin()
        return state, CompiledPrograms(program, mesh, self.kind.replicated)

    @contextlib.contextmanager
    def _hooks(
        self, state: StageState, programs: CompiledPrograms, batches: StageBatches, log: StageLog, first_step: int
    ) -> Iterator[Callable[[Moment], None]]:
        """What happens between steps; yields the function that calls the hooks that are due."""
        settings, stage = self.settings, self.stage
        if not batches.held_out_batches:
            say(f"{stage.name}: {no_held_out_losses(stage, batches.draws.held_out_items)}")

        def save(step: int) -> None:
            self.checkpoints.save_step(Position(stage.index, step), state.saved, self.metadata)

        profile = Profile(settings.profile_steps, first_step, self.inputs.folder / "profile" / stage.name)
        hooks: list[Hook] = [
            profile,
            Evaluate(settings.evaluate_every, batches, lambda arrays: state.evaluate(programs, arrays), log.evaluation),
            Save(settings.save_every, save),
        ]

        def call(moment: Moment) -> None:
            due = [hook for hook in hooks if hook.due(moment)]
            if due or moment.last or moment.stopping:
                log.flush()  # a checkpoint is written only once all its steps are known to be finite
            for hook in due:
                hook(moment)
            if due:
                log.restart_clock()

        try:
            yield call
        finally:
            profile.close()


def host_device() -> Any:
    """Where a model is put before it goes onto the mesh: not on the first accelerator, whose memory it may exceed."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names no cpu
        return jax.local_devices()[0]


def _report_environment(metadata: Mapping[str, Any]) -> None:
    before, now = metadata.get("environment", {}), environment()
    changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
    if changed:
        say(f"Continuing in another environment ({'; '.join(changed)}): equal up to rounding, not to the bit.")
