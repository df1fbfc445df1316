"""The ``onnx/`` folder of an export: one graph from tokens to vectors, in float32 and in int8.

``onnx/model.onnx`` is where optimum (sentence-transformers' ``backend="onnx"``), transformers.js and fastembed look,
``onnx/model_quantized.onnx`` what transformers.js takes for ``q8`` and infinity prefers on processors. Both are made in
a temporary folder from an exported folder alone, compared there, and only then moved in.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.checkpoints.export_marker import checksums, read_marker, refuse_damaged, write_marker
from jasper_jax.embedder import Embedder
from jasper_jax.encoders.prompts import KINDS
from jasper_jax.export.agreement_texts import TEXTS
from jasper_jax.export.check import SAMPLE, run_in_torch
from jasper_jax.export.onnx_in_torch import IMAGE, MODEL, PIXELS, SENTENCE, VISION, outputs_by_dim
from jasper_jax.export.onnx_int8 import agreement_lost, quantize_model
from jasper_jax.export.onnx_session import OnnxModel
from jasper_jax.recipe.config import Export
from jasper_jax.recipe.extras import ONNX_PACKAGES
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.paths import real_folder
from jasper_jax.teachers.torch_teacher import refuse_harmful_files
from jasper_jax.teachers.vectors import normalize_rows

FOLDER = "onnx"
QUANTIZED = "model_quantized.onnx"
WRITTEN = tuple(f"{name}{suffix}" for name in (MODEL, VISION, QUANTIZED) for suffix in ("", "_data"))
"""Every file that this module writes; others in the folder are left alone."""
_MADE = re.compile(r"(vision_)?model[\w-]*\.onnx[\w.]*")
"""What a killed command can leave beside the export; onnxruntime's quantiser has files of its own."""
LEAST_COSINE = 0.99999
"""Of a vector of the float32 graph with the student's."""


