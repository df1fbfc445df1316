"""Stages on images: each image's vectors learn from those of its own caption, on every head and dimension.

The caption's pooled vector comes from the cache (``batches.captions``); the heads, which are frozen here, make the
targets of it. So a head and each of its nested dimensions takes all terms, each against the caption's vector of that
very dimension (arXiv 2412.19048, section 2.5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.batches.captions import caption_vectors
from jasper_jax.batches.image_batches import ImageBatches
from jasper_jax.losses import HeadLoss
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.runtime import processes
from jasper_jax.student.start import student_embedder
from jasper_jax.training.mesh import put_params, share_of
from jasper_jax.training.projector_start import ridge_projector
from jasper_jax.training.stage_kind import BatchArrays, Inputs, Params, StageKind
from jasper_jax.training.teaching import Teaching
from jasper_jax.vision.vision_model import PARTS


class ImageStage(StageKind):
    """Its batches (``batches.image_batches``): ``pixels [R, S, S, 3]`` uint8, the first B rows images, the rest
    padding; ``captions [B, D]`` pooled; ``same [B]``, equal where captions are."""

    parts = ("encoder", *PARTS)
    replicated = ("captions", "same")

    def batches(self, inputs: Inputs, params: Params) -> ImageBatches:
        """With the captions' vectors under the text student as it stands in ``params``."""
        student, images = self.student, self.recipe.images
        assert student.vision_model is not None
        assert images is not None
        assert inputs.pairs is not None
        encoder = processes.host_copy({"encoder": params["encoder"]})["encoder"]
        captions = caption_vectors(
            inputs.pairs,
            student,
            encoder,
            inputs.tokenizer,
            inputs.folder / "captions",
            student_embedder(student, {"encoder": encoder}, inputs.tokenizer).pooled,
            progress=inputs.progress,
        )
        return ImageBatches(
            inputs.pairs,
            captions,
            student.vision_model.preprocessing,
            draws=self.draws("images", inputs.pairs.size("train"), inputs.pairs.size("held_out")),
            steps=self.stage.steps,
            max_pixels=images.max_pixels,
            share=share_of(inputs.mesh),
            division=self.row_division(inputs.mesh),
        )

    def new_parts(self, before: Sequence[ResolvedStage]) -> list[str]:
        """The projector, where this is the first stage that trains it and it begins with the closed-form solution."""
        vision = self.recipe.student.vision
        assert vision is not None
        first = not any(stage.kind is self.stage.kind for stage in before)
        return ["projector"] if first and vision.projector != "none" and vision.projector_init == "ridge" else []

    def begin(self, inputs: Inputs, params: Params, before: Sequence[ResolvedStage]) -> Params:
        if not self.new_parts(before):
            return params
        assert inputs.pairs is not None
        pairs, on_host = inputs.pairs, processes.host_copy(params)
        solved = {"projector": jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params["projector"])}

        def solve() -> None:
            local = jax.device_put({k: on_host[k] for k in self.parts}, jax.local_devices()[0])
            embedder = student_embedder(self.student, local, inputs.tokenizer)
            solved["projector"] = ridge_projector(self.recipe, self.student, local, pairs, embedder, inputs.progress)

        processes.first_does(solve)  # one solves, all take its solution: theirs might differ in the last bits
        return {**params, **put_params(processes.from_first(solved), inputs.mesh)}

    def head_losses(self, teaching: Teaching) -> dict[str, HeadLoss]:
        losses = self.stage.losses
        one = HeadLoss(**losses.all_weights, **losses.settings)
        return {name: one for head in self.stage.heads for name in self._names(head)}

    def vectors(
        self, params: Mapping[str, Any], teachers: Mapping[str, Any], batch: BatchArrays, key: Any, teaching: Teaching
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        captions = batch["captions"]
        pooled = self.student.pooled_images(params, batch["pixels"], key, at_once=self.at_once)[: len(captions)]
        images, texts = (self.student.project(params, x, self.stage.heads) for x in (pooled, captions))
        return self._by_dimension(images), self._by_dimension(texts)

    def abstract_batch(self, rows: int, shards: int, teaching: Teaching) -> tuple[dict[str, Any], int]:
        vision_model, images = self.student.vision_model, self.stage.batch_size
        assert vision_model is not None
        size = vision_model.preprocessing.size
        batch = {
            "pixels": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8),
            "captions": jax.ShapeDtypeStruct((images, self.student.width), jnp.float32),
            "same": jax.ShapeDtypeStruct((images,), jnp.int32),
        }
        return batch, len(vision_model.alone)

    def _names(self, head: str) -> list[str]:
        """A head and its nested dimensions, as metrics call them."""
        return [head, *(f"{head}@{dim}" for dim in self.student.heads[head].dims[1:])]

    def _by_dimension(self, vectors: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {
            name: vectors[head][:, :dim]
            for head in self.stage.heads
            for name, dim in zip(self._names(head), self.student.heads[head].dims)
        }
