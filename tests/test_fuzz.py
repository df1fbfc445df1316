"""Whatever a recipe, a manifest, a model folder or a source holds: it is read, or refused in one line.

The few inputs tried here are the same in every run. ``FUZZ_EXAMPLES=20000 pytest tests/test_fuzz.py`` tries as many
new ones of each kind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jasper_jax.commands.validation import validate
from jasper_jax.data.sources import read_source
from jasper_jax.data.texts import TextStore, build_text_store
from jasper_jax.embedder import Embedder
from jasper_jax.encoders.safetensors import TensorFile
from jasper_jax.evaluation.evaluation import from_json
from jasper_jax.recipe.config_sources import TextSource
from jasper_jax.recipe.load import load_recipe
from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.embedding import fill_store
from jasper_jax.teachers.shard_maker import Steps
from jasper_jax.teachers.vector_import import import_vectors
from jasper_jax.teachers.vectors import VectorStore
from jasper_jax.training.metrics import read_events
from tests.mutations import ODD, as_json, json_files, mutated, spoilt
from tests.tiny import recipe, recipe_tree, write_model

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
FUZZ = settings(
    max_examples=int(EXAMPLES or 40),
    deadline=None,
    derandomize=EXAMPLES is None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@contextlib.contextmanager
def read_or_refused() -> Iterator[None]:
    """The block ends well, or with a UserError of one line that says something."""
    try:
        yield
    except UserError as error:
        line = " ".join(str(error).split())
        assert len(line) > 10
        assert "\n" not in str(error).strip()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny recipe's files, with its text store and the vectors of its teacher b."""
    place = tmp_path_factory.mktemp("fuzz")
    run = Run(recipe(place), progress=False)
    run.vectors.embed(run.teachers[1], run.data.texts())
    return place


@FUZZ
@given(st.data())
def test_recipes(place: Path, data: st.DataObject) -> None:
    tree = recipe_tree(place)
    content = data.draw(
        st.one_of(
            mutated(tree).map(lambda t: yaml.safe_dump(t, allow_unicode=True).encode(errors="replace")),
            mutated(tree).map(as_json),
            spoilt(yaml.safe_dump(tree).encode()),
        )
    )
    path = place / "fuzzed.yaml"
    path.write_bytes(content)
    with read_or_refused():
        validate(Run(load_recipe(path)))


@FUZZ
@given(st.data())
def test_overrides(place: Path, data: st.DataObject) -> None:
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(place)))
    key = st.sampled_from(["stages", "0", "-1", "heads", "fc1", "steps", "texts.sources", "name", "", "[0]", "]", "x"])
    values = st.one_of(ODD.map(str), st.text(max_size=8), ODD.map(json.dumps))
    override = st.builds("{}={}".format, st.lists(key, min_size=1, max_size=4).map(".".join), values)
    with read_or_refused():
        Run(load_recipe(path, data.draw(st.lists(override | st.text(max_size=6), min_size=1, max_size=3))))


@FUZZ
@given(st.data())
def test_the_manifest_of_a_text_store(place: Path, data: st.DataObject) -> None:
    path = place / "run" / "texts" / "manifest.json"
    whole = path.read_bytes()
    path.write_bytes(data.draw(json_files(json.loads(whole))))
    try:
        with read_or_refused():
            build_text_store(recipe(place).texts, path.parent, 0, progress=False).read("train", [0, 1])
    finally:
        path.write_bytes(whole)


