"""Mining of hard negatives: time beside the same search in numpy, on made-up vectors.

    python scripts/bench/mining.py --pairs 5000 --passages 50000 --output docs/results/mining.md

Both search the same blocks of passages, in turn, in one process, and must find the same passages. A larger search costs
pairs times passages: the page says how many products of a query and a passage a second are made.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from train_bench.world import machine

from jasper_jax.data.pair_table import PairTable
from jasper_jax.recipe.config_training import Mining
from jasper_jax.teachers.mining import BLOCK, nearest
from jasper_jax.teachers.negatives import SHARD


class Vectors:
    """What mining asks of the teachers: rows ``[n, dim]`` float32 of a split."""

    def __init__(self, rows: int, dim: int):
        made = np.random.default_rng(0).standard_normal((rows, dim), np.float32)
        self.all = made / np.linalg.norm(made, axis=1, keepdims=True)

    def read(self, split: str, rows: np.ndarray) -> np.ndarray:
        return self.all[rows]


def in_numpy(vectors: Vectors, table: PairTable, chosen: slice, candidates: np.ndarray, settings: Mining) -> np.ndarray:
    """The rows ``[Q, K]`` that :func:`nearest` finds."""
    queries, answers = vectors.all[table.query[chosen]], vectors.all[table.passage[chosen]]
    answer = np.einsum("qt,qt->q", queries, answers)
    limit = answer - np.maximum(settings.absolute_margin, settings.relative_margin * np.abs(answer))
    best = np.full((len(queries), settings.depth), -np.inf, np.float32)
    found = np.full((len(queries), settings.depth), -1, np.int64)
    for start in range(0, len(candidates), BLOCK):
        rows = candidates[start : start + BLOCK]
        scores = queries @ vectors.all[rows].T
        scores[(scores > limit[:, None]) | (rows[None, :] == table.passage[chosen][:, None])] = -np.inf
        both = np.concatenate([best, scores], axis=1)
        ids = np.concatenate([found, np.broadcast_to(rows, scores.shape)], axis=1)
        place = np.argpartition(-both, settings.depth, axis=1)[:, : settings.depth]
        best, found = np.take_along_axis(both, place, axis=1), np.take_along_axis(ids, place, axis=1)
    return np.where(np.isfinite(best), found, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--passages", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=1152)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    pairs, passages = options.pairs, options.passages
    vectors = Vectors(passages + pairs, options.dim)
    answers = np.random.default_rng(1).integers(passages, size=pairs)
    # A query near its answer, so that the threshold leaves out few.
    vectors.all[passages:] = 0.3 * vectors.all[passages:] + 0.7 * vectors.all[answers]
    vectors.all[passages:] /= np.linalg.norm(vectors.all[passages:], axis=1, keepdims=True)
    table = PairTable.of(range(passages, passages + pairs), answers, [()] * pairs, [1.0] * pairs, [0] * pairs)
    candidates, settings = np.arange(passages), Mining()
    shards = [slice(start, min(start + SHARD, pairs)) for start in range(0, pairs, SHARD)]
    print(machine(), flush=True)

    def ours() -> np.ndarray:
        return np.concatenate([nearest(vectors, "train", table, s, candidates, settings).rows for s in shards])  # type: ignore[arg-type]

    def theirs() -> np.ndarray:
        return np.concatenate([in_numpy(vectors, table, s, candidates, settings) for s in shards])

    ours()  # compiles
    seconds: dict[str, list[float]] = {"jasper mine": [], "numpy": []}
    same = 0.0
    for _ in range(3):
        found = []
        for name, work in zip(seconds, (ours, theirs)):
            start = time.perf_counter()
            found.append(np.sort(work(), axis=1))
            seconds[name].append(time.perf_counter() - start)
        same = float(np.mean(found[0] == found[1]))
    lines = [
        "# Mining hard negatives",
        "",
        f"`python scripts/bench/mining.py --pairs {pairs} --passages {passages}`",
        "",
        machine(),
        "",
        f"{pairs:,} queries among {passages:,} passages, vectors of {options.dim:,} dimensions, exactly; the"
        f" {settings.depth} nearest of each. Medians of three, in turn in one process. {same:.4%} of the passages found"
        " are the same (the others differ by rounding).",
        "",
        "| | seconds | million products a second |",
        "| --- | ---: | ---: |",
    ]
    for name, times in seconds.items():
        median = float(np.median(times))
        lines.append(f"| {name} | {median:.1f} | {pairs * passages / median / 1e6:.1f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
