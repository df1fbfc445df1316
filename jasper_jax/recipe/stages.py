"""Stages as data: what each trains, on which heads, with which losses (paper section 3).

A recipe's stage names a preset (``stage: 2``) and may override its values; :func:`resolve_stages` fills in the rest.
``jasper_jax.parameters.patterns`` decides which leaves a pattern matches, ``jasper_jax.training`` what a kind of stage
does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from jasper_jax.losses.terms import TERMS
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.config_training import Losses, Stage
from jasper_jax.runtime.errors import UserError, nearest

Store = Literal["texts", "pairs", "images"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of stage.

    implementation: ``module:class`` of a ``jasper_jax.training.stage_kind.StageKind``.
    store:          the data that it learns from: texts, the labelled ``pairs`` of texts, or image-caption pairs.
    unit:           the items of a batch.
    taught_by:      the target of its heads; None: each head's own ``target``.
    width:          N, the texts or images that a batch encodes.
    pads_batches:   batches that do not divide over the devices are padded.
    train:          further default patterns of trained leaves.
    check:          raises UserError if the recipe lacks something it needs.
    """

    implementation: str
    store: Store
    unit: str
    taught_by: str | None = None
    pads_batches: bool = False
    width: Callable[[Stage], int] = lambda stage: stage.batch_size
    train: Callable[[Recipe, Stage], Sequence[str]] = lambda recipe, stage: ()
    check: Callable[[Recipe, ResolvedStage, Sequence[ResolvedStage]], None] = lambda recipe, stage, before: None


@dataclasses.dataclass(frozen=True)
class Preset:
    """The paper's settings of a stage. In patterns, ``{k}`` is ``last_layers`` and ``{first}`` the first head."""

    train: tuple[str, ...]
    all_heads: bool
    reduce_heads: Literal["sum", "mean"] = "sum"
    kind: str = "texts"


PRESETS: dict[int | str, Preset] = {
    1: Preset(train=("heads/{first}/**",), all_heads=False),
    2: Preset(train=("heads/{first}/**", "encoder/layers[-{k}:]/**"), all_heads=False),
    3: Preset(train=("**",), all_heads=True),
    4: Preset(train=(), all_heads=True, reduce_heads="mean", kind="images"),
    "pairs": Preset(train=("**",), all_heads=True, kind="pairs"),
}


@dataclasses.dataclass(frozen=True)
class ResolvedStage:
    """A stage with all settings filled in. ``index`` counts from 0 and seeds the stage's data order."""

    index: int
    name: str
    train: tuple[str, ...]
    heads: tuple[str, ...]
    losses: Losses
    reduce_heads: Literal["sum", "mean"]
    settings: Stage
    kind: Kind

    @property
    def steps(self) -> int:
        return self.settings.steps

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    @property
    def width(self) -> int:
        """N, the texts or images that a batch encodes."""
        return self.kind.width(self.settings)

    @property
    def learned_terms(self) -> list[str]:
        """The loss terms with learned parameters."""
        return learned_terms(self.losses)

    def learns_from(self, store: Store) -> bool:
        """Whether its batches come from ``store``."""
        return self.kind.store == store


def nested_heads(stages: Sequence[ResolvedStage]) -> set[str]:
    """The heads with a stage that has a loss at their nested dimensions."""
    return {
        head for stage in stages if any(TERMS[name].nested for name in stage.losses.weights) for head in stage.heads
    }


def learned_terms(losses: Losses) -> list[str]:
    """The terms of a weight other than 0 that have learned numbers."""
    terms = [(name, TERMS[name]) for name in losses.weights if TERMS[name].learned]
    return [name for name, term in terms if term.learned_if is None or losses.settings[term.learned_if]]


def _vision_patterns(recipe: Recipe, stage: Stage) -> list[str]:
    """The vision encoder or its last layers, and the projector if there is one."""
    vision = "vision/**" if stage.last_layers is None else f"vision/layers[-{stage.last_layers}:]/**"
    projector = recipe.student.vision is not None and recipe.student.vision.projector != "none"
    return [vision, *(["projector/**"] if projector else [])]


def _check_images(recipe: Recipe, stage: ResolvedStage, before: Sequence[ResolvedStage]) -> None:
    where = f"stages[{stage.index}]"
    if recipe.student.vision is None:
        raise UserError(f"{where}: stage 4 trains a vision encoder; set student.vision")
    if recipe.images is None:
        raise UserError(f"{where}: stage 4 learns from image-caption pairs; set images")
    taught = {head for earlier in before if earlier.kind is not stage.kind for head in earlier.heads}
    for head in stage.heads:
        if head not in taught and recipe.heads[head].init != "model":
            raise UserError(
                f"{where}.heads: {head} is frozen in stage 4, and no earlier stage trains it; set heads.{head}.init:"
                f" model to take it from student.model, or remove it from the list"
            )


def _check_targets(recipe: Recipe, stage: ResolvedStage, before: Sequence[ResolvedStage]) -> None:
    for head in stage.heads:
        target = recipe.heads[head].target
        if target in recipe.heads and target not in stage.heads:
            raise UserError(
                f"stages[{stage.index}].heads: the target of {head} is {target}, which the stage lacks; add {target}"
            )


def plain_texts(stage: Stage) -> int:
    """The number of plain texts in a batch of labelled pairs, ``text_share`` of all its texts."""
    return round(stage.batch_size * (2 + stage.negatives) * stage.text_share / (1 - stage.text_share))


