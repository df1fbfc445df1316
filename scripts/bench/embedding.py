"""Embedding speed against sentence-transformers' ``encode`` at its best batch size, both in one process.

    python scripts/bench/embedding.py --model all-MiniLM-L6-v2 --model all-mpnet-base-v2 --number 500

A model is a folder or a named asset. Texts are passages and questions of SQuAD-shifts (nyt), or ``--texts FILE``: one
a line, or JSON lines with ``text``. Both encode the same texts on the same cores in turn, round after
round, so that whatever else the machine does falls on both; the figures are medians. Tokenising (which both do with
the same library) and compiling (once per shape and model) are reported apart and are part of the first call. The
vectors of both are compared at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jasper_jax.assets.corpora import read_corpus
from jasper_jax.assets.models import resolve_model
from jasper_jax.embedder import Embedder

BATCH_SIZES = (8, 16, 32, 64)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_texts(path: Path | None, number: int, seed: int) -> list[str]:
    if path is None:
        documents = list(read_corpus("squad-shifts", ["nyt"]))
        return [d.text for d in random.Random(seed).sample(documents, min(number, len(documents)))]
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = [json.loads(line)["text"] if path.suffix == ".jsonl" else line for line in lines]
    return random.Random(seed).sample(texts, min(number, len(texts)))


def measure(model: Path, texts: list[str], rounds: int, dtype: str, console: Console) -> None:
    embedder = Embedder.load(model, dtype=dtype)  # before PyTorch is imported, as a user has it
    first = seconds(lambda: embedder.encode(texts))
    import torch
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(model), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    tokens = int(embedder.tokenizer.lengths(texts).sum())
    some = texts[: max(64, len(texts) // 4)]
    trials = {size: seconds(lambda: peer.encode(some, batch_size=size)) for size in BATCH_SIZES}  # noqa: B023
    best = min(trials, key=trials.__getitem__)

    times: dict[str, list[float]] = {"ours": [], "peer": [], "tokenise": []}
    for round_number in range(rounds):
        pair = [
            ("ours", lambda: embedder.encode(texts)),
            ("peer", lambda: peer.encode(texts, batch_size=best, convert_to_numpy=True)),
        ]
        for name, work in pair if round_number % 2 else pair[::-1]:
            times[name].append(seconds(work))
        times["tokenise"].append(seconds(lambda: embedder.tokenizer.encode(texts)))
    ours, theirs, tokenise = (float(np.median(times[name])) for name in ("ours", "peer", "tokenise"))
    ratios = np.array(times["peer"]) / np.array(times["ours"])
    vectors, expected = embedder.encode(texts), peer.encode(texts, normalize_embeddings=True)

    table = Table(title=f"{model.name or model}: {len(texts)} texts, {tokens:,} tokens, {dtype}, CPU")
    for column in ("", "seconds", "texts/s", "tokens/s"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {
        "jasper_jax": ours,
        f"sentence-transformers, batch size {best}": theirs,
        "tokenising alone (in both)": tokenise,
        "compiling (first call only)": max(first - ours, 0.0),
    }
    for name, value in rows.items():
        rates = (f"{len(texts) / value:,.1f}", f"{tokens / value:,.0f}") if "compiling" not in name else ("", "")
        table.add_row(name, f"{value:.2f}", *rates)
    console.print(table)
    console.print(
        f"speed ratio {theirs / ours:.2f} (per round {ratios.min():.2f} to {ratios.max():.2f}, {rounds} rounds, "
        f"{torch.get_num_threads()} threads); least cosine between the two {(vectors * expected).sum(1).min():.7f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, action="append", help="a model folder or asset; may be repeated")
    parser.add_argument("--texts", type=Path, help="one text a line, or JSON lines with 'text'")
    parser.add_argument("--number", type=int, default=1000, help="texts drawn at random from the file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="Markdown file for the result")
    options = parser.parse_args()
    console = Console(width=120, record=True)
    for model in options.model:
        texts = read_texts(options.texts, options.number, options.seed)
        measure(resolve_model(model, None), texts, options.rounds, options.dtype, console)
    if options.output:
        command = f"python {shlex.join(sys.argv)}"
        options.output.write_text(f"# Embedding speed\n\n`{command}`\n\n```\n{console.export_text()}```\n")


if __name__ == "__main__":
    main()
