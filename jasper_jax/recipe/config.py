"""The recipe: every setting of a run, typed, frozen and strict. An unknown key is an error."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from jasper_jax.recipe.config_evaluation import Evaluation
from jasper_jax.recipe.config_sources import Dimension, Images, Name, Section, Texts
from jasper_jax.recipe.config_training import Losses, Mesh, Mining, Remat, Stage, Training


class Prompts(Section):
    """Text put before a query or a passage; None: the prompt of the model's folder."""

    query: str | None = None
    """Put before every query."""
    passage: str | None = None
    """Put before every passage."""


class Teacher(Section):
    name: Name
    """Of its store, ``vectors/<name>``, and in tables."""
    model: str | None = None
    """An asset, a folder, or a hub id; None: its vectors are imported (``jasper vectors import``)."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    prompts: Prompts = Prompts()
    """In place of the prompts of its folder."""
    max_length: PositiveInt | None = None
    """Tokens at which its texts are truncated; None: the model's own."""
    dim: Dimension | None = None
    """Which ``2_Dense_{dim}`` of the model to use; None: the one in its modules.json."""
    weight: PositiveFloat = 1.0
    """Of its similarities among those of all teachers, relative to the other teachers' weights."""
    dtype: Literal["float16", "float32", "int8"] = "float16"
    """How vectors are stored."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which its layers compute."""
    mode: Literal["cached", "online"] = "cached"
    """cached: vectors are computed once and stored; online: in the train step, for each batch."""
    backend: Literal["jax", "torch"] = "jax"
    """torch: with sentence-transformers (extra ``export``), for models that no encoder here implements. Code in the
    model folder is not run."""
    causal: bool | None = None
    """Whether a decoder's attention is causal, if its folder has its own code and does not say."""
    append_eos: bool | None = None
    """End every text with the tokenizer's end token, if the model's own code does and ``tokenizer.json`` does not."""

    @model_validator(mode="after")
    def _fits(self) -> Teacher:
        if self.model is None and (self.mode == "online" or self.backend == "torch"):
            raise ValueError(f"mode: {self.mode} and backend: {self.backend} need a model; set model, or remove both")
        if self.backend == "torch" and self.mode == "online":
            raise ValueError("mode: online needs backend: jax, got torch; use mode: cached")
        if self.backend == "torch" and (self.causal is not None or self.append_eos is not None):
            raise ValueError("causal and append_eos are for backend: jax; remove them")
        if self.backend == "torch" and self.dim is None:
            raise ValueError("backend: torch needs dim, the dimension of the model's vectors")
        return self


class Vision(Section):
    """A vision encoder whose tokens become part of the student's input."""

    model: str
    """An asset, a folder, or a hub id of a vision encoder (SigLIP, SigLIP 2, DINOv2, CLIP)."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """random: the model's architecture and image processing with random weights."""
    image_size: PositiveInt | None = None
    """Pixels of a side; None: the checkpoint's. Another size interpolates the position embeddings."""
    tokens: PositiveInt = 300
    """Tokens that an image takes in the student's input (Jasper: 300)."""
    projector: Literal["none", "linear", "joint"] = "none"
    """none: vision tokens are pooled to ``tokens`` and the student's width, without parameters (Jasper); linear: pooled
    to ``tokens``, each mapped by one learned matrix; joint: pooled to ``tokens``, all together mapped by one learned
    matrix of ``(tokens · C) x (tokens · D)`` numbers, for few tokens."""
    projector_init: Literal["ridge", "random"] = "ridge"
    """ridge: closed form, from an image to its caption's vector and back through the text encoder
    (``training.projector_start``)."""
    projector_penalty: PositiveFloat = 0.2
    """Ridge penalty of that map, relative to the mean eigenvalue of the covariance of the vision tokens."""
    remat: Remat = "none"
    """As ``student.remat``, of the vision layers."""


class Student(Section):
    model: str | None = None
    """The checkpoint that it starts from: an asset, a folder, or a hub id."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    layers: list[Annotated[int, Field(ge=0)]] | None = None
    """Layers of the checkpoint to keep, in this order; None: all."""
    config: dict | None = None
    """A Hugging Face config with ``model_type``, for a student with random weights; needs ``tokenizer``."""
    tokenizer: str | None = None
    """The tokenizer of a student with random weights: an asset, a folder, or a hub id."""
    max_length: PositiveInt | None = None
    """Tokens at which the exported model truncates; None: the checkpoint's, else 512."""
    pooling: Literal["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"] | None = None
    """How the vectors of tokens become one; None: as in the checkpoint's folder."""
    prompts: Prompts = Prompts()
    """In place of the prompts of its folder; exported with it."""
    causal: bool | None = None
    """As a teacher's; exported as ``is_causal`` in config.json."""
    append_eos: bool | None = None
    """As a teacher's."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which its layers compute; losses, heads and parameters are float32."""
    remat: Remat = "none"
    """What the backward pass recomputes of each layer, memory for time. none: nothing; dots: all but the products of
    matrices (JAX's policy ``dots_with_no_batch_dims_saveable``; attention is recomputed); full: everything."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout in its layers during training."""
    vector_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the pooled vector (the public Jasper was trained with 0.2)."""
    vision: Vision | None = None
    """A vision encoder for a student of texts and images."""

    @model_validator(mode="after")
    def _weights(self) -> Student:
        if (self.model is None) == (self.config is None):
            raise ValueError("expected exactly one of model (a checkpoint) and config (random weights)")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("a student with random weights (config) needs tokenizer")
        if self.config is not None and self.layers is not None:
            raise ValueError("layers selects from a checkpoint; with config set num_hidden_layers there")
        return self


class Head(Section):
    """A linear projection of the student's pooled vector."""

    dim: Dimension | Literal["teachers"]
    """Of its vectors; ``teachers``: that of the teachers concatenated."""
    nested: list[Dimension] = Field(default_factory=list)
    """Nested (Matryoshka) dimensions below ``dim``; similarity and relative loss are averages over them and ``dim``."""
    target: str = "teachers"
    """``teachers``, ``pooled`` (the student's own pooled vector), or another head's name (self-distillation)."""
    init: Literal["ridge", "random", "model"] = "random"
    """ridge: the closed-form start; model: the ``2_Dense_{dim}`` of the student's own checkpoint."""
    bias: bool = True
    """Whether a bias is added."""
    cosine: bool | None = None
    """Whether the cosine loss applies; None: if the target is the teachers and the dimensions are equal."""


