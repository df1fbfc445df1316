"""The recipe's student: its static side, checked against the teachers and its checkpoint, and its first parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jasper_jax.embedder import Embedder
from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.pooling import POOLING_KEYS, Pooling
from jasper_jax.encoders.prompts import prompt_of
from jasper_jax.encoders.registry import encoder_from_config, keep_layers
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.encoders.tokenizer_config import length_limit
from jasper_jax.encoders.weights import check_params, load_params
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.config import Student as StudentSettings
from jasper_jax.recipe.stages import resolve_stages
from jasper_jax.runtime.errors import UserError
from jasper_jax.student.heads import HeadShape
from jasper_jax.student.source import StudentSource
from jasper_jax.student.student import Student
from jasper_jax.vision.load import check_vision, load_vision, vision_model_of
from jasper_jax.vision.vision_model import PARTS
from jasper_jax.vision.words import grow_words, with_vocabulary

_OWN_TOKENIZER = ("qwen2", "qwen3")
"""Model types for which transformers reads only the vocabulary and the merges of ``tokenizer.json``."""


def head_shapes(recipe: Recipe, teacher_dim: int | None) -> dict[str, HeadShape]:
    """The heads with ``dim: teachers`` resolved, checked against the teachers' dimension.

    Raises:
      UserError: a nested dimension is not smaller than the head's; a cosine loss between unlike dimensions;
        ``dim: teachers`` or ``target: teachers`` without teachers; a ridge start for more dimensions than the target.
    """
    shapes: dict[str, HeadShape] = {}
    for name, head in recipe.heads.items():
        where = f"heads.{name}"
        dim = teacher_dim if head.dim == "teachers" else head.dim
        if dim is None:
            raise UserError(f"{where}.dim: teachers, but the recipe has no teachers; give a number")
        for m in head.nested:
            if m >= dim:
                raise UserError(f"{where}.nested: {m} is not smaller than the head's dimension {dim}")
        if head.cosine and dim != teacher_dim:
            raise UserError(
                f"{where}.cosine: the cosine loss needs the teachers' dimension {teacher_dim}, the head has {dim};"
                f" set dim: teachers or cosine: false"
            )
        if head.init == "ridge" and head.target == "teachers" and teacher_dim is not None and dim > teacher_dim:
            raise UserError(f"{where}.init: ridge reaches at most the teachers' {teacher_dim} dimensions, dim is {dim}")
        shapes[name] = HeadShape(dim, (dim, *sorted(head.nested, reverse=True)), head.bias)
    return shapes


def cosine_applies(recipe: Recipe, name: str, teacher_dim: int | None) -> bool:
    """Whether head ``name`` takes the cosine loss: as the recipe says, by default if target and dimension allow it."""
    head = recipe.heads[name]
    if head.cosine is not None:
        return head.cosine
    return head.target == "teachers" and head.dim in ("teachers", teacher_dim)


def make_student(recipe: Recipe, teacher_dim: int | None, source: StudentSource) -> Student:
    """The static student of ``recipe``; no weights are read. ``teacher_dim``: of the concatenated teachers, if any.

    Raises:
      UserError: the recipe asks for a student that cannot be trained or exported.
    """
    settings, folder = recipe.student, source.folder
    prompts: dict[str, str] = {}
    if folder is None:
        assert settings.config is not None
        encoder = encoder_from_config(settings.config, "student.config")
        pooling, max_length = encoder.family.pooling(encoder.config), min(512, encoder.max_positions)
    else:
        hf_config, _ = _kept(settings, folder)
        encoder = encoder_from_config(hf_config, str(folder.path))
        pooling, prompts = folder.pooling, folder.prompts
        limit = folder.max_length or (None if folder.described else length_limit(folder.encoder_path))
        max_length = folder.max_length or min(512, limit or 512, encoder.max_positions)
    if encoder.family.architecture is None:
        raise UserError(f"student: {encoder.family.model_type} can be a teacher only: transformers has no class for it")
    if settings.append_eos and encoder.family.model_type in _OWN_TOKENIZER:
        raise UserError(
            f"student.append_eos: transformers rebuilds the tokenizer of a {encoder.family.model_type} model without"
            " the appended token, so the exported student would give other vectors; remove this key"
        )
    if settings.pooling is not None:
        pooling = Pooling((settings.pooling,), pooling.include_prompt)
    exported = tuple(mode for mode in POOLING_KEYS.values() if mode in pooling.modes)
    if settings.vision is None and pooling.modes != exported:
        raise UserError(
            f"student: {settings.model} joins pooling modes in the order {', '.join(pooling.modes)}, but an exported"
            f" folder can only join them as {', '.join(exported)}; set student.pooling to one mode"
        )
    max_length = settings.max_length or max_length
    if max_length > encoder.max_positions:
        raise UserError(
            f"student.max_length: {max_length} exceeds the encoder's {encoder.max_positions} positions; set it to at"
            f" most {encoder.max_positions}"
        )
    prompts = {
        kind: prompt_of(prompts, kind) if prompt is None else prompt
        for kind, prompt in (("query", settings.prompts.query), ("passage", settings.prompts.passage))
    }
    if any(prompts.values()) and not pooling.include_prompt:
        raise UserError(
            f"student: {settings.model} excludes prompts from its pooling, which is not implemented for a student; set"
            ' student.prompts.query and student.prompts.passage to ""'
        )
    vision_model = None
    if settings.vision is not None:
        assert source.vision is not None
        tokenizer = None if source.described else source.tokenizer(max_length)
        vision_model = vision_model_of(settings.vision, source.vision, tokenizer, encoder, max_length)
        encoder = with_vocabulary(encoder, max(encoder.vocab_size, vision_model.end_id + 1))
    return Student(
        encoder=encoder,
        pooling=pooling,
        heads=head_shapes(recipe, teacher_dim),
        prompts=prompts,
        max_length=max_length,
        compute_dtype=settings.compute_dtype,
        remat=settings.remat,
        dropout=settings.dropout,
        vector_dropout=settings.vector_dropout,
        vision_model=vision_model,
        learned_terms=tuple(dict.fromkeys(t for stage in resolve_stages(recipe) for t in stage.learned_terms)),
    )


def make_tokenizer(student: Student, source: StudentSource, max_length: int | None = None) -> Tokenizer:
    """The student's tokenizer, truncating at ``max_length`` or the student's own; UserError if it has more tokens than
    the student's embedding table has rows."""
    tokenizer = source.tokenizer(max_length or student.max_length)
    tokenizer.check_vocabulary(student.encoder.vocab_size)
    return tokenizer


