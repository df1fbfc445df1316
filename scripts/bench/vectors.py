"""Rates of the vector store: writing, reading at random, reading several teachers as one.

    python scripts/bench/vectors.py --dim 12288 --rows 4096

Everything is written to a temporary folder and read back while the system still has it in memory, so the
figures are those of the program, not of the disk. One pass each; the first one pays for fresh memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jasper_jax.data.texts import TextStore, build_text_store
from jasper_jax.recipe.config_sources import Augment, Texts, TextSource
from jasper_jax.teachers.embedding import embed_teacher
from jasper_jax.teachers.vectors import TeacherView, VectorSpec, VectorStore, store_bytes


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def text_store(folder: Path, rows: int) -> TextStore:
    lines = (folder / "texts.txt").open("w", encoding="utf-8")
    with lines:
        lines.writelines(f"text number {i} about nothing much, of a common length. " * 8 + "\n" for i in range(rows))
    source = TextSource(text=str(folder / "texts.txt"))
    texts = Texts(sources=[source], held_out=0, augment=Augment(split_share=0, shuffle_share=0))
    return build_text_store(texts, folder / "texts", seed=0, progress=False)


def bench(texts: TextStore, folder: Path, dim: int, dtype: str, batch: int) -> VectorStore:
    rows = texts.size("train")
    made = np.random.default_rng(0).standard_normal((max(s.rows for s in texts.shards), dim), np.float32)
    spec = VectorSpec({"id": "random"}, {"query": "", "passage": ""}, "mean", None, dim, dtype)  # type: ignore[arg-type]
    stores: list[VectorStore | None] = []
    write = seconds(
        lambda: stores.append(embed_teacher(folder / dtype, texts, spec, lambda t, _: made[: len(t)], progress=False))
    )
    [store] = stores
    assert store is not None
    order = np.random.default_rng(1).permutation(rows)
    batches = [order[i : i + batch] for i in range(0, rows, batch)]
    read = seconds(lambda: [store.read("train", b) for b in batches])
    view = TeacherView([store, store])
    both = seconds(lambda: [view.read("train", b) for b in batches])
    size, guess = sum(e["bytes"] for e in store.manifest["shards"]), store_bytes(rows, dim, dtype)
    print(
        f"{dtype:8} dim {dim}: write {rows / write:9,.0f}/s   read {rows / read:9,.0f}/s   "
        f"two as one {rows / both:9,.0f}/s   {size / rows:9,.0f} bytes a vector (estimate {guess / rows:,.0f})"
    )
    return store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=12288)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts = text_store(folder, options.rows)
        batch = np.random.default_rng(2).permutation(options.rows)
        took = seconds(lambda: [texts.read("train", batch[i : i + 128]) for i in range(0, options.rows, 128)])
        print(f"texts: read {options.rows / took:,.0f}/s")
        for dtype in ("float16", "float32", "int8"):
            bench(texts, folder, options.dim, dtype, options.batch)


if __name__ == "__main__":
    main()
