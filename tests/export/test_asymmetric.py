"""``asymmetric/``: queries by the student, documents by a teacher, as plain sentence-transformers loads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jasper_jax.commands.distil import run_all
from jasper_jax.embedder import Embedder
from jasper_jax.encoders.dense import dense
from jasper_jax.export import check
from jasper_jax.export.asymmetric import FOLDER, copy_documents, documents_of, query_encoder_section
from jasper_jax.export.own_code import refuse_other_code
from jasper_jax.export.sentence_transformers import refuse_foreign
from jasper_jax.recipe.config import Export, Teacher
from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from jasper_jax.student.spaces import Space
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.teachers.vectors import normalize_rows
from tests.pages import run_group
from tests.st_folders import write_dense_folder
from tests.tiny import recipe, sentences, write_model
from tests.training.runs import export

pytestmark = pytest.mark.usefixtures("quick_programs")

SPACES = [Space("fc1", ("a", "b"), 0, 24), Space("fc1", ("a",), 0, 16), Space("fc1", ("b",), 16, 24)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of two teachers; documents go to b, which has a prompt for passages and is cut short in the recipe."""
    place = tmp_path_factory.mktemp("asymmetric")
    model = {"name": "b", "model": str(place / "teacher-b"), "max_length": 12, "prompts": {"passage": "a map of "}}
    chosen = recipe(
        place,
        teachers=[{"name": "a", "model": str(place / "teacher-a")}, model],
        stages=[{"stage": 1, "steps": 1, "batch_size": 16, "learning_rate": 1e-2}],
        heads={"fc1": {"dim": "teachers", "init": "ridge"}},
        training={"shapes": 1, "evaluate_every": None},
        student={"model": str(place / "student"), "prompts": {"query": "what is "}},
        export={"asymmetric": "b"},
    )
    run_all(chosen)
    return Run(chosen, progress=False)


