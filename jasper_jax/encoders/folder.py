"""Reading a model folder written by any version of sentence-transformers, or by transformers.

``modules.json`` lists the steps: Transformer, Pooling, then Dense steps and Normalize. Beside the listed Dense folder
there may be siblings ``2_Dense_{dim}``, one per output dimension (the Stella layout). A folder without
``modules.json`` is a plain transformers model, pooled by its family's default.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.encoders.folder_keys import DENSE, NORMALIZE, POOLING, check_keys
from jasper_jax.encoders.hf_config import Reader, read_hf_config, read_json, read_object
from jasper_jax.encoders.lora import refuse_adapter_alone
from jasper_jax.encoders.model_folder import Dense, ModelFolder, text_settings
from jasper_jax.encoders.pooling import MODES, POOLING_KEYS, Pooling
from jasper_jax.encoders.prompts import MODEL_CONFIG, read_model_config
from jasper_jax.encoders.registry import encoder_from_config, family_of
from jasper_jax.encoders.safetensors import SINGLE, TensorFile, open_checkpoint
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import folder_inside
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.shell import python_command

DENSE_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}
"""``activation_function`` in the config of a Dense step -> its name here."""
PICKLE = "pytorch_model.bin"
_LARGEST_CUT = 1 << 28
"""Numbers of the matrix that cuts a vector to ``truncate_dim``; it is made before the weights are compared."""


def read_model_folder(path: str | Path | ModelFolder, *, causal: bool | None = None) -> ModelFolder:
    """Read a sentence-transformers or transformers folder; a ``ModelFolder`` is returned as it is.

    ``causal`` overrides whether a decoder's attention is causal. UserError: a step that is not implemented.
    """
    if isinstance(path, ModelFolder):
        return path
    path = Path(path)
    if path.is_file():
        raise UserError(f"{path}: is a file; give the folder of the model, {path.parent}")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a folder saved by sentence-transformers or transformers")
    if (path / "config.json").is_file() and (config := read_hf_config(path)).get("model_type") == "jasper_vl":
        from jasper_jax.encoders.jasper_vl import read_jasper_vl

        return read_jasper_vl(path, config, causal)
    steps = _steps(path)
    encoder_path = path / steps[0][1]
    refuse_adapter_alone(encoder_path)
    hf_config = read_hf_config(encoder_path)
    where = str(encoder_path / "config.json")
    family = family_of(hf_config, where)
    if causal is not None:
        if not family.has_causal:
            raise UserError(f"{path}: causal is set, but {family.model_type} encoders are bidirectional; remove it")
        hf_config["is_causal"] = causal
    encoder = encoder_from_config(hf_config, where)
    if hf_config.get("auto_map"):
        _say_code_is_not_run(encoder_path / "config.json", str(hf_config.get("model_type")))
    pooling, size = family.pooling(encoder.config), None
    dense_folders: list[str] = []
    normalize = False
    for kind, folder in steps[1:]:
        if kind == "Dropout":  # of training alone
            continue
        if kind == "Pooling" and size is None and not dense_folders and not normalize:
            pooling, size = _read_pooling(path / folder / "config.json")
        elif kind == "Dense" and not normalize:
            dense_folders.append(folder)
        elif kind == "Normalize":
            if (file := path / folder / "config.json").is_file():
                check_keys(read_object(file), NORMALIZE, file)
            normalize = True
        else:
            raise UserError(
                f"{path / 'modules.json'}: {kind} ({folder or 'no folder'}) is out of order; expected "
                "Transformer, Pooling, any Dense, Normalize"
            )
    outputs, default_dim = _read_outputs(path, dense_folders, size)
    hidden = encoder.hidden_size
    if size is not None and size != pooling.size(hidden):
        raise UserError(f"{path}: the Pooling step has {size} dimensions, but config.json's hidden_size is {hidden}")
    if (cut := read_model_config(path).get("truncate_dim")) is not None:
        outputs, default_dim = _cut(outputs, default_dim, cut, pooling.size(hidden), path)
    return ModelFolder(
        path=path,
        encoder_path=encoder_path,
        hf_config=encoder.hf_config,
        append_eos=family.append_eos,
        pooling=pooling,
        outputs=outputs,
        default_dim=default_dim,
        normalize=normalize,
        **text_settings(path, encoder_path),
    )


@functools.cache  # once per folder
def _say_code_is_not_run(file: Path, model_type: str) -> None:
    say(f"{file}: names custom code (auto_map), which is never run; read as a plain {model_type}.")


def _steps(path: Path) -> list[tuple[str, str]]:
    """(kind, folder) of each step; Transformer first."""
    file = path / "modules.json"
    if not file.is_file():
        return [("Transformer", "")]
    modules = read_json(file)
    try:
        steps = [(str(module["type"]), str(module.get("path") or "")) for module in modules]
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{file}: expected a list of modules with type and path") from None
    for kind, folder in steps:
        if not kind.startswith("sentence_transformers.") or kind.split(".")[-1] not in _STEPS:
            raise UserError(
                f"{file}: module {kind} ({folder or 'no folder'}) is not implemented; {', '.join(_STEPS)} of "
                "sentence_transformers are, and code in a model folder is never run"
            )
        folder_inside(path, folder, file)
    short = [(kind.split(".")[-1], folder) for kind, folder in steps]
    if [kind for kind, _ in short[:2]] != ["Transformer", "Pooling"]:
        raise UserError(f"{file}: begins with {[kind for kind, _ in short[:2]]}; expected Transformer, Pooling")
    return short


_STEPS = ("Transformer", "Pooling", "Dense", "Dropout", "Normalize")


def _read_pooling(file: Path) -> tuple[Pooling, int | None]:
    """The pooling and the width of its vector (None where the file has none)."""
    config = read_object(file)
    check_keys(config, POOLING, file, "pooling_mode_")
    if "pooling_mode" in config:
        modes = config["pooling_mode"]
        modes = tuple(modes) if isinstance(modes, list) else (modes,)
    else:
        modes = tuple(mode for key, mode in POOLING_KEYS.items() if config.get(key)) or ("mean",)
    if not modes or not all(isinstance(mode, str) for mode in modes):
        raise UserError(
            f"{file}: pooling_mode is {config['pooling_mode']!r}; expected one or more of {', '.join(MODES)}"
        )
    unknown = [mode for mode in modes if mode not in MODES] + [
        key for key, value in config.items() if key.startswith("pooling_mode_") and value and key not in POOLING_KEYS
    ]
    if unknown:
        raise UserError(f"{file}: pooling mode {unknown[0]!r} is not implemented; {', '.join(MODES)} are")
    if repeated := [mode for mode in MODES if modes.count(mode) > 1]:
        raise UserError(f"{file}: pooling_mode names {repeated[0]!r} more than once; name each mode once")
    width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    pooling = Pooling(modes, include_prompt=bool(config.get("include_prompt", True)))
    if width is None:
        return pooling, None
    return pooling, pooling.size(Reader({"width": width}, "Pooling", str(file)).integer("width", 1))


def _read_outputs(
    path: Path, folders: Sequence[str], size: int | None
) -> tuple[dict[int, tuple[Dense, ...]], int | None]:
    """Every output dimension, the default first. A sibling ``2_Dense_{dim}`` replaces the one Dense step."""
    outputs: dict[int, tuple[Dense, ...]] = {}
    default = None
    if folders:
        chain = tuple(_read_dense(path / folder) for folder in folders)
        default = chain[-1].kernel.shape[1]
        outputs[default] = chain
    prefix = re.match(r"\d+_Dense", folders[0]) if len(folders) == 1 else None
    pattern = re.compile(rf"{prefix[0] if prefix else '2_Dense'}_(\d+)")
    siblings = sorted(
        (int(match[1]), child)
        for child in sorted(path.iterdir())
        if child.is_dir() and child.name not in folders and (match := pattern.fullmatch(child.name))
    )
    if siblings and len(folders) > 1:
        raise UserError(
            f"{siblings[0][1]}: stands beside {len(folders)} Dense steps in modules.json; one per dimension is only "
            "defined with a single Dense step"
        )
    for dim, child in siblings:
        dense = _read_dense(folder_inside(path, child.name))
        if dense.kernel.shape[1] != dim:
            raise UserError(f"{child}: named for {dim} dimensions, but its weight has {dense.kernel.shape[1]}")
        outputs.setdefault(dim, (dense,))
    for chain in outputs.values():
        width = size
        for dense in chain:
            if width is not None and dense.kernel.shape[0] != width:
                raise UserError(f"{path}: a Dense step expects {dense.kernel.shape[0]} dimensions, got {width}")
            width = dense.kernel.shape[1]
    return outputs, default


def _cut(
    outputs: dict[int, tuple[Dense, ...]], default: int | None, dim: Any, width: int, path: Path
) -> tuple[dict[int, tuple[Dense, ...]], int | None]:
    """The outputs with one of the first ``dim`` components of the default's, which becomes the default."""
    whole = default or width
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        file = path / MODEL_CONFIG
        raise UserError(f"{file}: truncate_dim is {dim!r}; expected a whole number of 1 to {whole}")
    if dim >= whole:
        return outputs, default
    if whole * dim > _LARGEST_CUT:
        file = path / MODEL_CONFIG
        raise UserError(f"{file}: truncate_dim is {dim} of {whole} dimensions, more than a model has; copy it again")
    chain = outputs[whole] if default else ()
    first = Dense(np.eye(whole, dim, dtype=np.float32), None, "identity")
    return {
        dim: (*chain, first),
        **{d: c for d, c in outputs.items() if d != dim},
        **({} if default else {whole: ()}),
    }, dim


