"""The recipe: every setting of a run, typed, frozen and strict. An unknown key is an error."""

from __future__ import annotations

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
from jasper_jax.recipe.config_evaluation import Evaluation
from jasper_jax.recipe.config_sources import Dimension, Images, Name, NonNegative, Section, Share, Texts


def _named_remat(value: Any) -> Any:
    """Recipes of earlier runs have a boolean."""
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


Remat = Annotated[Literal["none", "dots", "full"], BeforeValidator(_named_remat)]


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


class Ray(Section):
    """What each worker of ``jasper embed --ray`` takes of a Ray cluster. A worker has one teacher loaded."""

    num_cpus: PositiveInt = 1
    """CPU cores of a worker, and threads of its computations."""
    num_gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a worker, which share each batch; None: one if nodes have GPUs, else none."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Other resources of a worker by Ray's name, e.g. {TPU: 4}."""


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
    """Also write ``onnx/model.onnx`` and its int8 form; needs the extra onnx."""
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
