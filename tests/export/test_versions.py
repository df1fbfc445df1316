"""Which versions read an export right, and how earlier ones are made to refuse it."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
from sentence_transformers.util import check_version_requirements
from transformers import AutoConfig
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.export.versions import (
    NEW_TYPES,
    OLD_TYPES,
    least_versions,
    refused_before_5_2,
    requirements,
    with_old_names,
)
from tests.families import CASES, VARIANTS


def encoder(case: str):
    model_type, settings = CASES[case]
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
    return encoder_from_config({"model_type": model_type, **sizes, **settings, "num_attention_heads": 2})


@pytest.mark.parametrize("case", ["bert", "xlm-roberta", "qwen2-causal", "qwen3", "modernbert"])
def test_what_every_version_reads_right_requires_nothing(case: str) -> None:
    assert requirements(encoder(case)) == {}


def test_a_bidirectional_decoder_requires_the_version_that_runs_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = requirements(encoder("qwen2-bidirectional"))
    check_version_requirements(needs)
    module = importlib.import_module(check_version_requirements.__module__)
    monkeypatch.setattr(module, "get_installed_version", lambda package: "5.1.0")
    with pytest.raises(ImportError, match="run this bidirectional model causally"):
        check_version_requirements(needs)
    assert least_versions(encoder("qwen2-bidirectional"))["transformers"] == "5.2"


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 9.0, "factor": 2.0}},
        {"rope_theta": 9.0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    ],
)
@pytest.mark.parametrize("case", ["qwen2-bidirectional", "qwen3, bidirectional, biases"])
def test_positions_that_transformers_5_1_refuses_are_the_same_in_later_ones(case: str, rope: dict[str, Any]) -> None:
    model_type, settings = (CASES | VARIANTS)[case]
    config = {"model_type": model_type, "hidden_size": 16, "num_attention_heads": 4, "head_dim": 8, **settings, **rope}
    guarded = with_old_names(refused_before_5_2(config))
    assert guarded["partial_rotary_factor"] is None
    assert guarded["rope_parameters"]["rope_type"] != "default"  # whose frequencies no version multiplies by it
    assert encoder_from_config(guarded).config.kinds == encoder_from_config(config).config.kinds
    rotary = {"qwen2": Qwen2RotaryEmbedding, "qwen3": Qwen3RotaryEmbedding}[model_type]
    theirs = [rotary(config=AutoConfig.for_model(**copy.deepcopy(c))) for c in (config, guarded)]
    assert theirs[0].inv_freq.tolist() == theirs[1].inv_freq.tolist()
    assert theirs[0].attention_scaling == theirs[1].attention_scaling


@pytest.mark.filterwarnings("ignore:Importing from 'sentence_transformers.models':DeprecationWarning")
@pytest.mark.parametrize("types", [OLD_TYPES, NEW_TYPES])
def test_the_names_of_modules_can_be_imported(types: dict[str, str]) -> None:
    for kind, package in types.items():
        assert hasattr(importlib.import_module(f"sentence_transformers.{package}"), kind)


@pytest.mark.parametrize(
    ("config", "old"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 1e6}),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 9.0, "factor": 2.0}},
            {"rope_theta": 9.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 7.0}, "sliding_attention": {"rope_theta": 5.0}}},
            {"global_rope_theta": 7.0, "local_rope_theta": 5.0},
        ),
        ({"hidden_size": 4}, {}),
    ],
)
def test_rotary_settings_are_written_by_their_old_names_too(config: dict, old: dict) -> None:
    assert with_old_names(config) == {**config, **old}
