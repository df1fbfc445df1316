"""Reload the exported folder and compare its vectors with the trained student's; refuse on a mismatch.

If torch is installed, sentence-transformers reloads it in a separate process, at every dimension; a student of images
is also compared on images and mixtures of both. Otherwise this library reads the folder: that checks the files but not
how PyTorch reads them, and the verdict says so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.embedder import Embedder
from jasper_jax.encoders.prompts import KINDS
from jasper_jax.export.asymmetric import FOLDER, Documents
from jasper_jax.export.model import TrainedStudent
from jasper_jax.runtime.children import python_module
from jasper_jax.runtime.errors import UserError
from jasper_jax.student.heads import project_rows
from jasper_jax.student.student import Student
from jasper_jax.teachers.vectors import normalize_rows

SAMPLE = (
    "What is knowledge distillation?",
    "A short text.",
    "The committee, which had met twice in the spring, published its report on the flooding of the lower valley"
    " late on Thursday; it found that warnings had been issued, but that hardly anybody had read them.",
    "Köln, São Paulo and 東京 are cities.",
    "1, 2, 3 ... 4096!",
    " ﬁne Ｆｕｌｌ ½ e\u0301 ÉTÉ İ 😀\tMiXeD\u200b “quoted” ",
    "word " * 600,
)
"""Texts of the comparison: short, long (the last is truncated), with accents, other scripts, digits, and what
normalizers change."""
TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}
"""Largest 1 - cosine that passes, by the dtype of the exported weights."""


def check_folder(folder: Path, trained: TrainedStudent) -> str:
    """Compare the vectors of ``folder``, reloaded, with the student's; one line on how, and on the worst cosine.

    Raises:
      UserError: a vector differs by more than the tolerance, or the folder cannot be loaded.
    """
    from jasper_jax.student.start import student_embedder

    embedder = student_embedder(trained.student, trained.params, trained.tokenizer)
    sample, dims = sample_of(trained.student), list(trained.served)
    pooled = {kind: embedder.pooled(sample, kind) for kind in KINDS}
    expected = {f"{k}/{dim}": project_rows(trained.head(dim), x) for k, x in pooled.items() for dim in dims}
    if _has_torch():
        actual, how = _in_torch(folder, sample, dims), "sentence-transformers loads it"
    else:
        actual = _in_jax(folder, sample, dims)
        how = "read back without torch (install the extra 'export' to have sentence-transformers load it)"
    worst = _worst(expected, actual, folder, trained)
    return f"{how}; vectors agree at {', '.join(map(str, dims))} dimensions (worst cosine {worst:.7f})"


def check_asymmetric(folder: Path, trained: TrainedStudent, documents: Documents) -> str:
    """Compare what the Router in an export ``folder`` makes with the student's queries and the teacher's documents.

    Raises:
      UserError: a vector differs by more than the tolerance, or sentence-transformers cannot load the Router.
    """
    from jasper_jax.student.start import student_embedder

    router = folder / FOLDER
    if not _has_torch():
        return f"{FOLDER}/ was not loaded, which needs the extra 'export'"
    embedder, space = student_embedder(trained.student, trained.params, trained.tokenizer), documents.space
    queries = project_rows(space.of_head(trained.params["heads"][space.head]), embedder.pooled(list(SAMPLE), "query"))
    passages = documents.teacher.encoder()(list(SAMPLE), ["passage"] * len(SAMPLE))
    expected = {f"{kind}/{space.dim}": x for kind, x in (("query", queries), ("passage", passages))}
    worst = _worst(expected, _in_torch(router, SAMPLE, [space.dim]), router, trained)
    return (
        f"{FOLDER}/ embeds queries as the student and documents as {documents.teacher.name} (worst cosine {worst:.7f})"
    )


def _worst(
    expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray], folder: Path, trained: TrainedStudent
) -> float:
    """The least cosine of rows with equal names; UserError where it is less than the tolerance allows."""
    worst, where = 1.0, ""
    for name, vectors in expected.items():
        a, b = (normalize_rows(x).astype(np.float64) for x in (vectors, actual[name]))
        cosine = float((a * b).sum(axis=1).min()) if a.shape == b.shape else -1.0
        if not cosine >= worst:
            worst, where = cosine, name
    if not 1.0 - worst <= TOLERANCE[trained.settings.dtype]:
        raise UserError(
            f"{folder}: the exported folder's vectors differ from the student's ({where}: cosine {worst:.6f});"
            f" the export was discarded; please report this defect"
        )
    return worst


def _has_torch() -> bool:
    return bool(importlib.util.find_spec("torch") and importlib.util.find_spec("sentence_transformers"))


def sample_of(student: Student) -> list[Any]:
    """The inputs of the comparison: texts; of a student of images also two images and two mixtures."""
    if student.vision_model is None:
        return list(SAMPLE)
    from PIL import Image

    x, y = np.meshgrid(np.arange(96), np.arange(64))
    waves = np.stack([127 + 127 * np.sin(x / 9 + i) * np.cos(y / (5 + i)) for i in range(3)], axis=-1)
    stripes = np.stack([x * 2, y * 3, 255 * ((x + y) // 12 % 2)], axis=-1)
    images = [Image.fromarray(pixels.astype(np.uint8)) for pixels in (waves, stripes)]
    first, second = ({"type": "image", "content": image} for image in images)
    before, after = {"type": "text", "content": SAMPLE[1]}, {"type": "text", "content": SAMPLE[0]}
    # If an image leaves little room, it comes first and the text after it is truncated.
    has_room = len(student.vision_model.alone) + 32 <= student.max_length
    return [*SAMPLE, *images, [first, after], [before, second, after] if has_room else [second, before]]


def _in_jax(folder: Path, sample: Sequence[Any], dims: Sequence[int]) -> dict[str, np.ndarray]:
    embedder = Embedder.load(folder)
    pooled = {kind: embedder.pooled(list(sample), kind) for kind in KINDS}
    return {f"{kind}/{dim}": embedder.project(x, dim) for kind, x in pooled.items() for dim in dims}


def _in_torch(folder: Path, sample: Sequence[Any], dims: Sequence[int]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        job, result = Path(scratch) / "job.json", Path(scratch) / "vectors.npz"
        inputs = [_as_json(value, Path(scratch) / f"input-{i}") for i, value in enumerate(sample)]
        content = {"folder": str(folder.resolve()), "inputs": inputs, "dims": list(dims), "out": str(result)}
        job.write_text(json.dumps(content), "utf-8")
        if error := run_in_torch("jasper_jax.export.reload_in_torch", job, Path(scratch)):
            raise UserError(f"{folder}: sentence-transformers could not load the export ({error})")
        with np.load(result) as arrays:
            return {name: arrays[name] for name in arrays.files}


def run_in_torch(module: str, job: Path, scratch: Path) -> str:
    """Run ``module`` on ``job`` in a separate process, so that this one never imports torch; the error, or ""."""
    offline = {
        "PYTHONUTF8": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_MODULES_CACHE": str(scratch / "code"),
    }
    command = python_module(module, str(job))
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, **offline}, check=False)
    tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"exit code {done.returncode}: {tail}" if done.returncode else ""


def _as_json(value: Any, name: Path) -> Any:
    """An input with its images saved as lossless files."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return [_as_json(item, Path(f"{name}-{i}")) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return value if value["type"] == "text" else _as_json(value["content"], name)
    path = f"{name}.png"
    value.save(path)
    return {"type": "image_path", "content": path}
