"""Files that are complete or absent (written atomically), manifests of folders, and the lock of a folder."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from jasper_jax.runtime.bounded import read_record_bytes, read_regular
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.in_place import folder_lock
from jasper_jax.runtime.inside import file_inside
from jasper_jax.runtime.json_text import parse_json

_DIGEST = hashlib.sha256().digest_size
_ENCODER = json.JSONEncoder(indent=1, ensure_ascii=False, sort_keys=True)


def sync_folder(folder: Path) -> None:
    """Flush ``folder`` itself to disk, so that renames in it survive a power failure."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:  # some mounts (FUSE, CIFS) cannot flush a folder, and need not
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def temporary(path: Path) -> Path:
    """A temporary name in the folder of ``path`` that no other process uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """A temporary file with ``data``, flushed to disk, for the block to move to ``path``; an OSError names ``path``."""
    part = temporary(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield part
    except OSError as error:
        raise naming(error, path) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write ``path`` atomically: a reader sees the old content or the new. Creates its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _written_beside(path, content.encode() if isinstance(content, str) else content) as part:
        os.replace(part, path)


def naming(error: OSError, path: Path) -> OSError:
    """``error`` with ``path`` as its file name: a failed write has none, and other calls name the temporary file."""
    return OSError(error.errno, error.strerror or str(error), str(path))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_array(path: Path, array: np.ndarray) -> None:
    """Write ``array`` as ``.npy``, atomically."""
    write_atomic(path, _npy(array))


def write_cached_array(path: Path, array: np.ndarray) -> None:
    """Write ``array`` as ``.npy`` atomically, followed by the sha256 of its bytes, which ``np.load`` ignores."""
    data = _npy(array)
    write_atomic(path, data + hashlib.sha256(data).digest())


def read_cached_array(path: Path) -> np.ndarray | None:
    """Read what ``write_cached_array`` wrote; None if the file is missing or damaged, and must be made again."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        return None
    return np.load(io.BytesIO(body), allow_pickle=False)


def mapped_array(path: Path) -> np.ndarray:
    """Memory-map what ``write_cached_array`` wrote, without the check that ``read_cached_array`` makes."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def refuse_blocked(path: Path, remedy: str) -> None:
    """UserError if ``path`` cannot be created, because a parent is a file or the name is too long."""
    try:
        parent = next((p for p in path.absolute().parents if p.exists()), path)  # of the root there is none
        path.exists()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {remedy}") from None
    if not parent.is_dir():
        raise UserError(f"{parent}: is a file, not a folder; {remedy}")


def write_once(path: Path, data: bytes) -> None:
    """Write ``path`` atomically unless it exists; of several writers the first wins."""
    with _written_beside(path, data) as part:
        try:
            os.link(part, path)
        except FileExistsError:
            pass
        except OSError:  # no hard links on this file system: another writer may win between the next two calls
            if not path.exists():
                os.replace(part, path)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` with a ``checksum`` of its other keys, which :func:`is_whole` verifies."""
    rest = {k: v for k, v in value.items() if k != "checksum"}
    digest = hashlib.sha256()
    for piece in _ENCODER.iterencode(rest):  # as a whole, millions of values would take a hundred times their bytes
        digest.update(piece.encode())
    digest.update(b"\n")
    return {**rest, "checksum": digest.hexdigest()}


def is_whole(value: Mapping[str, Any]) -> bool:
    """Whether the checksum of ``value`` (see :func:`sealed`) is correct, or absent.

    A damaged *name* of the key ``checksum`` passes as well: then only that name is damaged.
    """
    try:
        return "checksum" not in value or sealed(value)["checksum"] == value["checksum"]
    except UnicodeEncodeError:  # half a surrogate pair, which is never written
        return False


def json_bytes(value: Any) -> bytes:
    """``value`` as JSON with sorted keys: equal values give equal bytes."""
    return (_ENCODER.encode(value) + "\n").encode()


