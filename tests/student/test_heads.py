"""Heads: full-precision projections, and the closed-form start against the normal equations and an SVD."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasper_jax.student.heads import init_head, nested_head, project, project_rows, ridge_head


def data(n: int = 300, d: int = 12, t: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) + 0.5
    y = np.tanh(x @ rng.normal(size=(d, t))) + 0.1 * rng.normal(size=(n, t))
    return x.astype(np.float32), (y / np.linalg.norm(y, axis=1, keepdims=True)).astype(np.float32)


def test_ridge_is_the_minimum_of_its_objective() -> None:
    x, y = data()
    head = ridge_head(x, y, 20, penalty=1e-2)
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    weight = 1e-2 * np.trace(centred.T @ centred) / x.shape[1]

    def objective(flat: np.ndarray) -> float:
        w, b = flat[:-20].reshape(12, 20), flat[-20:]
        return float(((x @ w + b - y) ** 2).sum() + weight * (w**2).sum())

    at = np.concatenate([head["kernel"].ravel(), head["bias"]]).astype(np.float64)
    rng, best = np.random.default_rng(1), objective(at)
    for _ in range(50):
        assert objective(at + 1e-2 * rng.normal(size=at.shape)) > best


def test_without_bias_there_is_no_bias() -> None:
    head = ridge_head(*data(), 20, bias=False)
    assert set(head) == {"kernel"}


def test_a_short_ridge_head_keeps_the_similarities_best() -> None:
    """With enough inputs to reproduce the target, T Tᵀ is kept as well as its best rank-m approximation does."""
    _, y = data()
    head = ridge_head(y, y, 5, penalty=1e-9, bias=False)
    short = y @ head["kernel"]
    values = np.linalg.eigvalsh(y.T.astype(np.float64) @ y)[::-1]
    assert np.linalg.norm(short @ short.T - y @ y.T) == pytest.approx(np.sqrt((values[5:] ** 2).sum()), rel=1e-3)


def test_impossible_sizes_are_refused() -> None:
    x, y = data()
    with pytest.raises(ValueError, match="21 dimensions needs a target of at least as many, not 20"):
        ridge_head(x, y, 21)
    with pytest.raises(ValueError, match="pooled has 10 rows, target 300"):
        ridge_head(x[:10], y, 5)


def test_projection_is_a_linear_layer_and_stays_in_float32() -> None:
    head = init_head(jax.random.key(0), 12, 7)
    x = data()[0]
    out = project(head, jnp.asarray(x, jnp.bfloat16))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(project(head, x), x @ np.asarray(head["kernel"]) + np.asarray(head["bias"]), atol=1e-5)


def test_projection_is_lowered_with_full_precision() -> None:
    text = jax.jit(project).lower(init_head(jax.random.key(0), 12, 7), jnp.ones((3, 12))).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    assert dots
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in dots)


@pytest.mark.parametrize("bias", [True, False])
def test_many_vectors_on_the_host_are_projected_in_blocks(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    monkeypatch.setattr("jasper_jax.student.heads.BLOCK", 128)
    head, x = init_head(jax.random.key(0), 12, 7, bias), data()[0]
    out = project_rows(head, x)
    assert type(out) is np.ndarray
    np.testing.assert_allclose(out, project(head, x), atol=1e-6)
    np.testing.assert_allclose(project_rows(nested_head(head, 3), x), out[:, :3], atol=1e-6)
    assert project_rows(head, x[:0]).shape == (0, 7)
