"""A repository of the hub that is ours: filled in one commit, so that it is complete or as it was.

The marker in it names the files that an earlier upload made. These are replaced; a repository with other content is
refused, as a folder with other content is on this machine. Large files are sent before the commit, each kept by the hub
as soon as it is whole: after a kill the same command sends those that are missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from jasper_jax.assets.models import HUB_ID
from jasper_jax.runtime.errors import UserError, first_line

_MADE_BY_THE_HUB = {".gitattributes"}
_SMALL = 10_000_000
"""Bytes of a file that the hub may take with the commit, in which case it is needed until then."""


class Repository:
    """One repository. UserError: no user is logged in, the hub cannot be reached, or refuses."""

    def __init__(self, name: str, kind: str, marker: str, *, private: bool, named: Callable[[bytes], set[str]]):
        """``kind``: model or dataset. ``marker``: its file of ours. ``named``: the files that a marker names."""
        if not HUB_ID.fullmatch(name):
            raise UserError(f"{name!r} is no name of a repository; expected USER/NAME, e.g. alice/my-student")
        if get_token() is None:
            raise UserError("no user of the hub is logged in here; run `hf auth login`, or set HF_TOKEN")
        self.name, self.kind, self._marker, self._private, self._named = name, kind, marker, private, named
        self._api = HfApi()
        self._waiting: list[CommitOperationAdd] = []
        self._earlier: set[str] = set()

    def prepare(self) -> None:
        """Make the repository unless it is there. UserError: it has files that no upload made, or is public though a
        private one was asked for."""
        with self._answers():
            self._api.create_repo(self.name, repo_type=self.kind, private=self._private, exist_ok=True)
            if self._private and not self._api.repo_info(self.name, repo_type=self.kind).private:
                raise UserError(
                    f"{self.name}: is public, and --private was given; make it private on the hub, give another name,"
                    " or leave out --private"
                )
            there = set(self._api.list_repo_files(self.name, repo_type=self.kind)) - _MADE_BY_THE_HUB
            if there and self._marker not in there:
                raise UserError(
                    f"{self.name}: has {len(there)} files that no `jasper push` sent ({min(there)}, ...); give another"
                    " name, or empty it on the hub"
                )
            if there:
                self._earlier = self._named(self._read_marker()) & there

    def send(self, file: Path | bytes, name: str) -> None:
        """Send a file, to be ``name`` in the commit; it is not needed afterwards."""
        content = file.read_bytes() if isinstance(file, Path) and file.stat().st_size < _SMALL else file
        operation = CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        with self._answers():
            self._api.preupload_lfs_files(self.name, [operation], repo_type=self.kind, free_memory=False)
        self._waiting.append(operation)

    def commit(self, message: str) -> str:
        """Put what was sent in the place of the files of an earlier upload; the repository's address."""
        sent = {operation.path_in_repo for operation in self._waiting}
        gone = [CommitOperationDelete(path_in_repo=name) for name in sorted(self._earlier - sent)]
        with self._answers():
            info = self._api.create_commit(
                self.name, [*self._waiting, *gone], commit_message=message, repo_type=self.kind
            )
        return str(info.repo_url)

    def _read_marker(self) -> bytes:
        path = self._api.hf_hub_download(self.name, self._marker, repo_type=self.kind, force_download=True)
        return Path(path).read_bytes()

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # A failure of one file comes as the cause of a RuntimeError.
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            if (said := _said(cause)) is not None:
                raise UserError(f"{self.name}: {said}") from None
            if not _broken(cause):
                raise
            kept = "what was sent is kept" if self._waiting else "nothing was sent"
            raise UserError(
                f"{self.name}: the hub cannot be reached, or the connection broke ({first_line(cause)}); {kept}, run"
                " the same command again"
            ) from None


def _said(error: BaseException) -> str | None:
    """What to tell about an answer of the hub; None: it is no answer."""
    if isinstance(error, HFValidationError):
        return f"the hub has no such names ({first_line(error)})"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to send something"
    if isinstance(error, HfHubHTTPError):
        return f"the hub refused ({first_line(error)})"
    return None


def _broken(error: BaseException) -> bool:
    """Whether the connection to the hub failed."""
    of_client = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")
    return of_client or isinstance(error, (ConnectionError, TimeoutError))
