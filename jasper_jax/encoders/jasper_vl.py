"""A folder in the layout of the public Jasper checkpoint, read without its code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.model_folder import Dense, ModelFolder, VisionPart, text_settings
from jasper_jax.encoders.pooling import MODES, Pooling
from jasper_jax.encoders.registry import encoder_from_config, family_of
from jasper_jax.encoders.safetensors import TensorFile, open_checkpoint
from jasper_jax.runtime.errors import UserError


def read_jasper_vl(path: Path, config: Mapping[str, Any], causal: bool | None = None) -> ModelFolder:
    """``read_model_folder`` of such a folder; ``config`` is its ``config.json``. UserError: missing or invalid part."""
    where = str(path / "config.json")
    text = {"model_type": "qwen2", **_object(config, "text_config", where)}
    family = family_of(text, f"{where}: text_config")
    if family.has_causal:
        text = {"is_causal": False, **text} if causal is None else {**text, "is_causal": causal}
    elif causal is not None:
        raise UserError(f"{path}: causal is set, but {family.model_type} encoders are bidirectional; remove it")
    encoder = encoder_from_config(text, f"{where}: text_config")
    pooling_mode = config.get("pooling_mode", "mean")
    modes = tuple(pooling_mode) if isinstance(pooling_mode, list) else (pooling_mode,)
    if not modes or any(mode not in MODES for mode in modes):
        raise UserError(f"{where}: pooling_mode is {pooling_mode!r}; expected one or more of {', '.join(MODES)}")
    pooling = Pooling(modes)
    tensors = open_checkpoint(path)
    outputs = _outputs(path, tensors, pooling.size(encoder.hidden_size))
    default = config.get("vector_dim")
    if default is not None and default not in outputs:
        raise UserError(f"{where}: vector_dim is {default!r}; expected one of {', '.join(map(str, outputs)) or 'none'}")
    return ModelFolder(
        path=path,
        encoder_path=path,
        hf_config=encoder.hf_config,
        append_eos=family.append_eos,
        pooling=pooling,
        outputs=outputs,
        default_dim=default or next(iter(outputs), None),
        normalize=bool(config.get("normalize", True)),
        **text_settings(path, path),
        vision=None if config.get("is_text_encoder") else _vision(path, config, tensors, encoder.hidden_size),
    )


def _object(config: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = config.get(key)
    if not isinstance(value, dict):
        raise UserError(f"{where}: {key} is {value!r}; expected an object")
    return value


def _linear(path: Path, tensors: Mapping[str, TensorFile], name: str, rows: int | None, columns: int | None) -> Dense:
    """``[out, in]`` and its bias, as a kernel ``[in, out]``."""
    missing = [key for key in (f"{name}.weight", f"{name}.bias") if key not in tensors]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing; copy or export the folder again")
    weight, bias = (tensors[key][key].astype(np.float32) for key in (f"{name}.weight", f"{name}.bias"))
    good = weight.ndim == 2 and bias.shape == weight.shape[:1]
    if not good or rows not in (None, len(weight)) or columns not in (None, weight.shape[1]):
        raise UserError(
            f"{path}: {name}.weight is {list(weight.shape)}, its bias {list(bias.shape)}; expected {[rows, columns]}"
        )
    return Dense(np.ascontiguousarray(weight.T), bias, "identity")


def _outputs(path: Path, tensors: Mapping[str, TensorFile], width: int) -> dict[int, tuple[Dense, ...]]:
    prefix = "vector_linear_"
    names = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    odd = sorted(name for name in names if not name.isdecimal())
    if odd:
        raise UserError(f"{path}: {prefix}{odd[0]}: expected a dimension after {prefix}")
    dims = sorted(map(int, names), reverse=True)
    return {dim: (_linear(path, tensors, f"{prefix}{dim}", dim, width),) for dim in dims}


def _vision(path: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorFile], width: int) -> VisionPart:
    where = str(path / "config.json")
    read = Reader(config, "jasper_vl", where)
    projector = read.choice("projector", ("none", "linear", "joint"), "none")
    tokens = [config.get(key, f"<|jasper_{key}|>") for key in ("img_start_token", "img_token", "img_end_token")]
    if not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{where}: img_start_token, img_token, img_end_token are {tokens!r}; expected strings")
    number = read.integer("num_img_tokens", 300, most=1 << 16)  # each is written out in the text of an input
    rows = number * width if projector == "joint" else width
    dense = _linear(path, tensors, "vision_projector", rows, None) if projector != "none" else None
    arrays = None if dense is None or dense.bias is None else (dense.kernel, dense.bias)
    return VisionPart(
        path=path,
        hf_config={"model_type": "siglip_vision_model", **_object(config, "vision_config", where)},
        tokens=number,
        start_token=tokens[0],
        image_token=tokens[1],
        end_token=tokens[2],
        projector=arrays,
        projection=projector if arrays else "none",
    )
