"""Which pairs train, are held out or tested: complete groups, chosen by hash, whatever the order of the sources.

Groups that share an identical image are one. A chosen group gives one pair, and its other pairs are dropped. The rank
of a group is a keyed hash of its name, so adding pairs moves few groups to another split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jasper_jax.data.augment import keyed_hash, normalised
from jasper_jax.data.image_log import Example
from jasper_jax.data.shards import HELD_OUT, TEST, TRAIN


class Entry(NamedTuple):
    """What memory holds of a pair, a few hundred bytes."""

    row: int
    """In the unsorted shards."""
    source: int
    image: bytes
    caption: bytes
    """Digests; the caption's ignores white space."""
    pair: bytes
    name: str
    group: str
    eligible: bool


def entry_of(example: Example, row: int, source: int) -> Entry:
    image = hashlib.blake2b(example.image, digest_size=16).digest()
    caption = hashlib.blake2b(normalised(example.caption).encode(), digest_size=16).digest()
    pair = hashlib.blake2b(image + caption, digest_size=16).digest()
    return Entry(row, source, image, caption, pair, example.name, example.group, example.eligible)


class Pairs:
    """The distinct pairs so far; groups that share an image are joined (union-find)."""

    def __init__(self) -> None:
        self.of: dict[bytes, Entry] = {}
        self._parent: dict[str | bytes, str | bytes] = {}

    def add(self, entry: Entry) -> Entry | None:
        """Add a pair. Of two with the same image and caption one is dropped, the same one in any order.

        Returns the dropped one: ``entry``, an earlier one, or None.
        """
        self._parent[self._root(entry.image)] = self._root(entry.group)
        earlier = self.of.get(entry.pair)
        if earlier is not None and _order(earlier) <= _order(entry):
            return entry
        self.of[entry.pair] = entry
        return earlier

    def _root(self, node: str | bytes) -> str | bytes:
        parent = self._parent.setdefault(node, node)
        while parent != node:
            self._parent[node] = self._parent[parent]  # path halving
            node, parent = parent, self._parent[parent]
        return node

    def groups(self) -> dict[str, list[Entry]]:
        """The entries of each joined group, under the first of its groups' names."""
        joined: dict[str | bytes, list[Entry]] = {}
        for entry in self.of.values():
            joined.setdefault(self._root(entry.group), []).append(entry)
        return {min(entry.group for entry in entries): entries for entries in joined.values()}


def _order(entry: Entry) -> tuple[bool, str, str, bytes]:
    return not entry.eligible, entry.name, entry.group, entry.pair


def divide(groups: Mapping[str, Sequence[Entry]], seed: int, test: int, held_out: int) -> dict[str, list[Entry]]:
    """The pairs of each split, in order.

    The ``test`` groups with the smallest hashes are tested, the next ``held_out`` held out; each gives its first
    eligible pair by name. Captions within such a split differ if possible: retrieval cannot tell equal ones apart.
    """
    eligible = [name for name, entries in groups.items() if any(entry.eligible for entry in entries)]
    ranked = sorted(eligible, key=lambda name: (keyed_hash(name, seed, "pairs"), name))
    tested = _choose(ranked, groups, test)
    held = _choose([name for name in ranked if name not in tested], groups, held_out)
    rest = [entry for name, entries in groups.items() if name not in tested | held for entry in entries]
    key = f"{seed}/order".encode()
    rest.sort(key=lambda entry: (hashlib.blake2b(entry.pair, digest_size=16, key=key).digest(), entry.pair))
    return {TRAIN: rest, HELD_OUT: list(held.values()), TEST: list(tested.values())}


def _choose(names: Iterable[str], groups: Mapping[str, Sequence[Entry]], wanted: int) -> dict[str, Entry]:
    """One pair of each of the first ``wanted`` groups; groups whose captions are all taken come last."""
    chosen: dict[str, Entry] = {}
    repeated: list[tuple[str, Entry]] = []
    captions: set[bytes] = set()
    for name in names:
        if len(chosen) == wanted:
            return chosen
        eligible = sorted((e for e in groups[name] if e.eligible), key=_order)
        entry = next((e for e in eligible if e.caption not in captions), None)
        if entry is None:
            repeated.append((name, eligible[0]))
            continue
        captions.add(entry.caption)
        chosen[name] = entry
    return chosen | dict(repeated[: wanted - len(chosen)])
