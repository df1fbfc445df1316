"""What a model's name in a recipe stands for: an asset of the catalogue, a folder, a model on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jasper_jax.assets import hub
from jasper_jax.assets.cache import asset_record, fetch_asset, is_cached
from jasper_jax.assets.catalogue import CATALOGUE, Unavailable, named
from jasper_jax.runtime.errors import UserError, nearest
from jasper_jax.runtime.files import sha256_file

TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(name_or_path: str, revision: str | None = None, *, progress: bool = True) -> Path:
    """The folder of a model: an asset's name, else an existing folder, else a hub id ``org/name``.

    A folder that bears the name of an asset is written ``./name``. ``revision`` is for hub ids.
    Errors: ``UserError``.
    """
    name = os.fspath(name_or_path)
    folder = Path(name).expanduser()
    if name in CATALOGUE or folder.is_dir():
        what = "asset" if name in CATALOGUE else "folder"
        if revision is not None:
            raise UserError(f"revision {revision!r} is given for {what} {name!r}; it is for hub ids (org/name) only")
        if what == "folder":
            return folder
        if named(name).kind != "model":
            what = {"corpus": "a corpus", "images": "a collection of images"}[named(name).kind]
            raise UserError(f"asset {name!r} is {what}, not a model; the models are {', '.join(_models())}")
        return fetch_asset(name, progress=progress)
    if folder.is_file():
        raise UserError(
            f"model {name!r} is a file; give its folder, with config.json, tokenizer.json and model.safetensors"
            f" (pickled weights are never loaded)"
        )
    if not HUB_ID.fullmatch(name):
        raise UserError(
            f"model {name!r} is no folder here, no hub id (org/name) and no asset{nearest(name, _models())}; "
            f"the assets are {', '.join(_models())}"
        )
    try:
        return hub.snapshot(name, revision, progress=progress)
    except Unavailable as error:
        same = next((a.name for a in CATALOGUE.values() if a.hub == name), None)
        hint = f"; the asset {same!r} is this model" if same else "; a local folder can be given instead"
        raise UserError(f"model {name!r} is no folder here, and the hub did not give it: {error}{hint}") from error


def is_here(name_or_path: str, revision: str | None = None) -> bool:
    """Whether a model needs no download: a folder, an asset that is cached, a hub id in the hub's cache."""
    name = os.fspath(name_or_path)
    if name in CATALOGUE:
        return is_cached(named(name))
    return Path(name).expanduser().is_dir() or (bool(HUB_ID.fullmatch(name)) and hub.is_cached(name, revision))


def _models() -> list[str]:
    return [asset.name for asset in CATALOGUE.values() if asset.kind == "model"]


def model_identity(name_or_path: str, revision: str | None, folder: Path) -> dict[str, Any]:
    """What tells one model from another: ``id``, ``revision`` (hub commit, asset's version) and ``sha256``.

    ``sha256`` maps the weights (``*.safetensors``, also of modules in subfolders) and the tokenizer's file to
    their sums. An asset's come from its record, those of other folders are computed.
    """
    name = os.fspath(name_or_path)
    if name in CATALOGUE and (files := asset_record(folder).get("files")):
        sums = {path: entry["sha256"] for path, entry in files.items()}
        chosen = _identifying(list(sums))
        return {
            "id": name,
            "revision": CATALOGUE[name].version,
            "sha256": {path: sums[path] for path in chosen},
        }
    commit = folder.name if folder.parent.name == "snapshots" else revision
    chosen = _identifying([path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()])
    return {"id": name, "revision": commit, "sha256": {path: sha256_file(folder / path) for path in chosen}}


def _identifying(paths: list[str]) -> list[str]:
    """The weights and the tokenizer's file among a model's files, sorted."""
    weights = {path for path in paths if path.endswith(".safetensors")}
    return sorted(weights | set([name for name in TOKENIZERS if name in paths][:1]))
