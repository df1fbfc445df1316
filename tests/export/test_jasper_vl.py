"""A folder for texts and images: sentence-transformers and transformers load it, and give what its parts give."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jasper_jax.embedder import Embedder
from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.safetensors import TensorFile
from jasper_jax.encoders.weights import load_params
from jasper_jax.export.check import check_folder
from jasper_jax.export.own_code import refuse_other_code
from jasper_jax.recipe.config import Export
from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.encoder import vision_from_config
from jasper_jax.vision.images import open_image
from jasper_jax.vision.preprocess import default_for
from tests.export.vision_cases import CASES, Case
from tests.export.vision_students import DIMS, inputs, parts_of

pytest.importorskip("torch")
pytest.importorskip("PIL")

pytestmark = pytest.mark.usefixtures("quick_programs")


# CLIP's encoder is test_vision_parity's, and its projector is DINOv2's here.
@pytest.fixture(scope="module", params=[pytest.param(n, marks=[pytest.mark.full] * (n == "clip")) for n in CASES])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def seen(case: Case) -> dict:
    return case.torch()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_texts_images_and_mixtures_at_every_dimension(case: Case, seen: dict) -> None:
    vectors = seen["vectors"]
    for kind in ("query", "passage"):
        for dim in DIMS:
            assert vectors[f"{kind}/{dim}"].shape == (7, dim)
            assert cosines(vectors[f"{kind}/{dim}"], vectors[f"reference/{kind}/{dim}"]).min() >= 0.99999
            np.testing.assert_allclose(np.linalg.norm(vectors[f"{kind}/{dim}"], axis=1), 1.0, atol=1e-5)
    # Unlike inputs have unlike vectors: the comparison above is not one of constants.
    assert np.abs(np.triu(cosines(vectors["query/24"][:, None], vectors["query/24"][None]), 1)).max() < 0.999999
    np.testing.assert_allclose(vectors["alone"], vectors["of many"], atol=1e-5)
    np.testing.assert_allclose(vectors["resaved"], vectors["query/8"], atol=1e-5)


def test_the_jax_student_gives_the_same_image_vectors(case: Case, seen: dict) -> None:
    given = [parts_of(one) for one in inputs(case.place / "pictures")]
    from jasper_jax.vision.images import open_image

    levels = np.stack([case.vision_model.preprocessing.prepare(open_image(given[i][0], "test")) for i in (1, 4)])
    pooled = case.student.pooled_images(case.params, levels)
    ours = np.asarray(case.student.project(case.params, pooled, ["fc1"])["fc1"])
    assert cosines(ours, seen["vectors"]["passage/24"][[1, 4]]).min() >= 0.99999


def test_loading_misses_nothing_and_names_nothing_unknown(seen: dict) -> None:
    assert seen["loading"] == {}


def test_a_text_encoder_leaves_the_vision_part_out(seen: dict) -> None:
    assert not seen["vision built"]
    expected = seen["vectors"]["passage/12"][[0, 3]]
    np.testing.assert_allclose(seen["vectors"]["text encoder"], expected, atol=1e-5)
    assert "not support image" in seen["text encoder refused image"] or "image" in seen["text encoder refused image"]
    assert "inputs[1]" in seen["text encoder refused item"]


def test_refusals_name_the_input(seen: dict) -> None:
    said = seen["refused"]
    assert "inputs[2]" in said["type"]
    assert "'video'" in said["type"]
    assert "inputs[1]" in said["number"]
    assert "inputs[0]" in said["content"]
    assert "inputs[1]" in said["empty"]
    assert "inputs[0]" in said["mark"]
    assert "inputs[2]" in said["long"]
    assert "does not fit" in said["long"]


def test_it_is_a_text_teacher_again(case: Case, seen: dict) -> None:
    texts = [one for one in inputs(case.place / "pictures") if isinstance(one, str)]
    where = [i for i, one in enumerate(inputs(case.place / "pictures")) if isinstance(one, str)]
    for folder in (case.folder, Path(seen["resaved"])):
        embedder = Embedder.load(folder)
        assert embedder.dims == sorted(DIMS)
        for kind in ("query", "passage"):
            for dim in DIMS:
                ours = embedder.encode(texts, kind=kind, dim=dim)
                assert cosines(ours, seen["vectors"][f"{kind}/{dim}"][where]).min() >= 0.99999
    assert embedder.default_dim == 8  # saved again by a model loaded at 8
    assert Embedder.load(case.folder).default_dim == 12


def test_read_back_it_takes_images(case: Case, seen: dict) -> None:
    embedder = Embedder.load(case.folder, image_root=case.place / "pictures")
    for kind in ("query", "passage"):
        for dim in DIMS:
            ours = embedder.encode(inputs(case.place / "pictures"), kind=kind, dim=dim)
            assert cosines(ours, seen["vectors"][f"{kind}/{dim}"]).min() >= 0.99999


def test_its_parts_are_read_back(case: Case) -> None:
    refuse_other_code(case.folder)
    folder = read_model_folder(case.folder)
    part = folder.vision
    assert part is not None
    assert (part.tokens, part.image_token) == (case.vision_model.tokens, "<|jasper_img_token|>")
    tower = vision_from_config(part.hf_config)
    assert tower.config == case.vision_model.encoder.config
    for encoder, ours in ((tower, case.params["vision"]), (case.student.encoder, case.params["encoder"])):
        back = load_params(case.folder, encoder)
        assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), back, ours))
    if case.vision_model.projector != "none":
        assert part.projector is not None
        np.testing.assert_array_equal(part.projector[0], case.params["projector"]["kernel"])
    else:
        assert part.projector is None


def test_half_precision_and_public_names(tmp_path: Path) -> None:
    case = Case("siglip", tmp_path, "float16")
    tensors = TensorFile(case.folder / "model.safetensors")
    assert {x.dtype for x in tensors.values()} == {np.dtype(np.float16)}
    named = {"model.embed_tokens.weight", "vector_linear_12.bias", "vision_model.vision_model.post_layernorm.weight"}
    assert named <= set(tensors)
    np.testing.assert_array_equal(tensors["vector_linear_12.weight"], tensors["vector_linear_24.weight"][:12])
    assert json.loads((case.folder / "config.json").read_text())["dtype"] == "float16"


def test_the_export_is_compared_with_images_and_mixtures(case: Case, tmp_path: Path) -> None:
    trained = case.trained(Export())
    said = check_folder(case.folder, trained)
    assert "sentence-transformers loads it; vectors agree at 24, 12, 8 dimensions" in said
    if case.vision_model.tokens == 9:
        shutil.copytree(case.folder, tmp_path / "other")
        other = dataclasses.replace(case.vision_model, preprocessing=default_for("clip_vision_model").with_size(28))
        trained = dataclasses.replace(trained, student=dataclasses.replace(case.student, vision_model=other))
        with pytest.raises(UserError, match="differ from the student's"):
            check_folder(tmp_path / "other", trained)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_grey_of_16_bits_is_read_alike_at_every_level(dtype: type) -> None:
    pytest.importorskip("sentence_transformers")
    from PIL import Image

    from jasper_jax.export.remote.sentence_jasper_vl import opened

    image = Image.fromarray(np.arange(1 << 16, dtype=dtype).reshape(256, 256))
    np.testing.assert_array_equal(np.asarray(opened(image)), np.asarray(open_image(image, "levels")))
