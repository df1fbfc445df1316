"""A run folder's copy in object storage, from which another machine can resume the run.

The run works on a local disk, where files can be renamed, locked and mapped. After every complete checkpoint, recipe,
checkpoints and metrics are copied to the mirror; a run whose mirror has newer checkpoints than its folder starts by
copying them back. In the mirror too, a checkpoint counts once the sha256 of its files are written, so that object is
written last and deleted first. Files copied back are verified against it.

Object storage has no locks; instead the mirror belongs to the process that attached last. Each process checks this
before it writes. Between check and write another may attach, and both may write: checkpoints of the same recipe, whose
mixture fails its checksums and is skipped.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jasper_jax.checkpoints.export_marker import MARKER, only_names, own_files
from jasper_jax.checkpoints.seal import SUMS, sums_path
from jasper_jax.recipe.changes import yaml_changes
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import HEADER
from jasper_jax.runtime.errors import UserError, first_three
from jasper_jax.runtime.files import json_bytes, sha256_file, temporary, write_atomic
from jasper_jax.runtime.inside import file_inside
from jasper_jax.runtime.json_text import parse_json
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.remote import Store

CONTINUED = ("metrics.jsonl", "timings.json", "wandb_id", "mlflow_id", "trackio_id")
"""Small files that a resumed run appends to; they are copied back with the checkpoints."""
SHOWN = (
    *("recipe.yaml", "evaluation.json", "evaluation-texts.json"),
    *("training.png", "dimensions.png", "report.html"),
)
"""Small files that are written again, or for people."""
EVALUATIONS = "evaluations"
"""Scores and plots by data set."""
EXPORT = "export"
SENDING = "export-files.json"
"""While an export is being replaced: the files in ``export/`` that are a run's."""
OWNER = "owner.json"
_NAME = re.compile(r"(\d+)-[^/]+/(?:step-(\d+)|final)")