def _check_pairs(recipe: Recipe, stage: ResolvedStage, before: Sequence[ResolvedStage]) -> None:
    where = f"stages[{stage.index}]"
    if recipe.texts is None or not recipe.texts.pairs:
        raise UserError(f"{where}: this stage learns from labelled pairs; set texts.pairs")
    _check_targets(recipe, stage, before)
    labelled = [name for name, term in TERMS.items() if term.stages == ("pairs",) and name != "spread"]
    if not any(name in stage.losses.weights for name in labelled):
        raise UserError(f"{where}.losses: no term learns from the pairs; set one of {', '.join(labelled)}")
    if not stage.settings.negatives:
        return
    if any(recipe.heads[head].target == "teachers" for one in (*before, stage) for head in one.heads):
        if stage.settings.negatives > recipe.mining.depth:
            raise UserError(
                f"{where}.negatives: {stage.settings.negatives} is more than mining.depth {recipe.mining.depth}, the"
                f" negatives kept for a pair; raise it"
            )
        return
    bare = next((i for i, source in enumerate(recipe.texts.pairs) if source.negatives is None), None)
    if bare is not None:
        raise UserError(
            f"{where}.negatives: the teachers' vectors, from which negatives are mined, are not stored, as no head's"
            f" target is teachers; set texts.pairs[{bare}].negatives, or negatives: 0"
        )


KINDS: dict[str, Kind] = {
    "texts": Kind("jasper_jax.training.text_stage:TextStage", "texts", "texts", check=_check_targets),
    "pairs": Kind(
        "jasper_jax.training.pair_stage:PairStage",
        "pairs",
        "pairs",
        pads_batches=True,
        width=lambda stage: stage.batch_size * (2 + stage.negatives) + plain_texts(stage),
        check=_check_pairs,
    ),
    "images": Kind(
        "jasper_jax.training.image_stage:ImageStage",
        "images",
        "pairs",
        taught_by="caption",
        pads_batches=True,
        train=_vision_patterns,
        check=_check_images,
    ),
}


def resolve_stages(recipe: Recipe) -> list[ResolvedStage]:
    """The recipe's stages with their presets filled in.

    Raises:
      UserError: an unknown preset or head; neither preset nor ``train`` and ``heads``; preset 2 without
        ``last_layers``; two stages of one name; losses that the kind of stage lacks; images that the recipe lacks.
    """
    stages: list[ResolvedStage] = []
    for index, stage in enumerate(recipe.stages):
        resolved = _resolve(recipe, index, stage)
        if resolved.name in {earlier.name for earlier in stages}:
            raise UserError(f"stages[{index}]: another stage is called {resolved.name!r}; rename one")
        _check_losses(resolved)
        _check_keys(resolved)
        resolved.kind.check(recipe, resolved, stages)
        stages.append(resolved)
    return stages


def _resolve(recipe: Recipe, index: int, stage: Stage) -> ResolvedStage:
    where = f"stages[{index}]"
    preset = None if stage.stage is None else PRESETS.get(stage.stage)
    if stage.stage is not None and preset is None:
        raise UserError(f"{where}.stage: {stage.stage!r} is not a preset; allowed are {_presets()}")
    if preset is None and (stage.train is None or stage.heads is None):
        raise UserError(f"{where}: give stage: {_presets()}, or both train and heads")
    kind = KINDS[preset.kind if preset else "texts"]
    heads = stage.heads or (list(recipe.heads) if preset and preset.all_heads else [next(iter(recipe.heads))])
    for head in heads:
        if head not in recipe.heads:
            raise UserError(
                f"{where}.heads: no head {head!r}; heads are {', '.join(recipe.heads)}"
                + nearest(head, list(recipe.heads))
            )
    if len(set(heads)) != len(heads):
        raise UserError(f"{where}.heads: a head is listed twice: {', '.join(heads)}")
    losses = stage.losses or recipe.losses
    train = stage.train
    if train is None:
        assert preset is not None
        if any("{k}" in pattern for pattern in preset.train) and stage.last_layers is None:
            raise UserError(f"{where}: stage {stage.stage} needs last_layers, the number of encoder layers it trains")
        train = [pattern.format(first=heads[0], k=stage.last_layers) for pattern in preset.train]
        train += kind.train(recipe, stage)
        if "**" not in train:
            train += [f"losses/{name}/**" for name in learned_terms(losses)]
    elif stage.last_layers is not None:
        raise UserError(f"{where}: last_layers and train both select what is trained; keep one")
    return ResolvedStage(
        index=index,
        name=stage.name or (f"stage-{stage.stage}" if stage.stage is not None else f"stage-{index + 1}"),
        train=tuple(train),
        heads=tuple(heads),
        losses=losses,
        reduce_heads=stage.reduce_heads or (preset.reduce_heads if preset else "sum"),
        settings=stage,
        kind=kind,
    )


def _check_keys(stage: ResolvedStage) -> None:
    """UserError for a key that only stages on pairs read."""
    for key in ("negatives", "text_share"):
        if not stage.learns_from("pairs") and getattr(stage.settings, key):
            raise UserError(f"stages[{stage.index}].{key}: only stage: pairs reads this key; remove it")


def _presets() -> str:
    *names, last = map(str, PRESETS)
    return f"{', '.join(names)} or {last}"


def _check_losses(stage: ResolvedStage) -> None:
    where, kind = f"stages[{stage.index}].losses", next(name for name, kind in KINDS.items() if kind is stage.kind)
    for name in stage.losses.weights:
        able = TERMS[name].stages
        if able is not None and kind not in able:
            raise UserError(
                f"{where}.{name}: this loss exists in stages on {' or '.join(able)}; set its weight to 0 here"
            )
    if not stage.losses.weights:
        raise UserError(f"{where}: all weights are 0; set at least one")
