"""What text and vision encoders share: modules split once into definitions, parameters as a nested dict.

Layers are stored stacked, every leaf ``[N, ...]``, and run with one ``lax.scan`` per stack. ``params["layers"]`` is one
stack, or a tuple of stacks run in turn: a stage that trains the last k layers holds a frozen and a trainable one. The
canonical form (names, checkpoints, export) is one stack.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jasper_jax.encoders import attention
from jasper_jax.encoders.parts import Dropout, make_dropout
from jasper_jax.parameters.sharding import ROWS, constrain
from jasper_jax.parameters.trees import flatten

Params = dict[str, Any]

UNROLLED = 12
"""Training on CPU unrolls encoders of up to this many layers; compile time grows with the depth."""

REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What of a layer is kept for the backward pass, from most memory to least; the rest is recomputed."""


@functools.lru_cache(maxsize=64)
def _definitions(family: Any, config: Any, dtype: Any) -> tuple[Any, Any]:
    """Graph definitions of the ends and of one layer; no parameter is made."""

    def define(module: Any) -> Any:
        return nnx.split(nnx.eval_shape(lambda: module(config, dtype=dtype, rngs=nnx.Rngs(0))))[0]

    return define(family.ends), define(family.layer)


@dataclass(frozen=True)
class Tower:
    """Layers between two ends. Hashable, so it can be a static argument of a jitted function.

    ``attention``: one of ``attention.IMPLEMENTATIONS``; ``gpu`` or ``tpu`` to compile for another machine's platform.
    """

    family: Any
    config: Any
    hf_json: str = field(repr=False)
    attention: str = "auto"

    @property
    def hf_config(self) -> dict[str, Any]:
        """A fresh copy of this encoder's ``config.json``."""
        return json.loads(self.hf_json)

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def num_layers(self) -> int:
        return self.config.num_layers

    def init(self, key: jax.Array) -> Params:
        """Random float32 parameters with the family's usual initialisation; layers in one stack."""

        def make(module: Any, key: jax.Array) -> Params:
            return nnx.to_pure_dict(
                nnx.state(module(self.config, dtype=jnp.float32, rngs=nnx.Rngs(params=key)), nnx.Param)
            )

        ends_key, layers_key = jax.random.split(key)
        ends = make(self.family.ends, ends_key)
        keys = jax.random.split(layers_key, self.num_layers)
        return {**ends, "layers": jax.vmap(lambda key: make(self.family.layer, key))(keys)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Leaf path -> shape, layers in one stack."""
        tree = jax.eval_shape(self.init, jax.random.key(0))
        return {path: leaf.shape for path, leaf in flatten(tree).items()}

    @property
    def weights_per_token(self) -> int:
        """Numbers that a token is multiplied with: all parameters but the tables of embeddings."""
        return sum(math.prod(shape) for path, shape in self.shapes().items() if not path.endswith("/embedding"))

    def _through(
        self,
        params: Params,
        start: Callable[[Any, Dropout], tuple[jax.Array, Any]],
        *,
        training: bool,
        compute_dtype: Any,
        remat: str,
        dropout: float = 0.0,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """``start(ends, drop)`` -> states and what all layers share; the layers; ``ends.finish``."""
        ends_def, layer_def = _definitions(self.family, self.config, jnp.dtype(compute_dtype))
        ends = nnx.merge(ends_def, {name: part for name, part in params.items() if name != "layers"})

        def drop_at(index: Any) -> Dropout:
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            return make_dropout(dropout, key)

        backward_on_cpu = training and remat == "none" and attention.platform_of(self.attention) == "cpu"
        with attention.using(self.attention, grouped=not backward_on_cpu):
            x, shared = start(ends, drop_at(0))
            x = constrain(x, ROWS)  # else the partitioner may shard the width, and sum states in every layer

            def layer(layer_params: Params, x: jax.Array, index: jax.Array) -> jax.Array:
                return nnx.merge(layer_def, layer_params)(x, shared, index, drop_at(index + 1))

            unroll = backward_on_cpu and self.num_layers <= UNROLLED
            x = scan_layers(layer, params["layers"], x, remat=remat, unroll=unroll)
            return ends.finish(x)


def stacks_of(layers: Any) -> tuple[Params, ...]:
    """The stacks of ``params["layers"]``."""
    return tuple(layers) if isinstance(layers, (tuple, list)) else (layers,)


def depth(stack: Params) -> int:
    """Number of layers in a stack: the leading axis of its leaves."""
    return jax.tree.leaves(stack)[0].shape[0]


def scan_layers(
    layer: Callable[[Params, jax.Array, jax.Array], jax.Array],
    layers: Any,
    x: jax.Array,
    *,
    remat: str = "none",
    unroll: bool = False,
) -> jax.Array:
    """``x`` through every layer: ``layer(params of one layer, x, index of the layer)`` -> ``x``.

    The index counts from 0 over all stacks. ``remat``: what the backward pass recomputes, a key of ``REMAT``; it
    always keeps each layer's input. ``unroll`` unrolls the scan, whose backward pass copies residuals into
    stacked arrays and out again, a fifth of a training step on CPU.
    """

    def step(x: jax.Array, item: tuple[Params, jax.Array]) -> tuple[jax.Array, None]:
        return layer(item[0], x, item[1]), None

    if remat != "none":
        step = jax.checkpoint(step, prevent_cse=False, policy=REMAT[remat])  # a scan prevents merging already
    first = 0
    for stack in stacks_of(layers):
        n = depth(stack)
        x, _ = jax.lax.scan(step, x, (stack, jnp.arange(first, first + n, dtype=jnp.int32)), unroll=unroll)
        first += n
    return x
