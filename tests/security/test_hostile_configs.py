"""Counts of a config.json decide no memory: they are bounded, or compared with the tensors before anything is made."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
