"""The stages as data: what each one trains, on which heads, with which losses (paper section 3, DESIGN "The stages").

A recipe's stage names a preset (``stage: 2``) and overrides what it likes; :func:`resolve_stages` fills in the rest.
Which leaves a pattern covers is decided in ``jasper_jax.parameters.patterns``.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from jasper_jax.recipe.config import Head, Losses, Recipe, Stage
from jasper_jax.runtime.errors import UserError, nearest
from jasper_jax.runtime.remote import is_remote


@dataclasses.dataclass(frozen=True)
class Preset:
    """What the paper does in a stage. ``{k}`` in a pattern stands for ``last_layers``. ``images``: it learns from
    images and their captions' own vectors."""

    train: tuple[str, ...]
    all_heads: bool
    reduce_heads: Literal["sum", "mean"] = "sum"
    images: bool = False


PRESETS: dict[int, Preset] = {
    1: Preset(train=("heads/{first}/**",), all_heads=False),
    2: Preset(train=("heads/{first}/**", "encoder/layers[-{k}:]/**"), all_heads=False),
    3: Preset(train=("**",), all_heads=True),
    4: Preset(train=("vision/**",), all_heads=True, reduce_heads="mean", images=True),
}


@dataclasses.dataclass(frozen=True)
class ResolvedStage:
    """A stage with nothing left open. ``index`` counts from 0 and seeds the stage's data order."""

    index: int
    name: str
    train: tuple[str, ...]
    heads: tuple[str, ...]
    losses: Losses
    reduce_heads: Literal["sum", "mean"]
    settings: Stage
    images: bool = False

    @property
    def steps(self) -> int:
        return self.settings.steps

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size


def resolve_stages(recipe: Recipe) -> list[ResolvedStage]:
    """The recipe's stages with presets filled in.

    Raises:
      UserError: a stage without preset names no ``train`` or ``heads``; preset 2 without ``last_layers``; two
        stages of one name; an unknown head; a stage on images in a recipe without them.
    """
    stages: list[ResolvedStage] = []
    for index, stage in enumerate(recipe.stages):
        where = f"stages[{index}]"
        preset = PRESETS.get(stage.stage or 0)
        if preset is None and (stage.train is None or stage.heads is None):
            raise UserError(f"{where}: give stage: 1, 2, 3 or 4, or both train and heads")
        first = next(iter(recipe.heads))
        heads = stage.heads or (list(recipe.heads) if preset and preset.all_heads else [first])
        for head in heads:
            if head not in recipe.heads:
                raise UserError(
                    f"{where}.heads: no head {head!r}; heads are {', '.join(recipe.heads)}"
                    + nearest(head, list(recipe.heads))
                )
        if len(set(heads)) != len(heads):
            raise UserError(f"{where}.heads: a head is named twice: {', '.join(heads)}")
        train = stage.train
        if train is None:
            assert preset is not None
            if any("{k}" in p for p in preset.train) and stage.last_layers is None:
                raise UserError(f"{where}: stage 2 needs last_layers, how many encoder layers it trains")
            train = [p.format(first=heads[0], k=stage.last_layers) for p in preset.train]
            if preset.images:
                train = _vision_patterns(recipe, stage)
        elif stage.last_layers is not None:
            raise UserError(f"{where}: last_layers and train are two ways to say the same; keep one")
        name = stage.name or (f"stage-{stage.stage}" if stage.stage else f"stage-{index + 1}")
        if name in {s.name for s in stages}:
            raise UserError(f"{where}: a second stage is called {name!r}; give it another name")
        stages.append(
            ResolvedStage(
                index=index,
                name=name,
                train=tuple(train),
                heads=tuple(heads),
                losses=stage.losses or recipe.losses,
                reduce_heads=stage.reduce_heads or (preset.reduce_heads if preset else "sum"),
                settings=stage,
                images=bool(preset and preset.images),
            )
        )
        _check_images(recipe, stages, where)
    return stages


def _vision_patterns(recipe: Recipe, stage: Stage) -> list[str]:
    """What a stage on images trains: the vision encoder or its last layers, the projector if there is one."""
    vision = "vision/**" if stage.last_layers is None else f"vision/layers[-{stage.last_layers}:]/**"
    projector = recipe.student.vision is not None and recipe.student.vision.projector != "none"
    return [vision, *(["projector/**"] if projector else []), *(["contrastive/**"] if stage.contrastive else [])]