@FUZZ
@given(st.data())
def test_the_manifest_and_the_spec_of_a_vector_store(place: Path, data: st.DataObject) -> None:
    run = Run(recipe(place), progress=False)
    texts = TextStore.open(place / "run" / "texts")
    path = place / "run" / "vectors" / "b" / "manifest.json"
    whole = path.read_bytes()
    path.write_bytes(data.draw(json_files(json.loads(whole))))
    try:
        with read_or_refused():
            run.vectors.open(run.teachers[1], texts).read("held_out", [0, 1])
        with read_or_refused():
            VectorStore.open(path.parent, texts).read("held_out", [0, 1])
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("file", ["spec.json", "scales.json", "done-00000000.jsonl"])
def test_a_vector_store_in_the_making(place: Path, tmp_path: Path, file: str) -> None:
    texts = TextStore.open(place / "run" / "texts")
    chosen = recipe(place, run_dir=str(tmp_path / "run"))
    teachers = [teacher.model_copy(update={"dtype": "int8"}) for teacher in chosen.teachers]
    run = Run(chosen.model_copy(update={"teachers": teachers}), progress=False)
    teacher = run.teachers[1]
    run.vectors.embed(teacher, texts)
    folder = run.vectors.folder(teacher)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "done-00000000.jsonl").write_text("".join(json.dumps(s) + "\n" for s in manifest["shards"]))
    (folder / "manifest.json").unlink()
    whole = (folder / file).read_bytes()

    @settings(FUZZ, max_examples=max(10, FUZZ.max_examples // 4))
    @given(json_files([json.loads(line) for line in whole.splitlines()] if file.endswith("l") else json.loads(whole)))
    def check(content: bytes) -> None:
        content = b"".join(line + b"\n" for line in content.split(b", {")) if file.endswith("l") else content
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "copy")
        (tmp_path / "copy" / file).write_bytes(content)

        def same(shard, rows):
            return np.full((len(rows), 8), 8**-0.5, np.float32)

        with read_or_refused():
            fill_store(tmp_path / "copy", texts, teacher.spec, Steps(same), progress=False)

    check()


CONFIGS = ("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer_config.json",
           "config_sentence_transformers.json", "2_Dense_8/config.json")  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with every file that an export has."""
    folder = write_model(tmp_path_factory.mktemp("model") / "model", layers=1)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "2_Dense_8").mkdir()
    dense = {"linear.weight": np.ones((8, 16), np.float32), "linear.bias": np.zeros(8, np.float32)}
    save_file(dense, folder / "2_Dense_8" / "model.safetensors")
    about = {"in_features": 16, "out_features": 8, "activation_function": "torch.nn.modules.linear.Identity"}
    (folder / "2_Dense_8" / "config.json").write_text(json.dumps(about))
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense_8", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    prompts = {"prompts": {"query": "what is ", "passage": ""}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert Embedder.load(folder).dims == [8]
    return folder


@pytest.mark.parametrize("file", CONFIGS)
def test_the_configs_of_a_model_folder(model: Path, file: str) -> None:
    path = model / file
    whole = path.read_bytes()

    @settings(FUZZ, max_examples=max(12, FUZZ.max_examples // 4))
    @given(json_files(json.loads(whole)))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        with read_or_refused():
            Embedder.load(model)

    try:
        check()
    finally:
        path.write_bytes(whole)


@FUZZ
@given(st.data())
def test_safetensors_headers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [0], "data_offsets": [24, 24]},
        "c": {"dtype": "U8", "shape": [], "data_offsets": [24, 25]},
    }
    text = data.draw(json_files(header))
    length = data.draw(st.sampled_from([len(text)] * 4 + [len(text) - 1, len(text) + 25, 2**62, 2**64 - 1]))
    path = tmp_path_factory.getbasetemp() / "file.safetensors"
    path.write_bytes(struct.pack("<Q", max(length, 0)) + text + bytes(25))
    with read_or_refused():
        for array in TensorFile(path).values():
            array.sum()


ROW = {"text": "a b", "kind": "query", "tags": ["x", None], "n": 1}


@FUZZ
@given(st.lists(st.one_of(json_files(ROW), st.just(as_json(ROW))), max_size=3), st.sampled_from(["text", "tags", "n"]))
def test_jsonl_sources(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], column: str) -> None:
    path = tmp_path_factory.getbasetemp() / "source.jsonl"
    path.write_bytes(b"\n".join(lines))
    with read_or_refused():
        for document in read_source(TextSource(jsonl=str(path), column=column, kind_column="kind"), 0):
            assert document.text.encode() is not None


@FUZZ
@given(json_files(ROW))
def test_texts_beside_vectors(place: Path, tmp_path_factory: pytest.TempPathFactory, line: bytes) -> None:
    run = Run(recipe(place), progress=False)
    path = tmp_path_factory.getbasetemp() / "v.npy"
    np.save(path, np.ones((1, 8), np.float32))
    path.with_suffix(".jsonl").write_bytes(line)
    spec = run.teachers[1].spec
    with read_or_refused():
        import_vectors([path], TextStore.open(place / "run" / "texts"), path.with_name("none"), spec, progress=False)


@FUZZ
@given(st.lists(json_files({"event": "step", "step": 1, "stage_index": 0, "terms": {"a": 1.0}}), max_size=2))
def test_metrics_and_evaluations(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines))
    with read_or_refused():
        read_events(path)
    with read_or_refused():
        from_json(path)
