"""Training, told from top to bottom: every stage that is not done yet, from the exact batch where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jasper_jax.batches.batches import LoadedBatch, TokenCounts
from jasper_jax.checkpoints.checkpoint import Position
from jasper_jax.data.pairs import PairStore
from jasper_jax.data.texts import TextStore
from jasper_jax.parameters.sharding import make_mesh, shardings
from jasper_jax.recipe.stages import ResolvedStage, no_held_out_losses
from jasper_jax.run import Run, checkpoints_of, environment
from jasper_jax.runtime.progress import bar, say
from jasper_jax.runtime.timings import Timings
from jasper_jax.student.start import load_student
from jasper_jax.teachers.vectors import TeacherView
from jasper_jax.training.mesh import abstract_params, abstract_state, begin_state, mesh_sizes, put_params
from jasper_jax.training.metrics import Metrics, make_sinks
from jasper_jax.training.partition import Flat, Partition, make_partition
from jasper_jax.training.prepare import Training, image_batches, text_batches, with_new_parts
from jasper_jax.training.stage_log import Compiled, StageLog
from jasper_jax.training.step import Teaching, active_params, make_program

Params = dict[str, Any]


def train(
    run: Run,
    texts: TextStore | None,
    view: TeacherView | None,
    timings: Timings,
    stop: Callable[[int], bool],
    pairs: PairStore | None = None,
) -> bool:
    """Train all stages; True when the last one is finished, False when ``stop`` asked to leave (state is saved).

    ``texts`` may be None where no stage learns from texts, ``pairs`` where none learns from images. ``stop(step)`` is
    asked once after every step, counted over all stages, and says the same in every process.

    Raises:
      UserError: the recipe does not fit the student, a checkpoint is damaged, a loss is not finite.
    """
    with jax.default_device(host_device()):
        student, params, tokenizer = load_student(
            run.recipe, view.dim if view else None, run.student_source(), run.vision_source()
        )
    mesh = make_mesh(mesh_sizes(run.recipe.mesh, jax.device_count(), run.stages, student.encoder.config.num_heads))
    checkpoints = checkpoints_of(run)
    at, has_start = checkpoints.latest(), checkpoints.has(checkpoints.start())
    if at.stage == len(run.stages) and has_start:
        return True
    before = checkpoints.final(at.stage - 1) if at.stage else checkpoints.start()
    # Refused, if they are to be, while the metrics of later steps are still there.
    if has_start:
        checkpoints.metadata(before)
    if at.step:
        checkpoints.metadata(checkpoints.step(at.stage, at.step))
    # The starts of heads and the evaluations use the student's own length, batches the training's.
    cutter = tokenizer.with_max_length(min(run.recipe.training.max_length or student.max_length, student.max_length))
    counts = TokenCounts(texts, cutter, student.prompts, run.folder / "token_counts") if texts else None
    sinks = make_sinks(list(run.recipe.training.loggers), run.folder, run.recipe.name)
    metrics = Metrics(run.folder / "metrics.jsonl", sinks, keep_before=(at.stage, at.step))
    context = Training(
        run, mesh, student, tokenizer, cutter, texts, pairs, view, counts, checkpoints, metrics, timings, stop
    )
    try:
        if not has_start:  # the first command, or a damaged one was deleted
            _keep_start(context, params)
        params = checkpoints.load(before, abstract_params(params, mesh))
        for stage in run.stages[at.stage :]:
            step = at.step if stage.index == at.stage else 0
            trained = _train_stage(context, stage, params, step)
            if trained is None:
                return False
            params = trained
    finally:
        checkpoints.wait()
        metrics.close()
    return True


def _train_stage(context: Training, stage: ResolvedStage, params: Params, first_step: int) -> Params | None:
    """One stage from ``first_step`` on; the canonical parameters after it, or None when asked to stop."""
    run, recipe = context.run, context.run.recipe
    settings = recipe.training
    began = time.monotonic()

    active = active_params(stage, params)
    partition = make_partition(stage.train, active, f"stages[{stage.index}].train")
    restored = first_step and any(name.startswith("projector/") for name in partition.trained)
    if stage.index and not restored:  # the first stage's are in the checkpoint ``start``
        params = with_new_parts(context, stage, params)
        active = active_params(stage, params)
    program = make_program(recipe, stage, context.student, partition, Teaching.of(context.view), context.mesh)
    trained, frozen = _split(partition, active, context.mesh)
    if first_step:
        path = context.checkpoints.step(stage.index, first_step)
        _report_environment(context.checkpoints.metadata(path))
        state = abstract_state(program.optimizer, trained, context.mesh)
        found = context.checkpoints.load(path, {"trained": abstract_params(trained, context.mesh), "optimizer": state})
        trained, opt_state = found["trained"], found["optimizer"]
    else:
        opt_state = begin_state(program.optimizer, trained, context.mesh)

    if stage.images:
        assert context.pairs is not None
        batches = image_batches(run, stage, context.mesh, context.student, context.tokenizer, context.pairs, params)
    else:
        batches = text_batches(context, stage)
    if not batches.held_out_batches:
        held_out = context.pairs if stage.images else context.texts
        say(f"{stage.name}: {no_held_out_losses(stage, held_out.size('held_out') if held_out else 0)}")
    online = () if stage.images or context.view is None else context.view.online
    teachers = {one.name: put_params(one.params, context.mesh) for one in online if one.name in batches.online}
    compiled = Compiled(program, context.mesh)
    log = StageLog(stage, compiled, context.metrics, batches.shown, run.folder)
    offset = sum(s.steps for s in run.stages[: stage.index])
    pending: tuple[int, LoadedBatch, Any] | None = None
    step = first_step

    with bar(f"{stage.name}", stage.steps, "steps", start=first_step, enabled=run.progress) as progress:
        for batch in batches.iterate(first_step, settings.workers):
            number = np.int32(batch.number)
            trained, opt_state, values = compiled.step(trained, opt_state, frozen, teachers, batch.arrays, number)
            if pending:
                log.step(*pending)  # read a step late, so that the device is never waited for
            pending = (offset + batch.number + 1, batch, values)
            step = batch.number + 1
            progress.advance(note=log.note)
            context.checkpoints.settle()
            last, asked = step == stage.steps, context.stop(offset + step)
            evaluating = settings.evaluate_every and step % settings.evaluate_every == 0
            saving = step % settings.save_every == 0 and not last
            if last or evaluating or saving or asked:
                log.step(*pending)  # a checkpoint is written only once all its steps are known to be finite
                pending = None
            if last or evaluating:
                log.evaluation(offset + step, step, batches, partial(compiled.evaluate, trained, frozen, teachers))
            if (saving or asked) and not last:
                context.checkpoints.save_step(
                    Position(stage.index, step), {"trained": trained, "optimizer": opt_state}, _metadata(run)
                )
            if asked and not last:
                break

    seconds = time.monotonic() - began
    context.timings.add("compiling", compiled.seconds)
    context.timings.add(f"training: {stage.name}", seconds - compiled.seconds)
    if step < stage.steps:
        context.checkpoints.wait()
        say(f"Stopped after step {step} of {stage.name}; saved. Run the same command to continue.")
        return None
    after = _canonical(partition, trained, frozen, context.mesh)
    after = {**params, **after, "heads": {**params["heads"], **after["heads"]}}
    context.checkpoints.save_final(stage.index, after, _metadata(run))
    say(
        f"{stage.name}: {stage.steps} steps in {seconds:,.0f} s, {compiled.seconds:,.0f} s of them compiling"
        f" {compiled.count} programs; padding {log.padding_share:.1%}; loss {log.first_loss:.4g} -> {log.last_loss:.4g}"
    )
    return after


def _split(partition: Partition, active: Params, mesh: Mesh) -> tuple[Flat, Flat]:
    """The stage's trained and frozen leaves, copied: the step donates its arguments, ``active`` is still needed."""
    placed = tuple(shardings(part, mesh) for part in jax.eval_shape(partition.split, active))
    return jax.jit(partition.split, out_shardings=placed)(active)


