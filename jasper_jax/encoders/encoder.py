"""A text encoder: a family's modules, applied as pure functions of a nested dict of arrays.

A family file gives the two ends (``start``: token ids -> states and what all layers share; ``finish``: the final
norm, if any), one layer, its config, and its weight table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jasper_jax.encoders.layout import Inserted, Layout
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.encoders.table import Weight
from jasper_jax.encoders.tower import Params, Tower
from jasper_jax.runtime.errors import UserError


@dataclass(frozen=True, eq=False)
class Family:
    """One architecture, defined by a file of ``encoders/``.

    ``read_config(dict, where)`` -> frozen dataclass with at least ``hidden_size``, ``num_layers``,
    ``max_positions``, ``vocab_size``, ``pad_id``, ``num_heads``, from transformers' config.json.
    ``ends(config, *, dtype, rngs)`` -> module with ``start(token_ids [B, L], layout, drop) -> (x, shared)``
    and ``finish(x) -> x``; ``shared`` is any pytree that every layer reads (masks, biases, rotary tables).
    ``layer(config, *, dtype, rngs)`` -> module called as ``(x, shared, index, drop) -> x``.
    """

    model_type: str
    architecture: str | None  # the transformers class to export to, if any
    read_config: Callable[[Mapping[str, Any], str], Any]
    ends: type[nnx.Module]
    layer: type[nnx.Module]
    weights: Callable[[Any], tuple[Weight, ...]]
    prefixes: tuple[str, ...] = ()  # of names in checkpoints of larger models
    ignored: tuple[str, ...] = ()  # checkpoint names (fnmatch) to skip
    renamed: tuple[tuple[str, str], ...] = ()  # old endings of names -> current ones
    older: tuple[Callable[[Any], tuple[Weight, ...]], ...] = ()  # tables of other checkpoint layouts
    translate: Callable[[Mapping[str, Any], str], dict[str, Any]] | None = (
        None  # an older config.json -> the current form
    )
    pooling: Callable[[Any], Pooling] = lambda config: Pooling()  # where a folder has none
    has_causal: bool = False  # obeys ``is_causal``
    append_eos: bool = False  # its own code appends the end token, its tokenizer.json does not


@dataclass(frozen=True)
class Encoder(Tower):
    """Token ids -> token states (see :class:`~jasper_jax.encoders.tower.Tower`)."""

    @property
    def max_positions(self) -> int:
        """The longest text in tokens; some position tables have more rows."""
        return self.config.max_positions

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

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
        remat: str = "none",
        dropout: float = 0.0,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """``[B, L]`` token ids and mask (1 = token, 0 = padding) -> ``[B, L, D]`` states in ``compute_dtype``.

        ``packed``: the mask is ``Layout.segments``, s at the tokens of a row's s-th text; rows may hold several.
        ``inserted``: vectors that replace words at some columns (see ``encoders.layout``).
        ``training``: a gradient will be taken, so on CPU arrange layers and attention for the backward pass.
        ``remat``: what of each layer the backward pass recomputes, a key of ``tower.REMAT``.
        ``dropout`` acts on the embeddings and on the output of each attention and feed-forward block (not on attention
        weights, which fused kernels never form), drawn from ``dropout_key``. States at padding are finite but
        meaningless. UserError: a text longer than ``max_positions``.
        """
        length = token_ids.shape[-1]
        if length > self.max_positions and not packed:
            raise UserError(
                f"a batch is {length} tokens long; this {self.family.model_type} encoder has positions for "
                f"{self.max_positions}: lower max_length"
            )
        layout = Layout(mask.astype(jnp.int32), packed, inserted)
        return self._through(
            params,
            lambda ends, drop: ends.start(token_ids, layout, drop),
            training=training,
            compute_dtype=compute_dtype,
            remat=remat,
            dropout=dropout,
            dropout_key=dropout_key,
        )
