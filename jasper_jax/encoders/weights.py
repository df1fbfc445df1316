"""Checkpoints <-> parameters, by a family's table. Every tensor must be used and every parameter set."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.encoders.encoder import Encoder, Family
from jasper_jax.encoders.hf_config import read_hf_config, to_publish
from jasper_jax.encoders.lora import merge_adapter
from jasper_jax.encoders.safetensors import SINGLE, TensorFile, open_checkpoint, write_safetensors
from jasper_jax.encoders.table import LAYERS, Weight
from jasper_jax.encoders.tower import Params, Tower, depth, stacks_of
from jasper_jax.parameters.trees import flatten, unflatten
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import write_atomic

_WRAPPERS = ("0.auto_model.", "auto_model.", "model.", "module.")  # that trainers prepend to any model's names
_HEADS = ("classifier.*", "score.*", "qa_outputs.*", "lm_head.*", "cls.predictions.*", "cls.seq_relationship.*")
"""Heads of other tasks that transformers puts on any encoder; no vector depends on them."""
_STORED = ("F32", "F16", "BF16")
_DROPPED_CONFIG = (
    *("torch_dtype", "transformers_version"),
    *("is_matryoshka", "matryoshka_dimensions"),  # of the vectors of the model that the student started from
)


def load_params(
    folder: str | Path,
    encoder: Tower,
    layers: Sequence[int] | None = None,
    dtype: Any = None,
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> Params:
    """The parameters of ``encoder`` from a transformers checkpoint (safetensors, one file or shards).

    ``layers``: the checkpoint's layers to use, in order (see ``registry.keep_layers``); by default all. ``dtype``: of
    the parameters, float32 by default. ``place(path, array)`` turns each host leaf into the tree's leaf, for example
    onto a mesh (default: a JAX array on the default device). Leaves are filled one at a time, so the host never holds
    a second copy of the model. UserError: tensors missing, unexpected or of the wrong shape.
    """
    target = np.dtype(jnp.dtype(jnp.float32 if dtype is None else dtype))
    table, stored, sources = _checked(Path(folder), encoder, layers)
    shapes = encoder.shapes()
    flat: dict[str, Any] = {}
    for weight in table:
        stacked = weight.path.startswith(LAYERS)
        leaf = _host_array(shapes[weight.path], target)
        for i, name in enumerate(sources[weight.path]):
            if name is None:
                leaf[i] = 1
                continue
            tensor = _part(*stored[name], weight)
            np.copyto(leaf[i] if stacked else leaf, tensor.T if weight.transpose else tensor, casting="unsafe")
        # may_alias: no copy on CPU
        flat[weight.path] = jax.device_put(leaf, may_alias=True) if place is None else place(weight.path, leaf)
    return unflatten(flat)


def check_params(folder: str | Path, encoder: Tower, layers: Sequence[int] | None = None) -> None:
    """Raise what ``load_params`` would raise, reading headers only."""
    _checked(Path(folder), encoder, layers)


Sources = dict[str, list[str | None]]
"""Leaf path -> its tensors, one per layer where it is stacked; None for a layer without."""


def _checked(
    folder: Path, encoder: Tower, layers: Sequence[int] | None
) -> tuple[Sequence[Weight], dict[str, tuple[TensorFile, str]], Sources]:
    """The table that fits the checkpoint, the location of each tensor, and the tensors of each leaf, validated."""
    chosen = tuple(range(encoder.num_layers)) if layers is None else tuple(layers)
    if len(chosen) != encoder.num_layers:
        raise UserError(f"layers {list(chosen)}: expected {encoder.num_layers}, got {len(chosen)}")
    family, shapes, tensors = encoder.family, encoder.shapes(), merge_adapter(folder, open_checkpoint(folder))
    part = _part_of(folder, encoder)
    best: tuple[int, Any] | None = None
    for make in (family.weights, *family.older):
        table = make(encoder.config)
        _check_table(table, shapes, family)
        found = _known_names(tensors, family, table, part)
        sources: Sources = {weight.path: _source_names(weight, chosen) for weight in table}
        missing = len({name for names in sources.values() for name in names if name} - set(found))
        if best is None or missing < best[0]:
            best = missing, (table, found, sources)
    assert best is not None
    table, found, sources = best[1]
    _check_names(folder, found, sources, table, skipping=layers is not None)
    _check_tensors(folder, found, sources, table, shapes)
    return table, found, sources


def state_dict(params: Params, encoder: Tower) -> dict[str, np.ndarray]:
    """The inverse: transformers' tensor names -> host arrays (views where possible), in the parameters' dtype.

    ``params["layers"]`` may be one stack or several.
    """
    ends = flatten({name: part for name, part in params.items() if name != "layers"})
    stacks = [(depth(stack), flatten(stack)) for stack in stacks_of(params["layers"])]
    parts: dict[str, list[np.ndarray]] = {}
    for weight in encoder.family.weights(encoder.config):
        if weight.path.startswith(LAYERS):
            leaves = [(n, np.asarray(stack[weight.path.removeprefix(LAYERS)])) for n, stack in stacks]
            sources = [leaf[i] for n, leaf in leaves for i in range(n)]
        else:
            sources = [np.asarray(ends[weight.path])]
        for index, tensor in enumerate(sources):
            if index >= weight.first_layer:
                name = weight.name.format(index)
                parts.setdefault(name, []).append(tensor.T if weight.transpose else tensor)
    return {name: pieces[0] if len(pieces) == 1 else np.concatenate(pieces) for name, pieces in parts.items()}


def save(params: Params, encoder: Tower, folder: str | Path, extra: Mapping[str, np.ndarray] | None = None) -> None:
    """Write ``model.safetensors`` and ``config.json`` for ``transformers.AutoModel``; any dtype of ``params``.

    ``extra``: further tensors, which the model has and this encoder has not.
    """
    folder = Path(folder)
    if encoder.family.architecture is None:
        raise UserError(f"{encoder.family.model_type}: transformers has no class for it, so it cannot be exported")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = state_dict(params, encoder)
    write_safetensors(folder / SINGLE, {**tensors, **(extra or {})})
    config = config_of(encoder)
    config["dtype"] = str(next(iter(tensors.values())).dtype)
    write_atomic(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def config_of(encoder: Tower) -> dict[str, Any]:
    """Its ``config.json``, for transformers."""
    config = {key: value for key, value in encoder.hf_config.items() if key not in _DROPPED_CONFIG}
    return {**to_publish(config), "architectures": [encoder.family.architecture]}


def _host_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised, aligned to 64 bytes, so that JAX on CPU uses the memory without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _pattern(name: str) -> re.Pattern[str]:
    """A table name as a regular expression, its ``{}`` any layer number."""
    return re.compile(re.escape(name).replace(r"\{\}", "([0-9]+)"))


def _source_names(weight: Weight, chosen: Sequence[int]) -> list[str | None]:
    if not weight.path.startswith(LAYERS):
        return [weight.name]
    return [weight.name.format(i) if i >= weight.first_layer else None for i in chosen]


def _part(file: TensorFile, stored: str, weight: Weight) -> np.ndarray:
    """The part of a stored tensor that makes a weight."""
    i, n = weight.part
    rows = file.shape(stored)[0] // n
    return file[stored] if n == 1 else file.rows(stored, i * rows, (i + 1) * rows)


def _check_table(table: Sequence[Weight], shapes: Mapping[str, Any], family: Family) -> None:
    """ValueError: a family file's table does not name every leaf once."""
    paths = [weight.path for weight in table]
    odd = set(paths) ^ set(shapes)
    if odd or len(paths) != len(set(paths)):
        raise ValueError(f"weight table of {family.model_type}: {sorted(odd) or 'a path twice'}")