def test_plain_sentence_transformers_embeds_queries_and_documents(run: Run, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = run.folder / "export"
    model = SentenceTransformer(str(folder / FOLDER), device="cpu")
    texts = [*sentences(8, seed=5), " ".join(sentences(6, seed=6))]
    student = Embedder.load(folder)
    pooled = np.asarray(dense(student.pooled(texts, "query"), *student.output(24)))
    queries, documents = model.encode_query(texts), model.encode_document(texts)
    np.testing.assert_allclose(queries, normalize_rows(pooled[:, 16:]), atol=1e-4)
    teacher = Embedder.load(run.teachers[1].path, max_length=12)
    np.testing.assert_allclose(documents, teacher.encode([f"a map of {text}" for text in texts]), atol=1e-4)
    stored = run.data.texts().read("held_out", range(32))
    passages = [i for i, row in enumerate(stored) if row.kind == "passage"]
    vectors = run.vectors.view(run.data.texts()).stores[1].read("held_out", passages)
    np.testing.assert_allclose(model.encode_document([stored[i].text for i in passages]), vectors, atol=1e-3)
    with pytest.raises(ValueError, match="Could not determine route"):  # neither model is right for every text
        model.encode(texts)


def test_the_page_s_example_runs_as_it_stands(run: Run, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "query_encoder").symlink_to(run.folder)
    monkeypatch.chdir(tmp_path)
    assert run_group("asymmetric")["queries"].shape == (1, 8)
    assert "tensor" in capsys.readouterr().out


def test_the_folder_and_its_card_name_no_place_of_this_machine(run: Run) -> None:
    folder = run.folder / "export"
    refuse_other_code(folder)
    for file in (*(folder / FOLDER).rglob("*.json"), folder / FOLDER / "README.md"):
        assert str(run.folder.parent) not in file.read_text(), file
    card = (folder / "README.md").read_text()
    assert "components 16 to 23 are in the space of `teacher-b`" in card
    assert f"path/to/this/folder/{FOLDER}" in card
    assert (
        f"{FOLDER}/document_0_Transformer/model.safetensors"
        in json.loads((folder / "jasper.json").read_text())["sha256"]
    )


def test_a_teacher_whose_folder_gives_other_vectors_is_refused(run: Run, tmp_path: Path, monkeypatch) -> None:
    other = dict.fromkeys(("query/8", "passage/8"), np.ones((len(check.SAMPLE), 8)))
    monkeypatch.setattr(check, "_in_torch", lambda *given: other)
    monkeypatch.setattr("jasper_jax.export.sentence_transformers.check_folder", lambda *given: "checked")
    with pytest.raises(UserError, match=rf"{FOLDER}: the exported folder's vectors differ"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(check, "_has_torch", lambda: False)
    assert f"{FOLDER}/ was not loaded" in export(run, tmp_path / "out")[1]
    refuse_foreign(run.folder / "export")  # may be replaced
    (run.folder / "export" / FOLDER / "notes.txt").write_text("years of work")
    with pytest.raises(UserError, match="notes.txt: no export wrote this"):
        refuse_foreign(run.folder / "export")


@pytest.mark.parametrize("layout", ["of transformers alone", "with Dense steps, without Normalize"])
def test_every_layout_of_a_teacher_s_folder(layout: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = write_model(tmp_path / "teacher", hidden=8)
    types = "sentence_transformers.models"
    if "Dense" in layout:
        for dim in (6, 4):
            write_dense_folder(folder / f"2_Dense_{dim}", 8, dim, seed=dim)
        steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense_6", "Dense")]
        modules = [{"idx": i, "name": str(i), "path": p, "type": f"{types}.{k}"} for i, (p, k) in enumerate(steps)]
        (folder / "modules.json").write_text(json.dumps(modules))
        teacher = TeacherModel(Teacher(name="a", model=str(folder), dim=4))
    else:
        (folder / "modules.json").unlink()
        shutil.rmtree(folder / "1_Pooling")
        teacher = TeacherModel(Teacher(name="a", model=str(folder)))
    (folder / "pytorch_model.bin").write_bytes(b"not copied")
    modules = copy_documents(tmp_path / "out", teacher)
    assert not list((tmp_path / "out").rglob("*.bin"))
    listed = [{"idx": i, "name": str(i), "path": p, "type": kind} for i, (p, kind) in enumerate(modules.items())]
    (tmp_path / "out" / "modules.json").write_text(json.dumps(listed))
    found = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(sentences(4))
    np.testing.assert_allclose(found, teacher.encoder()(sentences(4), ["passage"] * 4), atol=1e-5)


PRIVATE = "BEGIN PRIVATE KEY"
PLANTED = [
    lambda model, private: (model / "vocab.txt").symlink_to(private / "key"),
    lambda model, private: (model / "1_Pooling" / "some_config.json").symlink_to(private / "key"),
    lambda model, private: (shutil.rmtree(model / "1_Pooling"), (model / "1_Pooling").symlink_to(private)),
    lambda model, private: (model / "2_Dense_8").symlink_to(private),  # in the place of the listed 2_Dense
    lambda model, private: list_module(model, "sentence_transformers.models.Dense", "../private"),
    lambda model, private: list_module(model, "sentence_transformers.models.Dense", str(private)),
    lambda model, private: list_module(model, "subprocess.Popen", ""),
    lambda model, private: list_module(model, "sentence_transformers.SentenceTransformer", ""),
]


def list_module(model: Path, kind: str, path: str) -> None:
    modules = json.loads((model / "modules.json").read_text())
    (model / "modules.json").write_text(json.dumps([*modules, {"idx": 9, "name": "9", "path": path, "type": kind}]))


@pytest.mark.parametrize("plant", PLANTED)
def test_of_a_teacher_s_folder_only_its_own_files_are_copied(plant, tmp_path: Path) -> None:
    """``backend: torch``: nothing else reads such a folder before it is copied."""
    folder = write_model(tmp_path / "teacher", hidden=8)
    list_module(folder, "sentence_transformers.models.Dense", "2_Dense")
    private = tmp_path / "private"
    private.mkdir()
    (private / "key").write_text(PRIVATE)
    (folder / "vocab.txt").unlink(missing_ok=True)
    plant(folder, private)
    teacher = TeacherModel(Teacher(name="a", model=str(folder), backend="torch", dim=8))
    with pytest.raises(
        UserError, match="outside its folder|is not a folder inside|is no module of sentence_transformers"
    ):
        copy_documents(tmp_path / "out", teacher)
    copied = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in copied if PRIVATE in path.read_text("utf-8", errors="replace")]


def test_of_a_module_s_folder_only_files_of_modules_and_no_names_of_code_or_places(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "teacher", hidden=8)
    (folder / ".git").mkdir()
    planted = {".git/config": "url = https://me:hf_token@huggingface.co/a/b", ".env": "TOKEN=hf_token"}
    planted["1_Pooling/notes.txt"] = planted["1_Pooling/pytorch_model.bin"] = "hf_token"
    for name, content in planted.items():
        (folder / name).write_text(content)
    for path in (".git", "."):
        list_module(folder, "sentence_transformers.models.Normalize", path)
    for name in ("config.json", "tokenizer_config.json"):
        named = {
            "_name_or_path": "/home/me/hf_token",
            "auto_map": {"AutoModel": "evil/code--m.M"},
            "x_file": "/root/x/y",
            "vocab": "../hf_token",
            "allow_all_kernels": True,
        }
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **named, "nested": [named, {"pad_token": "/"}]}))
    teacher = TeacherModel(Teacher(name="a", model=str(folder), backend="torch", dim=8))
    copy_documents(tmp_path / "out", teacher)
    copied = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert not [name for name, data in copied.items() for word in (b"hf_token", b"evil", b"/root") if word in data]
    assert not {"config", "notes.txt", "pytorch_model.bin"} & set(copied)
    tokenizer = json.loads(copied["tokenizer_config.json"])
    assert tokenizer["nested"] == [{}, {"pad_token": "/"}]
    assert tokenizer["pad_token"] == "[PAD]"