class Mirror:
    """The mirror at ``url`` of the run in ``folder``."""

    def __init__(self, url: str, folder: Path):
        self.store, self.folder = Store(url, "mirror"), folder
        self.store.refuse_drop_in("mirror")
        self._owner = {"token": uuid.uuid4().hex, "machine": _machine(), "process": os.getpid()}
        self._remote: dict[str, bytes] = {}
        """Complete checkpoint of the mirror -> its file of checksums."""
        self._sent: dict[str, str] = {}
        """Small file -> sha256 when it was last sent."""
        self._pushing = threading.Lock()

    # ------------------------------------------------------------------ attaching

    def refuse_other(self, recipe: Recipe) -> None:
        """UserError if the mirror belongs to a run with another recipe, or has files of no run."""
        self.refuse_other_files()
        recorded, remedy = self.store.read("recipe.yaml"), "set mirror=... or delete the mirror"
        if recorded is None:
            return
        if changed := yaml_changes(recorded, recipe, self.store.where("recipe.yaml"), remedy):
            raise UserError(
                f"{self.store.url}: this mirror belongs to a run with another recipe; {first_three(changed)}; {remedy}"
            )

    def refuse_other_files(self) -> None:
        """UserError if a run would replace or delete a file that no run wrote."""
        self._refuse_foreign_export()
        if (self.store.read("recipe.yaml") or b"").startswith(HEADER.encode()):  # written before all but OWNER
            return
        small = [name for name in (*SHOWN, *CONTINUED, SENDING) if self.store.read(name) is not None]
        if (owner := self.store.read(OWNER)) is not None and "token" not in (_json_object(owner) or {}):
            small.append(OWNER)
        below = [f"{top}/{name}" for top in ("checkpoints", EVALUATIONS, EXPORT) for name in self.store.names(top)]
        for name in [*small, *below][:1]:
            raise UserError(
                f"{self.store.where(name)}: no run wrote this (there is no recipe.yaml that one wrote), and a run would"
                f" replace it; set mirror=... to another folder"
            )

    def attach(self) -> None:
        """Become the mirror's owner; copy its checkpoints and metrics back if it is ahead of the run folder."""
        self.store.write(OWNER, json_bytes({**self._owner, "since": time.strftime("%Y-%m-%d %H:%M:%S%z")}))
        self._remote = self._remote_checkpoints()
        local = self._local_checkpoints()
        if _latest(self._remote) > _latest(local):
            say(f"{self.store.url}: has newer checkpoints than {self.folder}; copying them and the metrics from there.")
            for name in sorted(self._remote.keys() - local, key=_progress):
                self._fetch(name, self._remote[name])
            for name in CONTINUED:
                if (data := self.store.read(name)) is not None:
                    write_atomic(self.folder / name, data)

    def _remote_checkpoints(self) -> dict[str, bytes]:
        sums = {name: self.store.read(f"checkpoints/{name}{SUMS}") for name in _named(self.store.names("checkpoints"))}
        return {name: data for name, data in sums.items() if data is not None and _files(data) is not None}

    def _local_checkpoints(self) -> set[str]:
        folder = self.folder / "checkpoints"
        names = _named(str(path.relative_to(folder)) for path in folder.rglob(f"*{SUMS}"))
        return {name for name in names if (folder / name).is_dir()}

    def _fetch(self, name: str, sums: bytes) -> None:
        """Copy a checkpoint from the mirror and rename it when all its files match their checksums."""
        target = self.folder / "checkpoints" / name
        files = _files(sums) or {}
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f".{target.name}.*.tmp"):  # of a killed process
            shutil.rmtree(leftover)
        part = temporary(target)
        complete = self.store.fetch(f"checkpoints/{name}", sorted(files), part)
        if not complete or any(sha256_file(part / file) != digest for file, digest in files.items()):
            shutil.rmtree(part, ignore_errors=True)
            say(f"{self.store.where(f'checkpoints/{name}')}: skipped, a file is missing or its checksum differs.")
            return
        shutil.rmtree(target, ignore_errors=True)  # an incomplete one
        part.rename(target)
        write_atomic(target.with_name(target.name + SUMS), sums)

    # ------------------------------------------------------------------ writing

    def push(self) -> None:
        """Copy the small files, complete checkpoints and export; delete checkpoints that the run folder does not have.

        Any thread may call this. Meanwhile the folder's checkpoints must not change, but metrics may be appended.

        Raises:
          UserError: another process has attached to this mirror, or it cannot be written.
        """
        with self._pushing:
            self._refuse_if_taken_over()
            scores = sorted(str(path.relative_to(self.folder)) for path in self.folder.glob(f"{EVALUATIONS}/*"))
            for name in (*SHOWN, *CONTINUED, *scores):
                self._send_small(name)
            local = self._local_checkpoints()
            for name in sorted(local, key=_progress):
                sums = file_inside(sums_path(self.folder / "checkpoints" / name), self.folder).read_bytes()
                if self._remote.get(name) != sums:
                    self._remove(name)
                    files = sorted(_files(sums) or {})
                    self.store.send(self.folder / "checkpoints" / name, files, f"checkpoints/{name}")
                    self.store.write(f"checkpoints/{name}{SUMS}", sums)
                    self._remote[name] = sums
            for name in sorted(self._remote.keys() - local, key=_progress):
                self._remove(name)
            self._send_export()

    def _remove(self, name: str) -> None:
        """Delete a checkpoint, complete or not, its checksums first."""
        self.store.remove(f"checkpoints/{name}{SUMS}")
        self.store.remove_below(f"checkpoints/{name}")
        self._remote.pop(name, None)

    def _send_small(self, name: str) -> None:
        path = self.folder / name
        if not path.is_file():
            return
        data = file_inside(path, self.folder).read_bytes()
        if path.suffix == ".jsonl":
            data = data[: data.rfind(b"\n") + 1]  # another thread may be writing the last event
        digest = hashlib.sha256(data).hexdigest()
        if self._sent.get(name) != digest:
            self.store.write(name, data)
            self._sent[name] = digest

    def _send_export(self) -> None:
        """Replace the exported folder, its marker last: only files that an export's marker names, there and here."""
        folder = self.folder / EXPORT
        if not (folder / MARKER).is_file():
            return
        data = file_inside(folder / MARKER, folder).read_bytes()
        files = {name for name in own_files(data) - {MARKER} if (folder / name).is_file()}
        if not files or self.store.read(f"{EXPORT}/{MARKER}") == data:
            return
        before = self._refuse_foreign_export()
        self.store.write(SENDING, json_bytes(sorted(before | files)))
        self.store.remove(f"{EXPORT}/{MARKER}")
        for name in sorted(before - files - {MARKER}):
            self.store.remove(f"{EXPORT}/{name}")
        self.store.send(folder, sorted(files), EXPORT)
        self.store.write(f"{EXPORT}/{MARKER}", data)
        self.store.remove(SENDING)

    def _refuse_foreign_export(self) -> set[str]:
        """The files of the mirror's ``export/``. UserError if one of them is not a run's."""
        names = self.store.names(EXPORT)
        own = own_files(self.store.read(f"{EXPORT}/{MARKER}")) if names else set()
        if names and (sending := self.store.read(SENDING)) is not None:
            own |= only_names(_json(sending) or ())
        for name in names:
            if name not in own:
                raise UserError(
                    f"{self.store.where(f'{EXPORT}/{name}')}: no export wrote this, and a new one would delete it; move"
                    f" it away, or set mirror=..."
                )
        return set(names)

    def _refuse_if_taken_over(self) -> None:
        owner = _json_object(self.store.read(OWNER) or b"{}") or {}
        if owner.get("token") != self._owner["token"]:
            raise UserError(
                f"{self.store.url}: process {owner.get('process')} on {_place(owner)} has attached to this mirror"
                f" ({owner.get('since')}), so this process stops; let that one continue, or stop it and run the same"
                f" command here"
            )


def _machine() -> str:
    """What tells this machine from others without its name, which the mirror may show to everybody."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _place(owner: dict[str, Any]) -> str:
    return "this machine" if owner.get("machine") == _machine() else "another machine"


def _json(data: bytes) -> Any:
    try:
        return parse_json(data)
    except ValueError:
        return None


def _json_object(data: bytes) -> dict[str, Any] | None:
    value = _json(data)
    return value if isinstance(value, dict) else None


def _files(sums: bytes) -> dict[str, str] | None:
    """The files of a checkpoint and their sha256; None for other content, and for names that no file in it has."""
    files = _json_object(sums)
    if files is None or not all(isinstance(digest, str) for digest in files.values()):
        return None
    parts = [part for name in files for part in name.split("/")]
    return files if all(part not in ("", ".", "..") and part.isprintable() for part in parts) else None


def _named(files: Iterable[str]) -> list[str]:
    """The names of the checkpoints whose checksums are among ``files``."""
    names = [file.removesuffix(SUMS) for file in files if file.endswith(SUMS)]
    return [name for name in names if name == "start" or _NAME.fullmatch(name)]


def _progress(name: str) -> tuple[int, float]:
    """(stage, step) at which the checkpoint was saved; the end of a stage counts as step infinity."""
    match = _NAME.fullmatch(name)
    return (-1, 0) if match is None else (int(match[1]), int(match[2]) if match[2] else math.inf)


def _latest(names: Iterable[str]) -> tuple[int, float]:
    return max(map(_progress, names), default=(-2, 0))