def _part_of(folder: Path, encoder: Tower) -> str:
    """The prefix of this encoder's tensors in a folder with two encoders (``encoders.jasper_vl``)."""
    if not (folder / "config.json").is_file() or read_hf_config(folder).get("model_type") != "jasper_vl":
        return ""
    return "model." if isinstance(encoder, Encoder) else "vision_model."


def _known_names(
    tensors: Mapping[str, TensorFile], family: Family, table: Sequence[Weight], part: str = ""
) -> dict[str, tuple[TensorFile, str]]:
    """Name in the table -> (file, stored name): prefixes removed, old endings renamed, ignored names and those without
    the prefix ``part`` skipped."""
    known = [_pattern(weight.name) for weight in table]
    found: dict[str, tuple[TensorFile, str]] = {}
    for stored, file in tensors.items():
        if not stored.startswith(part):
            continue
        name = stored.removeprefix(part)
        while not any(pattern.fullmatch(name) for pattern in known):
            shorter = _without_prefix(name, family)
            if shorter == name:
                break
            name = shorter
        if any(fnmatchcase(name, pattern) for pattern in (*family.ignored, *_HEADS)):
            continue
        if name in found:
            raise UserError(f"{file.path}: {stored} and {found[name][1]} are both {name}; remove one")
        found[name] = (file, stored)
    return found


def _without_prefix(name: str, family: Family) -> str:
    for old, new in family.renamed:
        if name.endswith(old):
            return name.removesuffix(old) + new
    for prefix in (*family.prefixes, *_WRAPPERS):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _check_names(
    folder: Path,
    found: Mapping[str, Any],
    sources: Sources,
    table: Sequence[Weight],
    *,
    skipping: bool,
) -> None:
    wanted = {name for names in sources.values() for name in names if name is not None}
    missing = sorted(wanted - set(found))
    if missing:
        raise UserError(
            f"{folder}: {_listed(missing, 'tensor')} missing: the checkpoint has another size or architecture"
        )
    layered = [_pattern(weight.name) for weight in table if weight.path.startswith(LAYERS)]
    unread = sorted(
        name
        for name in set(found) - wanted
        if not (skipping and any(pattern.fullmatch(name) for pattern in layered))  # of a dropped layer
    )
    if unread:
        raise UserError(
            f"{folder}: {_listed(unread, 'tensor')} unexpected: config.json and weights disagree, or the model has "
            "parts that are not implemented"
        )


def _check_tensors(
    folder: Path,
    found: Mapping[str, tuple[TensorFile, str]],
    sources: Sources,
    table: Sequence[Weight],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    wrong = []
    for weight in table:
        shape = shapes[weight.path][1:] if weight.path.startswith(LAYERS) else shapes[weight.path]
        expected = shape[::-1] if weight.transpose else shape
        expected = (expected[0] * weight.part[1], *expected[1:])
        for name in sources[weight.path]:
            if name is None:
                continue
            file, stored = found[name]
            if file.shape(stored) != expected:
                wrong.append(f"{name} is {list(file.shape(stored))}, config.json asks for {list(expected)}")
            elif file.dtype(stored) not in _STORED:
                wrong.append(f"{name} is {file.dtype(stored)}, not F32, F16 or BF16")
    if wrong:
        raise UserError(f"{folder}: {'; '.join(wrong[:5])}{f'; and {len(wrong) - 5} more' if wrong[5:] else ''}")


def _listed(names: Sequence[str], noun: str) -> str:
    """``3 tensors (a, b, c)``, at most five named."""
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''} ({', '.join(names[:5])}{more})"
