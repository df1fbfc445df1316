"""The order in which a stage draws its records: each epoch is a permutation of its own, fixed by the seed.

It is Grain's order, ``MapDataset.range(size).shuffle(seed=seed).repeat()``, number for number, but computed for many
draws at once; Grain computes one number a call. A block cipher of a few rounds permutes the smallest block of an even
number of bits, at least 16, that holds the record numbers, and is applied again to each result that is not a record
number (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Its round is Simon's (Beaulieu et al., 2013,
https://eprint.iacr.org/2013/404); its keys come from the generator ``std::seed_seq`` of the C++ standard.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_ROUNDS = 4
_MIN_BITS = 16


def stage_seed(seed: int, index: int) -> int:
    """The seed of the draw order of stage ``index`` in a recipe with ``seed``."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint32)[0] >> 1)


def sample_records(size: int, number: int, seed: int) -> np.ndarray:
    """Up to ``number`` of ``size`` record numbers, ascending: a uniform sample without replacement."""
    return np.sort(np.random.default_rng(seed).choice(size, min(number, size), replace=False))


class DrawOrder:
    """The draws from ``size`` records; ``seed`` is at least 0 and below 2^32."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        # The block is that of the last record number rounded up to a power of two, as in Grain: where that number
        # is itself a power of two, the block does not hold it and another record is drawn twice.
        self._half = max(_MIN_BITS, (size - 2).bit_length() if size > 1 else 0) + 1 >> 1

    def records(self, start: int, stop: int) -> np.ndarray:
        """Record numbers ``[stop - start]`` int64 of the draws ``start .. stop - 1``, counted over all epochs."""
        if start >= stop or self.size == 1:
            return np.zeros(max(0, stop - start), np.int64)
        first, last = start // self.size, (stop - 1) // self.size
        epochs = []
        for epoch in range(first, last + 1):
            begin, end = max(start - epoch * self.size, 0), min(stop - epoch * self.size, self.size)
            seed = (self.seed + epoch) % 2**32
            if 2 * self._half == _MIN_BITS:  # few records in a large block: most of its numbers are no records
                epochs.append(_small_epoch(self.size, seed)[begin:end])
            else:
                epochs.append(_part_of_epoch(np.arange(begin, end), self.size, self._half, seed))
        return np.concatenate(epochs)


def _part_of_epoch(positions: np.ndarray, size: int, half: int, seed: int) -> np.ndarray:
    """Records drawn at these positions of an epoch."""
    keys = _round_keys(seed)
    drawn = _encrypt(positions, half, keys)
    outside = np.flatnonzero(drawn >= size)
    while len(outside):
        drawn[outside] = _encrypt(drawn[outside], half, keys)
        outside = outside[drawn[outside] >= size]
    return drawn


@lru_cache(maxsize=8)
def _small_epoch(size: int, seed: int) -> np.ndarray:
    """All draws ``[size]`` of an epoch whose block is the smallest."""
    step = _encrypt(np.arange(1 << _MIN_BITS), _MIN_BITS // 2, _round_keys(seed))
    drawn = step[np.arange(size) % len(step)]
    step[:size] = np.arange(min(size, len(step)))  # a record number stays
    while (drawn >= size).any():
        drawn = step[drawn]
        step = step[step]  # twice as many steps at once
    drawn.setflags(write=False)  # it is cached
    return drawn


def _encrypt(values: np.ndarray, half: int, keys: list[int]) -> np.ndarray:
    """Block values of ``2 * half`` bits ``[n]`` -> block values ``[n]`` int64."""
    mask = np.uint32((1 << half) - 1)
    left, right = (values >> half).astype(np.uint32) & mask, values.astype(np.uint32) & mask
    for key in keys:
        left ^= ((_rotate(right, 1, half) & _rotate(right, 8, half)) ^ _rotate(right, 2, half) ^ np.uint32(key)) & mask
        left, right = right, left
    return left.astype(np.int64) << half | right


def _rotate(values: np.ndarray, by: int, bits: int) -> np.ndarray:
    """``values`` of ``bits`` bits, rotated left; the result may have further bits set above them."""
    return values << np.uint32(by) | values >> np.uint32(bits - by)


def _round_keys(seed: int) -> list[int]:
    """What ``std::seed_seq{seed}`` generates for four numbers; n, p and q are the names of the standard."""
    n, p, q = _ROUNDS, 1, 2
    state = [0x8B8B8B8B] * n

    def mixed(value: int, factor: int) -> int:
        value %= 2**32
        return (value ^ value >> 27) * factor % 2**32

    for k in range(n):
        value = mixed(state[k] ^ state[(k + p) % n] ^ state[k - 1], 1664525)
        added = (value + (1, 1 + seed, 2, 3)[k]) % 2**32
        state[(k + p) % n] = (state[(k + p) % n] + value) % 2**32
        state[(k + q) % n] = (state[(k + q) % n] + added) % 2**32
        state[k] = added
    for k in range(n):
        value = mixed(state[k] + state[(k + p) % n] + state[k - 1], 1566083941)
        removed = (value - k) % 2**32
        state[(k + p) % n] ^= value
        state[(k + q) % n] ^= removed
        state[k] = removed
    return state
