"""Reload the exported folder and compare its vectors with the trained student's; refuse on a mismatch.

Where torch is installed sentence-transformers reloads it, in a process of its own, and every ``2_Dense_{dim}`` is
tried. Elsewhere the folder is read back by this library and projected with numpy: that proves the files, not
PyTorch's reading of them, and the verdict says so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from jasper_jax.config import Export
from jasper_jax.dimensions import Provider
from jasper_jax.embedder import Embedder
from jasper_jax.errors import UserError
from jasper_jax.student import Student
from jasper_jax.tokenization import Tokenizer

SAMPLE = (
    "What is knowledge distillation?",
    "A short text.",
    "The committee, which had met twice in the spring, published its report on the flooding of the lower valley"
    " late on Thursday; it found that warnings had been issued, but that hardly anybody had read them.",
    "Köln, São Paulo and 東京 are cities.",
    "1, 2, 3 ... 4096!",
    "word " * 600,
)
"""Texts of the comparison: short and long (the last is truncated), with accents, other scripts, digits."""
TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}
"""Largest 1 - cosine that passes, by the dtype of the exported weights."""


def check_folder(
    folder: Path,
    student: Student,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    served: Mapping[int, Provider],
    settings: Export,
) -> str:
    """One line on what was compared and the worst cosine found.

    Raises:
      UserError: a vector differs by more than the tolerance; nothing has been put in place then.
    """
    from jasper_jax.training.loop import student_embedder

    expected: dict[str, np.ndarray] = {}
    embedder = student_embedder(student, params, tokenizer)
    for kind in ("query", "passage"):
        pooled = embedder.pooled(list(SAMPLE), kind)
        for dim, provider in served.items():
            head = params["heads"][provider.head]
            vectors = pooled @ np.asarray(head["kernel"]) + np.asarray(head.get("bias", np.float32(0)))
            expected[f"{kind}/{dim}"] = vectors[:, :dim]
    if importlib.util.find_spec("torch") and importlib.util.find_spec("sentence_transformers"):
        actual, how = _in_torch(folder, list(served)), "sentence-transformers loads it"
    else:
        actual = _in_numpy(folder, list(served))
        how = "read back without torch (install the extra 'export' to have sentence-transformers load it)"
    worst, where = 1.0, ""
    for name, vectors in expected.items():
        a, b = _unit(vectors), _unit(actual[name])
        cosine = float((a * b).sum(axis=1).min()) if a.shape == b.shape else -1.0
        if not cosine >= worst:
            worst, where = cosine, name
    if not 1.0 - worst <= TOLERANCE[settings.dtype]:
        raise UserError(
            f"{folder}: the exported folder's vectors differ from the student's ({where}: cosine {worst:.6f});"
            f" the export was not put in place, this is a defect worth reporting"
        )
    return f"{how}; vectors agree at {', '.join(map(str, served))} dimensions (worst cosine {worst:.7f})"


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _in_numpy(folder: Path, dims: list[int]) -> dict[str, np.ndarray]:
    embedder = Embedder.load(folder)
    out: dict[str, np.ndarray] = {}
    for kind in ("query", "passage"):
        pooled = embedder.pooled(list(SAMPLE), kind)
        for dim in dims:
            dense = load_file(folder / f"2_Dense_{dim}" / "model.safetensors")
            out[f"{kind}/{dim}"] = pooled @ dense["linear.weight"].T.astype(np.float32) + dense.get("linear.bias", 0.0)
    return out


def _in_torch(folder: Path, dims: list[int]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        job, result = Path(scratch) / "job.json", Path(scratch) / "vectors.npz"
        job.write_text(json.dumps({"folder": str(folder.resolve()), "texts": SAMPLE, "dims": dims, "out": str(result)}))
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "jasper_jax.export.reload_in_torch", str(job)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        if done.returncode:
            tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"{folder}: sentence-transformers could not load the export (exit code {done.returncode}): {tail}"
            )
        with np.load(result) as arrays:
            return {name: arrays[name] for name in arrays.files}
