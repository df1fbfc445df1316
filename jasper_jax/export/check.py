"""Reload the exported folder and compare its vectors with the trained student's; refuse on a mismatch.

Where torch is installed sentence-transformers reloads it, in a process of its own, and every dimension is tried; of a
student of images too, with images and mixtures of both. Elsewhere the folder is read back by this library and projected
again: that proves the files, not PyTorch's reading of them, and the verdict says so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.embedder import Embedder
from jasper_jax.encoders.dense import dense
from jasper_jax.encoders.prompts import KINDS
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.recipe.config import Export
from jasper_jax.runtime.errors import UserError
from jasper_jax.student.dimensions import Provider
from jasper_jax.student.heads import nested_head, project_rows
from jasper_jax.student.student import Student
from jasper_jax.teachers.vectors import normalize_rows

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
    from jasper_jax.student.start import student_embedder

    expected: dict[str, np.ndarray] = {}
    embedder, sample = student_embedder(student, params, tokenizer), sample_of(student)
    for kind in KINDS:
        pooled = embedder.pooled(sample, kind)
        for dim, provider in served.items():
            head = nested_head(params["heads"][provider.head], dim)
            expected[f"{kind}/{dim}"] = project_rows(head, pooled)
    return compare(folder, expected, sample, list(served), settings)


def sample_of(student: Student) -> list[Any]:
    """The inputs of the comparison: texts; of a student of images also two images and two mixtures."""
    if student.vision_model is None:
        return list(SAMPLE)
    from PIL import Image

    x, y = np.meshgrid(np.arange(96), np.arange(64))
    waves = np.stack([127 + 127 * np.sin(x / 9 + i) * np.cos(y / (5 + i)) for i in range(3)], axis=-1)
    stripes = np.stack([x * 2, y * 3, 255 * ((x + y) // 12 % 2)], axis=-1)
    one, two = (Image.fromarray(pixels.astype(np.uint8)) for pixels in (waves, stripes))
    first, second = {"type": "image", "content": one}, {"type": "image", "content": two}
    before, after = {"type": "text", "content": SAMPLE[1]}, {"type": "text", "content": SAMPLE[0]}
    # Where an image leaves hardly any room it comes first, and the text after it is cut.
    roomy = len(student.vision_model.alone) + 32 <= student.max_length
    return [*SAMPLE, one, two, [first, after], [before, second, after] if roomy else [second, before]]


def compare(
    folder: Path, expected: Mapping[str, np.ndarray], sample: Sequence[Any], dims: Sequence[int], settings: Export
) -> str:
    """Reload ``folder`` and compare its vectors of ``sample`` with those expected, by ``{kind}/{dim}``, of any length.
    One line as ``check_folder``, and its error."""
    if importlib.util.find_spec("torch") and importlib.util.find_spec("sentence_transformers"):
        actual, how = _in_torch(folder, sample, dims), "sentence-transformers loads it"
    else:
        actual = _in_jax(folder, sample, dims)
        how = "read back without torch (install the extra 'export' to have sentence-transformers load it)"
    worst, where = 1.0, ""
    for name, vectors in expected.items():
        a, b = (normalize_rows(x).astype(np.float64) for x in (vectors, actual[name]))
        cosine = float((a * b).sum(axis=1).min()) if a.shape == b.shape else -1.0
        if not cosine >= worst:
            worst, where = cosine, name
    if not 1.0 - worst <= TOLERANCE[settings.dtype]:
        raise UserError(
            f"{folder}: the exported folder's vectors differ from the student's ({where}: cosine {worst:.6f});"
            f" the export was not put in place, this is a defect worth reporting"
        )
    return f"{how}; vectors agree at {', '.join(map(str, dims))} dimensions (worst cosine {worst:.7f})"


def _in_jax(folder: Path, sample: Sequence[Any], dims: Sequence[int]) -> dict[str, np.ndarray]:
    embedder = Embedder.load(folder)
    pooled = {kind: embedder.pooled(list(sample), kind) for kind in KINDS}
    return {f"{kind}/{dim}": np.asarray(dense(x, *embedder.output(dim))) for kind, x in pooled.items() for dim in dims}


def _in_torch(folder: Path, sample: Sequence[Any], dims: Sequence[int]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        job, result = Path(scratch) / "job.json", Path(scratch) / "vectors.npz"
        inputs = [_as_json(given, Path(scratch) / f"input-{i}") for i, given in enumerate(sample)]
        job.write_text(
            json.dumps({"folder": str(folder.resolve()), "inputs": inputs, "dims": list(dims), "out": str(result)})
        )
        failed = reload(job, Path(scratch))
        if failed:
            raise UserError(f"{folder}: sentence-transformers could not load the export ({failed})")
        with np.load(result) as arrays:
            return {name: arrays[name] for name in arrays.files}


def reload(job: Path, scratch: Path) -> str:
    """``reload_in_torch`` in a process of its own, so that torch never enters this one; what went wrong, or nothing."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_MODULES_CACHE": str(scratch / "code"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "jasper_jax.export.reload_in_torch", str(job)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"exit code {done.returncode}: {tail}" if done.returncode else ""


def _as_json(given: Any, name: Path) -> Any:
    """An input with its images as files, without loss."""
    if isinstance(given, str):
        return given
    if isinstance(given, list):
        return [_as_json(part, Path(f"{name}-{i}")) for i, part in enumerate(given)]
    if isinstance(given, dict):
        return given if given["type"] == "text" else _as_json(given["content"], name)
    path = f"{name}.png"
    given.save(path)
    return {"type": "image_path", "content": path}
