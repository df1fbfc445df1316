"""What a stage needs before its first step: its batches, and the starts of what it is the first to train."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jasper_jax.batches.batches import Batches
from jasper_jax.batches.captions import caption_vectors
from jasper_jax.batches.image_batches import ImageBatches
from jasper_jax.batches.token_counts import TokenCounts
from jasper_jax.checkpoints.checkpoint import Checkpoints
from jasper_jax.data.pairs import PairStore
from jasper_jax.data.texts import TextStore
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.parameters.sharding import row_shards
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.run import Run
from jasper_jax.runtime import processes
from jasper_jax.runtime.timings import Timings
from jasper_jax.student.start import student_embedder
from jasper_jax.student.student import Student
from jasper_jax.teachers.vectors import TeacherView
from jasper_jax.training.mesh import put_params, share_of
from jasper_jax.training.metrics import Metrics
from jasper_jax.training.projector_start import ridge_projector
from jasper_jax.training.start import ridge_heads
from jasper_jax.training.step import pieces_of
from jasper_jax.vision.sight import PARTS

Params = dict[str, Any]

TILE = 128
"""Tokens: the kernels of accelerators take rows of a multiple of this (``encoders.splash``)."""


@dataclasses.dataclass
class Training:
    """What every stage needs."""

    run: Run
    mesh: Mesh
    student: Student
    tokenizer: Tokenizer
    cutter: Tokenizer
    texts: TextStore | None
    pairs: PairStore | None
    view: TeacherView | None
    counts: TokenCounts | None
    checkpoints: Checkpoints
    metrics: Metrics
    timings: Timings
    stop: Callable[[int], bool]


def text_batches(context: Training, stage: ResolvedStage) -> Batches:
    recipe, settings = context.run.recipe, context.run.recipe.training
    assert context.texts is not None
    assert context.counts is not None
    return Batches(
        context.texts,
        context.view if any(recipe.heads[h].target == "teachers" for h in stage.heads) else None,
        context.cutter,
        context.student.prompts,
        context.counts,
        batch_size=stage.batch_size,
        steps=stage.steps,
        seed=_stage_seed(recipe.seed, stage.index),
        shapes=settings.shapes,
        folder=context.run.folder / "token_counts",
        row=settings.row_length,
        share=share_of(context.mesh),
        multiple=row_shards(context.mesh) * pieces_of(recipe, stage),
        tile=1 if jax.default_backend() == "cpu" else TILE,
    )


def image_batches(
    run: Run,
    stage: ResolvedStage,
    mesh: Mesh,
    student: Student,
    tokenizer: Tokenizer,
    pairs: PairStore,
    params: Params,
) -> ImageBatches:
    """The stage's images, and their captions' vectors under the text student as it stands in ``params``."""
    assert student.sight is not None
    assert run.recipe.images is not None
    whole = processes.host_copy({"encoder": params["encoder"]})
    local = {"encoder": jax.device_put(whole["encoder"], jax.local_devices()[0])}
    captions = caption_vectors(
        pairs,
        student,
        whole["encoder"],
        tokenizer,
        run.folder / "captions",
        student_embedder(student, local, tokenizer).pooled,
        progress=run.progress,
    )
    return ImageBatches(
        pairs,
        captions,
        student.sight.preprocessing,
        batch_size=stage.batch_size,
        steps=stage.steps,
        seed=_stage_seed(run.recipe.seed, stage.index),
        max_pixels=run.recipe.images.max_pixels,
        share=share_of(mesh),
        multiple=row_shards(mesh) * pieces_of(run.recipe, stage),
    )


def with_new_parts(context: Training, stage: ResolvedStage, params: Params) -> Params:
    """The parameters, on the mesh, with the heads that are new in this stage, or the projector, given their start."""
    if not stage.images:
        return _with_new_heads(context, stage, params)
    recipe, vision = context.run.recipe, context.run.recipe.student.vision
    assert vision is not None
    assert context.pairs is not None
    first = not any(s.images for s in context.run.stages[: stage.index])
    if not first or vision.projector == "none" or vision.projector_init != "ridge":
        return params
    solved = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params["projector"])
    whole = processes.host_copy(params)
    if processes.is_first():
        local = jax.device_put({k: whole[k] for k in ("encoder", *PARTS)}, jax.local_devices()[0])
        embedder = student_embedder(context.student, local, context.tokenizer)
        solved = ridge_projector(recipe, context.student, local, context.pairs, embedder, context.run.progress)
    return {**params, **put_params({"projector": processes.from_first(solved)}, context.mesh)}


def _with_new_heads(context: Training, stage: ResolvedStage, params: Params) -> Params:
    """The parameters, on the mesh, with the heads that are new in this stage given their start."""
    recipe = context.run.recipe
    seen = {h for s in context.run.stages[: stage.index] for h in s.heads}
    new = [h for h in stage.heads if h not in seen and recipe.heads[h].init == "ridge"]
    if not new:
        return params
    solved: Params = {h: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params["heads"][h]) for h in new}
    whole = processes.host_copy(params)
    if processes.is_first():  # one solves, all take its solution: theirs might differ in the last bits
        whole = {**whole, "encoder": jax.device_put(whole["encoder"], jax.local_devices()[0])}
        assert context.texts is not None
        dims = {name: head.dim for name, head in context.student.heads.items()}
        embedder = student_embedder(context.student, whole, context.tokenizer)
        solved = ridge_heads(recipe, new, dims, whole, embedder, context.texts, context.view)
    placed = put_params({"heads": processes.from_first(solved)}, context.mesh)["heads"]
    return {**params, "heads": {**params["heads"], **placed}}


def _stage_seed(seed: int, index: int) -> int:
    """A seed of its own for the data order of each stage."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint32)[0] >> 1)
