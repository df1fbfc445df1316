"""How many rows a batch packs into, and how many texts its fullest row holds, for many batches at once.

The results equal those of :func:`jasper_jax.encoders.packing.pack`, faster for two reasons. Texts of equal length are
placed together, and neighbouring rows with the same lengths are kept as one run. Batches are packed in lockstep: each
NumPy operation advances every batch.
"""

from __future__ import annotations

import numpy as np

_IN_LOCKSTEP = 512
"""Batches: enough to amortise a NumPy call, few enough for the cache."""


def packed_sizes(lengths: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Token counts ``[K, B]`` of K batches, each at most ``row`` -> rows ``[K]``, most texts in one row ``[K]``.

    Raises:
      ValueError: a text is longer than a row.
    """
    lengths = np.maximum(lengths, 1)  # an empty text still takes a token
    if lengths.max(initial=0) > row:
        raise ValueError(f"a text of {lengths.max()} tokens does not fit a row of {row}")
    rows, texts = (np.zeros(len(lengths), np.int64) for _ in range(2))
    for first in range(0, len(lengths), _IN_LOCKSTEP):
        part = slice(first, first + _IN_LOCKSTEP)
        packing = _Lockstep(lengths[part], row)
        while packing.unfinished:
            packing.place()
        rows[part], texts[part] = packing.rows, packing.texts
    return rows, texts


class _Lockstep:
    """Batches being packed. ``rows [K]`` and ``texts [K]`` are the result so far.

    A run is neighbouring rows with equal room and equally many texts. ``_key [k, g]`` of run g in the k-th unfinished
    batch joins its room and its first row in one integer: the best run for a text has the smallest key with enough
    room. 0 is no run. A run has ``_count [k, g]`` rows, each with ``_held [k, g]`` texts.
    """

    _UNFINISHED = ("_batch", "_length", "_number", "_shortest", "_at", "_left", "_key", "_count", "_held", "_slots")
    """Arrays with a row for each unfinished batch."""

    def __init__(self, lengths: np.ndarray, row: int):
        batches, size = lengths.shape
        self.rows, self.texts = (np.zeros(batches, np.int64) for _ in range(2))
        self._batch = np.arange(batches)  # those unfinished
        self._length, self._number = _by_length(lengths)
        self._shortest = lengths.min(axis=1)
        self._at = np.zeros(batches, np.int64)  # which of the lengths is being placed
        self._left = self._number[:, 0]  # texts of this length not yet placed
        self._shift = size.bit_length()
        key = np.uint64 if row.bit_length() + self._shift > 32 else np.uint32
        self._key = np.zeros((batches, 16), key)
        self._count, self._held = (np.zeros(self._key.shape, np.int32) for _ in range(2))
        self._key[:, 0], self._count[:, 0] = row << self._shift, size  # all rows are empty, one run
        self._slots = np.ones(batches, np.int64)  # taken

    @property
    def unfinished(self) -> bool:
        return len(self._batch) > 0

    def place(self) -> None:
        """In every batch, put texts of the next length into the best run, as many as there are or fit."""
        each = np.arange(len(self._batch))
        length = self._length[each, self._at]
        lowest = (length << self._shift).astype(self._key.dtype)
        run = np.argmin(self._key - lowest[:, None], axis=1)  # a key that is too small wraps to a large number
        key, count, held = self._key[each, run].astype(np.int64), self._count[each, run], self._held[each, run]
        room, first = key >> self._shift, key & ((1 << self._shift) - 1)
        fit = room // length
        full = np.minimum(count, self._left // fit)
        taken = np.maximum(full, 1)  # rows that get texts
        texts = np.where(full, fit, self._left)  # that each of them gets
        self._left = self._left - taken * texts
        room, held, rest = room - texts * length, held + texts, count - taken
        self.rows[self._batch] = np.maximum(self.rows[self._batch], first + taken)
        self.texts[self._batch] = np.maximum(self.texts[self._batch], held)
        self._key[each, run] = np.where(rest, key + taken, 0)
        self._count[each, run] = rest
        kept = np.flatnonzero(room >= self._shortest)  # the others take no more texts
        slot = np.where(rest, self._slots, run)[kept]
        self._slots[kept] += rest[kept] > 0
        self._key[kept, slot] = room[kept] << self._shift | first[kept]
        self._count[kept, slot], self._held[kept, slot] = taken[kept], held[kept]
        self._advance()

    def _advance(self) -> None:
        """Go to the next length where one is done, drop finished batches, make room for new runs."""
        done = self._left == 0
        self._at = self._at + done
        each = np.arange(len(self._batch))
        self._left = np.where(done, self._number[each, self._at], self._left)
        if not self._left.all():
            keep = self._left > 0
            for name in self._UNFINISHED:
                setattr(self, name, getattr(self, name)[keep])
        if self._slots.max(initial=0) == self._key.shape[1]:
            self._compact()

    def _compact(self) -> None:
        """Move runs to the front, followed by at least as many free slots."""
        order = np.argsort(self._key == 0, axis=1, kind="stable")
        self._slots = (self._key > 0).sum(axis=1)
        wider = max(0, 2 * int(self._slots.max()) - self._key.shape[1])
        self._key, self._count, self._held = (
            np.pad(np.take_along_axis(x, order, axis=1), ((0, 0), (0, wider)))
            for x in (self._key, self._count, self._held)
        )


def _by_length(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[K, B]`` -> the distinct lengths of each batch ``[K, D + 1]``, longest first, and the number of texts of each;
    every row ends in at least one zero."""
    ordered = np.sort(lengths, axis=1)[:, ::-1]
    begins = np.ones(lengths.shape, bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    batch, column = np.nonzero(begins)
    distinct = begins.sum(axis=1)
    place = np.arange(len(batch)) - np.repeat(np.cumsum(distinct) - distinct, distinct)
    length, number = (np.zeros((len(lengths), int(distinct.max()) + 1), np.int64) for _ in range(2))
    length[batch, place] = ordered[batch, column]
    number[batch, place] = np.diff(np.flatnonzero(begins), append=begins.size)
    return length, number
