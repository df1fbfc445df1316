"""Object storage by address (``gs://``, ``s3://``, ...) through fsspec, with errors as one line.

Writing one object is atomic there, but a rename is a copy and a deletion, and there are no locks. So callers never
rename, and write the object that makes the others valid last (``jasper_jax.checkpoints.mirror``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jasper_jax.runtime.errors import UserError, first_line
from jasper_jax.runtime.inside import file_inside, inside
from jasper_jax.runtime.paths import refuse_drop_in
from jasper_jax.runtime.text_files import LONGEST

CLIENTS = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}
"""Scheme -> the extra and the package that it needs."""
SCHEMES = (*CLIENTS, "hf", "file", "memory")
"""Schemes that are opened. fsspec has many more, among them ones that run templates or fetch other addresses."""
_OWN = ("builtins", "jasper_jax")
"""Packages whose exceptions, I/O errors aside, are defects of this program."""


def is_remote(name: object) -> bool:
    """Whether ``name`` is an address rather than a local path."""
    return "://" in str(name)


def check_address(url: str, key: str) -> None:
    """UserError, with ``key``, unless ``url`` is a plain address of one of ``SCHEMES``.

    Credentials and query strings are refused: an address is written to recipe.yaml, checkpoints and messages.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise UserError(
            f"{key}: {url}: {scheme}:// is not read; allowed are {', '.join(f'{name}://' for name in SCHEMES)}"
        )
    authority = rest.partition("/")[0]
    if "@" in authority or ":" in authority or "?" in rest:
        raise UserError(
            f"{key}: {url}: an address may not have credentials or a query string; configure the client"
            f" (environment variables, gcloud, aws or hf login)"
        )
    if "::" in rest:
        raise UserError(f"{key}: {url}: addresses cannot be chained with ::; give one address")


class Store:
    """The objects below ``url``; names are relative to it and separated by ``/``.

    UserError: see :func:`check_address`; ``key`` says where ``url`` stands.
    """

    def __init__(self, url: str, key: str = "address"):
        check_address(url, key)
        self.url = url.rstrip("/")

    def refuse_drop_in(self, key: str) -> None:
        """UserError: a folder of this machine whose files other programs run (``paths.refuse_drop_in``)."""
        if self.url.startswith("file://"):
            refuse_drop_in(self._opened[1], key)

    def where(self, name: str) -> str:
        """The full address of ``name``, for messages."""
        return f"{self.url}/{name}" if name else self.url

    def read(self, name: str = "", most: int | None = None) -> bytes | None:
        """The bytes of an object, of ``url`` itself for the empty name; None if there is none.

        UserError: it has more than ``most`` bytes, or, where that is given, is a local file that is not regular.
        """
        with self._reaching(name):
            try:
                if most is not None:
                    self._refuse_larger(name, most)
                return self._files.cat_file(self._at(name))
            except FileNotFoundError:
                return None

    def _refuse_larger(self, name: str, most: int) -> None:
        about = self._files.info(self._at(name))
        if about["type"] != "file":
            raise UserError(f"{self.where(name)}: is not a file; give the address of one")
        if about["size"] > most:
            raise UserError(f"{self.where(name)}: has more than {most:,} bytes; is it the right address?")

    def write(self, name: str, data: bytes) -> None:
        """Write an object atomically: a reader sees the old bytes or the new."""
        with self._reaching(name):
            self._files.pipe_file(self._to(name), data)

    def send(self, folder: Path, names: Sequence[str], to: str) -> None:
        """Copy files of a local folder below ``to``. UserError: one is a link out of the folder."""
        files = [str(file_inside(folder / name, folder)) for name in names]
        with self._reaching(to):
            self._files.put(files, [self._to(f"{to}/{name}") for name in names])

    def fetch(self, source: str, names: Sequence[str], folder: Path) -> bool:
        """Copy objects below ``source`` into a local folder; False if one of them is missing."""
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with self._reaching(source):
            try:
                self._files.get([self._at(f"{source}/{n}") for n in names], [str(folder / n) for n in names])
            except FileNotFoundError:
                return False
        return True

    def names(self, folder: str) -> list[str]:
        """Names of all objects below ``folder``, relative to it, sorted."""
        with self._reaching(folder):
            self._files.invalidate_cache()  # other processes write here too
            top = self._at(folder).rstrip("/") + "/"
            return sorted(str(path).removeprefix(top) for path in self._files.find(top))

    def remove(self, name: str) -> None:
        """Delete one object, if it exists."""
        with self._reaching(name), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._at(name))

    def remove_below(self, folder: str) -> None:
        """Delete all objects below ``folder``."""
        with self._reaching(folder), contextlib.suppress(FileNotFoundError):
            self._files.rm(self._at(folder), recursive=True)

    def _at(self, name: str) -> str:
        """The path of ``name`` in its file system. UserError: on this machine, a link leads out of the folder."""
        root = self._opened[1]
        if name and self.url.startswith("file://") and inside(Path(root), name) is None:
            raise UserError(f"{self.where(name)}: is a link out of {self.url}; put the file or folder itself there")
        return f"{root}/{name}" if name else root

    def _to(self, name: str) -> str:
        """:meth:`_at`, to be written: on this machine in place, so not a file that has a second name elsewhere."""
        path = self._at(name)
        if self.url.startswith("file://"):
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(path).st_nlink > 1 and os.path.isfile(path):
                    os.unlink(path)
        return path

    @property
    def _files(self) -> Any:
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        protocol = self.url.partition("://")[0]
        try:
            # Object storage has no folders; a local file system must create them.
            files, root = url_to_fs(self.url, **({"auto_mkdir": True} if protocol == "file" else {}))
        except ImportError as error:
            remedy = f"pip install 'jasper-jax[{CLIENTS[protocol][0]}]'" if protocol in CLIENTS else str(error)
            raise UserError(f"{self.url}: {protocol}:// needs a package that is not installed: {remedy}") from None
        return files, root.rstrip("/")

    @contextlib.contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        """Turn every failure to reach storage into one UserError with its reason.

        Each of fsspec's file systems raises its client library's exceptions, which have no common class.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            package = type(error).__module__.partition(".")[0]
            if not isinstance(error, OSError) and package in _OWN:
                raise  # a defect
            raise UserError(
                f"{self.where(name)}: cannot be reached or written: {first_line(error)}; fix the access or the address,"
                f" then run the same command to continue"
            ) from error


def read_text(url: str) -> str:
    """The text at an address.

    Raises:
      UserError: nothing is there, it is too long or not UTF-8, or it cannot be reached.
    """
    data = Store(url, "the recipe").read(most=LONGEST)
    if data is None:
        raise UserError(f"{url}: nothing is there")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{url}: not UTF-8 at byte {error.start}") from None
