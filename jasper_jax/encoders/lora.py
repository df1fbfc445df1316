"""A LoRA adapter (arXiv 2106.09685) beside a model's weights, as peft stores it: read merged into them.

``adapter_config.json`` has r and alpha; ``adapter_model.safetensors`` has A ``[r, in]`` and B ``[out, r]`` of each
adapted linear layer. The merged weight is ``W + s · B A``, s = alpha / r (alpha / √r for rank-stabilised LoRA), in
float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.encoders.hf_config import Reader, read_object
from jasper_jax.encoders.safetensors import TensorFile, has_weights
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.shell import shell_word

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_OFF = {
    "use_dora": False,
    "use_qalora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "bias": "none",
    **dict.fromkeys(
        ("alpha_pattern", "rank_pattern", "modules_to_save", "layer_replication", "target_parameters")
        + ("trainable_token_indices", "alora_invocation_tokens", "arrow_config"),
        None,
    ),
}
"""Settings with the value that is implemented; empty values are null."""


class Merged(TensorFile):
    """A weights file with one tensor merged with its adapter."""

    def __init__(self, base: TensorFile, name: str, a: np.ndarray, b: np.ndarray, scale: float):
        self.path, self._base, self._name = base.path, base, name
        self._a, self._b, self._scale = a, b, scale

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def dtype(self, name: str) -> str:
        return "F32" if name == self._name else self._base.dtype(name)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self[name][start:stop]

    def __getitem__(self, name: str) -> np.ndarray:
        if name != self._name:
            return self._base[name]
        return self._base[name].astype(np.float32) + self._scale * (self._b @ self._a)

    def __iter__(self):
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def merge_adapter(folder: Path, tensors: Mapping[str, TensorFile]) -> Mapping[str, TensorFile]:
    """``tensors`` of the checkpoint in ``folder``, those merged that its adapter changes; without an adapter as given.

    Raises:
      UserError: an adapter of another kind, with a setting that is not implemented, or that does not fit the weights.
    """
    if not (folder / CONFIG).is_file():
        return tensors
    scale = _scale(folder / CONFIG)
    adapter = TensorFile(folder / WEIGHTS)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for stored in adapter:
        match = _NAME.fullmatch(stored)
        if match is None:
            raise UserError(f"{adapter.path}: {stored} is not implemented; lora_A and lora_B of linear layers are")
        sides = pairs.setdefault(match["layer"], {})
        if match["side"] in sides:
            raise UserError(f"{adapter.path}: {stored} is there under another name too; copy the file again")
        sides[match["side"]] = adapter[stored].astype(np.float32)
    merged = dict(tensors)
    for layer, sides in pairs.items():
        name = _stored_name(f"{layer}.weight", tensors, adapter.path)
        if set(sides) != {"A", "B"}:
            raise UserError(f"{adapter.path}: {layer} has lora_{min(sides)} alone; copy the file again")
        a, b = sides["A"], sides["B"]
        if (
            a.ndim != 2
            or b.ndim != 2
            or (b.shape[0], a.shape[1]) != tensors[name].shape(name)
            or a.shape[0] != b.shape[1]
        ):
            raise UserError(
                f"{adapter.path}: {layer} has A {list(a.shape)} and B {list(b.shape)}, which do not make the weight's"
                f" {list(tensors[name].shape(name))}"
            )
        merged[name] = Merged(tensors[name], name, a, b, scale)
    return merged


def refuse_adapter_alone(folder: Path) -> None:
    """UserError: ``folder`` has an adapter but not the model it was trained on."""
    if (folder / CONFIG).is_file() and not ((folder / "config.json").is_file() and has_weights(folder)):
        base = read_object(folder / CONFIG).get("base_model_name_or_path") or "not named"
        raise UserError(
            f"{folder}: is an adapter without the model it was trained on ({CONFIG}: base_model_name_or_path is"
            f" {base}); fetch that model as BASE, and use one folder of both: cp -r BASE/. NEW &&"
            f" cp -r {shell_word(folder)}/. NEW"
        )


def _scale(file: Path) -> float:
    config = read_object(file)
    remedy = "merge the adapter where peft is installed (merge_and_unload), and use that folder"
    if config.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type is {config.get('peft_type')!r}; only 'LORA' is implemented: {remedy}")
    for key, value in _OFF.items():
        if (config.get(key) or value or None) != (value or None):
            raise UserError(f"{file}: {key} is {config[key]!r}, which is not implemented: {remedy}")
    start = config.get("init_lora_weights", True)
    if not isinstance(start, bool) and start not in ("gaussian", "eva", "orthogonal"):
        raise UserError(f"{file}: init_lora_weights is {start!r}, which changes the other weights too: {remedy}")
    read = Reader(config, "lora", str(file))
    rank = read.integer("r", 8)
    return read.number("lora_alpha", 8) / (math.sqrt(rank) if read.flag("use_rslora", False) else rank)


def _stored_name(name: str, tensors: Mapping[str, Any], file: Path) -> str:
    """The checkpoint's name of an adapted weight: one of the two may have a prefix (``model.``), the other not."""
    found = [stored for stored in tensors if stored == name or f".{name}".endswith(f".{stored}")]
    found = found or [stored for stored in tensors if stored.endswith(f".{name}")]
    if len(found) != 1:
        raise UserError(
            f"{file}: adapts {name}, which the checkpoint has {len(found)} times; use the adapter's own base"
        )
    return found[0]
