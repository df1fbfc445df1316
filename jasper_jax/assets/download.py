"""Files from elsewhere, whole or not at all: a resumable transfer over HTTP, a snapshot from the hub.

A transfer writes ``<name>.part``, waits and goes on with a Range request when the connection breaks, and is
compared with a sha256 known beforehand before the file gets its name.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import requests

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import sha256_file

TIMEOUT = (15, 60)
"""Seconds to connect, seconds without a byte."""
BACK_OFF = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further try after a fault of the network; one that got further starts them anew."""
PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP answers worth another try."""
CHUNK = 1 << 16
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
"""What is taken from the hub: no pickles, no code."""
HUB_SKIPS = ["onnx/*", "openvino/*", "original/*"]

T = TypeVar("T")


class Unavailable(Exception):
    """A source has not given what was asked of it; the message says why."""


class _Passing(Exception):
    """A fault that may be gone in a moment."""


# -------------------------------------------------------------------------------------- faults, retries


def _reason(error: BaseException) -> str:
    """The innermost cause of a fault of the network, in one short line."""
    inner = error.args[0] if error.args else error
    inner = getattr(inner, "reason", None) or inner
    text = " ".join(str(inner).split())
    return re.sub(r"^.*?(?:object at 0x\w+>|\)): (?=\S)", "", text)[:200] or type(error).__name__


@contextmanager
def _sorted_faults() -> Iterator[None]:
    """Sort the faults of a request: those that may pass, and those for which its source is given up."""
    try:
        yield
    except (requests.exceptions.SSLError, requests.exceptions.ProxyError) as error:
        raise Unavailable(_reason(error)) from error
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _Passing(_reason(error)) from error
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise (_Passing if status in PASSING else Unavailable)(str(error).partition(" for url")[0]) from error
    except requests.RequestException as error:
        raise Unavailable(_reason(error)) from error


def persist(action: Callable[[], T], growth: Callable[[], int] = lambda: 0) -> T:
    """The result of ``action``, tried again after a pause while its faults may pass.

    ``growth`` measures what has been gained: as long as it rises, the tries do not run out.
    """
    faults, best = 0, growth()
    while True:
        try:
            with _sorted_faults():
                return action()
        except _Passing as fault:
            if growth() > best:
                faults, best = 0, growth()
            if faults == len(BACK_OFF):
                raise Unavailable(f"{fault} ({faults + 1} tries)") from fault
            time.sleep(BACK_OFF[faults])
            faults += 1


# --------------------------------------------------------------------------------------------- transfer


@contextmanager
def _bar(label: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar with rate and remaining time, on standard error; gives the function that moves it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)


def _transfer(session: requests.Session, url: str, auth, part: Path, moved: Callable[[int], None]) -> None:
    """Bring ``part`` to the whole of ``url``, going on from the bytes it has if the server can."""

    def size() -> int:
        return part.stat().st_size if part.exists() else 0

    def once() -> None:
        have = size()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with session.get(url, headers=headers, auth=auth, stream=True, timeout=TIMEOUT) as answer:
            span = answer.headers.get("Content-Range", "")
            if answer.status_code == 416:
                if span == f"bytes */{have}":
                    return
                part.unlink()
                raise _Passing("it cannot continue the partial file")
            answer.raise_for_status()
            goes_on = answer.status_code == 206 and span.startswith(f"bytes {have}-")
            with part.open("ab" if goes_on else "wb") as file:
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk)
                    moved(file.tell())

    if urlsplit(url).scheme == "file":
        shutil.copyfile(url2pathname(urlsplit(url).path), part)
    else:
        persist(once, size)


def download(
    session: requests.Session,
    url: str,
    target: Path,
    *,
    size: int,
    sha256: str,
    auth: tuple[str, str] | None = None,
    progress: bool = True,
) -> None:
    """The file at ``url`` as ``target``, resumable and checked; a file with another sha256 is removed.

    Errors: ``Unavailable`` when the server gives up, ``UserError`` when what it gave is not the file wanted.
    """
    part = target.with_name(target.name + ".part")
    tries = 2 if part.exists() else 1  # old bytes may be wrong ones: then once more, from zero
    found = ""
    for _ in range(tries):
        with _bar(target.name[:32], size, progress) as moved:
            _transfer(session, url, auth, part, moved)
        found = sha256_file(part)
        if found == sha256:
            os.replace(part, target)
            return
        part.unlink()
    raise UserError(
        f"{target.name} from {url} has sha256 {found}, not {sha256}: it is not the file that was "
        "pinned, and has been removed; get it from another index (set PIP_INDEX_URL)"
    )


# -------------------------------------------------------------------------------------------------- hub


def hub_cached(repo: str, revision: str | None) -> bool:
    """Whether the hub's own cache holds a model's config.json."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, "config.json", revision=revision), str)


def hub_snapshot(repo: str, revision: str | None, *, progress: bool = True) -> Path:
    """The folder of a model of the Hugging Face hub, in its own cache (``HF_HUB_OFFLINE=1``: from there).

    Takes JSON, text, tokenizer and safetensors files. Errors: ``Unavailable``.
    """
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quieten = not progress and not are_progress_bars_disabled()
    if quieten:
        disable_progress_bars()
    at = f"{repo}@{revision}" if revision else repo
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_SKIPS)
    except errors.GatedRepoError as error:
        raise Unavailable(f"hub {at}: its terms must be accepted on its page, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise Unavailable(f"hub {at}: there is no such model, or it is private (`hf auth login`)") from error
    except errors.RevisionNotFoundError as error:
        raise Unavailable(f"hub {at}: there is no such revision") from error
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
        reason = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        if constants.HF_HUB_OFFLINE:
            reason = ["HF_HUB_OFFLINE is set, and the hub's cache does not have it"]
        raise Unavailable(f"hub {at}: {reason[0]}") from error
    finally:
        if quieten:
            enable_progress_bars()
    return Path(folder)
