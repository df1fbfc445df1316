"""The recipe: every setting of a run, typed, frozen and strict. An unknown key is an error.

A recipe file is read by ``jasper_jax.recipe.load.load_recipe``; these classes say what may stand in it. What a recipe
leaves out of a stage comes from the stage's preset in ``jasper_jax.recipe.stages``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, create_model, model_validator

from jasper_jax.losses.terms import TERMS
from jasper_jax.recipe.config_sources import Dimension, Images, Name, NonNegative, Section, Share, Texts

# ---------------------------------------------------------------------------------------------- models


class Prompts(Section):
    """Text put before a query or a passage. None keeps what the model's own folder says."""

    query: str | None = None
    passage: str | None = None


class Teacher(Section):
    name: Name
    model: str | None = None
    """An asset, a folder, or a hub id. None: the vectors are imported (``jasper vectors import``)."""
    revision: str | None = None
    prompts: Prompts = Prompts()
    max_length: PositiveInt | None = None
    dim: Dimension | None = None
    """Which ``2_Dense_{dim}`` of the model to use; None takes the one its modules.json names."""
    dtype: Literal["float16", "float32", "int8"] = "float16"
    """How vectors are stored."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    mode: Literal["cached", "online"] = "cached"
    """Vectors computed once and stored, or in the train step, again for each text that is drawn."""
    backend: Literal["jax", "torch"] = "jax"
    """torch: through sentence-transformers (extra ``export``), for models that no encoder here implements; code in
    the model folder is not run there either."""
    causal: bool | None = None
    """Whether a decoder's attention is causal, where its folder comes with code of its own and does not say."""
    append_eos: bool | None = None
    """End every text with the tokenizer's end token, where its own code did so and ``tokenizer.json`` does not."""

    @model_validator(mode="after")
    def _fits(self) -> Teacher:
        if self.model is None and (self.mode == "online" or self.backend == "torch"):
            raise ValueError(f"mode: {self.mode} and backend: {self.backend} need a model; without one give neither")
        if self.backend == "torch" and self.mode == "online":
            raise ValueError("mode: online runs in the JAX train step, a teacher of backend: torch cannot; use cached")
        if self.backend == "torch" and (self.causal is not None or self.append_eos is not None):
            raise ValueError("causal and append_eos are for backend: jax; sentence-transformers reads the model's own")
        if self.backend == "torch" and self.dim is None:
            raise ValueError("backend: torch needs dim, the dimension of the model's vectors")
        return self


class Vision(Section):
    """What makes a text student take images: a vision encoder whose tokens stand among those of the text."""

    model: str
    """An asset, a folder, or a hub id of a vision encoder (SigLIP, SigLIP 2, DINOv2, CLIP)."""
    revision: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    """random: the model's architecture and image processing, weights drawn from the seed."""
    image_size: PositiveInt | None = None
    """Pixels of a side; None: the checkpoint's. Another size interpolates the table of positions."""
    tokens: PositiveInt = 300
    """Tokens that an image takes in the student's input (Jasper: 300)."""
    projector: Literal["none", "linear", "joint"] = "none"
    """none: vision tokens are pooled to the student's width, without parameters (Jasper); linear: pooled to ``tokens``
    alone, then each mapped by one learned matrix; joint: pooled likewise, then side by side mapped by a learned matrix
    to all of an image's tokens at once (``(tokens · C) x (tokens · D)`` numbers: for few tokens)."""
    projector_init: Literal["ridge", "random"] = "ridge"
    """ridge: the closed-form map from an image to its caption's vector, taken back through the text encoder
    (``training.projector_start``)."""
    projector_penalty: PositiveFloat = 0.2
    """Ridge penalty of that map, relative to the mean eigenvalue of the covariance of the vision tokens."""
    remat: bool = False
    """Recompute the vision layers' activations in the backward pass: memory for time."""


