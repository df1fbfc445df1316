"""Small stores and fake teachers for the tests of the data folder."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jasper_jax.data.texts import TextStore, build_text_store
from jasper_jax.recipe.config_sources import Augment, Images, Texts, TextSource
from jasper_jax.runtime.workers import Workers
from jasper_jax.teachers.vectors import VectorSpec

DTYPES = ["float16", "int8"]
"""Of stored vectors: that which needs no scales, and that which does."""
PLAIN = Augment(split_share=0.0, shuffle_share=0.0)


def recipe(*sources: TextSource, **keys) -> Texts:
    return Texts(**{"sources": list(sources), "held_out": 0, "shuffle_buffer": 16, "augment": PLAIN, **keys})


def lines(path: Path, texts: list[str]) -> TextSource:
    path.write_text("".join(t + "\n" for t in texts), encoding="utf-8")
    return TextSource(text=str(path))


def small_store(folder: Path, rows: int = 50, held_out: int = 7, shard_rows: int = 8) -> TextStore:
    """A store of ``rows`` texts altogether in ``folder/texts``."""
    folder.mkdir(parents=True, exist_ok=True)
    source = lines(folder / "texts.txt", [f"this is text number {i} of the corpus" for i in range(rows)])
    texts = recipe(source, held_out=held_out, shard_rows=shard_rows)
    return build_text_store(texts, folder / "texts", seed=3, progress=False)


def build_by_two_processes(texts: Texts, folder: Path, seed: int, *, progress: bool = False) -> TextStore:
    """A store whose parts are read, prepared and written by two processes from the start."""
    return build_text_store(texts, folder, seed, progress=progress, workers=Workers(2, alone=0.0))


def vector(text: str, kind: str, dim: int) -> np.ndarray:
    """A vector that depends on nothing but its text and kind; not of norm 1."""
    seed = int.from_bytes(hashlib.sha256(f"{kind}|{text}".encode()).digest()[:8])
    return np.random.default_rng(seed).standard_normal(dim) * 3.0


def encode(texts: list[str], kinds: list[str], dim: int = 24) -> np.ndarray:
    return np.stack([vector(t, k, dim) for t, k in zip(texts, kinds, strict=True)])


def spec(dtype: str = "float16", dim: int = 24, **keys) -> VectorSpec:
    given = {
        "teacher": {"id": "fake", "revision": "1"},
        "prompts": {"query": "search: ", "passage": ""},
        "pooling": "mean",
        "max_length": 32,
        "dim": dim,
        "dtype": dtype,
    }
    return VectorSpec(**{**given, **keys})


def expected(store: TextStore, split: str, dim: int = 24) -> np.ndarray:
    """The vectors of a split, float64, of norm 1."""
    rows = store.read(split, range(store.size(split)))
    found = np.stack([vector(r.text, r.kind, dim) for r in rows])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def kill_build(build: Callable, settings: Texts | Images, folder: Path) -> Path:
    """Kill a child process that runs ``build`` once it has written rows; the folder that it leaves behind."""
    kind = type(settings).__name__
    code = f"""
        from pathlib import Path
        from jasper_jax.recipe.config_sources import {kind}
        from {build.__module__} import {build.__name__}
        settings = {kind}.model_validate_json({settings.model_dump_json()!r})
        {build.__name__}(settings, Path({str(folder)!r}), 0, progress=False)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    while not list(folder.parent.glob(f".{folder.name}.building-*/*.part")) and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "the child was done before it could be killed"
    [unfinished] = folder.parent.glob(f".{folder.name}.building-*")
    assert not folder.exists()
    return unfinished
