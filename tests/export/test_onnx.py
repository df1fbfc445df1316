"""The ONNX files of an export: the student's vectors, in every family, or nothing at all."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from jasper_jax.checkpoints.export_marker import MADE_BY, checksums, refuse_damaged, write_marker
from jasper_jax.embedder import Embedder
from jasper_jax.encoders.safetensors import write_safetensors
from jasper_jax.export import onnx_folder
from jasper_jax.export.model import write_json
from jasper_jax.export.onnx_folder import add_onnx
from jasper_jax.export.onnx_in_torch import write_graph
from jasper_jax.export.onnx_int8 import agreement_lost
from jasper_jax.export.onnx_session import OnnxModel
from jasper_jax.export.sentence_transformers import refuse_foreign
from jasper_jax.recipe.config import Export
from jasper_jax.runtime.errors import UserError
from tests.families import CASES, VARIANTS
from tests.tiny import sentences, write_model

pytestmark = pytest.mark.usefixtures("quick_programs")
needs_packages = pytest.mark.skipif(
    any(onnx_folder.importlib.util.find_spec(name) is None for name in ("onnxscript", "onnxruntime")),
    reason="the extra onnx is not installed",
)
DIMS = (12, 8)


def exported(folder: Path, model_type: str = "bert") -> Path:
    """A folder as ``jasper export`` writes it, of a student with random weights and two heads."""
    write_model(folder, model_type=model_type, layers=4 if "all local" in model_type else 2)
    rng = np.random.default_rng(0)
    for dim in DIMS:
        (folder / f"2_Dense_{dim}").mkdir()
        tensors = {"linear.weight": rng.normal(size=(dim, 16)).astype(np.float32), "linear.bias": np.ones(dim, "f4")}
        write_safetensors(folder / f"2_Dense_{dim}" / "model.safetensors", tensors)
        identity = "torch.nn.modules.linear.Identity"
        config = {"in_features": 16, "out_features": dim, "bias": True, "activation_function": identity}
        write_json(folder / f"2_Dense_{dim}" / "config.json", config)
    modules = json.loads((folder / "modules.json").read_text())
    dense = {"idx": 2, "name": "2", "path": "2_Dense_12", "type": "sentence_transformers.models.Dense"}
    normalize = {**modules[2], "idx": 3, "name": "3"}
    (folder / "modules.json").write_text(json.dumps([*modules[:2], dense, normalize]))
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "what is ", "passage": ""}})
    write_marker(folder, {"format": 1, "made_by": MADE_BY, "sha256": checksums(folder)})
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def differs(folder: Path, graph: Path) -> float:
    """The largest difference of the graph's vectors from the student's, at both dimensions, padded and alone."""
    student = Embedder.load(folder)
    model = OnnxModel(graph, student.tokenizer)
    texts = [*sentences(5), "a map", *([""] if len(student.tokenizer.encode([""])[0]) else []), "word " * 50]
    worst = 0.0
    for name, dim in {"sentence_embedding": 12, "sentence_embedding_8": 8}.items():
        expected = student.encode(texts, dim=dim)
        found = [*model.run(texts, [name]), *model.vectors(texts, [name], 1), *model.vectors(texts, [name], 3)]
        worst = max(worst, *(float(np.abs(vectors - expected).max()) for vectors in found))
    return worst


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with ONNX files, made as a user makes them."""
    folder = exported(tmp_path_factory.mktemp("onnx") / "model")
    before = files(folder)
    verdict = add_onnx(folder, Export(onnx_int8_loss=0.5))
    assert re.match(
        r"ONNX gives the student's vectors \(worst cosine (1.0|0.99999)\d+\); its int8 form agrees at 0", verdict
    )
    assert before.items() - files(folder).items() == {("jasper.json", before["jasper.json"])}
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy without ONNX files, for which the graph is not made again."""
    folder = exported(tmp_path / "model")

    def copy(_: Path, place: Path, *__: object) -> None:
        shutil.copyfile(made / "onnx" / "model.onnx", place / "model.onnx")

    monkeypatch.setattr(onnx_folder, "_make_graphs", copy)
    return folder


@needs_packages
def test_a_graph_gives_the_students_vectors_and_says_nothing_of_this_machine(made: Path) -> None:
    import onnx

    assert differs(made, made / "onnx" / "model.onnx") < 2e-6
    refuse_damaged(made)
    refuse_foreign(made)
    assert sorted(p.name for p in made.parent.iterdir()) == ["model"]
    assert {p.name for p in (made / "onnx").iterdir()} == {"model.onnx", "model_quantized.onnx"}
    content = (made / "onnx" / "model.onnx").read_bytes()
    assert b".py" not in content
    assert str(Path.home()).encode() not in content
    graph = onnx.load_from_string(content)
    assert graph.opset_import[0].version == 18
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.graph.output}
    assert shapes == {
        "last_hidden_state": ["batch", "sequence", 16],
        "sentence_embedding": ["batch", 12],
        "sentence_embedding_8": ["batch", 8],
    }


@needs_packages
def test_states_pass_through_the_modules_of_sentence_transformers(made: Path) -> None:
    """What ``backend="onnx"`` does: the graph's states, then Pooling, Dense and Normalize of the folder."""
    import torch
    from sentence_transformers import SentenceTransformer

    steps = list(SentenceTransformer(str(made), device="cpu"))[1:]
    student = Embedder.load(made)
    model, texts = OnnxModel(made / "onnx" / "model.onnx", student.tokenizer), sentences(4)
    mask = model.inputs(texts)["attention_mask"]
    features = {"token_embeddings": model.run(texts, ["last_hidden_state"])[0], "attention_mask": mask}
    features = {name: torch.tensor(value) for name, value in features.items()}
    for step in steps:
        features = step(features)
    np.testing.assert_allclose(features["sentence_embedding"].detach().numpy(), student.encode(texts), atol=2e-6)


