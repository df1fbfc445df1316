"""Input that cannot be used, through the real command: one line that says what to do, exit code 2, nothing touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from tests.tiny import recipe_tree, write_model

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(tmp_path)))
    return path


NOTHING_YET = ("run", "run/recipe.yaml")
"""What a refused command may leave: the folder is claimed, and the next recipe may claim it again."""

# -------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.stepz=3", "stages[0].stepz: unknown key; did you mean 'steps'?"),
        ("stages.0.steps=many", "stages[0].steps: 'many' is not allowed: input should be a valid integer"),
        ("student.dropout=1.5", "student.dropout: 1.5 is not allowed: input should be less than 1"),
        ("stages.0.train=[]", "stages[0].train: [] is not allowed"),
        ("stages.0.heads=[]", "stages[0].heads: [] is not allowed"),
        ("stages.2.train=[heads/**, encoder/layer/**]", "stages[2].train[1]: pattern 'encoder/layer/**' matches no"),
        ("stages.1.last_layers=3", "slices 2 layers; allowed: -2 to 1"),
        ("heads.fc2.cosine=true", "heads.fc2.cosine: the cosine loss needs the teachers' dimension 24, the head has 8"),
        ("heads.fc1.nested=[30]", "heads.fc1.nested: 30 is not smaller than the head's dimension 24"),
        ("heads.fc3.dim=8", "export.dims: fc2 and fc3 both provide 8 dimensions; choose: {8: fc2}"),
        ("heads.pooled={dim: 3}", "heads.pooled: 'pooled' is a reserved target; give the head another name"),
        ("export.onnx_opset=11", "export.onnx_opset: 11 is not allowed: input should be greater than or equal to 18"),
        (
            "export.asymmetric=true",
            "export.asymmetric: documents need one model, the recipe has the teachers a, b; name",
        ),
        ("export.dim=7", "export.dim: no trained head provides 7; dimensions are 24, 12, 8, 6, 4"),
        (
            "texts.augment.language=klingon",
            "texts.augment.language: 'klingon' is not allowed: input should be 'am', 'ar'",
        ),
        ("texts.sources=[{jsonl: none*.jsonl}]", "texts.sources: no file matches 'none*.jsonl'"),
        ("texts.sources=[{asset: lea}]", "there is no corpus 'lea'; did you mean 'lee'?"),
        ("evaluation.retrieval=[{name: x, beir: none}]", "evaluation.retrieval.x.beir: none: expected a folder with"),
        ("evaluation.retrieval=[{name: x, asset: lee, split: y}]", "corpus 'lee' has no retrieval test"),
        ("training.max_length=2", "max_length is 2; expected more than the 2 special tokens"),
        ("name=../x", "name: '../x' is not allowed: expected letters, digits, dots, hyphens and underscores"),
        ("teachers.0.name=../x", "teachers[0].name: '../x' is not allowed: expected letters"),
        ("stages.0.name=/x", "stages[0].name: '/x' is not allowed: expected letters"),
        (
            "stages=[{train: [encoder/**], heads: [fc2], steps: 2, batch_size: 4, learning_rate: 0.1}]",
            "stages: no stage trains heads/fc2/bias, heads/fc2/kernel, which start at random; add a pattern",
        ),
        ("texts.count=8", "stages[0].batch_size: 16 exceeds the 8 texts of texts.count"),
        ('run_dir="a\\0b"', "run_dir: 'a\\x00b' has a NUL character"),
        ("heads={../x: {dim: 3}}", "heads.../x: '../x' is not allowed: expected letters"),
        (
            "stages=[{stage: pairs, steps: 2, learning_rate: 0.1, losses: {contrastive: 1}}]",
            "stages[0]: this stage learns from labelled pairs; set texts.pairs",
        ),
        ("stages.0.losses={contrastive: 1, mask_margin: 10}", "mask_margin: 10 leaves out every negative"),
        ("stages.0.losses={contrastive: 1, temperature: 0}", "temperature: 0 is not allowed: input should be greater"),
        ("stages.0.losses={contrastive: 1}", "stages[0].losses.contrastive: this loss exists in stages on pairs"),
        ("stages.0.negatives=2", "stages[0].negatives: only stage: pairs reads this key; remove it"),
        ("texts.pairs=[{csv: none.csv}]", "texts.pairs: no file matches 'none.csv'"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_anything_is_made(refused, recipe, override, message) -> None:
    refused(message, "check", recipe, override)
    refused(message, "run", recipe, override)


# ---------------------------------------------------------------------------------------------- texts


def jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"text": t, "kind": "passage"}) + "\n" for t in texts).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (jsonl("", "  ", "\t\n"), "texts: 3 documents leave 0 texts for training"),
        (
            jsonl("one"),
            "texts: 1 documents leave 0 texts for training after 1 held out (texts.held_out: 32), expected at least 2",
        ),
        (b"", "texts.sources: the sources give no documents"),
        (b'{"text": "caf\xe9", "kind": "query"}\n', "texts.jsonl, line 1: not UTF-8 (byte 0xe9 at position 13)"),
        (jsonl("a") + b'{"text": \n', "texts.jsonl, line 2: not JSON (Expecting value"),
        (jsonl("a") + b"[" * 100_000, "texts.jsonl, line 2: not JSON (nested too deeply)"),
        (jsonl("a") + b'{"text": %s}' % (b"9" * 5000), "texts.jsonl, line 2: not JSON (a whole number of 5,000 digits"),
        (b'{"txt": "a", "kind": "query"}\n', "line 1: no column 'text'; there are txt, kind; did you mean 'txt'?"),
        (b'{"text": "a", "kind": "question"}\n', "line 1: 'kind' is ['question']; expected query or passage"),
    ],
)
def test_texts_that_cannot_be_used_leave_no_store_and_can_be_mended(
    call, refused, recipe, tmp_path, content, message
) -> None:
    (tmp_path / "texts.jsonl").write_bytes(content)
    refused(message, "embed", recipe, leaves=NOTHING_YET)
    (tmp_path / "texts.jsonl").write_bytes(jsonl(*(f"text {i}" for i in range(6))))
    changes = ["texts.held_out=2", "texts.sources.0.kind_column=null", "teachers=[]"]
    tree = yaml.safe_load(recipe.read_text())
    heads = {"fc1": {"dim": 4, "target": "pooled"}}
    recipe.write_text(yaml.safe_dump({**tree, "heads": heads, "stages": [{**tree["stages"][0], "batch_size": 2}]}))
    assert call("embed", recipe, *changes)[0] == 0, "another recipe may take over a folder in which nothing was made"


def test_a_message_about_a_very_long_value_is_short_and_ends_with_what_is_allowed(refused, recipe, tmp_path) -> None:
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "a", "kind": "k" * 1_000_000}))
    line = refused("texts.jsonl, line 1: 'kind' is ['kkk", "embed", recipe, leaves=NOTHING_YET)
    assert line.endswith("expected query or passage")
    assert len(line) < 1100


def test_a_batch_larger_than_the_texts_is_refused_before_any_vector_is_embedded(call, recipe, tmp_path) -> None:
    code, _, err = call("run", recipe, "stages.2.batch_size=1000")
    assert (code, "stages[2].batch_size: 1000 exceeds the 128 training texts" in err) == (2, True), err
    assert not (tmp_path / "run" / "vectors").exists()


def test_a_long_document_is_divided(call, recipe, tmp_path) -> None:
    long = " ".join(f"The river {i} carries a map." for i in range(37_000))
    assert len(long) > 1_000_000
    (tmp_path / "texts.jsonl").write_bytes(jsonl(long))
    changes = ["texts.held_out=0", "texts.augment.split_share=1", "teachers=[]", "stages=[{stage: 1, steps: 1,"
               " learning_rate: 0.1}]", "heads={fc1: {dim: 4, target: pooled}}"]  # fmt: skip
    code, _, err = call("embed", recipe, *changes)
    assert code == 0, err
    assert "1 documents divided" in err


def test_a_text_of_a_million_characters_is_cut_and_counted(call, recipe, tmp_path) -> None:
    (tmp_path / "texts.jsonl").write_bytes(jsonl("word " * 200_000, "a" * 1_000_000, *(f"text {i}" for i in range(6))))
    code, _, err = call("embed", recipe, "texts.held_out=2", "texts.augment.split_share=0")
    assert code == 0, err
    assert "2 cut" in err


# -------------------------------------------------------------------------------------------- models


def change_tensors(change) -> Any:
    def spoil(folder: Path) -> None:
        tensors = dict(load_file(folder / "model.safetensors"))
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def change_json(name: str, **changes: Any) -> Any:
    def spoil(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        value = [{**value[0], **changes}, *value[1:]] if isinstance(value, list) else value | changes
        (folder / name).write_text(json.dumps(value))

    return spoil


def write(name: str, content: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(content)


NORM = "embeddings.LayerNorm.weight"
MODELS = [
    (change_tensors(lambda t: t.pop(NORM)), f"1 tensor ({NORM}) missing"),
    (
        change_tensors(lambda t: t.update(odd=np.zeros(3))),
        "1 tensor (odd) unexpected: config.json and weights disagree",
    ),
    (change_tensors(lambda t: t.update({NORM: np.zeros(3, np.float32)})), f"{NORM} is [3], config.json asks for [16]"),
    (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        "incomplete or invalid safetensors file",
    ),
    (
        write("model.safetensors", b"\xff" * 8 + b"{}"),
        "incomplete or invalid safetensors file (Error while deserializing header: header too large)",
    ),
    (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled weights are never loaded"),
    (
        change_json("config.json", model_type="x", auto_map={"AutoModel": "code.Model"}),
        "(auto_map), which is never",
    ),
    (lambda f: (f / "model.safetensors").rename(f / "model.pkl"), "pickled weights are never loaded"),
    (change_json("modules.json", type="custom.Model"), "code in a model folder is never run"),
    (change_json("modules.json", path="../elsewhere"), "modules.json: '../elsewhere' is not a folder inside"),
    (
        change_json("config.json", model_type=["bert"]),
        "model_type ['bert'] is not implemented; families are bert",
    ),
    (write("config.json", b"[" * 100_000), "config.json: not valid JSON (nested too deeply)"),
    (write("1_Pooling/config.json", b"[]"), "1_Pooling/config.json: expected an object, got a list"),
    (
        change_json("1_Pooling/config.json", word_embedding_dimension=17),
        "has 17 dimensions, but config.json's",
    ),
    (write("tokenizer.json", b"{}"), "tokenizer.json: not a tokenizer file"),
    (change_json("tokenizer_config.json", pad_token=3), "tokenizer_config.json: pad_token is 3; expected a string"),
]


@pytest.mark.parametrize(("spoil", "message"), MODELS)
def test_a_model_that_cannot_be_used(refused, recipe, tmp_path, spoil, message) -> None:
    spoil(tmp_path / "student")
    assert str(tmp_path / "student") in refused(message, "check", recipe)
    (tmp_path / "lines.txt").write_text("a map\n")
    refused(message, "encode", tmp_path / "student", tmp_path / "lines.txt", tmp_path / "vectors.npy")


def test_a_family_we_have_is_read_by_our_code_and_that_the_folder_has_its_own_is_said(call, recipe, tmp_path) -> None:
    change_json("config.json", auto_map={"AutoModel": "mine.Model"})(tmp_path / "student")
    (tmp_path / "student" / "mine.py").write_text("raise SystemExit('the code of the folder was run')")
    code, _, err = call("check", recipe)
    assert (code, err.count("names custom code (auto_map), which is never run")) == (0, 1)


def test_weights_that_are_not_finite_give_no_vectors(refused, tmp_path) -> None:
    model = write_model(tmp_path / "model")
    change_tensors(lambda t: t.update({NORM: np.full(16, np.nan, np.float32)}))(model)
    (tmp_path / "lines.txt").write_text("a map\n")
    refused("1 of 1 vectors are not finite", "encode", model, tmp_path / "lines.txt", tmp_path / "v.npy")


def test_a_file_of_weights_is_not_a_model(refused, recipe, tmp_path) -> None:
    weights = tmp_path / "student" / "model.safetensors"
    refused("model.safetensors' is a file; give its folder", "check", recipe, f"student.model={weights}")


def test_a_teacher_with_damaged_weights_is_found_before_its_texts_are_embedded(refused, recipe, tmp_path) -> None:
    MODELS[3][0](tmp_path / "teacher-b")
    refused("teacher-b/model.safetensors: incomplete or invalid safetensors file", "embed", recipe)


def test_lines_to_encode_end_at_line_feeds_and_empty_or_cut_ones_are_said(call, refused, tmp_path) -> None:
    model, lines, out = write_model(tmp_path / "model"), tmp_path / "lines.txt", tmp_path / "v.npy"
    lines.write_bytes("\ufeffa map\u2028the river\r\n\n".encode() + b"water " * 90 + b"\n")
    code, _, err = call("encode", model, lines, out)
    assert code == 0
    assert "1 of 3 lines are empty" in err
    assert "1 of 3 texts are longer than 32 tokens and were truncated" in err
    assert np.load(out).shape == (3, 16)
    lines.write_text(" \n\n")
    refused("holds no text", "encode", model, lines, out)
