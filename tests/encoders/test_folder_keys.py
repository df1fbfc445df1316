"""What a model folder's small files say is done as sentence-transformers does it, or refused by name."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from jasper_jax.embedder import Embedder
from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.registry import encoder_from_folder
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.encoders.weights import check_params
from jasper_jax.runtime.errors import UserError
from tests import tiny
from tests.st_folders import linear, write_dense_folder, write_sentence_transformer


def change(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changes}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("keys") / "model"
    write_sentence_transformer("bert", place, dense=[linear(32, 8, torch.nn.Tanh())], prompts={"s2p_query": "find : "})
    return place


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("chain", [True, False], ids=["a Dense step", "pooled"])
def test_truncate_dim_cuts_as_sentence_transformers_does(copy: Path, chain: bool) -> None:
    source, whole = copy, 8 if chain else 32
    if not chain:
        modules = json.loads((source / "modules.json").read_text())
        (source / "modules.json").write_text(json.dumps([m for m in modules if not m["type"].endswith("Dense")]))
        shutil.rmtree(source / "2_Dense")
    change(source / "config_sentence_transformers.json", truncate_dim=5)
    ours, texts = Embedder.load(source), ["the cat", "a dog of stone"]
    assert ours.dims == [5, whole]
    expected = SentenceTransformer(str(source), device="cpu").encode(texts)
    assert expected.shape == (2, 5)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(ours.encode(texts), expected, atol=2e-6)
    change(source / "config_sentence_transformers.json", truncate_dim=whole)
    assert read_model_folder(source).default_dim == (whole if chain else None)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("config_sentence_transformers.json", "truncate_dim", "5", "truncate_dim is '5'; expected a whole number"),
        ("config_sentence_transformers.json", "model_type", "SparseEncoder", "model_type is 'SparseEncoder'"),
        ("config_sentence_transformers.json", "rotation", 1, "rotation is not a known key, and may change vectors"),
        ("sentence_bert_config.json", "query_length", 32, "query_length is 32; only None is implemented"),
        ("sentence_bert_config.json", "config_args", {"is_decoder": True}, "config_args is {'is_decoder': True}"),
        ("sentence_bert_config.json", "processing_kwargs", {"text": {"padding": 8}}, "processing_kwargs is"),
        ("sentence_bert_config.json", "whiten", True, "whiten is not a known key"),
        ("1_Pooling/config.json", "attention", True, "attention is not a known key"),
        ("2_Dense/config.json", "dropout", 0.1, "dropout is not a known key"),
        ("3_Normalize/config.json", "module_output_name", "other", "module_output_name is 'other'"),
    ],
)
def test_what_could_change_vectors_is_refused(copy: Path, name: str, key: str, value, message: str) -> None:
    read_model_folder(copy)
    change(copy / name, **{key: value})
    with pytest.raises(UserError, match=re.escape(message)):
        read_model_folder(copy)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({"s2p_query": "find : "}, {"query": "find : ", "passage": ""}),
        ({"query": "", "s2p_query": "find : ", "document": "a : "}, {"query": "find : ", "passage": "a : "}),
        ({"query": "q : ", "s2p_query": "find : ", "passage": "p : "}, {"query": "q : ", "passage": "p : "}),
        ({"query": "q : ", "corpus": "c : "}, {"query": "q : ", "passage": "c : "}),
    ],
)
def test_student_teacher_and_embedder_read_the_same_prompts(tmp_path: Path, prompts: dict, expected: dict) -> None:
    from jasper_jax.run import Run
    from jasper_jax.student.start import make_student

    recipe = tiny.recipe(tmp_path)
    change(tmp_path / "student" / "config_sentence_transformers.json", prompts=prompts)
    change(tmp_path / "teacher-a" / "config_sentence_transformers.json", prompts=prompts)
    run = Run(recipe, progress=False)
    assert make_student(recipe, run.teacher_dim, run.student).prompts == expected
    assert run.teachers[0].spec.prompts == expected
    embedder = Embedder.load(tmp_path / "student")
    assert {kind: embedder.prompt(kind) for kind in expected} == expected


def follow(error: str) -> None:
    """Run the code of ``python -c '...'`` that an error advises."""
    command = re.search(r"python -c '.*'", error)
    assert command, error
    exec(shlex.split(command[0])[2], {})


def test_the_advice_for_a_pickled_dense_step_works(copy: Path) -> None:
    before = read_model_folder(copy).outputs[8][0]
    file = copy / "2_Dense" / "model.safetensors"
    torch.save(load_file(file), copy / "2_Dense" / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(UserError, match=r"2_Dense: has pytorch_model.bin but no model.safetensors") as raised:
        read_model_folder(copy)
    follow(str(raised.value))
    np.testing.assert_array_equal(read_model_folder(copy).outputs[8][0].kernel, before.kernel)


def test_a_teacher_longer_than_its_positions_is_refused_by_check(call, tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny.recipe_tree(tmp_path)))
    change(tmp_path / "teacher-b" / "sentence_bert_config.json", max_seq_length=512)
    code, _, err = call("check", path)
    assert code == 2
    assert "teachers.b.max_length: 512 is the max_seq_length of" in err
    advice = re.search(r"set teachers.b.max_length to at most (\d+)", err)
    assert advice, err
    assert call("check", path, f"teachers.1.max_length={advice[1]}")[0] == 0, "the advice works"


def test_siblings_still_replace_the_default(copy: Path) -> None:
    write_dense_folder(copy / "2_Dense_4", 32, 4)
    change(copy / "config_sentence_transformers.json", truncate_dim=6)
    folder = read_model_folder(copy)
    assert (folder.default_dim, sorted(folder.outputs)) == (6, [4, 6, 8])


def test_the_advice_for_pickled_weights_works(copy: Path) -> None:
    before = load_file(copy / "model.safetensors")
    torch.save(before, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    encoder = encoder_from_folder(copy)
    with pytest.raises(UserError, match="has pytorch_model.bin but no model.safetensors") as raised:
        check_params(copy, encoder)
    follow(str(raised.value))
    check_params(copy, encoder)
    after = load_file(copy / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_advice_for_a_missing_tokenizer_file_works(copy: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    (copy / "vocab.txt").write_text("\n".join(words) + "\n")
    with pytest.raises(UserError, match=r"tokenizer.json: no such file; create it once") as raised:
        Tokenizer.load(copy)
    follow(str(raised.value))
    assert Tokenizer.load(copy).encode(["The cat"])[0].tolist() == [2, 5, 6, 3]


def modules(folder: Path, *more: tuple[str, str]) -> None:
    """Put further modules after Pooling."""
    steps = json.loads((folder / "modules.json").read_text())
    steps[2:2] = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in more]
    (folder / "modules.json").write_text(json.dumps([{**s, "idx": i, "name": str(i)} for i, s in enumerate(steps)]))


def test_dropout_is_of_training_alone(copy: Path) -> None:
    before = read_model_folder(copy)
    (copy / "2_Dropout").mkdir()
    (copy / "2_Dropout" / "config.json").write_text('{"dropout": 0.5}')
    modules(copy, ("Dropout", "2_Dropout"))
    after = read_model_folder(copy)
    assert (list(after.outputs), after.default_dim, after.normalize) == ([8], 8, before.normalize)
    theirs = SentenceTransformer(str(copy), device="cpu").eval()
    assert type(theirs[2]).__name__ == "Dropout"
    features = {"sentence_embedding": torch.ones(1, 32)}
    assert torch.equal(theirs[2](features)["sentence_embedding"], torch.ones(1, 32))


def test_a_layer_norm_is_refused(copy: Path) -> None:
    modules(copy, ("LayerNorm", "2_LayerNorm"))
    with pytest.raises(UserError, match=r"LayerNorm \(2_LayerNorm\) is not implemented"):
        read_model_folder(copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "2_Dense/model.safetensors"])
def test_a_pointer_of_git_lfs_is_named(copy: Path, name: str) -> None:
    (copy / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n")
    with pytest.raises(UserError, match=re.escape(f"{copy / name}: is a pointer of Git LFS, not the file itself; run")):
        Embedder.load(copy)


def test_a_file_of_the_folder_instead_of_the_folder(copy: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"config.json: is a file; give the folder of the model, {copy}")):
        Embedder.load(copy / "config.json")


@pytest.mark.parametrize(
    ("prefix", "head"),
    [("", "score.weight"), ("bert.", "classifier.weight"), ("model.", "cls.predictions.decoder.weight")],
)
def test_heads_of_other_tasks_are_not_read(copy: Path, prefix: str, head: str) -> None:
    from safetensors.torch import save_file

    tensors = {f"{prefix}{name}": tensor for name, tensor in load_file(copy / "model.safetensors").items()}
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(48)[None]
    save_file({**tensors, head: torch.zeros(2)}, copy / "model.safetensors")
    check_params(copy, encoder_from_folder(copy))
    save_file({**tensors, "projection.weight": torch.zeros(2)}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"1 tensor \(projection.weight\) unexpected"):
        check_params(copy, encoder_from_folder(copy))


def test_weights_of_another_name_are_named(copy: Path) -> None:
    shutil.move(copy / "model.safetensors", copy / "model.fp16.safetensors")
    with pytest.raises(UserError, match="found model.fp16.safetensors: rename the one to use to model.safetensors"):
        Embedder.load(copy)
    shutil.move(copy / "model.fp16.safetensors", copy / "model.safetensors")
    check_params(copy, encoder_from_folder(copy))


def test_the_tokenizers_limit_is_that_of_student_and_teacher(tmp_path: Path) -> None:
    """sentence-transformers 6 writes no max_seq_length, but model_max_length."""
    from jasper_jax.run import Run
    from jasper_jax.student.start import make_student

    recipe = tiny.recipe(tmp_path)
    for name in ("student", "teacher-a"):
        change(tmp_path / name / "sentence_bert_config.json", max_seq_length=None)
        change(tmp_path / name / "tokenizer_config.json", model_max_length=20)
    run = Run(recipe, progress=False)
    assert make_student(recipe, run.teacher_dim, run.student).max_length == 20
    assert run.teachers[0].spec.max_length == 20


def test_a_tokenizer_with_more_tokens_than_the_table_is_named(copy: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({"id": 125, "content": "<new>", "special": True, **flags})
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = "tokenizer.json: has 126 tokens, the encoder's embedding table 125 rows"
    with pytest.raises(UserError, match=f"{message}.*the last token is '<new>'"):
        Embedder.load(copy)