class Student(Section):
    model: str | None = None
    revision: str | None = None
    layers: list[Annotated[int, Field(ge=0)]] | None = None
    """Layers of the checkpoint to keep, in this order; None keeps all."""
    config: dict | None = None
    """Sizes for a student with random weights (a Hugging Face config with ``model_type``); ``tokenizer`` is needed."""
    tokenizer: str | None = None
    """Where the tokenizer comes from when the weights are random: an asset, a folder, or a hub id."""
    max_length: PositiveInt | None = None
    pooling: Literal["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"] | None = None
    prompts: Prompts = Prompts()
    causal: bool | None = None
    """As a teacher's; the exported config.json says it (``is_causal``), and transformers obeys."""
    append_eos: bool | None = None
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    """Recompute the layers' activations in the backward pass: memory for time."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    vector_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the pooled vector (the public Jasper was trained with 0.2)."""
    vision: Vision | None = None

    @model_validator(mode="after")
    def _weights(self) -> Student:
        if (self.model is None) == (self.config is None):
            raise ValueError("give either model (start from a checkpoint) or config (random weights)")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("a student with random weights (config) needs tokenizer")
        if self.config is not None and self.layers is not None:
            raise ValueError("layers selects from a checkpoint; with config set num_hidden_layers there")
        return self


class Head(Section):
    """A linear projection of the student's pooled vector."""

    dim: Dimension | Literal["teachers"]
    nested: list[Dimension] = Field(default_factory=list)
    """Nested (Matryoshka) dimensions below ``dim``; the similarity and relative losses average over them and dim."""
    target: str = "teachers"
    """``teachers``, ``pooled`` (the student's own pooled vector), or another head's name (self-distillation)."""
    init: Literal["ridge", "random", "model"] = "random"
    """ridge: the closed-form start; model: the ``2_Dense_{dim}`` of the student's own checkpoint."""
    bias: bool = True
    cosine: bool | None = None
    """Whether the cosine loss applies; None: where the dimensions agree and the target is the teachers."""


_LOSS_KEYS: Any = {
    **{name: (NonNegative, term.weight) for name, term in TERMS.items()},
    **{name: (NonNegative, value) for term in TERMS.values() for name, value in term.settings.items()},
}
_LossKeys: Any = create_model("_LossKeys", __base__=Section, **_LOSS_KEYS)


class Losses(_LossKeys):
    """Weights of the loss terms and the settings of some: the table of ``jasper_jax.losses.terms``."""

    @property
    def all_weights(self) -> dict[str, float]:
        """Term -> weight, 0 for a term that is not computed."""
        return {name: getattr(self, name) for name in TERMS}

    @property
    def weights(self) -> dict[str, float]:
        """The terms with a weight, in the table's order."""
        return {name: weight for name, weight in self.all_weights.items() if weight}

    @property
    def settings(self) -> dict[str, float]:
        """The settings of all terms."""
        return {name: getattr(self, name) for term in TERMS.values() for name in term.settings}


# ---------------------------------------------------------------------------------------------- stages


class Stage(Section):
    """One stage. What is None is filled from the preset ``stage`` (see ``jasper_jax.recipe.stages``)."""

    stage: int | str | None = None
    """A preset of ``jasper_jax.recipe.stages``: 1, 2, 3 or 4."""
    name: Name | None = None
    train: Annotated[list[str], Field(min_length=1)] | None = None
    """Patterns of the trained leaves, e.g. ``heads/**``, ``encoder/layers[-3:]/**``; the rest is frozen."""
    last_layers: PositiveInt | None = None
    """Stage 2's k: how many encoder layers it trains (paper: 3 of 28). Stage 4: how many vision layers; None: all."""
    heads: Annotated[list[Name], Field(min_length=1)] | None = None
    losses: Losses | None = None
    reduce_heads: Literal["sum", "mean"] | None = None
    steps: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=2)] = 128
    learning_rate: PositiveFloat
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps in which the learning rate rises to its peak; None: a tenth of the stage's. Without any, Adam's first steps
    move every weight by the whole rate, and throw a closed-form start away (docs/results/rates.md)."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up, down to ``final_rate`` of its peak."""
    final_rate: Share = 0.1
    weight_decay: NonNegative = 0.01
    clip_norm: PositiveFloat | None = 1.0
    b1: Share = 0.9
    b2: Share = 0.999
    eps: PositiveFloat = 1e-8


