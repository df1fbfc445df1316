"""Projection heads: linear maps from the student's pooled vector to an output dimension (paper section 2.1, FC1-FC4).

A head's parameters are ``{"kernel": [D, E], "bias": [E]}``. Projections are float32 with full precision on every
backend (``encoders.dense``). A head starts from random weights or from the closed-form ridge solution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jasper_jax.encoders.dense import linear

Arrays = jax.Array | np.ndarray
Params = Mapping[str, Arrays]
BLOCK = 4096
"""Vectors projected at a time: bounds device memory."""


@dataclasses.dataclass(frozen=True)
class HeadShape:
    """A head with its dimension known; ``dims`` are the dimensions it serves, the largest first."""

    dim: int
    dims: tuple[int, ...]
    bias: bool

    def init(self, key: Arrays, hidden: int) -> dict[str, Arrays]:
        """Random parameters, see :func:`init_head`."""
        return init_head(key, hidden, self.dim, self.bias)


def init_head(key: Arrays, hidden: int, dim: int, bias: bool = True) -> dict[str, Arrays]:
    """A random head from D = ``hidden`` to E = ``dim``: kernel ``[D, E]`` normal with variance 1/D, bias zero."""
    kernel = jax.random.normal(key, (hidden, dim), jnp.float32) * hidden**-0.5
    return {"kernel": kernel, "bias": jnp.zeros((dim,), jnp.float32)} if bias else {"kernel": kernel}


def project(params: Params, pooled: Float[Arrays, "B D"]) -> Float[jax.Array, "B E"]:
    """``pooled [B, D] -> [B, E]``, float32 (float64 in, float64 out); not normalised."""
    return linear(pooled, params["kernel"], params.get("bias"))


def project_rows(params: Params, pooled: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n E"]:
    """:func:`project` of vectors in host memory, ``BLOCK`` at a time: ``[n, D] -> [n, E]``."""
    params = {name: jnp.asarray(x) for name, x in params.items()}
    out = np.empty((len(pooled), params["kernel"].shape[1]), np.float32)
    for start in range(0, len(pooled), BLOCK):
        out[start : start + BLOCK] = project(params, pooled[start : start + BLOCK])
    return out


def nested_head(params: Params, dim: int) -> dict[str, Arrays]:
    """The head of a nested dimension, which makes the first ``dim`` components of the vectors of ``params``."""
    return {name: x[..., :dim] for name, x in params.items()}


def ridge_head(
    pooled: Float[np.ndarray, "n D"],
    target: Float[np.ndarray, "m T"],
    dim: int,
    penalty: float = 1e-3,
    bias: bool = True,
) -> dict[str, np.ndarray]:
    """The ridge regression from pooled vectors to the teachers', as a head.

    Solves ``min_W,b Σ ‖x W + b − y‖² + λ ‖W‖²`` in float64, with λ = ``penalty`` times the mean eigenvalue of the
    covariance of x times the number of texts. Where ``dim`` is smaller than the target's, the target is first
    projected onto its ``dim`` leading principal directions (of the uncentred second moment): of all linear maps
    to that size this one keeps the similarities ``y_i·y_j`` best in the least-squares sense (Eckart-Young).

    Args:
      pooled: ``[n, D]`` the student's pooled vectors.
      target: ``[n, T]`` L2-normalised target vectors.
      dim: E, at most T.
      penalty: relative ridge penalty, > 0.
      bias: whether the head has a bias (otherwise x and y are not centred).

    Raises:
      ValueError: ``dim`` exceeds T, or the numbers of rows differ.
    """
    if len(pooled) != len(target):
        raise ValueError(f"pooled has {len(pooled)} rows, target {len(target)}")
    if dim > target.shape[1]:
        raise ValueError(f"a ridge head of {dim} dimensions needs a target of at least as many, not {target.shape[1]}")
    x, y = pooled.astype(np.float64), target.astype(np.float64)
    if dim < y.shape[1]:
        _, directions = np.linalg.eigh(y.T @ y)
        y = y @ directions[:, ::-1][:, :dim]
    x_mean = x.mean(0) if bias else np.zeros(x.shape[1])
    y_mean = y.mean(0) if bias else np.zeros(y.shape[1])
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    ridge = penalty * np.trace(gram) / len(gram)
    kernel = np.linalg.solve(gram + max(ridge, 1e-12) * np.eye(len(gram)), x.T @ y)
    head = {"kernel": kernel.astype(np.float32)}
    if bias:
        head["bias"] = (y_mean - x_mean @ kernel).astype(np.float32)
    return head
