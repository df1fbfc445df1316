"""A teacher through PyTorch loads weights and modules, and no code, pickles or files elsewhere."""

from __future__ import annotations

import ast
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import jasper_jax
from jasper_jax.recipe.config import Teacher
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers import torch_teacher
from jasper_jax.teachers.torch_settings import MODULE_TYPE, no_code
from jasper_jax.teachers.torch_teacher import refuse_harmful_files


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_model.bin"])
@pytest.mark.parametrize("place", ["", "2_Dense"])
def test_a_teacher_of_pytorch_loads_no_pickles(tmp_path: Path, name: str, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / "training_args.bin").write_text("beside a model, and not loaded")
    (tmp_path / "model.safetensors").write_text("")
    (tmp_path / place / name).write_text("")
    stem = "adapter_model" if name.startswith("adapter") else "model"
    if place or stem == "adapter_model":
        with pytest.raises(
            UserError, match=rf"teachers\.t: .*{name} has no {stem}\.safetensors beside it, and pickled"
        ):
            refuse_harmful_files("teachers.t", tmp_path)
    (tmp_path / place / f"{stem}.safetensors").write_text("")
    refuse_harmful_files("teachers.t", tmp_path)


@pytest.mark.parametrize("name", ["weights.bin", "a.pt", "../a.safetensors", "/a.safetensors", 5, None])
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "0_Transformer/other.safetensors.index.json"])
def test_an_index_of_weights_names_safetensors_in_its_folder(tmp_path: Path, index: str, name: Any) -> None:
    (tmp_path / index).parent.mkdir(exist_ok=True)
    (tmp_path / index).write_text(json.dumps({"weight_map": {"a": "a-1.safetensors"}}))
    (tmp_path / index).with_name("pytorch_model-00001-of-00002.bin").write_text("beside the shards, and not loaded")
    if "/" not in index:
        refuse_harmful_files("teachers.t", tmp_path)
    (tmp_path / index).write_text(json.dumps({"weight_map": {"a": "a-1.safetensors", "b": name}}))
    (tmp_path / index).with_name("pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"teachers\.t: .*index\.json: names .*; shards are \.safetensors files"):
        refuse_harmful_files("teachers.t", tmp_path)


def test_an_index_beside_the_pickle_of_a_module_does_not_keep_it_from_being_loaded(tmp_path: Path) -> None:
    """sentence-transformers looks for model.safetensors alone there."""
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "pytorch_model.bin").write_text("")
    (tmp_path / "2_Dense" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"pytorch_model\.bin has no model\.safetensors beside it, and pickled"):
        refuse_harmful_files("teachers.t", tmp_path)


