"""The student: an encoder, pooling, and projection heads. Token ids in, one vector per head out.

Its canonical parameters are ``{"encoder": ..., "heads": {name: {"kernel", "bias"}}}``; everything else about it is
static and lives in :class:`Student`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jasper_jax.config import Recipe
from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.folder import ModelFolder, read_model_folder
from jasper_jax.encoders.layout import segments_of
from jasper_jax.encoders.registry import encoder_from_config, keep_layers
from jasper_jax.encoders.weights import load_params
from jasper_jax.errors import UserError
from jasper_jax.heads import init_head, project
from jasper_jax.pooling import Pooling
from jasper_jax.sharding import ROWS, WIDE, constrain
from jasper_jax.tokenization import Tokenizer

Packed = Mapping[str, jax.Array]
"""The texts of a batch, packed into rows (``jasper_jax.data.packing``): ``ids [R, L]`` tokens; ``lengths [R, S]``
tokens of each text of a row, 0 where there is none; ``slots [B]`` where text b is, its row times S plus its place;
``prompts [R, S]`` tokens of each text's prompt, where the pooling leaves prompts out."""


_OWN_TOKENIZER = ("qwen2", "qwen3")
"""Model types for which transformers takes vocabulary and merges out of ``tokenizer.json``, and nothing else."""


def encode_packed(
    encoder: Encoder,
    pooling: Pooling,
    params: Any,
    texts: Packed,
    *,
    pieces: int = 1,
    dropout_key: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """Pooled vectors ``[B, D]`` float32 of packed texts, in the batch's order; ``options`` are ``Encoder.apply``'s.

    Rows lie over the devices; the vectors are repeated on all of them, being small. ``pieces`` takes so many parts of
    the rows one after another, each computed again in the backward pass: its memory is that of one part.
    """

    def encode(rows: Packed, key: jax.Array | None) -> jax.Array:
        segments = segments_of(rows["lengths"], rows["ids"].shape[1])
        states = encoder.apply(params, rows["ids"], segments, packed=True, dropout_key=key, **options)
        return pooling.packed(states, segments, rows["lengths"].shape[1], rows.get("prompts"))

    rows = {name: constrain(texts[name], ROWS) for name in ("ids", "lengths", "prompts") if name in texts}
    by_row = encode(rows, dropout_key) if pieces == 1 else _in_pieces(encode, rows, dropout_key, pieces)
    vectors = constrain(by_row.reshape(-1, by_row.shape[-1]))
    return constrain(vectors.at[texts["slots"]].get(unique_indices=True))


def _in_pieces(
    encode: Callable[[Packed, jax.Array | None], jax.Array], rows: Packed, key: jax.Array | None, pieces: int
) -> jax.Array:
    """``encode`` over ``pieces`` parts of the rows: row ``a · pieces + i`` is in part i, so that each part has its
    share of every device's rows."""

    def cut(x: jax.Array) -> jax.Array:  # [R, ...] -> [pieces, R / pieces, ...]
        return constrain(jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0), None, ROWS)

    @jax.checkpoint
    def piece(number: jax.Array, rows: Packed) -> jax.Array:
        return encode(rows, None if key is None else jax.random.fold_in(key, number))

    numbers = jnp.arange(pieces, dtype=jnp.int32)
    out = jax.lax.map(lambda part: piece(*part), (numbers, {name: cut(x) for name, x in rows.items()}))
    return jnp.moveaxis(out, 0, 1).reshape(-1, *out.shape[2:])


@dataclasses.dataclass(frozen=True)
class HeadShape:
    """A head with its dimension known; ``dims`` are the dimensions it serves, the largest first."""

    dim: int
    dims: tuple[int, ...]
    bias: bool


@dataclasses.dataclass(frozen=True)
class Student:
    """Everything static about the student."""

    encoder: Encoder
    pooling: Pooling
    heads: Mapping[str, HeadShape]
    prompts: Mapping[str, str]
    max_length: int
    compute_dtype: str
    remat: bool
    dropout: float
    vector_dropout: float

    @property
    def width(self) -> int:
        """D, the width of the pooled vector."""
        return self.pooling.size(self.encoder.hidden_size)

    def shapes(self) -> dict[str, Any]:
        """The parameters' tree with shapes and dtypes in place of arrays; nothing is computed."""
        return jax.eval_shape(lambda: self.init(0))

    def init(self, seed: int) -> dict[str, Any]:
        """Random parameters, a function of the seed alone."""
        key = jax.random.key(seed)
        return {"encoder": self.encoder.init(jax.random.fold_in(key, 0)), "heads": self.init_heads(seed)}

    def init_heads(self, seed: int) -> dict[str, Any]:
        """Random heads, each a function of the seed and its place in the recipe."""
        key = jax.random.key(seed)
        return {
            name: init_head(jax.random.fold_in(key, i + 1), self.width, head.dim, head.bias)
            for i, (name, head) in enumerate(self.heads.items())
        }

    def pooled(
        self, params: Mapping[str, Any], texts: Packed, key: jax.Array | None = None, *, pieces: int = 1
    ) -> jax.Array:
        """Pooled vectors ``[B, D]`` (float32) of packed texts, in the batch's order.

        Args:
          params: nested parameters; ``encoder/layers`` one stack or a pair of stacks.
          texts: the batch; other keys are ignored.
          key: random key for dropout; None switches dropout off (evaluation).
          pieces: as in :func:`encode_packed`.
        """
        vectors = encode_packed(
            self.encoder,
            self.pooling,
            params["encoder"],
            texts,
            pieces=pieces,
            training=True,
            compute_dtype=jnp.dtype(self.compute_dtype),
            remat=self.remat,
            dropout=self.dropout if key is not None else 0.0,
            dropout_key=key,
        )
        if key is not None and self.vector_dropout:
            keep = 1.0 - self.vector_dropout
            kept = jax.random.bernoulli(jax.random.fold_in(key, 1 << 20), keep, vectors.shape)
            vectors = jnp.where(kept, vectors / keep, 0.0)
        return vectors

    def project(self, params: Mapping[str, Any], pooled: jax.Array, heads: Sequence[str]) -> dict[str, jax.Array]:
        """``pooled [B, D]`` -> {head: ``[B, E]``}, not normalised."""
        return {name: constrain(project(params["heads"][name], pooled), None, WIDE) for name in heads}