class Manifest(BaseModel):
    """The keys of every manifest. Each kind of folder has a subclass with its own keys; other keys are kept."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: int


_MOST_VALUES = 1 << 22
"""Values of a manifest: a shard has 6. pydantic takes a hundred bytes for each."""


def read_manifest(folder: Path, what: str, newest: int, form: type[Manifest] = Manifest) -> dict[str, Any]:
    """Read ``folder/manifest.json`` of a ``what``, such as "text store".

    ``newest``: the latest format version that this program reads. ``form``: the model that the manifest must fit.

    Raises:
      UserError: the manifest is missing, of a later version, damaged, or does not fit ``form``.
    """
    path = folder / "manifest.json"
    problem = f"{path}: not the manifest of a {what}"
    remedy = f"restore it, or delete the folder and build the {what} again"
    try:
        data = read_record_bytes(path)
        if data.count(b",") > _MOST_VALUES:
            raise UserError(f"{problem} (more than {_MOST_VALUES:,} values); {remedy}")
        manifest = parse_json(data)
        version = Manifest.model_validate(manifest).format
        if version > newest:
            raise UserError(
                f"{path}: format version {version}, this program reads up to {newest}; install a newer jasper-jax"
            )
        form.model_validate_json(data)
    except FileNotFoundError:
        raise UserError(f"{folder}: no complete {what} here (manifest.json is missing)") from None
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{problem} ({key}: {first['msg']}); {remedy}") from None
    except ValueError as e:
        raise UserError(f"{problem} ({e}); {remedy}") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from None
    if not is_whole(manifest):
        raise UserError(f"{path}: damaged (its checksum differs); {remedy}")
    return manifest


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: Path) -> str:
    """Hex sha256 of a file, read once in a process as long as its :func:`file_state` stays the same."""
    return _sha256(str(path), file_state(path))


@functools.cache
def _sha256(path: str, _: tuple[int, ...]) -> str:
    return sha256_file(Path(path))


def file_state(path: Path) -> tuple[int, ...]:
    """Equal for a path as long as nobody has written or replaced its file: size, times and inode."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def check_files(folder: Path, shards: Iterable[Mapping[str, Any]], remedy: str) -> None:
    """UserError if a shard of the manifest is missing in ``folder``, has another size, or is a link out of it."""
    for shard in shards:
        path = folder / shard["file"]
        size = path.stat().st_size if path.exists() else None
        if size is not None and path.is_symlink():
            file_inside(path)
        if size != shard["bytes"]:
            seen = "is missing" if size is None else f"has {size} bytes instead of {shard['bytes']}"
            raise UserError(f"{path}: shard {seen}; {remedy}")


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Delete temporary files of ``names`` that killed writers left in ``folder``, once all ``names`` are complete."""
    targets = set(names)
    for path in folder.glob(".*.tmp"):
        if path.name[1:].rsplit(".", 2)[0] in targets:  # the inverse of ``temporary``
            path.unlink(missing_ok=True)


def differences(recorded: Any, asked: Any, key: str) -> list[str]:
    """The keys below ``key`` at which two JSON values differ, with both: ``texts.count (10 there, 20 asked)``."""
    if isinstance(recorded, dict) and isinstance(asked, dict):
        keys = [*asked, *(k for k in recorded if k not in asked)]
        return [d for k in keys for d in differences(recorded.get(k), asked.get(k), f"{key}.{k}".lstrip("."))]
    if isinstance(recorded, list) and isinstance(asked, list) and len(recorded) == len(asked):
        return [d for i, pair in enumerate(zip(recorded, asked)) for d in differences(*pair, f"{key}[{i}]")]
    return [] if recorded == asked else [f"{key} ({recorded!r} there, {asked!r} asked)"]


AT_WORK = ".at-work"
"""Beside the lock of a folder: the command that holds it."""
_LONGEST_NOTE = 1000


@contextlib.contextmanager
def exclusive(folder: Path, what: str, key: str = "run_dir") -> Iterator[None]:
    """Lock ``folder``, which the recipe's ``key`` names, for this process and the command ``what``; the lock ends with
    the process.

    Raises:
      UserError: another process holds the lock, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder_lock(folder / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"{folder}: another process is using this run folder ({_at_work(folder)}); wait for it, or set {key}=..."
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; choose another with {key}=...") from None
    note = folder / AT_WORK
    with contextlib.suppress(OSError):
        write_atomic(note, f"jasper {what}, process {os.getpid()} of {socket.gethostname()}")  # follows no link
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def _at_work(folder: Path) -> str:
    try:
        note = read_regular(file_inside(folder / AT_WORK), _LONGEST_NOTE)
        return note.decode(errors="replace") or "starting"
    except (OSError, UserError):  # none; or a link to elsewhere, whose text is nobody's business
        return "starting, or about to end"
