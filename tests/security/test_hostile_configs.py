"""Counts of a config.json decide no memory: they are bounded, or compared with the tensors before anything is made."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.jasper_vl import _vision
from jasper_jax.encoders.registry import FAMILIES, encoder_from_config
from jasper_jax.encoders.weights import check_params, save
from jasper_jax.parameters.trees import unflatten
from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.encoder import vision_from_config

HUGE = 2**31 - 1


@pytest.fixture(autouse=True)
def little_memory():
    tracemalloc.start()
    yield
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 64 << 20


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [HUGE, 100_000])
def test_layers_of_text_encoders(family: str, layers: int) -> None:
    config: dict[str, Any] = {"model_type": family, "num_hidden_layers": layers}
    if family == "nvembed":
        config |= {"text_config": {**config, "model_type": "mistral"}, "latent_attention_config": {}}
    with pytest.raises(UserError, match=rf"num_hidden_layers is {layers}; expected a whole number of 1 to 1024"):
        encoder_from_config(config)


@pytest.mark.parametrize("family", ["gte", "llama", "modernbert", "nomic_bert", "qwen3"])
def test_wide_heads(family: str) -> None:
    with pytest.raises(UserError, match=r"config\.json: heads of 1073741824 components; at most 16384 are rotated"):
        encoder_from_config(
            {
                "model_type": family,
                "hidden_size": 2**30,
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
                "head_dim": 2**30,
            }
        )


@pytest.mark.parametrize("family", ["siglip_vision_model", "clip_vision_model", "dinov2"])
def test_layers_of_vision_encoders(family: str) -> None:
    with pytest.raises(UserError, match=rf"num_hidden_layers is {HUGE}; expected a whole number of 1 to 1024"):
        vision_from_config({"model_type": family, "num_hidden_layers": HUGE})


def test_tokens_of_an_image(tmp_path: Path) -> None:
    config = {"num_img_tokens": HUGE, "vision_config": {}}
    with pytest.raises(UserError, match=rf"num_img_tokens is {HUGE}; expected a whole number of 1 to 65536"):
        _vision(tmp_path, config, {}, 16)


SIZES = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
OWN = {
    "bert": {"max_position_embeddings": 20, "type_vocab_size": 2},
    "qwen2": {"num_key_value_heads": 1, "head_dim": 8, "is_causal": False},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family, all of zeros."""
    made = {}
    for family, own in OWN.items():
        encoder = encoder_from_config({"model_type": family, **SIZES, **own})
        made[family] = tmp_path_factory.mktemp(family)
        zeros = {path: np.zeros(shape, np.float32) for path, shape in encoder.shapes().items()}
        save(unflatten(zeros), encoder, made[family])
    return made


COUNTS = [(family, key) for family in OWN for key in (*SIZES, *OWN[family]) if key not in ("is_causal",)]


@pytest.mark.parametrize(("family", "key"), COUNTS)
def test_counts_are_compared_with_the_tensors(folders: dict[str, Path], family: str, key: str) -> None:
    folder = folders[family]
    config = {"model_type": family, **SIZES, **OWN[family]}
    check_params(folder, encoder_from_config(config))
    config[key] = 1000 if key == "num_hidden_layers" else 2**30
    if key == "num_attention_heads":
        config["hidden_size"] = 2**30
    with pytest.raises(UserError, match=r"config\.json|missing"):
        check_params(folder, encoder_from_config(config))


def sentence_model(folder: Path, source: Path, modules: Sequence[tuple[str, str]], **files: Any) -> Path:
    """A copy of the model in ``source`` with these steps and files."""
    shutil.copytree(source, folder)
    steps = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in modules]
    for name, tree in {"modules": steps, **files}.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(tree))
    return folder


STEPS = (("Transformer", ""), ("Pooling", "1_Pooling"))


def test_a_cut_of_a_width_that_no_tensor_has(folders: dict[str, Path], tmp_path: Path) -> None:
    wide = {"model_type": "bert", **SIZES, **OWN["bert"], "hidden_size": 2**20}
    files = {"config": wide, "1_Pooling/config": {}, "config_sentence_transformers": {"truncate_dim": 2**19}}
    folder = sentence_model(tmp_path / "model", folders["bert"], STEPS, **files)
    with pytest.raises(UserError, match=r"truncate_dim is 524288 of 1048576 dimensions, more than a model has"):
        read_model_folder(folder)


def test_a_pooling_mode_named_often(folders: dict[str, Path], tmp_path: Path) -> None:
    files = {"1_Pooling/config": {"pooling_mode": ["cls"] + ["mean"] * 100_000}}
    folder = sentence_model(tmp_path / "model", folders["bert"], STEPS, **files)
    with pytest.raises(UserError, match=r"1_Pooling/config\.json: pooling_mode names 'mean' more than once"):
        read_model_folder(folder)


@pytest.mark.parametrize("name", ["\ud800", "a/" * 9000, "a" * 300, "a\0"], ids=["surrogate", "long", "name", "nul"])
@pytest.mark.parametrize("at", [0, 1])
def test_modules_in_folders_that_cannot_be(folders: dict[str, Path], tmp_path: Path, name: str, at: int) -> None:
    steps = [(kind, name if i == at else path) for i, (kind, path) in enumerate(STEPS)]
    folder = sentence_model(tmp_path / "model", folders["bert"], steps, **{"1_Pooling/config": {}})
    said = "has half of a surrogate pair" if name == "\ud800" else ".* is not a folder inside"
    with pytest.raises(UserError, match=rf"modules\.json: {said}"):
        read_model_folder(folder)


@pytest.mark.parametrize("key", ["layer_norm_eps", "rope_theta", "initializer_range"])
def test_numbers_that_no_float_holds(folders: dict[str, Path], tmp_path: Path, key: str) -> None:
    config = {"model_type": "gte", **SIZES, key: 10**400}
    folder = sentence_model(tmp_path / "model", folders["bert"], STEPS, config=config, **{"1_Pooling/config": {}})
    with pytest.raises(UserError, match=r"config\.json: not valid JSON \(a whole number of 401 digits"):
        read_model_folder(folder)
