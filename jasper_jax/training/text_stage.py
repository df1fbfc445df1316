"""Stages on texts: the heads learn from the teachers' vectors, or from other vectors of the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.batches.batch_sizes import TokenCounts
from jasper_jax.batches.batches import Batches
from jasper_jax.batches.draws import BatchDraws
from jasper_jax.losses import HeadLoss
from jasper_jax.losses.terms import TERMS
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.runtime import processes
from jasper_jax.student.start import cosine_applies, student_embedder
from jasper_jax.training.mesh import put_params, share_of
from jasper_jax.training.stage_kind import BatchArrays, Inputs, Params, StageKind
from jasper_jax.training.start import ridge_heads
from jasper_jax.training.teaching import Teaching

B = TypeVar("B", bound=Batches)

TILE = 128
"""Tokens: the kernels of accelerators take rows of a multiple of this (``encoders.splash``)."""


class TextStage(StageKind):
    """Its batches: ``jasper_jax.encoders.packed.Packed``, and ``teachers [B, T]`` float32, absent when no head needs
    them. Where teachers run in the step, in their place ``cached``: {teacher: ``[B, T_i]``} and ``online``: {teacher:
    ``Packed``, its own tokens}."""

    replicated = ("slots",)

    @property
    def length(self) -> int:
        """Tokens at which texts are cut in training."""
        return min(self.recipe.training.max_length or self.student.max_length, self.student.max_length)

    @property
    def taught_by_teachers(self) -> bool:
        """Whether some head's target is the teachers."""
        return any(self.recipe.heads[head].target == "teachers" for head in self.stage.heads)

    def batches(self, inputs: Inputs, params: Params) -> Batches:
        assert inputs.texts is not None
        texts = inputs.texts
        return self.packed(Batches, inputs, self.draws("texts", texts.size("train"), texts.size("held_out")))

    def packed(self, kind: type[B], inputs: Inputs, draws: BatchDraws) -> B:
        """Batches of the class ``kind`` with the rows that ``draws`` names."""
        assert inputs.texts is not None
        settings, student = self.recipe.training, self.student
        tokenizer, folder = inputs.tokenizer.with_max_length(self.length), inputs.folder / "token_counts"
        return kind(
            inputs.texts,
            inputs.teachers if self.taught_by_teachers else None,
            tokenizer,
            student.prompts,
            TokenCounts(inputs.texts, tokenizer, student.prompts, folder),
            draws=draws,
            steps=self.stage.steps,
            shapes=settings.shapes,
            folder=folder,
            row=settings.row_length,
            share=share_of(inputs.mesh),
            division=self.row_division(inputs.mesh),
            tile=1 if jax.default_backend() == "cpu" else TILE,
        )

    def new_parts(self, before: Sequence[ResolvedStage]) -> list[str]:
        """The heads that are new in this stage and begin with the closed-form solution."""
        heads, known = self.recipe.heads, {head for stage in before for head in stage.heads}
        return [f"heads/{head}" for head in self.stage.heads if head not in known and heads[head].init == "ridge"]

    def begin(self, inputs: Inputs, params: Params, before: Sequence[ResolvedStage]) -> Params:
        new = [part.removeprefix("heads/") for part in self.new_parts(before)]
        if not new:
            return params
        assert inputs.texts is not None
        texts, on_host = inputs.texts, processes.host_copy(params)
        solved: Params = {h: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params["heads"][h]) for h in new}

        def solve() -> None:
            dims = {name: head.dim for name, head in self.student.heads.items()}
            embedder = student_embedder(self.student, on_host, inputs.tokenizer)
            solved.update(ridge_heads(self.recipe, new, dims, on_host, embedder, texts, inputs.teachers))

        processes.first_does(solve)  # one solves, all take its solution: theirs might differ in the last bits
        placed = put_params({"heads": processes.from_first(solved)}, inputs.mesh)["heads"]
        return {**params, "heads": {**params["heads"], **placed}}

    def head_losses(self, teaching: Teaching) -> dict[str, HeadLoss]:
        losses, spec = self.stage.losses, {}
        for name in self.stage.heads:
            dims = self.student.heads[name].dims
            same_dimension = cosine_applies(self.recipe, name, teaching.dim)
            weights = {
                term: weight if same_dimension or not TERMS[term].same_dimension else 0.0
                for term, weight in losses.all_weights.items()
            }
            spec[name] = HeadLoss(**weights, **losses.settings, nested=dims if len(dims) > 1 else ())
        return spec

    def vectors(
        self, params: Mapping[str, Any], teachers: Mapping[str, Any], batch: BatchArrays, key: Any, teaching: Teaching
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        pooled = self.student.pooled(params, batch, key, at_once=self.at_once)
        students = self.student.project(params, pooled, self.stage.heads)
        # No gradient flows to a target; heads with the same target object share its similarities and their order.
        taught = teaching.vectors(teachers, batch, self.at_once)
        sources = {"pooled": pooled, **students, **({} if taught is None else {"teachers": taught})}
        return students, {name: sources[self.recipe.heads[name].target] for name in self.stage.heads}

    def abstract_batch(self, rows: int, shards: int, teaching: Teaching) -> tuple[dict[str, Any], int]:
        """Every text is taken to be as long as training allows, one in each row."""
        texts, length = self.stage.width, self.length
        batch = _abstract_packed(texts, rows, length)
        if not self.taught_by_teachers:
            return batch, length

        def stored(dim: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((-(-texts // shards) * shards, dim), jnp.float32)

        if not teaching.online:
            return {**batch, "teachers": stored(teaching.dim or 0)}, length
        own_length = {teacher.name: teacher.max_length or length for teacher in self.recipe.teachers}
        batch["cached"] = {name: stored(dim) for name, dim in teaching.dims.items() if name not in teaching.online}
        batch["online"] = {
            name: _abstract_packed(texts, rows, own_length[name], not teacher.pooling.include_prompt)
            for name, teacher in teaching.online.items()
        }
        return batch, length


def _abstract_packed(texts: int, rows: int, length: int, prompts: bool = False) -> dict[str, Any]:
    """``jasper_jax.encoders.packed.Packed`` with one text a row, as shapes."""
    packed = {
        "ids": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "lengths": jax.ShapeDtypeStruct((rows, 1), jnp.int32),
        "slots": jax.ShapeDtypeStruct((texts,), jnp.int32),
    }
    return {**packed, "prompts": packed["lengths"]} if prompts else packed
