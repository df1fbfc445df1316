"""Which pairs train, are held out or tested: whole groups, chosen by hash, whatever order the sources come in.

Groups that share an image to the byte are one. A chosen group gives one pair and the others of it are left out of
training; its rank is a keyed hash of its name, so that adding pairs moves few groups from one split to another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jasper_jax.data.augment import keyed_hash, normalised
from jasper_jax.data.image_log import Example
from jasper_jax.data.shards import HELD_OUT, TEST, TRAIN


class Entry(NamedTuple):
    """What is kept in memory of a pair, some hundred bytes."""

    row: int
    """Where it was written down."""
    source: int
    image: bytes
    caption: bytes
    """Digests, the caption's of its words alone."""
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
    """The distinct pairs met so far, and which of their groups belong together."""

    def __init__(self) -> None:
        self.of: dict[bytes, Entry] = {}
        self._above: dict[str | bytes, str | bytes] = {}

    def add(self, entry: Entry) -> Entry | None:
        """Take a pair in; of two with the same image and caption one is dropped, the same one in any order.

        Returns the dropped one, which may be the one that was there before.
        """
        self._join(entry.image, entry.group)
        there = self.of.get(entry.pair)
        if there is not None and _order(there) <= _order(entry):
            return entry
        self.of[entry.pair] = entry
        return there

    def _root(self, node: str | bytes) -> str | bytes:
        above = self._above.setdefault(node, node)
        while above != node:
            self._above[node] = self._above[above]  # halves the way for the next one
            node, above = above, self._above[above]
        return node

    def _join(self, one: str | bytes, other: str | bytes) -> None:
        self._above[self._root(one)] = self._root(other)

    def groups(self) -> dict[str, list[Entry]]:
        """The groups that belong together, under the first of their names."""
        together: dict[str | bytes, list[Entry]] = {}
        for entry in self.of.values():
            together.setdefault(self._root(entry.group), []).append(entry)
        return {min(entry.group for entry in found): found for found in together.values()}


def _order(entry: Entry) -> tuple[bool, str, str, bytes]:
    return not entry.eligible, entry.name, entry.group, entry.pair


def divide(groups: Mapping[str, Sequence[Entry]], seed: int, test: int, held_out: int) -> dict[str, list[Entry]]:
    """The pairs of each split, in order.

    ``test`` groups with the smallest hashes are tested, the next ``held_out`` held out; each gives the first by name
    of its eligible pairs. Captions within such a split differ as far as there are enough: retrieval cannot tell equal
    ones apart.
    """
    ranked = sorted(
        (keyed_hash(name, seed, "pairs"), name) for name, found in groups.items() if any(e.eligible for e in found)
    )
    tested = _choose([name for _, name in ranked], groups, test)
    held = _choose([name for _, name in ranked if name not in tested], groups, held_out)
    rest = [entry for name, found in groups.items() if name not in tested and name not in held for entry in found]
    key = f"{seed}/order".encode()
    rest.sort(key=lambda entry: (hashlib.blake2b(entry.pair, digest_size=16, key=key).digest(), entry.pair))
    return {TRAIN: rest, HELD_OUT: list(held.values()), TEST: list(tested.values())}


def _choose(left: Iterable[str], groups: Mapping[str, Sequence[Entry]], wanted: int) -> dict[str, Entry]:
    """One pair of each of the first ``wanted`` groups, skipping groups whose captions are taken while others do."""
    chosen: dict[str, Entry] = {}
    repeated: list[tuple[str, Entry]] = []
    captions: set[bytes] = set()
    for name in left:
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
