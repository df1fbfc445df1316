"""A run folder's copy in object storage: enough of it to continue on a machine that has nothing else.

The run itself is on a local disk, where files can be renamed, locked and mapped; after every whole checkpoint its
recipe, checkpoints and metrics are copied to the mirror, and a run that finds the mirror further than its own folder
begins by copying them back. A checkpoint counts there as it does here, once the sha256 of its files stands beside it,
so that object is written last and deleted first. What comes back is compared with it, file by file.

Instead of a lock there is an owner: the process that began last. It leaves its mark when it begins, and one that finds
another's mark before it writes stops. Between the look and the writing a moment remains in which both may write; both
write checkpoints of the same recipe, and a mixture of the two is found out by its checksums and left aside.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from jasper_jax.checkpoints.seal import SUMS, sums_path
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import json_bytes, parse_json, sha256_file, temporary, write_atomic
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.remote import Store

CONTINUED = ("metrics.jsonl", "timings.json", "wandb_id")
"""Small files that go on where the checkpoint ends; they are copied back with it."""
SHOWN = ("recipe.yaml", "evaluation.json", "training.png", "dimensions.png")
"""Small files that are made anew, or for people."""
EXPORT, EXPORT_MARKER = "export", "jasper.json"
OWNER = "owner.json"
_PLACE = re.compile(r"(\d+)-[^/]+/(?:step-(\d+)|final)")


class Mirror:
    """The mirror at ``url`` of the run in ``folder``."""

    def __init__(self, url: str, folder: Path):
        self.store, self.folder = Store(url), folder
        self._mark = {"token": uuid.uuid4().hex, "host": socket.gethostname(), "process": os.getpid()}
        self._there: dict[str, bytes] = {}
        """The checksums of the checkpoints in the mirror."""
        self._sent: dict[str, str] = {}
        """sha256 of the small files as they were last sent."""
        self._pushing = threading.Lock()

    # ------------------------------------------------------------------ beginning

    def refuse_other(self, other_recipe: Callable[[Any], list[str]]) -> None:
        """UserError when the mirror is of a run with another recipe; ``other_recipe`` says what differs."""
        data = self.store.read("recipe.yaml")
        if data is None:
            return
        try:
            recorded = yaml.safe_load(data)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"{self.store.where('recipe.yaml')}: not valid YAML ({first}); delete the mirror") from None
        if changed := other_recipe(recorded):
            raise UserError(
                f"{self.store.url}: this mirror is of a run with another recipe; {'; '.join(changed[:3])}"
                f"{' and more' if changed[3:] else ''}; set mirror=... or delete what is there"
            )

    def attach(self) -> None:
        """Become the mirror's owner, and copy back what it has when it is further than the run folder."""
        self.store.write(OWNER, json_bytes({**self._mark, "since": time.strftime("%Y-%m-%d %H:%M:%S%z")}))
        self._there = self._whole_there()
        here = self._whole_here()
        if _furthest(self._there) > _furthest(here):
            say(f"{self.store.url}: further than {self.folder}, copying its checkpoints and metrics from there.")
            for name in sorted(self._there.keys() - here, key=_place):
                self._fetch(name, self._there[name])
            for name in CONTINUED:
                if (data := self.store.read(name)) is not None:
                    write_atomic(self.folder / name, data)

    def _whole_there(self) -> dict[str, bytes]:
        found = {}
        for name in self.store.names("checkpoints"):
            checkpoint = name.removesuffix(SUMS)
            if checkpoint != name and _is_place(checkpoint):
                data = self.store.read(f"checkpoints/{name}")
                if data is not None and _files(data) is not None:
                    found[checkpoint] = data
        return found

    def _whole_here(self) -> set[str]:
        folder = self.folder / "checkpoints"
        names = (str(path.relative_to(folder)).removesuffix(SUMS) for path in folder.rglob(f"*{SUMS}"))
        return {name for name in names if _is_place(name) and (folder / name).is_dir()}

    def _fetch(self, name: str, sums: bytes) -> None:
        """One checkpoint from the mirror, put in place when every file is the one that was sent."""
        target = self.folder / "checkpoints" / name
        files = _files(sums) or {}
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{target.name}.*.tmp"):  # by a killed process
            shutil.rmtree(left)
        part = temporary(target)
        complete = self.store.fetch(f"checkpoints/{name}", sorted(files), part)
        if not complete or any(sha256_file(part / file) != digest for file, digest in files.items()):
            shutil.rmtree(part, ignore_errors=True)
            where = self.store.where(f"checkpoints/{name}")
            say(f"{where}: left aside, a file of it is missing or not as it was sent.")
            return
        shutil.rmtree(target, ignore_errors=True)  # half of one
        part.rename(target)
        write_atomic(target.with_name(target.name + SUMS), sums)

    # ------------------------------------------------------------------ writing

    def push(self) -> None:
        """Make the mirror what the run folder is: its small files, its whole checkpoints and no others, its export.

        From any thread, one at a time; checkpoints of the run folder do not change meanwhile, and events may be
        appended to its metrics.

        Raises:
          UserError: another process has begun on this mirror since, or it cannot be written.
        """
        with self._pushing:
            self._refuse_if_taken_over()
            for name in (*SHOWN, *CONTINUED):
                self._send_small(name)
            here = self._whole_here()
            for name in sorted(here, key=_place):
                sums = sums_path(self.folder / "checkpoints" / name).read_bytes()
                if self._there.get(name) != sums:
                    self._drop(name)
                    self._send(name, sums)
            for name in sorted(self._there.keys() - here, key=_place):
                self._drop(name)
            self._send_export()

    def _send(self, name: str, sums: bytes) -> None:
        """A checkpoint: its files, then the checksums by which it counts."""
        self.store.send(self.folder / "checkpoints" / name, sorted(_files(sums) or {}), f"checkpoints/{name}")
        self.store.write(f"checkpoints/{name}{SUMS}", sums)
        self._there[name] = sums

    def _drop(self, name: str) -> None:
        """Delete a checkpoint, whole or not, so that it stops counting before its first file goes."""
        self.store.remove(f"checkpoints/{name}{SUMS}")
        self.store.remove_below(f"checkpoints/{name}")
        self._there.pop(name, None)

    def _send_small(self, name: str) -> None:
        path = self.folder / name
        if not path.is_file():
            return
        data = path.read_bytes()
        if path.suffix == ".jsonl":
            data = data[: data.rfind(b"\n") + 1]  # an event may be half written at this moment
        digest = hashlib.sha256(data).hexdigest()
        if self._sent.get(name) != digest:
            self.store.write(name, data)
            self._sent[name] = digest

    def _send_export(self) -> None:
        """The exported folder, its marker last."""
        marker = self.folder / EXPORT / EXPORT_MARKER
        if not marker.is_file():
            return
        data = marker.read_bytes()
        if self.store.read(f"{EXPORT}/{EXPORT_MARKER}") == data:
            return
        self.store.remove(f"{EXPORT}/{EXPORT_MARKER}")
        self.store.remove_below(EXPORT)
        files = [str(p.relative_to(marker.parent)) for p in sorted(marker.parent.rglob("*")) if p.is_file()]
        self.store.send(marker.parent, [f for f in files if f != EXPORT_MARKER], EXPORT)
        self.store.write(f"{EXPORT}/{EXPORT_MARKER}", data)

    def _refuse_if_taken_over(self) -> None:
        data = self.store.read(OWNER)
        try:
            owner = parse_json(data or b"{}")
        except ValueError:
            owner = {}
        if not isinstance(owner, dict) or owner.get("token") != self._mark["token"]:
            other = owner if isinstance(owner, dict) else {}
            raise UserError(
                f"{self.store.url}: process {other.get('process')} on {other.get('host')} has begun on this mirror"
                f" since ({other.get('since')}), and this one leaves it alone; let that one go on, or stop it and run"
                f" the same command here"
            )


def _files(sums: bytes) -> dict[str, str] | None:
    """The files of a checkpoint and their sha256; None for what is not such a list, or names files elsewhere."""
    try:
        found = parse_json(sums)
    except ValueError:
        return None
    if not isinstance(found, dict) or not all(isinstance(digest, str) for digest in found.values()):
        return None
    inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in found)
    return found if inside else None


def _is_place(name: str) -> bool:
    return name == "start" or _PLACE.fullmatch(name) is not None


def _place(name: str) -> tuple[int, float]:
    """How far a run is whose last checkpoint this is: (stage, step), the end of a stage being its infinite step."""
    match = _PLACE.fullmatch(name)
    return (-1, 0) if match is None else (int(match[1]), int(match[2]) if match[2] else math.inf)


def _furthest(names: Any) -> tuple[int, float]:
    return max(map(_place, names), default=(-2, 0))