SETTINGS = {
    "vocabulary": ("tokenizer_config.json", {"vocab": "/etc/hostname"}, "vocab"),
    "gguf": ("tokenizer_config.json", {"gguf_file": "../a.gguf"}, "gguf_file"),
    "existing file": ("tokenizer_config.json", {"vocab_file": __file__}, "vocab_file"),
    "argument": (
        "sentence_bert_config.json",
        {"processor_kwargs": {"vocab_file": "a"}},
        r"processor_kwargs\.vocab_file",
    ),
    "old argument": ("sentence_roberta_config.json", {"tokenizer_args": {"vocab": "a"}}, r"tokenizer_args\.vocab"),
    "kernel": (
        "sentence_bert_config.json",
        {"model_kwargs": {"attn_implementation": "org/kernel", "allow_all_kernels": True}},
        r"model_kwargs\.attn_implementation",
    ),
    "kernel of the config": ("config.json", {"attn_implementation": "org/kernel"}, "attn_implementation"),
    "kernel within": (
        "config.json",
        {"text_config": [{"_attn_implementation": {"": "sdpa", "x": "org/kernel@main"}}]},
        "_attn_implementation",
    ),
    "all kernels": ("sentence_bert_config.json", {"model_kwargs": {"allow_all_kernels": True}}, "allow_all_kernels"),
    "other tokenizer": ("sentence_bert_config.json", {"tokenizer_name_or_path": "/home/me"}, "tokenizer_name_or_path"),
    "no arguments": ("sentence_bert_config.json", {"config_kwargs": ["vocab"]}, "config_kwargs"),
    "method": (
        "sentence_bert_config.json",
        {"modality_config": {"text": {"method": "load_adapter", "method_output_name": None}}},
        r"modality_config\.text",
    ),
    "model of a processor": (
        "processor_config.json",
        {"audio_tokenizer": {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": "elsewhere"}},
        "audio_tokenizer_name_or_path",
    ),
    "model of an older processor": (
        "audio_tokenizer_config.json",
        {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": "elsewhere"},
        "audio_tokenizer_name_or_path",
    ),
    "retriever as a processor": ("processor_config.json", {"processor_class": "RagRetriever"}, "processor_class"),
    "retriever of a tokenizer": ("tokenizer_config.json", {"processor_class": "RagRetriever"}, "processor_class"),
    "model as a tokenizer": ("config.json", {"tokenizer_class": "AutoModel"}, "tokenizer_class"),
    "model of images": ("preprocessor_config.json", {"a": {"image_processor_type": "X"}}, "image_processor_type"),
    "files of a processor": ("preprocessor_config.json", {"repo_path": "/home/me"}, "repo_path"),
    "activation": ("config.json", {"activation_function": "torch.utils.model_dump.__main__.X"}, "activation_function"),
}


@pytest.mark.parametrize("place", ["", "0_Transformer"])
@pytest.mark.parametrize(("file", "content", "key"), SETTINGS.values(), ids=SETTINGS)
def test_a_teacher_of_pytorch_names_nothing_elsewhere(
    tmp_path: Path, file: str, content: dict[str, Any], key: str, place: str
) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"teachers\.t: .*{file}: .*{key}.* may name a file, a repository or code"):
        refuse_harmful_files("teachers.t", tmp_path)


ODD_TYPES = (
    *("sentence_transformers.SentenceTransformer", "sentence_transformers.util.distributed.pickle", "evil.X", None),
    *("sentence_transformers.models.Dense;evil", "sentence_transformers.base.modules.module.torch"),
)


@pytest.mark.parametrize("kind", ODD_TYPES)
@pytest.mark.parametrize(
    "file", ["modules.json", "2_Router/router_config.json", "2_Asym/config.json", "0_Words/wordembedding_config.json"]
)
def test_a_teacher_of_pytorch_has_modules_of_sentence_transformers_alone(tmp_path: Path, file: str, kind: Any) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    types = {"a": "sentence_transformers.models.Dense", "b": kind}
    modules = [{"type": kind} for kind in types.values()]
    forms = {"modules.json": modules, "0_Words/wordembedding_config.json": {"tokenizer_class": kind}}
    path.write_text(json.dumps(forms.get(file, {"types": types})))
    with pytest.raises(UserError, match=rf"teachers\.t: .*{path.name}: the type {kind!r} is no module"):
        refuse_harmful_files("teachers.t", tmp_path)


def test_all_modules_of_sentence_transformers_for_dense_vectors_are_fine() -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.base import modules as base
    from sentence_transformers.base.modules import Module
    from sentence_transformers.sentence_transformer import modules as own

    for package in (base, own):
        for name, value in vars(package).items():
            if isinstance(value, type) and issubclass(value, Module) and name not in ("Module", "InputModule"):
                for kind in (
                    f"{package.__name__}.{name}",
                    f"{value.__module__}.{name}",
                    f"sentence_transformers.models.{name}",
                ):
                    assert MODULE_TYPE.fullmatch(kind), kind


def test_a_model_as_a_module_of_a_model_is_told_to_trust_code(tmp_path: Path) -> None:
    """So that the attack above is one: what is called need not be in the folder."""
    pytest.importorskip("sentence_transformers")
    import numpy as np
    from safetensors.numpy import save_file
    from sentence_transformers import SentenceTransformer

    kinds = {"0_Dense": "sentence_transformers.models.Dense", "": "sentence_transformers.SentenceTransformer"}
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(kinds.items())]
    dense = {"in_features": 2, "out_features": 2, "bias": False, "activation_function": "sys.exit"}
    for file, content in {"modules.json": modules, "sentence_bert_config.json": {"trust_remote_code": True},
                          "0_Dense/config.json": dense}.items():  # fmt: skip
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps(content))
    save_file({"linear.weight": np.eye(2, dtype=np.float32)}, tmp_path / "0_Dense" / "model.safetensors")
    with pytest.raises(SystemExit):
        SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=False, local_files_only=True)
    with pytest.raises(UserError, match="is no module of sentence-transformers"):
        refuse_harmful_files("teachers.t", tmp_path)


