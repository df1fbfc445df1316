"""An encoder: a family's modules split once into definitions, and pure functions on a nested dict of arrays.

A family file gives the two ends (``start``: token ids -> states and what all layers share; ``finish``: the final
norm, if any), one layer, its config, and its weight table. Everything else is here, once for all families.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jasper_jax.encoders import attention
from jasper_jax.encoders.layout import Inserted, Layout
from jasper_jax.encoders.parts import make_dropout
from jasper_jax.encoders.stack import Params, scan_layers
from jasper_jax.encoders.table import Weight
from jasper_jax.errors import UserError
from jasper_jax.pooling import Pooling
from jasper_jax.trees import flatten

UNROLLED = 12
"""Training on CPU writes out the layers of encoders up to this depth; the compiler's time grows with it."""


@dataclass(frozen=True, eq=False)
class Family:
    """One architecture: what a file of ``encoders/`` has to give.

    ``read_config(dict, where)`` -> frozen dataclass with at least ``hidden_size``, ``num_layers``,
    ``max_positions``, ``vocab_size``, ``pad_id``, ``num_heads``, from a config.json in transformers' words.
    ``ends(config, *, dtype, rngs)`` -> module with ``start(token_ids [B, L], layout, drop) -> (x, shared)``
    and ``finish(x) -> x``; ``shared`` is any pytree that every layer reads (masks, biases, rotary tables).
    ``layer(config, *, dtype, rngs)`` -> module called as ``(x, shared, index, drop) -> x``.
    """

    model_type: str
    architecture: str | None  # the transformers class whose checkpoint the export writes; None: there is none
    read_config: Callable[[Mapping[str, Any], str], Any]
    ends: type[nnx.Module]
    layer: type[nnx.Module]
    weights: Callable[[Any], tuple[Weight, ...]]
    prefixes: tuple[str, ...] = ()  # what stands before the names in checkpoints of larger models
    ignored: tuple[str, ...] = ()  # checkpoint names (fnmatch) that an encoder has no use for
    renamed: tuple[tuple[str, str], ...] = ()  # old endings of names -> today's
    older: tuple[Callable[[Any], tuple[Weight, ...]], ...] = ()  # tables of other layouts that checkpoints are in
    translate: Callable[[Mapping[str, Any], str], dict[str, Any]] | None = None  # an older config.json -> today's
    pooling: Callable[[Any], Pooling] = lambda config: Pooling()  # of a folder that does not say
    has_causal: bool = False  # obeys ``is_causal``
    append_eos: bool = False  # its tokenizer.json lacks the end token that its own code appends


@functools.lru_cache(maxsize=64)
def _definitions(family: Family, config: Any, dtype: Any) -> tuple[Any, Any]:
    """Graph definitions of the ends and of one layer; no parameter is made."""

    def define(module: Any) -> Any:
        return nnx.split(nnx.eval_shape(lambda: module(config, dtype=dtype, rngs=nnx.Rngs(0))))[0]

    return define(family.ends), define(family.layer)


@dataclass(frozen=True)
class Encoder:
    """Token ids -> token states. Hashable, so it can be a static argument of a jitted function.

    ``attention``: ``auto`` (by the default backend), or one of ``attention.IMPLEMENTATIONS``: name the platform,
    ``gpu`` or ``tpu``, when the program is compiled for a machine other than this one.
    """

    family: Family
    config: Any
    hf_json: str = field(repr=False)
    attention: str = "auto"

    @property
    def hf_config(self) -> dict[str, Any]:
        """A fresh copy of the ``config.json`` this encoder stands for, for export."""
        return json.loads(self.hf_json)

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def num_layers(self) -> int:
        return self.config.num_layers

    @property
    def max_positions(self) -> int:
        """The longest text in tokens (not the rows of the position table, which some families offset)."""
        return self.config.max_positions

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def init(self, key: jax.Array) -> Params:
        """Random float32 parameters, drawn as the family is usually initialised; layers in one stack."""

        def make(module: Any, key: jax.Array) -> Params:
            return nnx.to_pure_dict(
                nnx.state(module(self.config, dtype=jnp.float32, rngs=nnx.Rngs(params=key)), nnx.Param)
            )

        ends_key, layers_key = jax.random.split(key)
        ends = make(self.family.ends, ends_key)
        keys = jax.random.split(layers_key, self.num_layers)
        return {**ends, "layers": jax.vmap(lambda key: make(self.family.layer, key))(keys)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Leaf path -> shape, layers in one stack; nothing is computed."""
        tree = jax.eval_shape(self.init, jax.random.key(0))
        return {path: leaf.shape for path, leaf in flatten(tree).items()}

    def apply(
        self,
        params: Params,
        token_ids: jax.Array,
        mask: jax.Array,
        *,
        packed: bool = False,
        inserted: Inserted | None = None,
        training: bool = False,
        compute_dtype: Any = jnp.float32,
        remat: bool = False,
        dropout: float = 0.0,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """``[B, L]`` token ids and mask (1 = token, 0 = padding) -> ``[B, L, D]`` states in ``compute_dtype``.

        ``packed``: the mask is ``Layout.segments``, s at the tokens of a row's s-th text; rows may hold several.
        ``inserted``: vectors in place of the words at some columns (see ``encoders.layout``).
        ``training``: a gradient will be taken, so on CPU arrange layers and attention for the backward pass.
        ``remat`` recomputes each layer in the backward pass. ``dropout`` acts on the embeddings and on the output of
        each attention and feed-forward block (not on attention weights, which fused kernels never form), drawn from
        ``dropout_key``. States at padding are finite but mean nothing. Raises UserError for a text longer than
        ``max_positions``.
        """
        length = token_ids.shape[-1]
        if length > self.max_positions and not packed:
            raise UserError(
                f"a batch is {length} tokens long; this {self.family.model_type} encoder has positions for "
                f"{self.max_positions}: lower max_length"
            )
        ends_def, layer_def = _definitions(self.family, self.config, jnp.dtype(compute_dtype))
        ends = nnx.merge(ends_def, {name: part for name, part in params.items() if name != "layers"})

        def drop_at(index: Any) -> Any:
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            return make_dropout(dropout, key)

        backward_on_cpu = training and not remat and attention.platform_of(self.attention) == "cpu"
        with attention.using(self.attention, grouped=not backward_on_cpu):
            x, shared = ends.start(token_ids, Layout(mask.astype(jnp.int32), packed, inserted), drop_at(0))

            def layer(layer_params: Params, x: jax.Array, index: jax.Array) -> jax.Array:
                return nnx.merge(layer_def, layer_params)(x, shared, index, drop_at(index + 1))

            unroll = backward_on_cpu and self.num_layers <= UNROLLED
            x = scan_layers(layer, params["layers"], x, remat=remat, unroll=unroll)
            return ends.finish(x)