def _check_images(recipe: Recipe, stages: list[ResolvedStage], where: str) -> None:
    stage = stages[-1]
    if not stage.images:
        if stage.settings.contrastive:
            raise UserError(f"{where}.contrastive: a loss between images and texts, for stage: 4; leave it out")
        return
    if recipe.student.vision is None:
        raise UserError(f"{where}: stage 4 needs student.vision, the vision encoder that it trains")
    if recipe.images is None:
        raise UserError(f"{where}: stage 4 needs images, the pairs that it learns from")
    taught = {h for s in stages if not s.images for h in s.heads}
    for head in stage.heads:
        if head not in taught and recipe.heads[head].init != "model":
            raise UserError(
                f"{where}.heads: {head} stays as it is in stage 4, and no stage before it trains it; set"
                f" heads.{head}.init: model to take it from student.model, or leave it out"
            )


def on_texts(recipe: Recipe) -> list[ResolvedStage]:
    """The stages that learn from texts."""
    return [stage for stage in resolve_stages(recipe) if not stage.images]


def no_held_out_losses(stage: ResolvedStage, held_out: int) -> str:
    """Why a stage has no losses on held-out texts, which are taken in whole batches of the stage."""
    return (
        f"no losses on held-out texts: stages[{stage.index}].batch_size is {stage.batch_size}, only {held_out:,} texts"
        f" are held out; lower it or raise texts.held_out"
    )


def uses_teachers(recipe: Recipe) -> bool:
    """Whether any head a stage trains on is taught by teacher vectors (else no vector store is needed)."""
    return any(recipe.heads[h].target == "teachers" for stage in on_texts(recipe) for h in stage.heads)


_INSTEAD = {"run_dir": ", and the address as mirror", "stores": ", to which the stores are copied first"}


def check_recipe(recipe: Recipe) -> None:
    """What can be wrong between sections, as one UserError."""
    for key in ("run_dir", "stores"):
        if "\0" in (getattr(recipe, key) or ""):
            raise UserError(f"{key}: {getattr(recipe, key)!r} has a NUL character, which no path can have")
        if is_remote(getattr(recipe, key) or ""):
            raise UserError(
                f"{key}: {getattr(recipe, key)!r} is in object storage, where nothing can be locked or mapped; give a"
                f" folder of this machine (a mount will do){_INSTEAD[key]}"
            )
    if recipe.mirror is not None and not is_remote(recipe.mirror):
        raise UserError(f"mirror: {recipe.mirror!r} is no address in object storage, such as gs://bucket/folder")
    names = [t.name for t in recipe.teachers]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"teachers[{i}].name: a second teacher is called {name!r}; give it another name")
    tests = [t.name for t in recipe.evaluation.retrieval]
    for i, name in enumerate(tests):
        if name in tests[:i]:
            raise UserError(f"evaluation.retrieval[{i}].name: a second test is called {name!r}; give it another name")
    for name, head in recipe.heads.items():
        _check_head(recipe, name, head)
    stages = resolve_stages(recipe)
    if recipe.texts is None and on_texts(recipe):
        raise UserError(f"texts: this key is required, {on_texts(recipe)[0].name} learns from texts")
    if uses_teachers(recipe) and not recipe.teachers:
        raise UserError("teachers: none is given, but a head's target is teachers; add one or set target: pooled")
    for stage in stages:
        losses = stage.losses
        if not (losses.cosine or losses.similarity or losses.relative or stage.settings.contrastive):
            raise UserError(f"stages[{stage.index}].losses: all three weights are 0, nothing would be learnt")
        for head in stage.heads if not stage.images else ():
            target = recipe.heads[head].target
            if target in recipe.heads and target not in stage.heads:
                raise UserError(
                    f"stages[{stage.index}].heads: {head} is taught by {target}, which the stage lacks; add {target}"
                )


def _check_head(recipe: Recipe, name: str, head: Head) -> None:
    where = f"heads.{name}"
    if name in ("teachers", "pooled"):
        raise UserError(f"{where}: {name!r} is what a target can be; give the head another name, e.g. fc1")
    if head.target not in ("teachers", "pooled") and head.target not in recipe.heads:
        allowed = ["teachers", "pooled", *(h for h in recipe.heads if h != name)]
        raise UserError(f"{where}.target: {head.target!r} is not one of {', '.join(allowed)}")
    if head.target == name:
        raise UserError(f"{where}.target: a head cannot teach itself")
    if head.target in recipe.heads and recipe.heads[head.target].target in recipe.heads:
        raise UserError(
            f"{where}.target: {head.target} is itself taught by a head; its target must be teachers or pooled"
        )
    if head.cosine and head.target != "teachers":
        raise UserError(f"{where}.cosine: the cosine loss needs target: teachers, the target is {head.target}")
    if isinstance(head.dim, int):
        for m in head.nested:
            if m >= head.dim:
                raise UserError(f"{where}.nested: {m} is not smaller than the head's dim {head.dim}")
    if len(set(head.nested)) != len(head.nested):
        raise UserError(f"{where}.nested: a dimension is named twice: {head.nested}")
