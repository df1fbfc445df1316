"""Hard negatives: of each pair the passages nearest to its query, without those as near as its answer.

The search is exact: blocks of a matrix product on the devices of this process, the nearest so far carried along. A
passage is left out if its similarity exceeds a threshold below that of the pair's answer, by the teachers' vectors: it
probably answers the query too (positive-aware mining, arXiv 2407.15831, section 3.2). So are all known answers.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jasper_jax.data.pair_table import PairTable
from jasper_jax.data.shards import SPLITS
from jasper_jax.data.texts import TextStore
from jasper_jax.recipe.config_training import Mining
from jasper_jax.runtime.progress import bar, say
from jasper_jax.teachers.negatives import MinedPairs, Negatives, NegativeStore
from jasper_jax.teachers.vectors import TeacherView

BLOCK = 4096
"""Passages of a block; with as many queries 64 MiB of similarities."""
QUANTILES = (5, 25, 50, 75, 95)


def mine(
    store: NegativeStore,
    texts: TextStore,
    view: TeacherView,
    settings: Mining,
    *,
    process_index: int = 0,
    process_count: int = 1,
    progress: bool = True,
) -> Negatives | None:
    """Fill ``store``: process i makes the shards i, i + N, i + 2N, ... that are missing. The negatives are the same for
    any number of processes.

    Returns:
      The complete negatives, to the last process that finishes; None while shards of others are missing.

    Raises:
      UserError: the store holds negatives of other pairs, teachers or settings.
    """
    store.pin()
    missing, own = set(store.missing()), store.shards[process_index::process_count]
    candidates: dict[str, np.ndarray] = {}
    done = sum(shard.stop - shard.start for shard in own if shard not in missing)
    with bar("negatives", sum(s.stop - s.start for s in own), "pairs", start=done, enabled=progress) as shown:
        for shard in own:
            if shard not in missing:
                continue
            if shard.split not in candidates:
                candidates[shard.split] = candidate_rows(texts, shard.split, settings)
            table, chosen = texts.pairs[shard.split], slice(shard.start, shard.stop)
            store.write(shard, nearest(view, shard.split, table, chosen, candidates[shard.split], settings))
            shown.advance(shard.stop - shard.start)
    return None if store.missing() else store.open()


def candidate_rows(texts: TextStore, split: str, settings: Mining) -> np.ndarray:
    """The rows of ``split`` among which negatives are searched, ascending."""
    if settings.candidates == "pairs":
        return texts.pairs[split].passages
    rows = []
    for start in range(0, texts.size(split), BLOCK):
        block = range(start, min(start + BLOCK, texts.size(split)))
        rows += [row for row, text in zip(block, texts.read(split, block)) if text.kind == "passage"]
    return np.array(rows, np.int64)


def nearest(
    view: TeacherView, split: str, table: PairTable, chosen: slice, candidates: np.ndarray, settings: Mining
) -> MinedPairs:
    """The negatives of the pairs ``chosen`` of ``table`` among the rows ``candidates``."""
    query_rows, answer_rows = table.query[chosen], table.passage[chosen]
    mesh = jax.make_mesh((jax.local_device_count(),), ("rows",), (AxisType.Auto,), devices=jax.local_devices())
    by_row, everywhere = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())
    size, filling = len(query_rows), -len(query_rows) % mesh.size

    def put(values: np.ndarray) -> jax.Array:
        return jax.device_put(np.concatenate([values, np.repeat(values[-1:], filling, axis=0)]), by_row)

    queries = put(view.read(split, query_rows))
    answer = _dots(queries, put(view.read(split, answer_rows)))
    limit = answer - jnp.maximum(settings.absolute_margin, settings.relative_margin * jnp.abs(answer))
    found = (
        put(np.full((size, settings.depth), -np.inf, np.float32)),
        put(np.full((size, settings.depth), -1, np.int32)),
        put(np.zeros(size, np.int32)),
    )
    for start in range(0, len(candidates), BLOCK):
        rows = candidates[start : start + BLOCK]
        width = min(BLOCK, len(candidates))
        block, excluded = np.zeros((width, queries.shape[1]), np.float32), np.ones((size, width), bool)
        block[: len(rows)], excluded[:, : len(rows)] = view.read(split, rows), table.answers(query_rows, rows)
        found = _nearer(queries, limit, jax.device_put(block, everywhere), put(excluded), np.int32(start), found)
    scores, places, left_out = (np.asarray(x)[:size] for x in found)
    real = np.isfinite(scores)
    mined = np.where(real, candidates[places], -1).astype(np.int32)
    return MinedPairs(mined, np.where(real, scores, 0), np.asarray(answer)[:size], left_out)


@jax.jit
def _dots(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum("qt,qt->q", x, y, precision=lax.Precision.HIGHEST)


@partial(jax.jit, donate_argnums=(5,))
def _nearer(
    queries: jax.Array,
    limit: jax.Array,
    block: jax.Array,
    excluded: jax.Array,
    start: jax.Array,
    found: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``found``, the nearest so far ``[Q, K]`` (similarities, places among the candidates, and how many were too near
    ``[Q]``), after the passages ``block [P, T]`` from place ``start`` on, without those ``excluded [Q, P]``. Of equally
    near ones the first stay."""
    scores, places, left_out = found
    similarities = jnp.einsum("qt,pt->qp", queries, block, precision=lax.Precision.HIGHEST)
    near = (similarities > limit[:, None]) & ~excluded
    allowed = jnp.where(near | excluded, -jnp.inf, similarities)
    best, which = lax.top_k(jnp.concatenate([scores, allowed], axis=1), scores.shape[1])
    new = jnp.broadcast_to(start + jnp.arange(len(block), dtype=jnp.int32), allowed.shape)
    return (
        best,
        jnp.take_along_axis(jnp.concatenate([places, new], axis=1), which, axis=1),
        left_out + jnp.sum(near, axis=1, dtype=jnp.int32),
    )


def report(negatives: Negatives, texts: TextStore) -> None:
    """Say how many negatives there are, how far they are from the answers, and show some."""
    for split in SPLITS:
        mined = negatives.pairs[split]
        found = mined.rows >= 0
        if not len(found):
            continue
        few, none = (found.sum(axis=1) < found.shape[1]).sum(), (~found.any(axis=1)).sum()
        say(
            f"{split}: {found.sum():,} negatives of {len(found):,} pairs; {few:,} pairs have fewer than"
            f" {found.shape[1]}, {none:,} none; left out as near as an answer: {mined.left_out.sum():,} passages of"
            f" {(mined.left_out > 0).sum():,} pairs"
        )
        if found.any():
            margins = (mined.answer - mined.scores[:, 0])[found[:, 0]]
            shown = zip(QUANTILES, np.percentile(margins, QUANTILES))
            quantiles = ", ".join(f"{quantile}% {margin:.3f}" for quantile, margin in shown)
            say(f"{split}: similarity of the answer minus that of the nearest negative: {quantiles}")
    _show(negatives.pairs["train"], texts)


def _show(mined: MinedPairs, texts: TextStore, samples: int = 3) -> None:
    table = texts.pairs["train"]
    pairs = np.flatnonzero(mined.rows[:, 0] >= 0)
    for pair in pairs[:: max(1, len(pairs) // samples)][:samples].tolist():
        rows = [table.query[pair], table.passage[pair], mined.rows[pair, 0]]
        query, answer, negative = (" ".join(text.text.split())[:90] for text in texts.read("train", rows))
        say(f"  {query!r}: {mined.answer[pair]:.3f} {answer!r}, {mined.scores[pair, 0]:.3f} {negative!r}")