class Ray(Section):
    """What each worker of ``jasper embed --ray`` takes of a Ray cluster. A worker has one teacher loaded."""

    num_cpus: PositiveInt = 1
    """CPU cores of a worker, and threads of its computations."""
    num_gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a worker, which share each batch; None: one if nodes have GPUs, else none."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Other resources of a worker by Ray's name, e.g. {TPU: 4}."""


class Export(Section):
    dim: PositiveInt | None = None
    """The dimension in modules.json, from which servers cut where a nested head makes it; None: the largest."""
    dims: dict[int, Name] = Field(default_factory=dict)
    """The head of a dimension that several heads provide, e.g. {256: fc1}."""
    normalize: bool = True
    """End the folder with a Normalize module (Stella's has none)."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the exported weights."""
    onnx: bool = False
    """Also write ``onnx/model.onnx`` and its int8 form, for images ``vision_model.onnx`` too; needs the extra onnx."""
    onnx_opset: Annotated[int, Field(ge=18, le=23)] = 18
    """The version of ONNX's operators: earlier than 18 torch does not export to, later than 23 neither."""
    onnx_int8_loss: Annotated[float, Field(ge=0, le=2)] | None = 0.02
    """Most that the int8 form may lose: 1 - the Spearman correlation of its similarities with those of float32, over
    pairs of held-out texts. None: no int8 form."""
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$")] | None = None
    """Of the card, by the hub's name, e.g. apache-2.0; None: that of the asset which the student continues."""
    language: list[Annotated[str, Field(pattern=r"^[a-z]{2,8}(-[A-Za-z0-9]{1,8})?$")]] = Field(default_factory=list)
    """Of the card, e.g. [en, de]."""
    samples: Annotated[int, Field(ge=0, le=20)] = 0
    """Training texts that the card shows, and as many held-out ones in its widget; 0: no text leaves with the model."""
    asymmetric: bool | Name = False
    """Also write ``asymmetric/``, a sentence-transformers Router: queries go to the student, documents to the teacher
    (of several, to the one named here)."""


class Recipe(Section):
    """A whole run."""

    name: Name
    """Of the run: its folder is ``runs/<name>`` unless ``run_dir`` says another."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of everything that is drawn at random; two runs with one seed are equal to the bit."""
    run_dir: str | None = None
    """Folder of the run; None is ``runs/<name>``."""
    stores: str | None = None
    """Folder of ``texts/``, ``vectors/`` and vectors of tests, which runs on the same texts may share; None: the run's
    own."""
    mirror: str | None = None
    """Address in object storage (``gs://bucket/folder``, ``s3://...``) for a copy of recipe, checkpoints, metrics,
    evaluation and export, from which another machine can resume."""
    texts: Texts | None = None
    """Not required if no stage learns from texts."""
    images: Images | None = None
    """The image-caption pairs of stage 4."""
    teachers: list[Teacher] = Field(default_factory=list)
    """The models whose vectors are learned, concatenated in this order."""
    student: Student
    """The model that is trained."""
    heads: Annotated[dict[Name, Head], Field(min_length=1)]
    """By name; each makes vectors of one dimension, or of several nested ones."""
    losses: Losses = Losses()
    """Of all stages that do not have their own."""
    stages: Annotated[list[Stage], Field(min_length=1)]
    """Trained in this order, each from the parameters of the one before."""
    training: Training = Training()
    """What all stages have in common."""
    mesh: Literal["auto"] | Mesh = "auto"
    """auto: data is the number of nodes; in a node fsdp takes as many devices as divide every stage's batch, tensor the
    rest."""
    ray: Ray = Ray()
    """The workers of ``jasper embed --ray``; may change between commands."""
    mining: Mining = Mining()
    """How negatives of labelled pairs are found."""
    evaluation: Evaluation = Evaluation()
    """What is scored; may change between commands."""
    export: Export = Export()
    """The exported folder; may change between commands."""
