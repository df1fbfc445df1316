"""The model of a recipe's teacher: found, described or imported, and read once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jasper_jax.assets.models import model_identity
from jasper_jax.encoders import folder as folders
from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.recipe.config import Teacher
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers import models as teachers
from jasper_jax.teachers.models import TeacherModel
from tests.tiny import sentences, write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", hidden=8)


def test_the_folder_and_the_weights_checksums_are_read_once(model: Path, monkeypatch) -> None:
    read, hashed = [], []
    steps = folders._steps
    monkeypatch.setattr(folders, "_steps", lambda path: (read.append(path), steps(path))[1])
    monkeypatch.setattr(teachers, "model_identity", lambda *given: (hashed.append(given), model_identity(*given))[1])
    teacher = TeacherModel(Teacher(name="a", model=str(model)))
    assert (read, teacher.name) == ([], "a")
    assert teacher.dim == teacher.spec.dim == 8
    assert teacher.spec.max_length == 32
    texts = sentences(3)
    vectors = teacher.encoder()(texts, ["query", "passage", "query"])
    np.testing.assert_array_equal(vectors, teacher.load().encode(texts, ["query", "passage", "query"]))
    assert (read, len(hashed)) == ([model], 1)


def test_imported_vectors_have_no_model() -> None:
    teacher = TeacherModel(Teacher(name="outside", dim=10))
    assert (teacher.source, teacher.dim, teacher.spec.teacher) == (None, 10, {"name": "outside", "id": "imported"})
    for use in (teacher.load, lambda: teacher.path):
        with pytest.raises(UserError, match="teachers.outside: no model is given, so its vectors must be imported"):
            use()
    with pytest.raises(UserError, match="teachers.outside.dim: vectors that are imported need their dimension here"):
        _ = TeacherModel(Teacher(name="outside")).dim


def test_a_published_model_is_described_only_where_that_is_asked(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    settings = Teacher(name="stella", model="NovaSearch/stella_en_400M_v5", dim=8192)
    described = TeacherModel(settings, describe=True)
    assert isinstance(described.source, ModelFolder)
    assert (described.source.described, described.dim) == (True, 8192)

    def nothing(*_, **__):
        raise UserError("would download")

    monkeypatch.setattr("jasper_jax.teachers.models.resolve_model", nothing)
    with pytest.raises(UserError, match="would download"):
        _ = TeacherModel(settings).source


def test_pytorch_reads_its_folder_itself(model: Path) -> None:
    (model / "modules.json").write_text("[]")  # nothing that is implemented here
    teacher = TeacherModel(Teacher(name="a", model=str(model), backend="torch", dim=8))
    assert (teacher.source, teacher.dim, teacher.spec.pooling) == (model, 8, "sentence-transformers")