@needs_packages
def test_int8_keeps_the_heads_in_float32_and_its_file_is_smaller(made: Path) -> None:
    import onnx

    student = Embedder.load(made)
    texts = sentences(30)
    model = OnnxModel(made / "onnx" / "model_quantized.onnx", student.tokenizer)
    [vectors] = model.vectors(texts, ["sentence_embedding"])
    expected = student.encode(texts)
    assert 1e-4 < np.abs(vectors - expected).max() < 0.2
    assert (vectors * expected).sum(axis=1).min() > 0.98
    graph = onnx.load(made / "onnx" / "model_quantized.onnx").graph
    heads = [tuple(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and 12 in t.dims]
    assert {(12, 16), (16, 12)} & set(heads)


@needs_packages
def test_what_fails_leaves_the_folder_as_it_was(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(copied)
    with pytest.raises(UserError, match=r"1 - Spearman 0\.\d+ on 48 texts, export.onnx_int8_loss allows 0\); raise it"):
        add_onnx(copied, Export(onnx_int8_loss=0))
    monkeypatch.setattr(onnx_folder, "LEAST_COSINE", 1.1)
    with pytest.raises(UserError, match="the ONNX model's vectors differ from the student's"):
        add_onnx(copied, Export())
    assert files(copied) == before
    assert [p.name for p in copied.parent.iterdir()] == ["model"]


@needs_packages
def test_files_are_replaced_and_int8_may_be_left_out(copied: Path) -> None:
    add_onnx(copied, Export(onnx_int8_loss=0.5))
    (copied / "onnx" / "model_O3.onnx").write_bytes(b"the user's own")
    assert "int8" not in add_onnx(copied, Export(onnx_int8_loss=None))
    assert sorted(p.name for p in (copied / "onnx").iterdir()) == ["model.onnx", "model_O3.onnx"]
    refuse_damaged(copied)
    (copied / "onnx" / "model.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"onnx/model.onnx: missing, or not as it was exported"):
        refuse_damaged(copied)


def test_agreement_lost_is_that_of_the_worst_dimension() -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    assert agreement_lost([vectors, vectors], [vectors, vectors * 2]) == pytest.approx(0)
    other = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    assert agreement_lost([vectors, vectors], [vectors, other]) > 0.5
    assert agreement_lost([vectors], [np.ones_like(vectors)]) == 2.0, "all vectors the same"


@needs_packages
@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # of the exporter, as in the process that runs it
@pytest.mark.parametrize("case", [*CASES, *VARIANTS])
def test_every_family(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.tiny.CASES", {**CASES, **VARIANTS})
    folder = exported(tmp_path / "model", case)
    if "dynamic rope" in case:  # its frequencies follow the longest text so far, which no graph can
        with pytest.raises(Exception, match="Failed to export the model"):
            write_graph(folder, tmp_path / "model.onnx", DIMS, 18)
        return
    write_graph(folder, tmp_path / "model.onnx", DIMS, 18, inline=1000)
    assert (tmp_path / "model.onnx_data").stat().st_size > 1000
    assert differs(folder, tmp_path / "model.onnx") < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model: is a folder; expected a recipe, or --onnx to add ONNX files to an exported folder"),
        (["--onnx", "-o", "out"], "model: is a folder, whose ONNX files are written into it; leave out --output"),
        (["--onnx", "export.onnx_opset=11"], "export.onnx_opset: 11 is not allowed: input should be greater than or"),
        (["--onnx", "export.dim=8"], "override 'export.dim=8': of an exported folder only export.onnx_opset and"),
        (["--onnx", "export.onnx_int8_loss=x"], "export.onnx_int8_loss: 'x' is not allowed: input should be a valid"),
    ],
)
def test_a_folder_and_settings_that_do_not_go_together(refused, tmp_path: Path, arguments: list[str], message) -> None:
    folder = exported(tmp_path / "model")
    refused(message, "export", folder, *arguments)


def test_a_folder_that_cannot_have_onnx_files(refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported(tmp_path / "model")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("onnx") else name)
    refused("export.onnx: needs onnx, onnxscript, onnxruntime, not installed; pip install", "export", folder, "--onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    plain = write_model(tmp_path / "plain")
    refused("plain: not an exported folder (no jasper.json); give one that `jasper export`", "export", plain, "--onnx")
    (folder / "config.json").write_text("{}")
    refused("config.json: missing, or not as it was exported (sha256 differs)", "export", folder, "--onnx")


def place_link(folder: Path, mine: Path) -> None:
    (folder / "onnx").symlink_to(mine.parent)


def place_named(name: str):
    def place(folder: Path, mine: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        mine.rename(folder / name)

    return place


OTHERS = [
    place_named("onnx/model.onnx"),
    place_named("onnx/model_quantized.onnx_data"),
    place_named("../.model.onnx.partial/notes.txt"),
    place_named("../.model.onnx.partial"),
    place_named("onnx"),
    place_link,
    lambda folder, mine: (folder.parent / ".model.onnx.partial").symlink_to(mine.parent),
]


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export, for which the graph is made at once, without any package."""
    monkeypatch.setattr(onnx_folder, "refuse_without_packages", lambda: None)
    monkeypatch.setattr(onnx_folder, "_write", lambda place, *_: str((place / "model.onnx").write_bytes(b"new")))
    return exported(tmp_path / "model")


@pytest.mark.parametrize("place", OTHERS)
def test_files_of_others_are_neither_replaced_nor_deleted(place, ready: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.onnx").write_text("years of work")
    place(ready, tmp_path / "mine" / "model.onnx")
    before = files(tmp_path)
    with pytest.raises(UserError, match="no export wrote this|is a link or a file where a folder is written"):
        add_onnx(ready, Export())
    assert files(tmp_path) == before
    assert b"years of work" in before.values()


def test_what_a_killed_command_left_is_replaced(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = ready.parent / ".model.onnx.partial"
    for place in (partial, ready / "onnx"):
        place.mkdir()
        (place / "model.onnx").write_text("half")
    (partial / "model-inferred.onnx").write_text("half")
    monkeypatch.chdir(ready)
    add_onnx(Path(), Export())  # of the current folder
    assert (ready / "onnx" / "model.onnx").read_bytes() == b"new"
    refuse_damaged(ready)
    add_onnx(ready, Export())  # and again, what is its own

    def fail(folder: Path, marker: dict) -> None:
        write_marker(folder, marker)
        if (folder / "onnx" / "model.onnx").exists() and "onnx/model.onnx" in marker["sha256"]:
            raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(onnx_folder, "write_marker", fail)
        with pytest.raises(OSError, match="disk full"):
            add_onnx(ready, Export())
    assert list((ready / "onnx").iterdir()) == []