def starting_params(recipe: Recipe, student: Student, source: StudentSource) -> dict[str, Any]:
    """The student's parameters before training, as ``student.shapes()``: its checkpoint's weights, and heads that are
    random or the checkpoint's; with ``student.config`` all are random. Reads all weights, so a run does this once.

    Raises:
      UserError: the weights do not fit their config, or a head with ``init: model`` is not in the checkpoint.
    """
    settings, folder = recipe.student, source.folder
    if folder is None:
        params = student.init(recipe.seed)
    else:
        _, layers = _kept(settings, folder)
        encoder = load_params(folder.encoder_path, _stored_encoder(student, folder), layers=layers)
        params = {
            "encoder": grow_words(encoder, student.encoder.vocab_size),
            "heads": {**student.init_heads(recipe.seed), **stored_heads(recipe, student, folder)},
        }
    if student.vision_model is not None:
        assert settings.vision is not None
        assert source.vision is not None
        params |= load_vision(settings.vision, source.vision, student.vision_model, recipe.seed)
    return params | student.init_terms()


def load_student(
    recipe: Recipe, teacher_dim: int | None, source: StudentSource
) -> tuple[Student, dict[str, Any], Tokenizer]:
    """:func:`make_student`, :func:`starting_params` and :func:`make_tokenizer` in one."""
    student = make_student(recipe, teacher_dim, source)
    return student, starting_params(recipe, student, source), make_tokenizer(student, source)


def check_start(recipe: Recipe, student: Student, source: StudentSource) -> None:
    """Raise what :func:`starting_params` would raise, reading only the headers of the files."""
    if source.vision is not None and recipe.student.vision is not None:
        check_vision(recipe.student.vision, source.vision)
    if (folder := source.folder) is not None and not folder.described:
        _, layers = _kept(recipe.student, folder)
        check_params(folder.encoder_path, _stored_encoder(student, folder), layers)
        stored_heads(recipe, student, folder)


def _kept(settings: StudentSettings, folder: ModelFolder) -> tuple[dict[str, Any], tuple[int, ...] | None]:
    """The checkpoint's config with only the layers that ``student.layers`` keeps, and those layers (None: all)."""
    if settings.layers is None:
        return folder.hf_config, None
    return keep_layers(folder.hf_config, settings.layers, f"student.layers: {folder.path}")


def _stored_encoder(student: Student, folder: ModelFolder) -> Encoder:
    """The encoder as stored in the checkpoint: without the rows that image tokens add to the embedding table."""
    return with_vocabulary(student.encoder, encoder_from_config(folder.hf_config, str(folder.path)).vocab_size)


def stored_heads(recipe: Recipe, student: Student, folder: ModelFolder) -> dict[str, Any]:
    """Heads with ``init: model``: the Dense step of their dimension in the student's own checkpoint.

    Raises:
      UserError: the checkpoint has no such step, more than one, or one with an activation or another bias.
    """
    heads: dict[str, Any] = {}
    for name, shape in student.heads.items():
        if recipe.heads[name].init != "model":
            continue
        where, steps = f"heads.{name}.init: model", folder.outputs.get(shape.dim, ())
        if len(steps) != 1 or steps[0].activation != "identity" or (steps[0].bias is not None) != shape.bias:
            dims = ", ".join(map(str, sorted(folder.outputs))) or "none"
            raise UserError(
                f"{where}: {folder.path} has no single linear step of {shape.dim} dimensions"
                f" {'with' if shape.bias else 'without'} bias; its dimensions are {dims}"
            )
        kernel, bias, _ = steps[0]
        if kernel.shape[0] != student.width:
            raise UserError(
                f"{where}: takes {kernel.shape[0]} dimensions, the student's pooled vector has {student.width}"
            )
        heads[name] = {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}
    return heads


def student_embedder(student: Student, params: Mapping[str, Any], tokenizer: Tokenizer) -> Embedder:
    """The student with ``params`` but without heads, for its pooled vectors; it takes images if the student does."""
    return Embedder(
        encoder=student.encoder,
        params=params["encoder"],
        tokenizer=tokenizer,
        pooling=student.pooling,
        prompts=dict(student.prompts),
        dtype=student.compute_dtype,
        vision_model=student.vision_model,
        vision_params={name: params[name] for name in PARTS if name in params},
    )
