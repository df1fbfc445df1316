"""The exported folder: loads in sentence-transformers at every dimension, can teach again, and is never half there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from jasper_jax.checkpoints.export_marker import checksums, read_marker, write_marker
from jasper_jax.commands.distil import run_all
from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.evaluation import from_json
from jasper_jax.export import check, model_card, sentence_transformers
from jasper_jax.export.card_metadata import nested_dims
from jasper_jax.export.model import TrainedStudent
from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from jasper_jax.student.dimensions import providers
from jasper_jax.student.heads import HeadShape
from tests.tiny import recipe, sentences
from tests.training.runs import export

pytestmark = pytest.mark.usefixtures("quick_programs")

STAGE = {"steps": 2, "batch_size": 16, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("export")
    chosen = recipe(
        place,
        stages=[{"stage": 3, **STAGE}],
        training={"shapes": 1, "evaluate_every": None},
        heads={
            "fc1": {"dim": "teachers", "nested": [12, 8], "init": "ridge"},
            "fc2": {"dim": 8},
            "fc3": {"dim": 6, "bias": False},
        },
        student={"model": str(place / "student"), "layers": [2, 0], "prompts": {"query": "what is "}},
    )
    run_all(chosen)
    return Run(chosen, progress=False)


def test_sentence_transformers_gives_the_vectors_of_jax_at_every_dimension(run: Run, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "model"
    shutil.copytree(run.folder / "export", folder)
    texts = sentences(20, seed=5)
    ours = Embedder.load(folder)
    assert ours.dims == [6, 8, 12, 24]
    for dim in ours.dims:
        modules = json.loads((folder / "modules.json").read_text())
        modules[2]["path"] = f"2_Dense_{dim}"
        (folder / "modules.json").write_text(json.dumps(modules))
        theirs = SentenceTransformer(str(folder), device="cpu")
        for kind in ("query", "passage"):
            expected = theirs.encode(texts, prompt_name=kind)
            np.testing.assert_allclose(ours.encode(texts, kind=kind, dim=dim), expected, atol=2e-6)
            np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1.0, atol=1e-6)


def test_a_separate_head_wins_and_the_recipe_may_choose(run: Run, tmp_path: Path) -> None:
    assert json.loads((run.folder / "export" / "jasper.json").read_text())["dims"] == {
        "24": "fc1", "12": "fc1", "8": "fc2", "6": "fc3"
    }  # fmt: skip
    chosen = run.recipe.model_copy(update={"export": run.recipe.export.model_copy(update={"dims": {8: "fc1"}})})
    folder, _ = export(Run(chosen, progress=False), tmp_path / "out")
    assert promised(folder) == [24, 12, 8]
    refuse_wrong_cuts(folder, Embedder.load(folder).encode(sentences(5), dim=24))


def promised(folder: Path) -> list[int] | None:
    """The dimensions to which servers may cut."""
    config = json.loads((folder / "config.json").read_text())
    assert config.get("is_matryoshka", False) == ("matryoshka_dimensions" in config)
    return config.get("matryoshka_dimensions")


def refuse_wrong_cuts(folder: Path, default: np.ndarray) -> None:
    """What servers do with vectors of ``sentences(5)``, at every promised dimension, beside the student's own."""
    student = Embedder.load(folder)
    for dim in promised(folder) or ():
        cut = default[:, :dim] / np.linalg.norm(default[:, :dim], axis=1, keepdims=True)
        np.testing.assert_allclose(cut, student.encode(sentences(5), dim=dim), atol=1e-5)


def test_servers_may_cut_where_that_was_trained_and_nowhere_else(run: Run) -> None:
    from sentence_transformers import SentenceTransformer

    folder = run.folder / "export"
    assert promised(folder) == [24, 12], "8 dimensions are fc2's"
    default = SentenceTransformer(str(folder), device="cpu").encode(sentences(5))
    refuse_wrong_cuts(folder, default)
    eight = default[:, :8] / np.linalg.norm(default[:, :8], axis=1, keepdims=True)
    assert np.abs(eight - Embedder.load(folder).encode(sentences(5), dim=8)).max() > 0.1
    assert "cut to their first 12 and" in (folder / "README.md").read_text()