def test_settings_that_folders_have_are_fine(tmp_path: Path) -> None:
    plain = {"model_args": {"torch_dtype": "float16", "attn_implementation": "sdpa"}, "tokenizer_args": {}}
    plain |= {"max_seq_length": 512, "config_args": {"trust_remote_code": True}, "model_kwargs": None}
    plain["modality_config"] = {"text": {"method": "forward"}, "image": {"method": "get_image_features"}}
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(plain))
    for number, name in enumerate(("torch.nn.modules.activation.Tanh", "torch.nn.Identity", "pylate.X")):
        (tmp_path / f"{number}_Dense").mkdir()
        (tmp_path / f"{number}_Dense" / "config.json").write_text(json.dumps({"activation_function": name}))
    words = {"tokenizer_class": "sentence_transformers.models.tokenizer.WhitespaceTokenizer.WhitespaceTokenizer"}
    (tmp_path / "wordembedding_config.json").write_text(json.dumps(words))
    config = {"_name_or_path": "org/name", "attn_implementation": {"": "sdpa"}, "_attn_implementation": "eager"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for number, kind in enumerate(
        ("BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "NVTokenizerX")
    ):
        (tmp_path / str(number)).mkdir()
        classes = {"tokenizer_class": kind, "processor_class": "CLIPProcessor", "feature_extractor_type": None}
        (tmp_path / str(number) / "tokenizer_config.json").write_text(json.dumps(classes))
    files = {"vocab_file": None, "merges_file": "/no/such/machine/merges.txt", "tokenizer_file": __file__}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(files))
    refuse_harmful_files("teachers.t", tmp_path)


def test_the_vocabulary_of_a_setting_is_what_transformers_reads(tmp_path: Path) -> None:
    """So that the attack above is one."""
    from transformers import BertTokenizer

    (tmp_path / "private").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na-secret\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"vocab": str(tmp_path / "private")}))
    assert "a-secret" in BertTokenizer.from_pretrained(tmp_path / "model").get_vocab()
    with pytest.raises(UserError, match="vocab may name a file"):
        refuse_harmful_files("teachers.t", tmp_path / "model")


def test_nobody_is_asked_whether_code_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer of words is loaded without a word on trust, and then transformers asks on the terminal."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert dynamic_module_utils.resolve_trust_remote_code(None, "folder", has_local_code=False, has_remote_code=True)
    with no_code(), pytest.raises(ValueError, match="trust_remote_code"):
        dynamic_module_utils.resolve_trust_remote_code(None, "folder", has_local_code=False, has_remote_code=True)
    assert dynamic_module_utils.resolve_trust_remote_code(None, "folder", has_local_code=False, has_remote_code=True)


def test_every_file_that_loads_a_folder_in_pytorch_does_so_within_it() -> None:
    def within(path: Path) -> bool:
        blocks = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.With)]
        return any(ast.unparse(item.context_expr) == "no_code()" for block in blocks for item in block.items)

    package = Path(jasper_jax.__file__).parent
    loading = {
        path
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "SentenceTransformer"
    }
    assert len(loading) == 4
    assert [path.name for path in sorted(loading) if not within(path)] == []


def test_sentence_transformers_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    torch, library = types.ModuleType("torch"), types.ModuleType("sentence_transformers")
    torch.float32, torch.cuda = "float32", types.SimpleNamespace(device_count=lambda: 0)  # pyright: ignore
    library.SentenceTransformer = lambda path, **options: given.update(options)  # pyright: ignore
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    monkeypatch.setattr(torch_teacher, "refuse_without_torch", lambda _: None)
    teacher = Teacher(name="t", model=str(tmp_path), backend="torch", dim=8, compute_dtype="float32")
    assert torch_teacher.TorchEncoder(teacher, tmp_path, {})._model is None
    assert (given["trust_remote_code"], given["model_kwargs"]["use_safetensors"]) == (False, True)
    (tmp_path / "pytorch_model.bin").write_text("")
    with pytest.raises(UserError, match="pickled weights are never loaded"):
        _ = torch_teacher.TorchEncoder(teacher, tmp_path, {})._model