def head_shapes(recipe: Recipe, teacher_dim: int | None) -> dict[str, HeadShape]:
    """The heads with ``dim: teachers`` resolved, checked against the teachers' dimension.

    Raises:
      UserError: a nested dimension is not smaller than the head's; a cosine loss between unlike dimensions;
        ``dim: teachers`` or ``target: teachers`` without teachers; a ridge start for more dimensions than the target.
    """
    shapes: dict[str, HeadShape] = {}
    for name, head in recipe.heads.items():
        where = f"heads.{name}"
        if head.dim == "teachers":
            if teacher_dim is None:
                raise UserError(f"{where}.dim: teachers, but the recipe has no teachers; give a number")
            dim = teacher_dim
        else:
            dim = head.dim
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
    """Whether head ``name`` takes the cosine loss: as the recipe says, else where target and dimension allow."""
    head = recipe.heads[name]
    if head.cosine is not None:
        return head.cosine
    return head.target == "teachers" and head.dim in ("teachers", teacher_dim)


def make_student(
    recipe: Recipe, teacher_dim: int | None, source: Path | ModelFolder
) -> tuple[Student, tuple[int, ...] | None]:
    """The static student of ``recipe`` and the checkpoint's layers it keeps (None: all, or random weights).

    Args:
      recipe: the run's recipe.
      teacher_dim: dimension of the concatenated teachers, None without teachers.
      source: folder of the checkpoint (``student.model``; what is published about it will do), or of the tokenizer
        when weights are random.
    """
    settings = recipe.student
    layers: tuple[int, ...] | None = None
    prompts: dict[str, str] = {}
    if settings.config is not None:
        encoder = encoder_from_config(settings.config, "student.config")
        pooling, max_length = encoder.family.pooling(encoder.config), min(512, encoder.max_positions)
    else:
        folder = read_model_folder(source, causal=settings.causal)
        hf_config = folder.hf_config
        if settings.layers is not None:
            hf_config, layers = keep_layers(hf_config, settings.layers, f"student.layers: {folder.path}")
        encoder = encoder_from_config(hf_config, str(folder.path))
        pooling, prompts = folder.pooling, folder.prompts
        max_length = folder.max_length or min(512, encoder.max_positions)
    if encoder.family.architecture is None:
        raise UserError(f"student: {encoder.family.model_type} can be a teacher only: transformers has no class for it")
    if settings.append_eos and encoder.family.model_type in _OWN_TOKENIZER:
        raise UserError(
            f"student.append_eos: transformers makes the tokenizer of a {encoder.family.model_type} model anew, without"
            " what is appended, so nobody could read the exported student; leave it out"
        )
    if settings.pooling is not None:
        pooling = Pooling((settings.pooling,), pooling.include_prompt)
    max_length = settings.max_length or max_length
    if max_length > encoder.max_positions:
        raise UserError(f"student.max_length: {max_length} exceeds the encoder's {encoder.max_positions} positions")
    chosen = {
        kind: prompts.get(kind, "") if given is None else given
        for kind, given in (("query", settings.prompts.query), ("passage", settings.prompts.passage))
    }
    if any(chosen.values()) and not pooling.include_prompt:
        raise UserError(
            f"student: {recipe.student.model} leaves prompts out of its pooling, which a student"
            " cannot yet; set no prompts"
        )
    student = Student(
        encoder=encoder,
        pooling=pooling,
        heads=head_shapes(recipe, teacher_dim),
        prompts=chosen,
        max_length=max_length,
        compute_dtype=settings.compute_dtype,
        remat=settings.remat,
        dropout=settings.dropout,
        vector_dropout=settings.vector_dropout,
    )
    return student, layers


def load_student(recipe: Recipe, teacher_dim: int | None, source: Path) -> tuple[Student, dict[str, Any], Tokenizer]:
    """:func:`make_student`, with its starting parameters (heads random) and its tokenizer."""
    student, layers = make_student(recipe, teacher_dim, source)
    if recipe.student.config is not None:
        params = student.init(recipe.seed)
        tokenizer = Tokenizer.load(source, student.max_length, append_eos=recipe.student.append_eos)
    else:
        folder = read_model_folder(source, causal=recipe.student.causal)
        params = {
            "encoder": load_params(folder.encoder_path, student.encoder, layers=layers),
            "heads": student.init_heads(recipe.seed),
        }
        tokenizer = Tokenizer.load(
            folder.encoder_path,
            student.max_length,
            lower_case=folder.lower_case,
            append_eos=recipe.student.append_eos,
        )
    tokenizer.check_vocabulary(student.encoder.vocab_size)
    return student, params, tokenizer
