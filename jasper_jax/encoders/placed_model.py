"""A model on the devices of its process: prepared texts -> vectors, batch by batch.

The host prepares and dispatches batches ahead of the devices, and fetches the oldest.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jasper_jax.encoders.batch_shapes import RowBatch, RowShapes, row_shapes, texts_per_row
from jasper_jax.encoders.dense import refuse_chain
from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.local_mesh import local_mesh, put_leaf, put_params, put_rows, replicate
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.encoders.prepared_texts import PreparedTexts
from jasper_jax.encoders.row_programs import Shape, compile_shapes, lower_rows, output_vectors, pooled_rows
from jasper_jax.encoders.weights import load_params
from jasper_jax.parameters.sharding import row_shards
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import bar

DTYPES = ("float32", "bfloat16", "float16")
_IN_FLIGHT = 2  # batches dispatched before the oldest is fetched: the host prepares batches while the device computes


def refuse_dtype(dtype: str) -> None:
    """UserError: not one of ``DTYPES``."""
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")


def load_on_devices(folder: Path, encoder: Encoder, dtype: str) -> tuple[dict[str, Any], Mesh]:
    """The weights of ``folder`` in ``dtype``, each leaf on the devices of this process as soon as it is read."""
    mesh = local_mesh(sum(map(math.prod, encoder.shapes().values())) * jnp.dtype(dtype).itemsize)

    def place(path: str, leaf: np.ndarray) -> jax.Array:
        return put_leaf(f"encoder/{path}", leaf, mesh)

    return load_params(folder, encoder, dtype=dtype, place=place), mesh


class PlacedModel:
    """An encoder, its pooling, and one chain of Dense steps per output dimension, on ``mesh``.

    ``outputs``: dimension -> [(kernel [in, out], bias [out] or None, activation), ...]; empty: the pooled vector.
    ``mesh`` None: all devices of this process. ``dtype`` is that of the encoder's computation.
    """

    def __init__(
        self,
        encoder: Encoder,
        params: Mapping[str, Any],
        pooling: Pooling,
        outputs: Mapping[int, Sequence[tuple[Any, Any, str]]],
        *,
        dtype: str,
        mesh: Mesh | None,
    ):
        self.encoder = encoder
        self.pooling = pooling
        self.dtype = dtype
        self.mesh = mesh or local_mesh(sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
        self.params = put_params({"encoder": dict(params)}, self.mesh)["encoder"]
        self.flops_per_token = 2 * sum(leaf.size for leaf in jax.tree.leaves(self.params["layers"]))
        self.pooled_dim = pooling.size(encoder.hidden_size)
        self.outputs = {
            dim: (
                tuple(replicate((kernel, bias), self.mesh) for kernel, bias, _ in chain),
                tuple(activation for _, _, activation in chain),
            )
            for dim, chain in (outputs or {self.pooled_dim: ()}).items()
        }
        for dim, (weights, activations) in self.outputs.items():
            refuse_chain(f"output {dim}", weights, activations, self.pooled_dim, dim)
        self._compiled: set[tuple[int, int, int | None]] = set()

    def row_shapes(self, max_length: int, batch_tokens: int | None = None) -> RowShapes:
        """The shapes of batches for texts of at most ``max_length`` tokens; ``batch_tokens``: of all devices, padding
        included, by default what suits the platform."""
        return row_shapes(
            max_length,
            jax.default_backend(),
            devices=row_shards(self.mesh),
            flops_per_token=self.flops_per_token,
            batch_tokens=batch_tokens,
        )

    def vectors(
        self,
        prepared: PreparedTexts,
        dim: int | None,
        *,
        normalized: bool,
        inserted: Callable[[RowBatch, np.ndarray], Any] | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """float32 ``[n, dim]`` in the order of the texts; ``dim`` None: pooled vectors, not normalised.

        ``inserted``: a batch and its ids ``[R, L]`` -> the image tokens in it, as ``encoders.packed`` takes them.
        """
        count = len(prepared.ids)
        out = np.empty((count, dim or self.pooled_dim), np.float32)
        output = None if dim is None else (*self.outputs[dim], normalized)
        if inserted is None:
            self._compile({(batch.rows, batch.length) for batch in prepared.batches}, dim, output)
        waiting: deque[tuple[RowBatch, jax.Array]] = deque()
        with bar("embedding", count, "texts", enabled=show_progress and count > 0) as progress:

            def fetch() -> None:
                batch, vectors = waiting.popleft()
                slots = batch.packing.row * texts_per_row(batch.length) + batch.packing.place
                out[batch.indices] = np.asarray(vectors)[slots]
                progress.advance(len(batch.indices))

            for batch in prepared.batches:
                rows = prepared.rows(batch)
                with jax.set_mesh(self.mesh):
                    vectors = pooled_rows(
                        self.encoder,
                        self.pooling,
                        self.params,
                        put_rows(rows, self.mesh),
                        inserted=None if inserted is None else inserted(batch, rows["ids"]),
                        compute_dtype=self.dtype,
                    )
                    waiting.append((batch, vectors if output is None else output_vectors(*output, vectors)))
                if len(waiting) > _IN_FLIGHT:
                    fetch()
            while waiting:
                fetch()
        return out

    def _compile(self, shapes: set[Shape], dim: int | None, output: Any) -> None:
        """Compile the shapes that are new, several of them together."""
        new = [shape for shape in sorted(shapes) if (*shape, dim) not in self._compiled]
        if len(new) > 1:
            lower = partial(
                lower_rows, self.encoder, self.pooling, self.params, mesh=self.mesh, compute_dtype=self.dtype
            )
            compile_shapes(new, lower, output, self.mesh)
        self._compiled.update((*shape, dim) for shape in new)
