"""Where the time of our step goes: its pieces compiled one by one, its matmuls counted, its operations traced."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jasper_jax.batches.loading import LoadedBatch
from jasper_jax.losses import distillation_losses, reduce_heads
from train_bench.trace import by_kind
from train_bench.world import Ours, World, in_turn

Table = list[tuple[str, ...]]


def pieces(world: World, ours: Ours, batch: LoadedBatch) -> dict[str, Callable[[], Any]]:
    """The parts of the step as programs of their own, and the step; each call runs one to its end."""
    student, partition, optimizer = world.student, world.program.partition, world.program.optimizer
    arrays = jax.tree.map(jnp.asarray, batch.arrays)
    trained, frozen = (jax.tree.map(jnp.array, part) for part in partition.split(world.params))
    params = partition.merge(trained, frozen)
    encoder, heads = params["encoder"], params["heads"]

    def forward(encoder: Any, arrays: Any) -> jax.Array:
        return student.pooled({"encoder": encoder}, arrays)

    def scalar(encoder: Any, arrays: Any, cotangent: jax.Array) -> jax.Array:
        return jnp.vdot(forward(encoder, arrays), cotangent)

    def losses(pooled: jax.Array, heads: Any, teachers: jax.Array) -> jax.Array:
        vectors = student.project({"heads": heads}, pooled, world.stage.heads)
        terms = distillation_losses(vectors, dict.fromkeys(vectors, teachers), world.spec)
        return reduce_heads(terms, world.stage.reduce_heads)

    def update(grads: Any, state: Any, trained: Any) -> Any:
        updates, state = optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state

    run_forward = jax.jit(forward)
    run_backward = jax.jit(jax.value_and_grad(scalar))
    run_losses = jax.jit(jax.value_and_grad(losses, argnums=(0, 1)))
    run_update = jax.jit(update, donate_argnums=(1, 2))
    pooled = run_forward(encoder, arrays)
    cotangent = jnp.full_like(pooled, 1 / pooled.size)
    grads = jax.tree.map(lambda x: jnp.full_like(x, 1e-6), trained)
    held = {"trained": jax.tree.map(jnp.array, trained), "state": optimizer.init(trained)}

    def optimise() -> None:
        held["trained"], held["state"] = jax.block_until_ready(run_update(grads, held["state"], held["trained"]))

    return {
        "encoder forward": lambda: jax.block_until_ready(run_forward(encoder, arrays)),
        "encoder forward and backward": lambda: jax.block_until_ready(run_backward(encoder, arrays, cotangent)),
        "heads and losses, value and gradient": lambda: jax.block_until_ready(
            run_losses(pooled, heads, arrays["teachers"])
        ),
        "clipping and AdamW": optimise,
        "the whole step": lambda: ours.step(batch),
    }


def matmul_flops(world: World, batch: LoadedBatch) -> dict[str, float]:
    """Operations of the step's matmuls: forward once, backward twice (gradients of both operands)."""
    config = world.student.encoder.config
    R, L = batch.arrays["ids"].shape
    N, D, F = config.num_layers, config.hidden_size, config.intermediate_size
    B, texts_per_row = world.stage.batch_size, batch.arrays["lengths"].shape[1]
    dims = [m for head in world.spec for m in (world.spec[head].nested or (world.student.heads[head].dim,))]
    forward = {
        "query, key, value, output": N * 4 * 2 * R * L * D * D,
        "feed-forward": N * 2 * 2 * R * L * D * F,
        "attention": N * 2 * 2 * R * L * L * D,
        "pooling, heads, similarities": 2 * R * texts_per_row * L * world.student.width
        + sum(2 * B * world.student.width * world.student.heads[head].dim for head in world.spec)
        + sum(2 * B * B * m for m in dims),
    }
    return {name: 3.0 * flops for name, flops in forward.items()}


def machine_rates(world: World, batch: LoadedBatch) -> dict[str, tuple[float, Callable[[], Any]]]:
    """Plain products of the shapes that the layers have: name -> (operations, the product)."""
    config = world.student.encoder.config
    T, D, F = batch.arrays["ids"].size, config.hidden_size, config.intermediate_size
    rng = np.random.default_rng(world.run.recipe.seed)
    dot = jax.jit(jnp.dot)
    found: dict[str, tuple[float, Callable[[], Any]]] = {}
    for n, k, m in ((T, D, D), (T, D, F), (T, F, D), (D, T, F)):
        a, b = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((n, k), (k, m)))
        found[f"[{n}, {k}] x [{k}, {m}]"] = (2.0 * n * k * m, lambda a=a, b=b: jax.block_until_ready(dot(a, b)))
    return found


def profile(world: World, ours: Ours, batch: LoadedBatch, rounds: int, scratch: Path) -> dict[str, Any]:
    """Everything the report says about our step, for one batch."""
    rates = machine_rates(world, batch)
    work = {**pieces(world, ours, batch), **{name: run for name, (_, run) in rates.items()}}
    for run in work.values():
        run()  # compiles
    times = {name: statistics.median(found) for name, found in in_turn(work, rounds).items()}
    flops = matmul_flops(world, batch)
    speeds = {name: count / times[name] for name, (count, _) in rates.items()}
    floor = sum(flops.values()) / max(speeds.values())
    step = times["the whole step"]
    shares, core_seconds = by_kind(program_text(world, ours, batch), lambda: ours.step(batch), scratch / "trace")
    named: Table = [
        (name, f"{times[name] * 1e3:,.1f} ms", f"{times[name] / step:.0%}") for name in times if name not in rates
    ]
    counted: Table = [
        (name, f"{count / 1e9:,.1f}", f"{count / max(speeds.values()) * 1e3:,.1f} ms") for name, count in flops.items()
    ]
    return {
        "pieces": named,
        "rates": [(name, f"{speed / 1e9:,.0f}") for name, speed in speeds.items()],
        "flops": [*counted, ("together", f"{sum(flops.values()) / 1e9:,.1f}", f"{floor * 1e3:,.1f} ms")],
        "operations": [(kind, f"{share:.1%}") for kind, share in shares.items()],
        "line": (
            f"The step takes {step * 1e3:,.0f} ms; its matmuls at the fastest rate measured {floor * 1e3:,.0f} ms,"
            f" {floor / step:.0%} of it. The traced step kept the cores busy for {core_seconds:.2f} core-seconds."
        ),
        "shape": f"{batch.arrays['ids'].shape[0]} rows of {batch.arrays['ids'].shape[1]} tokens",
    }


def program_text(world: World, ours: Ours, batch: LoadedBatch) -> str:
    """The compiled step, as XLA optimised it: names in a trace are names in it."""
    number = jnp.asarray(ours.steps, jnp.int32)
    lowered = world.program.step.lower(ours.trained, ours.state, ours.frozen, {}, batch.arrays, number)
    return lowered.compile().as_text() or ""
