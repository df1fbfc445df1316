"""The ONNX files of a student of texts and images: a graph for each, with the student's vectors."""

from __future__ import annotations

import dataclasses
import re
from copy import copy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jasper_jax.checkpoints.export_marker import MADE_BY, checksums, refuse_damaged, write_marker
from jasper_jax.embedder import Embedder
from jasper_jax.export import onnx_folder
from jasper_jax.export.onnx_folder import add_onnx
from jasper_jax.export.onnx_session import OnnxModel
from jasper_jax.recipe.config import Export
from jasper_jax.runtime.errors import UserError
from tests.export.test_onnx import files, needs_packages
from tests.export.vision_cases import CASES, Case
from tests.tiny import sentences

pytestmark = [pytest.mark.usefixtures("quick_programs"), needs_packages]


def exported(name: str, place: Path) -> Path:
    folder = Case(name, place).folder
    write_marker(folder, {"format": 1, "made_by": MADE_BY, "sha256": checksums(folder)})
    return folder


# Joint projectors are the others' with one reshape more.
@pytest.fixture(scope="module", params=[pytest.param(n, marks=[pytest.mark.full] * (n != "joint")) for n in CASES])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = exported(request.param, tmp_path_factory.mktemp(request.param))
    verdict = add_onnx(folder, Export(onnx_int8_loss=0.5))
    assert re.match(r"ONNX gives the student's vectors \(worst cosine (1.0|0.99999)\d+\); its int8 form", verdict)
    return folder


def test_both_graphs_give_the_students_vectors(made: Path) -> None:
    refuse_damaged(made)
    assert {p.name for p in (made / "onnx").iterdir()} == {"model.onnx", "vision_model.onnx", "model_quantized.onnx"}
    student = Embedder.load(made)
    texts = OnnxModel(made / "onnx" / "model.onnx", student.tokenizer)
    images = OnnxModel(made / "onnx" / "vision_model.onnx", student.tokenizer).session
    assert student.vision_model is not None
    preprocessing = student.vision_model.preprocessing
    pictures = [Image.new("RGB", (40, 30), "red"), Image.radial_gradient("L").convert("RGB")]
    levels = np.stack([preprocessing.prepare(one) for one in pictures])
    pixels = np.asarray(preprocessing.normalise(levels), np.float32).transpose(0, 3, 1, 2)
    for dim, suffix in ((12, ""), (24, "_24"), (8, "_8")):
        [vectors] = texts.vectors(sentences(3), [f"sentence_embedding{suffix}"])
        np.testing.assert_allclose(vectors, student.encode(sentences(3), dim=dim), atol=5e-6)
        [vectors] = images.run([f"image_embeds{suffix}"], {"pixel_values": pixels})
        np.testing.assert_allclose(vectors, student.encode(pictures, dim=dim), atol=5e-6)


def test_a_wrong_graph_of_images_is_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported("joint", tmp_path)
    before = files(folder)

    make = onnx_folder._make_graphs

    def of_other_ids(folder: Path, place: Path, embedder: Embedder, *settings) -> None:
        other, vision = copy(embedder), embedder.vision_model
        assert vision is not None
        other.vision_model = dataclasses.replace(vision, alone=(*vision.alone[:-1], vision.end_id))
        make(folder, place, other, *settings)

    monkeypatch.setattr(onnx_folder, "_make_graphs", of_other_ids)
    with pytest.raises(UserError, match="vectors of images differ from the student's"):
        add_onnx(folder, Export(onnx_int8_loss=None))
    assert files(folder) == before
