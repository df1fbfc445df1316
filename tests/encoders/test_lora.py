"""A LoRA adapter beside a model's weights is read merged into them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.lora import merge_adapter
from jasper_jax.encoders.registry import encoder_from_folder
from jasper_jax.encoders.safetensors import open_checkpoint
from jasper_jax.encoders.weights import check_params, load_params
from jasper_jax.runtime.errors import UserError
from tests.tiny import write_model

QUERY = "encoder.layer.{}.attention.self.query"
RANK, ALPHA = 3, 12


def write_adapter(folder: Path, prefix: str = "base_model.model.", **changes) -> dict[str, np.ndarray]:
    """An adapter of the query maps of both layers; returns what is added to each weight."""
    rng, tensors, added = np.random.default_rng(0), {}, {}
    for layer in range(2):
        a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((RANK, 16), (16, RANK)))
        name = QUERY.format(layer)
        tensors |= {f"{prefix}{name}.lora_A.weight": a, f"{prefix}{name}.lora_B.weight": b}
        added[f"{name}.weight"] = sum(np.outer(b[:, i], a[i]) for i in range(RANK))
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "bias": "none",
        "rank_pattern": {},
        "use_dora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return added


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "scale"), [({}, ALPHA / RANK), ({"use_rslora": True}, ALPHA / RANK**0.5)], ids=["plain", "rank-stable"]
)
@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.model.bert."])
def test_the_merged_weights_are_loaded(folder: Path, prefix: str, changes: dict, scale: float) -> None:
    before = load_file(folder / "model.safetensors")
    added = write_adapter(folder, prefix, **changes)
    tensors = merge_adapter(folder, open_checkpoint(folder))
    for name, base in before.items():
        np.testing.assert_allclose(tensors[name][name], base + scale * added.get(name, 0), rtol=1e-5, atol=1e-5)
    encoder = encoder_from_folder(folder)
    loaded = load_params(folder, encoder)["layers"]["attention"]["query"]["kernel"]
    expected = [before[f"{QUERY.format(i)}.weight"] + scale * added[f"{QUERY.format(i)}.weight"] for i in range(2)]
    np.testing.assert_allclose(jax.device_get(loaded), np.stack(expected).transpose(0, 2, 1), rtol=1e-5, atol=1e-5)


def test_settings_that_are_absent_are_those_of_peft(folder: Path) -> None:
    write_adapter(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({key: config[key] for key in ("peft_type", "r", "lora_alpha")})
    )
    check_params(folder, encoder_from_folder(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA' is implemented: merge the adapter"),
        ({"use_dora": True}, "use_dora is True, which is not implemented"),
        ({"rank_pattern": {"query": 8}}, "rank_pattern is"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save is"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the other weights too"),
        ({"r": 0}, "r is 0; expected a whole number"),
    ],
)
def test_other_adapters_are_refused_by_headers_alone(folder: Path, changes: dict, message: str) -> None:
    write_adapter(folder, **changes)
    with pytest.raises(UserError, match=message):
        check_params(folder, encoder_from_folder(folder))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x.lora_A.weight": (3, 16), "x.lora_B.weight": (16, 3)}, "adapts x.weight, which the checkpoint has 0 times"),
        ({f"{QUERY.format(0)}.lora_A.weight": (3, 16)}, "has lora_A alone"),
        (
            {f"{QUERY.format(0)}.lora_A.weight": (3, 9), f"{QUERY.format(0)}.lora_B.weight": (16, 3)},
            r"A \[3, 9\] and B \[16, 3\], which do not make the weight's \[16, 16\]",
        ),
        ({f"{QUERY.format(0)}.lora_magnitude_vector": (16,)}, "lora_magnitude_vector is not implemented"),
        (
            {f"{start}{QUERY.format(0)}.lora_A.weight": (3, 16) for start in ("", "base_model.model.")},
            "is there under another name too",
        ),
    ],
)
def test_an_adapter_that_does_not_fit(folder: Path, tensors: dict, message: str) -> None:
    write_adapter(folder)
    save_file(
        {name: np.ones(shape, np.float32) for name, shape in tensors.items()}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match=message):
        check_params(folder, encoder_from_folder(folder))


def test_an_adapter_without_its_weights(folder: Path) -> None:
    write_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model.safetensors: no such file"):
        check_params(folder, encoder_from_folder(folder))


@pytest.mark.parametrize("has_config", [True, False])
def test_the_advice_for_an_adapter_without_its_base(folder: Path, tmp_path: Path, has_config: bool) -> None:
    write_adapter(folder, base_model_name_or_path="some/base")
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", *(["config.json"] if has_config else [])):
        shutil.move(folder / name, alone / name) if "adapter" in name else shutil.copy(folder / name, alone / name)
    with pytest.raises(UserError, match="base_model_name_or_path is some/base.; fetch that model as BASE") as raised:
        read_model_folder(alone)
    assert f"cp -r BASE/. NEW && cp -r {alone}/. NEW" in str(raised.value)
    for source in (folder, alone):
        shutil.copytree(source, both, dirs_exist_ok=True)
    read_model_folder(both)
    check_params(both, encoder_from_folder(both))