def teachers(*models: str | None) -> list[TeacherModel]:
    return [TeacherModel(Teacher(name=name, model=model, dim=8)) for name, model in zip("ab", models)]


@pytest.mark.parametrize(
    ("asked", "spaces", "models", "images", "message"),
    [
        (True, SPACES, ("m", "n"), False, "documents need one model, the recipe has the teachers a, b; name one"),
        ("c", SPACES, ("m", "n"), False, "'c' is not a teacher; expected true, false or one of a, b"),
        (True, [], ("m",), False, "no trained head copies the teachers' own vectors"),
        (True, SPACES, (None,), False, "the vectors of teacher a are imported, so there is no model for documents"),
        (True, SPACES, ("m",), True, "the student of images needs its own code"),
    ],
)
def test_what_cannot_be_a_router_is_refused(asked, spaces, models, images, message: str) -> None:
    with pytest.raises(UserError, match=f"export.asymmetric: {message}"):
        documents_of(Export(asymmetric=asked), spaces, teachers(*models), images=images)
    assert documents_of(Export(), spaces, teachers(*models), images=images) is None


def test_the_space_of_the_teacher_that_is_asked_for() -> None:
    both = teachers("m", "n")
    for name, space in (("a", SPACES[1]), ("b", SPACES[2])):
        found = documents_of(Export(asymmetric=name), SPACES, both, images=False)
        assert found is not None
        assert (found.teacher.name, found.space) == (name, space)
    alone = documents_of(Export(asymmetric=True), [Space("fc1", ("a",), 0, 8)], both[:1], images=False)
    assert alone is not None
    assert alone.space.dim == 8


def test_the_card_says_in_which_space_of_imported_vectors_queries_answer(tmp_path: Path) -> None:
    chosen = recipe(tmp_path, teachers=[{"name": "paid-api", "dim": 8}])
    said = "\n".join(query_encoder_section(chosen, [Space("fc1", ("paid-api",), 0, 8)], None))
    assert "Vectors of 8 dimensions are in the space of `paid-api` (imported vectors)" in said
    assert FOLDER not in said


def test_the_card_says_how_weighted_teachers_are_concatenated(tmp_path: Path) -> None:
    both = [{"name": "a", "model": "m", "weight": 0.25}, {"name": "b", "model": "n"}]
    spaces = [Space("fc1", ("a", "b"), 0, 16), SPACES[1], SPACES[2]]
    said = "\n".join(query_encoder_section(recipe(tmp_path, teachers=both), spaces, None))
    assert "each vector normalised, multiplied by 0.5, 1, concatenated in this order" in said
    equal = [{**teacher, "weight": 3.0} for teacher in both]
    said = "\n".join(query_encoder_section(recipe(tmp_path, teachers=equal), spaces, None))
    assert "each vector normalised, concatenated in this order" in said
