"""What a model's name in a recipe means: an asset of the catalogue, a folder, or a model on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jasper_jax.assets import hub
from jasper_jax.assets.cache import asset_record, fetch_asset, is_cached
from jasper_jax.assets.catalogue import CATALOGUE, Unavailable, named
from jasper_jax.runtime.errors import UserError, nearest
from jasper_jax.runtime.files import sha256_once
from jasper_jax.runtime.inside import file_inside
from jasper_jax.runtime.paths import user_path

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"(?!.*\.\.)[^/\\\s\x00-\x1f~^:?*\[][^\\\s\x00-\x1f~^:?*\[]*")
"""A commit, or what git allows as a name. The hub's library takes any other for a path, to a file that names the folder
of the model."""


def resolve_model(name_or_path: str, revision: str | None = None, *, progress: bool = True) -> Path:
    """The folder of a model: an asset's name, else an existing folder, else a hub id ``org/name``.

    Write ``./name`` for a folder that has the name of an asset. ``revision`` is for hub ids. UserError: no such model.
    """
    name = os.fspath(name_or_path)
    folder = user_path(name, "model")
    if name in CATALOGUE or folder.is_dir():
        what = "asset" if name in CATALOGUE else "folder"
        if revision is not None:
            raise UserError(f"revision {revision!r} is set for {what} {name!r}; only hub ids (org/name) have revisions")
        if what == "folder":
            return folder
        if named(name).kind != "model":
            what = {"corpus": "a corpus", "images": "an image collection"}[named(name).kind]
            raise UserError(f"asset {name!r} is {what}, not a model; the models are {', '.join(_models())}")
        return fetch_asset(name, progress=progress)
    if folder.is_file():
        raise UserError(
            f"model {name!r} is a file; give its folder, with config.json, tokenizer.json and model.safetensors"
            f" (pickled weights are never loaded)"
        )
    if not HUB_ID.fullmatch(name):
        raise UserError(
            f"model {name!r} is not a folder, a hub id (org/name) or an asset{nearest(name, _models())}; "
            f"the assets are {', '.join(_models())}"
        )
    if revision is not None and not _REVISION.fullmatch(revision):
        raise UserError(f"model {name!r}: revision {revision!r} is none; expected a commit, a branch or a tag")
    try:
        return hub.snapshot(name, revision, progress=progress)
    except Unavailable as error:
        same = next((a.name for a in CATALOGUE.values() if a.hub == name), None)
        hint = f"; the asset {same!r} is this model" if same else "; or give a local folder"
        raise UserError(f"model {name!r} is not a folder, and cannot be fetched: {error}{hint}") from error


def is_here(name_or_path: str, revision: str | None = None) -> bool:
    """Whether a model needs no download: a folder, a cached asset, or a hub id in the hub's cache."""
    name = os.fspath(name_or_path)
    if name in CATALOGUE:
        return is_cached(named(name))
    return user_path(name, "model").is_dir() or (bool(HUB_ID.fullmatch(name)) and hub.is_cached(name, revision))


def _models() -> list[str]:
    return [asset.name for asset in CATALOGUE.values() if asset.kind == "model"]


def model_identity(name_or_path: str, revision: str | None, folder: Path) -> dict[str, Any]:
    """What identifies a model: ``id``, ``revision`` (hub commit, asset's version) and ``sha256``.

    ``sha256`` is of the weights (``*.safetensors``, also of modules in subfolders; an adapter's config) and the
    tokenizer file: from the record of an asset, computed for other folders.
    """
    name = os.fspath(name_or_path)
    if name in CATALOGUE and (files := asset_record(folder).get("files")):
        sums = {path: files[path]["sha256"] for path in _identifying(list(files))}
        return {"id": name, "revision": CATALOGUE[name].version, "sha256": sums}
    commit = folder.name if folder.parent.name == "snapshots" else revision
    paths = _identifying([path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()])
    return {"id": name, "revision": commit, "sha256": {path: sha256_once(file_inside(folder / path)) for path in paths}}


def _identifying(paths: list[str]) -> list[str]:
    """The weights and the tokenizer file among a model's files, sorted."""
    weights = {path for path in paths if path.endswith(".safetensors") or path == "adapter_config.json"}
    return sorted(weights | set([name for name in TOKENIZERS if name in paths][:1]))