_CONVERT = "import torch; from safetensors.torch import save_file as s; s(torch.load({}, weights_only=True), {})"
"""From a pickle to safetensors."""


def _open_dense(folder: Path) -> Mapping[str, TensorFile]:
    if (folder / PICKLE).is_file() and not (folder / SINGLE).is_file():
        raise UserError(
            f"{folder}: has {PICKLE} but no {SINGLE}; pickled weights are never loaded; convert them once where PyTorch"
            f" is installed: {python_command(_CONVERT, folder / PICKLE, folder / SINGLE)}"
        )
    return open_checkpoint(folder)


def _read_dense(folder: Path) -> Dense:
    """One Dense folder: config.json and model.safetensors with linear.weight [out, in] and linear.bias."""
    config = read_object(folder / "config.json")
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(name, str) or name not in DENSE_ACTIVATIONS:
        raise UserError(
            f"{folder / 'config.json'}: activation_function {name!r} is not implemented; "
            f"{', '.join(DENSE_ACTIVATIONS)} are"
        )
    check_keys(config, DENSE, folder / "config.json")
    files = _open_dense(folder)
    expected = {"linear.weight", "linear.bias"} if config.get("bias", True) else {"linear.weight"}
    if set(files) != expected:
        raise UserError(f"{folder}: expected {', '.join(sorted(expected))}, got {', '.join(sorted(files))}")
    tensors: Mapping[str, np.ndarray] = {name: file[name].astype(np.float32) for name, file in files.items()}
    weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
    shape = (config.get("out_features"), config.get("in_features"))
    if weight.shape != shape or (bias is not None and bias.shape != shape[:1]):
        raise UserError(f"{folder}: linear.weight is {list(weight.shape)}, config.json asks for {list(shape)}")
    return Dense(np.ascontiguousarray(weight.T), bias, DENSE_ACTIVATIONS[name])
