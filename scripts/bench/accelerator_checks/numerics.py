"""Whether the arithmetic on the accelerator is what the CPU or float64 says."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelerator_checks.check import Outcome, Skip
from accelerator_checks.recipes import described, random_batch
from jasper_jax.encoders.attention import attend, form_of, using
from jasper_jax.encoders.layout import Layout, Seen, segments_of
from jasper_jax.losses import pair_similarities, teacher_order
from jasper_jax.losses.geometry import cosines, gram
from jasper_jax.losses.relative import relative_from_similarities
from jasper_jax.parameters.trees import flatten
from jasper_jax.planning.device_peak import peak_flops
from jasper_jax.recipe.stages import resolve_stages
from jasper_jax.student.heads import project
from jasper_jax.training.stage_kind import make_kind

FUSED = {"gpu": "cudnn", "tpu": "splash", "cpu": "heads_first"}


def device(size: str) -> Outcome:
    """What JAX runs on, with the published peak that MFU refers to."""
    first = jax.devices()[0]
    n = 4096 if size == "full" else 256
    x = jnp.ones((n, n), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(x))
    began = time.perf_counter()
    for _ in range(10):
        y = product(x)
    jax.block_until_ready(y)
    rate = 20 * n**3 / (time.perf_counter() - began)
    stats = first.memory_stats() or {}
    peak = peak_flops(first)
    values = {
        "kind": first.device_kind,
        "platform": jax.default_backend(),
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "peak_teraflops": None if peak is None else peak / 1e12,
        "matmul_teraflops": round(rate / 1e12, 2),
        "bytes_limit": stats.get("bytes_limit"),
    }
    return Outcome(bool(float(y[0, 0]) == n), values)


def fused_attention(size: str) -> Outcome:
    """The chosen form against XLA's in float32: one text a row with padding, packed texts, grouped queries."""
    platform = jax.default_backend()
    L, rows = (512, 8) if size == "full" else (128, 2)
    heads = ((16, 16, 64), (12, 2, 128)) if size == "full" else ((2, 2, 64), (4, 2, 128))
    cases = dict(zip(("one key-value head per query head", "grouped queries"), heads))
    values: dict[str, Any] = {}
    good = True
    for heads_name, (H, K, d) in cases.items():
        for layout_name, segments, packed in (
            ("packed", segments_of(jnp.asarray([[L // 2, L // 4, L // 8, 0]] * rows), L), True),
            ("padded tail", jnp.asarray(np.arange(L)[None] < np.linspace(1, L, rows)[:, None], jnp.int32), False),
        ):
            keys = jax.random.split(jax.random.key(0), 4)
            shapes = ((rows, L, H, d), (rows, L, K, d), (rows, L, K, d), (rows, L, H, d))
            q, k, v, direction = (jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes))
            seen = Seen.of(Layout(segments, packed))
            keep = (segments > 0)[:, :, None, None]
            chosen = form_of("auto", q, k)
            ours = _attention("auto", seen, keep, direction, q, k, v)
            with jax.default_matmul_precision("highest"):
                wide = (x.astype(jnp.float32) for x in (q, k, v))
                theirs = _attention("dot_product", seen, keep, direction, *wide)
            finite = all(bool(np.isfinite(x).all()) for x in ours)
            error = float(np.abs(ours[0] - theirs[0]).max() / np.abs(theirs[0]).max())
            cosine = min(_cosine(a, b) for a, b in zip(ours[1:], theirs[1:]))
            good &= chosen == FUSED.get(platform) and finite and error < 2e-2 and cosine > 0.999
            values[f"{heads_name}, {layout_name}"] = {
                "form": chosen,
                "error": error,
                "gradient_cosine": cosine,
                "finite": finite,
            }
    return Outcome(good, {"cases": values})


def _attention(implementation: str, seen: Seen, keep: Any, direction: Any, *operands: jax.Array) -> list[np.ndarray]:
    """Output at tokens, and the gradients of a linear function of it, float32 on the host."""

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        with using(implementation):
            out = attend(q, k, v, seen=seen).astype(jnp.float32)
        out = jnp.where(keep, out, 0.0)
        return (out * direction.astype(jnp.float32)).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*operands)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


def _cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float(not a.any() and not b.any())


def precision(size: str) -> Outcome:
    """Projections and similarities against numpy in float64, relative to the largest value."""
    B, D, E = (256, 1536, 12288) if size == "full" else (32, 64, 48)
    rng = np.random.default_rng(0)
    pooled = rng.standard_normal((B, D)).astype(np.float32)
    kernel = (rng.standard_normal((D, E)) * D**-0.5).astype(np.float32)
    bias = rng.standard_normal(E).astype(np.float32)
    head = np.asarray(jax.jit(project)({"kernel": kernel, "bias": bias}, pooled))
    wide = pooled.astype(np.float64) @ kernel.astype(np.float64) + bias
    similar = np.asarray(jax.jit(lambda x: cosines(gram(x)))(pooled))
    unit = pooled.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    errors = {
        "head": float(np.abs(head - wide).max() / np.abs(wide).max()),
        "similarities": float(np.abs(similar - unit @ unit.T).max()),
    }
    return Outcome(max(errors.values()) < 1e-5, {"error": errors})


def relative_forms(size: str) -> Outcome:
    """Tiled and partitioned: the same loss and gradient, and from which number of pairs the second is faster."""
    batches = (64, 128, 256, 512) if size == "full" else (16, 32)
    rows, good, crossover = {}, True, None
    for B in batches:
        rng = np.random.default_rng(B)
        teacher = rng.standard_normal((B, 64)).astype(np.float32)
        students = teacher + 0.5 * rng.standard_normal((4, B, 64)).astype(np.float32)
        similarities = jax.jit(jax.vmap(pair_similarities))(students)
        order = jax.jit(teacher_order)(teacher)
        found = {}
        for method in ("tiled", "partitioned"):

            def loss(s: jax.Array, order: Any, method: str = method) -> jax.Array:
                return relative_from_similarities(s, order, 0.015, method).sum()

            step = jax.jit(jax.value_and_grad(loss))
            found[method] = (*map(np.asarray, step(similarities, order)), _milliseconds(step, similarities, order))
        (a, da, tiled_ms), (b, db, partitioned_ms) = found["tiled"], found["partitioned"]
        loss_error = float(abs(a - b) / abs(b))
        gradient_error = float(np.abs(da - db).max() / np.abs(db).max())
        good &= bool(np.isfinite(a)) and loss_error < 1e-5 and gradient_error < 1e-4
        if crossover is None and partitioned_ms < tiled_ms:
            crossover = B * (B - 1) // 2
        rows[f"B={B}"] = {
            "loss_error": loss_error,
            "gradient_error": gradient_error,
            "tiled_ms": tiled_ms,
            "partitioned_ms": partitioned_ms,
        }
    return Outcome(good, {"batches": rows, "partitioned_faster_from_pairs": crossover})


def _milliseconds(step: Callable[..., Any], *arguments: Any, rounds: int = 5) -> float:
    jax.block_until_ready(step(*arguments))
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(step(*arguments))
        times.append(time.perf_counter() - began)
    return round(1e3 * float(np.median(times)), 3)


def gradients(size: str) -> Outcome:
    """The gradients of one step of a small student against the CPU's, all in float32 with full precision; those in
    bfloat16 are a figure without a mark. (Where there is only a CPU, two forms of attention are compared.)"""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise Skip("JAX_PLATFORMS names no cpu; unset it") from None
    recipe, student, teaching = described("small")
    here, form = jax.local_devices()[0], "dot_product" if jax.default_backend() == "cpu" else "auto"
    forms = {"cpu": (cpu, "heads_first", "float32"), "float32": (here, form, "float32")}
    if size == "full":
        forms["bfloat16"] = (here, form, "bfloat16")
    with jax.default_device(cpu):
        params = jax.device_get(student.init(0))
    flat, values = {}, {}
    for name, (where, attention, dtype) in forms.items():
        encoder = dataclasses.replace(student.encoder, attention=attention)
        one = dataclasses.replace(student, encoder=encoder, compute_dtype=dtype)
        kind = make_kind(recipe, resolve_stages(recipe)[-1], one)
        with jax.default_device(where), jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            value, gradient = _gradients(kind.loss(teaching), kind.active(params), random_batch(kind, teaching), where)
        values[f"loss_{name}"] = value
        flat[name] = np.concatenate([np.ravel(x) for _, x in sorted(flatten(gradient).items())])
    theirs, ours = flat["cpu"], flat["float32"]
    cosine = {name: _cosine(x, theirs) for name, x in flat.items() if name != "cpu"}
    values |= {"gradient_cosine": cosine, "norm_ratio": float(np.linalg.norm(ours) / np.linalg.norm(theirs))}
    finite = all(bool(np.isfinite(x).all()) for x in flat.values())
    return Outcome(finite and cosine["float32"] > 0.999, values)


def _gradients(loss: Any, params: Any, batch: Any, where: Any) -> tuple[float, Any]:
    """The loss of a batch and its gradients on the host, computed on one device."""

    def objective(params: Any, batch: Any) -> jax.Array:
        return loss(params, {}, batch, None)[0]

    value, gradient = jax.jit(jax.value_and_grad(objective))(*jax.device_put((params, batch), where))
    return float(value), jax.device_get(gradient)
