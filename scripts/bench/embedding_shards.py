"""How long devices wait between the shards of a vector store, with and without reading ahead.

    python scripts/bench/embedding_shards.py --model all-MiniLM-L6-v2 --rate 200000 --dim 4096

The host's work is real: a shard is read, tokenised and packed for ``--model``, and vectors of ``--dim`` are normalised,
written, flushed and hashed. The devices are a wait of (tokens / ``--rate``) seconds, which leaves the cores of this
machine to the host, as an accelerator does. Each round fills a store both ways in turn; the figures are medians.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.assets.corpora import read_corpus
from jasper_jax.assets.models import resolve_model
from jasper_jax.data.texts import TextStore, build_text_store
from jasper_jax.embedder import Embedder
from jasper_jax.recipe.config_sources import Augment, Texts, TextSource
from jasper_jax.teachers import embedding
from jasper_jax.teachers.overlap import overlapped
from jasper_jax.teachers.vectors import VectorSpec


class Teacher:
    """Prepares texts for ``embedder``; its devices take one second for ``rate`` tokens."""

    def __init__(self, embedder: Embedder, rate: float, dim: int, rows: int):
        self._embedder, self._rate = embedder, rate
        self._vectors = np.random.default_rng(0).standard_normal((rows, dim), np.float32)
        self.began, self.ended, self.busy = [], [], 0.0

    def prepare(self, texts: list[str], kinds: list[str]) -> Callable[[], np.ndarray]:
        prepared: Any = self._embedder.prepare(texts, kinds)
        tokens = sum(map(len, prepared.args[0].ids))

        def compute() -> np.ndarray:
            self.began.append(time.perf_counter())
            time.sleep(tokens / self._rate)
            self.ended.append(time.perf_counter())
            return self._vectors[: len(texts)]

        return compute

    def idle_share(self) -> float:
        """Of the time from the first shard's start to the last one's end, the share in which no shard is computed."""
        busy = sum(end - begin for begin, end in zip(self.began, self.ended))
        return 1 - busy / (self.ended[-1] - self.began[0])


def in_turn(items: Any, read: Any, compute: Any, store: Any) -> None:
    for item in items:
        store(item, compute(read(item)))


def text_store(folder: Path, number: int, shard_rows: int) -> TextStore:
    documents = list(read_corpus("squad-shifts", ["nyt", "reddit", "amazon"]))
    lines = [" ".join(document.text.split()) for document in documents]
    lines = [f"{lines[i % len(lines)]} {i // len(lines)}" for i in range(number)]
    (folder / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    augment = Augment(split_share=0, shuffle_share=0)
    source = TextSource(text=str(folder / "texts.txt"))
    settings = Texts(sources=[source], held_out=0, augment=augment, shard_rows=shard_rows)
    return build_text_store(settings, folder / "texts", seed=0, progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="whose tokenizer and row lengths")
    parser.add_argument("--rate", type=float, default=200_000, help="tokens/s of the devices")
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--texts", type=int, default=12_000)
    parser.add_argument("--shard-rows", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    embedder = Embedder.load(resolve_model(options.model, None))
    spec = VectorSpec({"id": "random"}, {"query": "", "passage": ""}, "mean", None, options.dim, "float16")
    shares: dict[str, list[float]] = {"in turn": [], "overlapped": []}
    with tempfile.TemporaryDirectory() as place:
        texts = text_store(Path(place), options.texts, options.shard_rows)
        for number in range(options.rounds):
            for name, how in (("in turn", in_turn), ("overlapped", overlapped)):
                teacher = Teacher(embedder, options.rate, options.dim, options.shard_rows)
                embedding.overlapped = how
                folder = Path(place, f"{name}-{number}")
                embedding.embed_teacher(folder, texts, spec, teacher, progress=False)  # type: ignore[arg-type]
                shares[name].append(teacher.idle_share())
    idle = {f"idle, {name}": round(float(np.median(found)), 3) for name, found in shares.items()}
    print(json.dumps({**vars(options), **idle, "rounds": {k: [round(x, 3) for x in v] for k, v in shares.items()}}))


if __name__ == "__main__":
    main()