def test_int8_vectors_with_ranges_of_held_out_texts(run: Run, tmp_path: Path, monkeypatch) -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    with pytest.raises(UserError, match="'int8', which needs the ranges of 24 dimensions"):  # 32 texts are too few
        Embedder.load(run.folder / "export").encode("a map", precision="int8")
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("jasper_jax.student.ranges.LEAST_TEXTS", 30)
    folder, _ = export(run, tmp_path / "out")
    written = json.loads((folder / "vector_ranges.json").read_text())
    assert (written["texts"], list(written["ranges"])) == (32, ["24", "12", "8", "6"])
    model, texts = Embedder.load(folder), sentences(20, seed=5)
    for dim in (24, 8):
        floats, ranges = model.encode(texts, dim=dim), np.array(written["ranges"][str(dim)])
        for precision in ("int8", "uint8", "binary", "ubinary"):
            codes = model.encode(texts, dim=dim, precision=precision)
            np.testing.assert_array_equal(codes, quantize_embeddings(floats, precision, ranges=ranges))
            assert len(np.unique(codes, axis=0)) > 1
    alone = model.encode(texts[3], dim=24, precision="int8")
    assert np.abs(alone.astype(int) - model.encode(texts, precision="int8")[3]).max() <= 1, "rounding of the encoder"
    held_out = run.data.texts().read("held_out", range(32))
    codes = model.encode([t.text for t in held_out], [t.kind for t in held_out], dim=8, precision="int8")
    assert np.abs(codes.astype(int)).max() == 126
    export(run, folder)  # such a folder may be replaced


def test_half_precision_and_no_normalize(run: Run, tmp_path: Path) -> None:
    settings = run.recipe.export.model_copy(update={"dtype": "float16", "normalize": False, "dim": 12})
    folder, verdict = export(Run(run.recipe.model_copy(update={"export": settings}), progress=False), tmp_path / "out")
    assert "vectors agree" in verdict
    modules = json.loads((folder / "modules.json").read_text())
    assert [m["type"].split(".")[-1] for m in modules] == ["Transformer", "Pooling", "Dense"]
    assert modules[2]["path"] == "2_Dense_12"
    assert promised(folder) is None
    assert "were not trained to be cut" in (folder / "README.md").read_text()


def test_onnx_files_come_with_the_recipe(run: Run, tmp_path: Path, monkeypatch) -> None:
    def add(folder: Path, settings, texts) -> str:
        assert settings.onnx
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model.onnx").write_bytes(b"")
        write_marker(folder, {**read_marker(folder), "sha256": checksums(folder)})
        return f"compared on {len(texts)} texts"

    monkeypatch.setattr(sentence_transformers, "refuse_without_packages", lambda: None)
    monkeypatch.setattr(sentence_transformers, "add_onnx", add)
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("jasper_jax.student.ranges.LEAST_TEXTS", 30)
    settings = run.recipe.export.model_copy(update={"onnx": True})
    with_onnx = Run(run.recipe.model_copy(update={"export": settings}), progress=False)
    for _ in range(2):  # the second replaces the first
        folder, verdict = export(with_onnx, tmp_path / "out")
        assert verdict.endswith("; compared on 32 texts")
    assert (
        "`sentence_embedding_{dim}` of the others; `onnx/model_quantized.onnx` is" in (folder / "README.md").read_text()
    )