def refuse_without_packages() -> None:
    """UserError if a package that makes the ONNX files is missing."""
    missing = [package for package in ONNX_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(
            f"export.onnx: needs {', '.join(missing)}, not installed; pip install 'jasper-jax[onnx]', or leave ONNX out"
        )


def add_onnx(folder: Path, settings: Export, texts: Sequence[str] = ()) -> str:
    """Write ``onnx/`` into the export ``folder`` and its files into the marker; a line on how they were checked.

    ``texts``: on which int8 is compared with float32, by default a few dozen sentences that come with the program.

    Raises:
      UserError: a package is missing; not an undamaged export; a file that its marker does not name is where
        one would be written; the graph cannot be made, or its vectors differ from the student's; int8 loses more than
        ``settings.onnx_int8_loss``. The folder is then as it was.
    """
    refuse_without_packages()
    folder = real_folder(folder)
    marker = read_marker(folder)
    refuse_damaged(folder)
    embedder = Embedder.load(folder)
    partial = folder.with_name(f".{folder.name}.onnx.partial")
    _refuse_foreign(folder, partial, marker)
    # torch loads it, and it may be somebody else's; of a model of images not as its list of modules says
    refuse_harmful_files("--onnx", folder, modules=embedder.vision_model is None)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        verdict = _write(partial, folder, embedder, settings, list(texts) or list(TEXTS))
        _move_in(partial, folder, marker)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return verdict


def _refuse_foreign(folder: Path, partial: Path, marker: Mapping[str, Any]) -> None:
    """UserError if a file would be replaced that the marker does not name, or written through a link.

    ``partial`` is there only after a killed command, which had found nothing foreign and may have moved files in.
    """
    remedy = "move it away, or delete it if it is not needed"
    place, named = folder / FOLDER, marker.get("sha256", {})
    for path in (place, partial):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise UserError(f"{path}: is a link or a file where a folder is written; {remedy}")
    if partial.is_dir():
        foreign = [path for path in sorted(partial.iterdir()) if path.is_dir() or not _MADE.fullmatch(path.name)]
    else:
        files = (place / name for name in WRITTEN if f"{FOLDER}/{name}" not in named)
        foreign = [path for path in files if os.path.lexists(path)]
    for path in foreign[:1]:
        raise UserError(f"{path}: no export wrote this, and the ONNX files would replace it; {remedy}")


def _move_in(partial: Path, folder: Path, marker: dict[str, Any]) -> None:
    """Replace the ONNX files of ``folder`` by those in ``partial``; the marker never names a missing file."""
    added = {f"{FOLDER}/{name}": digest for name, digest in checksums(partial).items()}
    kept = {name: digest for name, digest in marker.get("sha256", {}).items() if not name.startswith(f"{FOLDER}/")}
    write_marker(folder, {**marker, "sha256": kept})
    (folder / FOLDER).mkdir(exist_ok=True)
    for name in WRITTEN:
        (folder / FOLDER / name).unlink(missing_ok=True)
    try:
        for file in sorted(partial.iterdir()):
            file.rename(folder / FOLDER / file.name)
        write_marker(folder, {**marker, "sha256": {**kept, **added}})
    except BaseException:  # what no marker names would be taken for somebody's own
        for name in added:
            (folder / name).unlink(missing_ok=True)
        raise


def _write(place: Path, folder: Path, embedder: Embedder, settings: Export, texts: Sequence[str]) -> str:
    """Write and compare both files in ``place``."""
    dims = [embedder.default_dim, *(dim for dim in reversed(embedder.dims) if dim != embedder.default_dim)]
    outputs = dict(zip(outputs_by_dim(SENTENCE, dims), dims, strict=True))
    _make_graphs(folder, place, embedder, dims, settings.onnx_opset)
    floats = OnnxModel(place / MODEL, embedder.tokenizer)
    worst = _refuse_wrong(floats, embedder, outputs, folder)
    if embedder.vision_model is not None:
        worst = min(worst, _refuse_wrong_images(place / VISION, embedder, dims, folder))
    said = f"ONNX gives the student's vectors (worst cosine {worst:.7f})"
    if settings.onnx_int8_loss is None:
        return said
    quantize_model(place / MODEL, place / QUANTIZED, (place / f"{MODEL}_data").is_file())
    codes = OnnxModel(place / QUANTIZED, embedder.tokenizer)
    passages = [embedder.prompt("passage") + text for text in texts]
    lost = agreement_lost(*(model.vectors(passages, list(outputs)) for model in (floats, codes)))
    if not lost <= settings.onnx_int8_loss:
        raise UserError(
            f"{folder}: the int8 model orders pairs of texts otherwise than the float32 one (1 - Spearman {lost:.4f} on"
            f" {len(texts)} texts, export.onnx_int8_loss allows {settings.onnx_int8_loss:g}); raise it, or leave int8"
            " out with export.onnx_int8_loss=null"
        )
    return f"{said}; its int8 form agrees at {1 - lost:.4f} (Spearman, {len(texts)} texts)"


def _make_graphs(folder: Path, place: Path, embedder: Embedder, dims: Sequence[int], opset: int) -> None:
    """Have torch write the graphs, in a separate process."""
    with tempfile.TemporaryDirectory() as scratch:
        job, vision = Path(scratch) / "job.json", embedder.vision_model
        content = {"folder": str(folder.resolve()), "place": str(place.resolve()), "dims": list(dims), "opset": opset}
        content |= {"alone": vision and list(vision.alone), "pixels": vision and vision.preprocessing.size}
        job.write_text(json.dumps(content), "utf-8")
        module = "onnx_vision_in_torch" if vision else "onnx_in_torch"
        if error := run_in_torch(f"jasper_jax.export.{module}", job, Path(scratch)):
            raise UserError(f"{folder}: torch could not write it as ONNX of opset {opset} ({error})")


def _refuse_wrong(model: OnnxModel, embedder: Embedder, outputs: dict[str, int], folder: Path) -> float:
    """The worst cosine with the student over odd and long texts, of both kinds, alone and as one padded batch.

    Raises:
      UserError: it is below ``LEAST_COSINE``.
    """
    worst, where = 1.0, ""
    for kind in KINDS:
        pooled = embedder.pooled(list(SAMPLE), kind)
        texts = [embedder.prompt(kind) + text for text in SAMPLE]
        made = {"alone": model.vectors(texts, list(outputs), 1), "in a batch": model.run(texts, list(outputs))}
        for i, dim in enumerate(outputs.values()):
            expected = normalize_rows(embedder.project(pooled, dim)).astype(np.float64)
            for how, vectors in ((how, found[i]) for how, found in made.items()):
                same = vectors.shape == expected.shape
                cosine = float((vectors * expected).sum(axis=1).min()) if same else -1.0
                if not cosine >= worst:
                    worst, where = cosine, f"{kind}, {dim} dimensions, {how}"
    if not worst >= LEAST_COSINE:
        raise UserError(
            f"{folder}: the ONNX model's vectors differ from the student's ({where}: cosine {worst:.6f}); it was"
            " discarded; please report this defect"
        )
    return worst


def _refuse_wrong_images(graph: Path, embedder: Embedder, dims: Sequence[int], folder: Path) -> float:
    """The worst cosine with the student over images of noise and of one colour, alone and as one batch.

    Raises:
      UserError: it is below ``LEAST_COSINE``.
    """
    from PIL import Image

    assert embedder.vision_model is not None
    preprocessing = embedder.vision_model.preprocessing
    shape, generator = (preprocessing.size, preprocessing.size, 3), np.random.default_rng(0)
    levels = [generator.integers(0, 256, shape, np.uint8), np.full(shape, 200, np.uint8), np.zeros(shape, np.uint8)]
    images = [Image.fromarray(one) for one in levels]
    prepared = np.stack([preprocessing.prepare(image) for image in images])
    pixels = np.asarray(preprocessing.normalise(prepared), np.float32).transpose(0, 3, 1, 2)
    model, worst = OnnxModel(graph, embedder.tokenizer), 1.0
    for dim, name in zip(dims, outputs_by_dim(IMAGE, dims), strict=True):
        expected = embedder.encode(images, dim=dim).astype(np.float64)
        alone = np.concatenate([np.asarray(model.session.run([name], {PIXELS: one[None]})[0]) for one in pixels])
        for vectors in (alone, np.asarray(model.session.run([name], {PIXELS: pixels})[0])):
            cosines = (vectors * expected).sum(axis=1) / np.linalg.norm(expected, axis=1)
            worst = min(worst, float(cosines.min()))
    if not worst >= LEAST_COSINE:
        raise UserError(
            f"{folder}: the ONNX model's vectors of images differ from the student's (cosine {worst:.6f}); it was"
            " discarded; please report this defect"
        )
    return worst