def _canonical(partition: Partition, trained: Flat, frozen: Flat, mesh: Mesh) -> Params:
    """The stage's leaves as one tree with one stack of layers."""
    placed = shardings(jax.eval_shape(partition.canonical, trained, frozen), mesh)
    return jax.jit(partition.canonical, out_shardings=placed)(trained, frozen)


def _keep_start(context: Training, params: Params) -> None:
    """The parameters before the first step, as the checkpoint ``start``: what evaluation calls "before training"."""
    begun = with_new_parts(context, context.run.stages[0], put_params(params, context.mesh))
    metadata = {"stage": 0, "step": 0, **_metadata(context.run)}
    context.checkpoints.save(context.checkpoints.start(), begun, metadata)
    context.checkpoints.wait()


def host_device() -> Any:
    """Where a model is put before it goes onto the mesh: not on the first accelerator, whose memory it may exceed."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names no cpu
        return jax.local_devices()[0]


def _metadata(run: Run) -> dict[str, Any]:
    return {"recipe": run.recipe.model_dump(mode="json"), "environment": environment()}


def _report_environment(metadata: Mapping[str, Any]) -> None:
    before, now = metadata.get("environment", {}), environment()
    changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
    if changed:
        say(f"Continuing in another environment ({'; '.join(changed)}): equal up to rounding, not to the bit.")