def test_without_torch_the_files_are_read_back_and_it_says_so(run: Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
    _, verdict = export(run, tmp_path / "out")
    assert "without torch" in verdict


def test_a_mismatch_is_refused_and_nothing_is_put_in_place(run: Run, tmp_path: Path, monkeypatch) -> None:
    honest = check._in_jax
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(check, "_in_jax", lambda *a: {k: v[:, ::-1] for k, v in honest(*a).items()})
    with pytest.raises(UserError, match="differ from the student's"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_refused_and_an_earlier_export_replaced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not an earlier export"):
        export(run, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    monkey = {p.name: p.read_bytes() for p in (run.folder / "export").iterdir() if p.is_file()}
    export(run, run.folder / "export")
    assert {p.name: p.read_bytes() for p in (run.folder / "export").iterdir() if p.is_file()} == monkey


def test_an_exported_folder_is_the_next_teacher_and_student(run: Run, tmp_path: Path) -> None:
    folder = str(run.folder / "export")
    heads = {"fc1": {"dim": "teachers"}}
    teachers = [{"name": "old", "model": folder, "dim": 12}]
    again = recipe(
        tmp_path, heads=heads, teachers=teachers, student={"model": folder}, stages=[{"stage": 1, **STAGE}],
        training={"shapes": 1, "evaluate_every": None},
    )  # fmt: skip
    run_all(again)
    assert Embedder.load(tmp_path / "run" / "export").dims == [12]
    assert promised(tmp_path / "run" / "export") is None, "that of the folder it started from holds no more"


def test_the_card_says_where_the_model_comes_from(run: Run) -> None:
    card = (run.folder / "export" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: sentence-transformers" in card
    assert "2_Dense_24" in card
    assert "| stage-3 |" in card
    assert "## Scores" in card
    assert "Student: `student`, layers 2, 0; mean pooling." in card
    assert str(run.folder.parent) not in card, "base names only"
    assert "Pooling(" not in card
    assert 'Prompts: query `"what is "`; passage none.' in card
    assert "matryoshka" in card
    assert "Vectors of 24 dimensions may be cut to the first 12, 8 components." in card
    assert "Least versions: sentence-transformers 3.4.1, transformers 4.48." in card


def test_the_folder_describes_itself(run: Run) -> None:
    folder = run.folder / "export"
    tokenizer, prompts, marker = (
        json.loads((folder / name).read_text())
        for name in ("tokenizer_config.json", "config_sentence_transformers.json", "jasper.json")
    )
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_max_length"] == 32, "the student's limit, not that of the source's tokenizer"
    assert not {"do_lower_case", "add_eos_token"} & set(tokenizer)
    assert prompts["prompts"] == {"query": "what is ", "passage": "", "document": ""}
    assert "requirements" not in prompts, "every version reads this one right"
    assert str(run.folder.parent) not in json.dumps(marker)
    assert marker["recipe"]["student"]["model"] == "student"


def test_loading_prints_nothing_about_missing_weights(run: Run, caplog: pytest.LogCaptureFixture, capfd) -> None:
    import transformers

    transformers.utils.logging.enable_propagation()
    transformers.AutoModel.from_pretrained(run.folder / "export")
    transformers.utils.logging.disable_propagation()
    assert "pooler" not in caplog.text + capfd.readouterr().err


@pytest.mark.parametrize(
    ("default", "dims", "nested", "said"),
    [
        (24, (24, 12), [12], "may be cut to the first 12 components"),
        (8, (8,), [], "must not be cut"),
        (12, (24, 12), [], "must not be cut"),
    ],
)
def test_the_card_says_what_may_be_cut(default: int, dims: tuple[int, ...], nested: list[int], said: str) -> None:
    heads = {"fc": HeadShape(dims[0], dims, bias=True)}
    trained = cast(
        "TrainedStudent",
        SimpleNamespace(default=default, served=providers(heads, {}), student=SimpleNamespace(heads=heads)),
    )
    assert nested_dims(trained) == nested
    assert said in model_card._cutting(trained)


def test_the_evaluation_holds_everybody(run: Run) -> None:
    rows = from_json(run.folder / "evaluation.json").rows
    names = [(r.provider, r.head, r.dim) for r in rows]
    assert names[:3] == [("teacher a", None, 16), ("teacher b", None, 8), ("teachers concatenated", None, 24)]
    assert ("teachers concatenated, SVD", None, 12) in names
    assert ("student before training", "pooled", 16) in names
    assert [n[1:] for n in names if n[0] == "after stage-3"] == [
        ("fc1", 24),
        ("fc1", 12),
        ("fc1", 8),
        ("fc2", 8),
        ("fc3", 6),
    ]
    assert all(r.agreement is not None for r in rows)


def test_shortening_needs_no_teacher_and_leaves_the_encoder_alone(tmp_path: Path) -> None:
    chosen = recipe(
        tmp_path,
        teachers=[],
        student={"model": str(tmp_path / "student")},
        heads={"short": {"dim": 6, "nested": [3], "target": "pooled", "init": "ridge"}},
        stages=[{"name": "shorten", "train": ["heads/**"], "heads": ["short"], **STAGE}],
        training={"shapes": 1, "evaluate_every": None},
    )
    run_all(chosen)
    from safetensors.numpy import load_file

    before, after = (load_file(tmp_path / p / "model.safetensors") for p in ("student", "run/export"))
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    assert not (tmp_path / "run" / "vectors").exists()
    assert Embedder.load(tmp_path / "run" / "export").dims == [3, 6]
