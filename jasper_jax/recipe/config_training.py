"""The keys of a recipe on training: losses, stages, optimizer, mesh, negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    create_model,
    model_validator,
)

from jasper_jax.losses.terms import TERMS, Term
from jasper_jax.recipe.config_sources import Name, NonNegative, Section, Share


def _named_remat(value: Any) -> Any:
    """Recipes of earlier runs have a boolean."""
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


Remat = Annotated[Literal["none", "dots", "full"], BeforeValidator(_named_remat)]


def _setting_type(term: Term, name: str) -> Any:
    """The type of a loss term's setting: a switch, a number above 0, or one of at least 0."""
    if isinstance(term.settings[name], bool):
        return bool
    return PositiveFloat if name in term.positive else NonNegative


_LOSS_KEYS: Any = {
    **{name: (NonNegative, term.weight) for name, term in TERMS.items()},
    **{name: (_setting_type(term, name), value) for term in TERMS.values() for name, value in term.settings.items()},
}
_LossKeys: Any = create_model("_LossKeys", __base__=Section, **_LOSS_KEYS)


class Losses(_LossKeys):
    """Weights and settings of the loss terms in ``jasper_jax.losses.terms``."""

    @model_validator(mode="after")
    def _some_negatives(self) -> Losses:
        if self.settings["mask_margin"] >= 2:
            raise ValueError(
                f"mask_margin: {self.settings['mask_margin']:g} leaves out every negative, as cosines differ by at most"
                " 2; set mask: false to leave out none"
            )
        return self

    @property
    def all_weights(self) -> dict[str, float]:
        """Term -> weight; a term of weight 0 is not computed."""
        return {name: getattr(self, name) for name in TERMS}

    @property
    def weights(self) -> dict[str, float]:
        """The terms with a weight other than 0, in the table's order."""
        return {name: weight for name, weight in self.all_weights.items() if weight}

    @property
    def settings(self) -> dict[str, float]:
        """The settings of all terms."""
        return {name: getattr(self, name) for term in TERMS.values() for name in term.settings}


class Stage(Section):
    """One stage; None: as in the preset ``stage``."""

    stage: int | str | None = None
    """A preset of ``jasper_jax.recipe.stages``: 1, 2, 3, 4 or ``pairs``."""
    name: Name | None = None
    """Of its checkpoints and in tables; None: ``stage-1`` and so on."""
    train: Annotated[list[str], Field(min_length=1)] | None = None
    """Patterns of the trained leaves, e.g. ``heads/**``, ``encoder/layers[-3:]/**``; all others are frozen."""
    last_layers: PositiveInt | None = None
    """Stage 2: the number of encoder layers to train (paper: 3 of 28); stage 4: of vision layers, None: all."""
    heads: Annotated[list[Name], Field(min_length=1)] | None = None
    """The heads that take losses; None: as in the preset, the first or all."""
    losses: Losses | None = None
    """In place of the recipe's ``losses``, all keys of it."""
    reduce_heads: Literal["sum", "mean"] | None = None
    """Whether the losses of heads are added or averaged."""
    steps: Annotated[int, Field(ge=0)]
    """Batches it trains on."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Texts of a batch; of ``stage: pairs`` the labelled pairs, of stage 4 the images."""
    negatives: Annotated[int, Field(ge=0)] = 0
    """``stage: pairs``: negatives of each query in a batch, besides the passages of the other pairs."""
    text_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """``stage: pairs``: share of a batch's texts that are drawn from all texts, for the terms that copy teachers."""
    learning_rate: PositiveFloat
    """Of AdamW, at its peak."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps in which the learning rate rises to its peak; None: a tenth of ``steps``. Without warm-up, Adam's first
    steps move every weight by the full rate and destroy a closed-form start (docs/results/rates.md)."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """The learning rate's decay after the warm-up, to ``final_rate`` of its peak."""
    final_rate: Share = 0.1
    """The learning rate at the last step, as a share of its peak."""
    weight_decay: NonNegative = 0.01
    """Of AdamW, on matrices alone."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the gradient of all trained parameters; None: not clipped."""
    b1: Share = 0.9
    """AdamW's decay of the mean of gradients."""
    b2: Share = 0.999
    """AdamW's decay of the mean of their squares."""
    eps: PositiveFloat = 1e-8
    """AdamW's addend to the root of that mean."""

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_runs(cls, values: Any) -> Any:
        """Their recorded recipes have the key ``quantize``, which is gone; null did nothing."""
        if isinstance(values, Mapping) and "quantize" in values and values["quantize"] is None:
            return {key: value for key, value in values.items() if key != "quantize"}
        return values


class Training(Section):
    max_length: PositiveInt | None = None
    """Tokens at which training texts are truncated; None: ``student.max_length``, which the exported model keeps."""
    row_length: PositiveInt | None = None
    """Tokens of a row of packed texts; None: the length of the longest text, at least 128."""
    micro_batch: PositiveInt | None = None
    """Encode at most this many rows of packed texts (or images) at once, at least one for each device, and recompute
    them in the backward pass: less memory for activations, losses and gradients of the full batch. A row has the length
    of the longest text. None: all at once."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which gradients of weights are summed over tokens and devices where the encoder computes in 16 bits; bfloat16
    halves the bytes between devices."""
    optimizer_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of AdamW's first moment; the second is float32."""
    shapes: PositiveInt = 3
    """Distinct numbers of rows of batches; a train step is compiled for each."""
    save_every: PositiveInt = 200
    """Steps between checkpoints within a stage."""
    keep: PositiveInt = 2
    """Checkpoints kept within a stage; the last of each finished stage is always kept."""
    evaluate_every: PositiveInt | None = 200
    """Steps between evaluations on the held-out texts; None: only at the end of a stage."""
    ridge_texts: PositiveInt = 4096
    """Texts for heads with ``init: ridge``."""
    ridge_penalty: PositiveFloat = 1e-3
    """Ridge penalty relative to the mean eigenvalue of the pooled vectors' covariance."""
    loggers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default_factory=list)
    """Where metrics go besides ``metrics.jsonl``; each needs the extra of its name."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches; 0: threads of the training process."""
    profile_steps: Annotated[int, Field(ge=0)] = 0
    """Write a JAX profile of this many steps, for XProf and Perfetto, from the fifth step of a command on."""


class Mesh(Section):
    """The arrangement of the devices of all processes; the product is their number."""

    data: PositiveInt = 1
    """Groups of devices, each with all parameters. Of several nodes (hosts of GPUs, slices of TPUs), the axis between
    them."""
    fsdp: PositiveInt = 1
    """Shards of parameters, optimizer state and, like ``data``, of the rows of a batch."""
    tensor: PositiveInt = 1
    """Shards of each layer's matrices; divides the key-value heads of every model in the step, and a node."""


class Mining(Section):
    """Hard negatives: the passages nearest to a query by the teachers' stored vectors, but not as near as its answer
    (arXiv 2407.15831, section 3.2)."""

    depth: PositiveInt = 30
    """The nearest passages kept for each pair; a batch draws ``stages[].negatives`` of them."""
    absolute_margin: NonNegative = 0.0
    """Passages are left out whose similarity to the query exceeds the answer's minus this."""
    relative_margin: Share = 0.05
    """Passages are left out whose similarity to the query exceeds this share less than the answer's."""
    candidates: Literal["pairs", "texts"] = "pairs"
    """pairs: the passages of the pairs; texts: every passage of the text store, pieces of divided documents too."""
