"""The order in which a stage draws its records: each epoch is a permutation of its own, fixed by the seed.

It is Grain's order, ``MapDataset.range(size).shuffle(seed=seed).repeat()``, number for number, but computed for whole
arrays of positions at once; Grain computes one number a call. A block cipher of few rounds permutes the smallest block
of an even number of bits, at least 16, that holds the record numbers, and is applied again to whatever is not a record
number (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Its round is that of Simon (Beaulieu et al.,
2013, https://eprint.iacr.org/2013/404), its keys come from the generator ``std::seed_seq`` of the C++ standard.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 4
_MIN_BITS = 16


class DrawOrder:
    """The draws from ``size`` records; ``seed`` is at least 0 and below 2^32."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        bits = max(_MIN_BITS, (size - 2).bit_length() if size > 1 else 0)  # as Grain rounds log2(size - 1) up
        self._half = -(-bits // 2)

    def records(self, start: int, stop: int) -> np.ndarray:
        """Record numbers ``[stop - start]`` int64 of the draws ``start .. stop - 1``, counted over all epochs."""
        epochs, drawn = np.divmod(np.arange(start, stop, dtype=np.int64), self.size)
        if self.size == 1 or start == stop:
            return drawn
        first, last = int(epochs[0]), int(epochs[-1])
        keys = round_keys(self.seed + np.arange(first, last + 1)) & np.uint32((1 << self._half) - 1)
        keys = keys if first == last else keys[:, epochs - first]
        drawn = self._encrypt(drawn, keys)
        outside = np.flatnonzero(drawn >= self.size)
        while len(outside):
            drawn[outside] = self._encrypt(drawn[outside], keys if first == last else keys[:, outside])
            outside = outside[drawn[outside] >= self.size]
        return drawn

    def _encrypt(self, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """``[n]`` block values -> ``[n]`` block values; ``keys`` ``[rounds, n]`` or ``[rounds, 1]``."""
        half = self._half
        mask = np.uint32((1 << half) - 1)
        left, right = (values >> half).astype(np.uint32) & mask, values.astype(np.uint32) & mask
        for key in keys:
            left ^= ((_rotate(right, 1, half) & _rotate(right, 8, half)) ^ _rotate(right, 2, half)) & mask ^ key
            left, right = right, left
        return left.astype(np.int64) << half | right


def _rotate(values: np.ndarray, by: int, bits: int) -> np.ndarray:
    """``values`` of ``bits`` bits, rotated left; the bits above them are left dirty."""
    return values << np.uint32(by) | values >> np.uint32(bits - by)


def round_keys(seeds: np.ndarray) -> np.ndarray:
    """``[n]`` seeds, taken modulo 2^32 -> keys ``[rounds, n]`` uint32: ``std::seed_seq{seed}.generate`` of each."""
    seeds = np.asarray(seeds).astype(np.uint32)
    n, p, q = _ROUNDS, (_ROUNDS - 1) // 2, (_ROUNDS - 1) // 2 + 1  # the standard's n, p and q
    state = np.full((n, len(seeds)), 0x8B8B8B8B, np.uint32)

    def mixed(values: np.ndarray, factor: int) -> np.ndarray:
        return (values ^ values >> np.uint32(27)) * np.uint32(factor)

    for k in range(n):
        value = mixed(state[k] ^ state[(k + p) % n] ^ state[k - 1], 1664525)
        added = value + np.uint32(k or 1) + (seeds if k == 1 else np.uint32(0))
        state[(k + p) % n] += value
        state[(k + q) % n] += added
        state[k] = added
    for k in range(n):
        value = mixed(state[k] + state[(k + p) % n] + state[k - 1], 1566083941)
        removed = value - np.uint32(k)
        state[(k + p) % n] ^= value
        state[(k + q) % n] ^= removed
        state[k] = removed
    return state