class Training(Section):
    max_length: PositiveInt | None = None
    """Tokens at which texts are cut in training; None: ``student.max_length``, which the exported model keeps."""
    row_length: PositiveInt | None = None
    """Tokens of a row, into which several texts are packed; None: as the longest text needs, at least 128."""
    micro_batch: PositiveInt | None = None
    """Encode a batch in pieces of about so many texts, each computed again in the backward pass: the memory of
    activations is that of a piece, losses and gradients are those of the whole batch. None: in one piece."""
    shapes: PositiveInt = 3
    """Numbers of rows that batches may have: at most so many train steps are compiled for a stage."""
    save_every: PositiveInt = 200
    keep: PositiveInt = 2
    """Checkpoints kept besides the last of each stage."""
    evaluate_every: PositiveInt | None = 200
    """Steps between evaluations on the held-out texts; None: only at the end of a stage."""
    ridge_texts: PositiveInt = 4096
    """Texts for heads with ``init: ridge``."""
    ridge_penalty: PositiveFloat = 1e-3
    """Ridge penalty relative to the mean eigenvalue of the pooled vectors' covariance."""
    loggers: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches; 0 uses threads of the training process."""
    profile_steps: Annotated[int, Field(ge=0)] = 0
    """Write a JAX profile of so many steps, from the stage's fifth on."""


class Mesh(Section):
    """How the devices of all processes are arranged; the product is their number."""

    data: PositiveInt = 1
    """Groups that each hold all parameters."""
    fsdp: PositiveInt = 1
    """Devices of a group that divide parameters, optimizer state and, like ``data``, the rows of a batch."""
    tensor: PositiveInt = 1
    """Devices that divide the matrices of each layer."""


class Retrieval(Section):
    """A retrieval test: an asset with splits (SQuAD-shifts) or a folder in BEIR's format."""

    name: Name
    asset: str | None = None
    split: str | None = None
    beir: str | None = None
    """Folder with corpus.jsonl, queries.jsonl and qrels/test.tsv."""
    passages: PositiveInt | None = None
    """Only the first so many passages by sorted id."""
    queries_per_passage: PositiveInt | None = None

    @model_validator(mode="after")
    def _one(self) -> Retrieval:
        if (self.asset is None) == (self.beir is None):
            raise ValueError("a retrieval test names either asset or beir")
        return self


class Evaluation(Section):
    retrieval: list[Retrieval] = Field(default_factory=list)
    similarity: list[Literal["lee"]] = Field(default_factory=list)
    """Tests of semantic similarity with human judgements."""
    agreement: bool = True
    """Agreement with the teachers on the held-out texts."""
    images: bool = True
    """Retrieval of images by captions and captions by images, where the recipe has images."""
    stages: Literal["all", "last"] = "all"
    """Score the student before training and after each stage, or only after the last one that is finished."""


class Export(Section):
    dim: PositiveInt | None = None
    """The dimension modules.json points at; None takes the largest."""
    dims: dict[int, Name] = Field(default_factory=dict)
    """Which head provides a dimension that two of them could, e.g. {256: fc1}."""
    normalize: bool = True
    """End the folder with a Normalize module (Stella's has none)."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


class Recipe(Section):
    """A whole run."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    run_dir: str | None = None
    """Folder of the run; None is ``runs/<name>``."""
    stores: str | None = None
    """Folder whose ``texts/``, ``vectors/`` and vectors of tests are used, and made where missing: another run's, so
    that runs on the same texts share them. None: the run's own."""
    mirror: str | None = None
    """Address in object storage (``gs://bucket/folder``, ``s3://...``) where recipe, checkpoints, metrics, evaluation
    and export are kept too; a run continues from there on a machine that has nothing of it."""
    texts: Texts | None = None
    """May be left out where no stage trains on texts."""
    images: Images | None = None
    teachers: list[Teacher] = Field(default_factory=list)
    student: Student
    heads: Annotated[dict[Name, Head], Field(min_length=1)]
    losses: Losses = Losses()
    stages: Annotated[list[Stage], Field(min_length=1)]
    training: Training = Training()
    mesh: Literal["auto"] | Mesh = "auto"
    """auto: fsdp takes all devices, as far as every stage's batch divides by them, tensor the rest."""
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
