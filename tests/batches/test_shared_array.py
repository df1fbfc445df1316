"""Processes that compute an array together: each its part, all the whole; computed once."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from jasper_jax.batches.shared_array import shared_array
from jasper_jax.runtime import processes


def compute(first: int, last: int) -> np.ndarray:
    return np.stack([np.arange(first, last), np.arange(first, last) ** 2], axis=1)


class Threads:
    """Threads in place of processes: ``gather`` meets at a barrier."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch):
        self.count, self._own, self._parts = count, threading.local(), [np.empty(0)] * count
        self._barrier = threading.Barrier(count, timeout=20)
        monkeypatch.setattr(processes, "count", lambda: count)
        monkeypatch.setattr(processes, "index", lambda: self._own.index)
        monkeypatch.setattr(processes, "gather", self._gather)

    def _gather(self, values: np.ndarray) -> np.ndarray:
        self._parts[self._own.index] = values
        self._barrier.wait()
        whole = np.stack(self._parts)
        self._barrier.wait()
        return whole

    def run(self, folders: list[Path], rows: int) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
        """What each got, and the parts that were computed."""
        results, parts = [np.empty(0)] * self.count, []

        def counted(first: int, last: int) -> np.ndarray:
            parts.append((first, last))
            return compute(first, last)

        def work(index: int) -> None:
            self._own.index = index
            results[index] = shared_array(folders[index] / "a.npy", (rows, 2), counted)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results, sorted(parts)


@pytest.mark.parametrize(
    ("rows", "parts"), [(8, [(0, 3), (3, 6), (6, 8)]), (3, [(0, 1), (1, 2), (2, 3)]), (1, [(0, 1)])]
)
def test_each_computes_its_part_once(tmp_path, monkeypatch, rows, parts) -> None:
    threads, folders = Threads(3, monkeypatch), [tmp_path / str(i) for i in range(3)]
    results, computed = threads.run(folders, rows)
    assert computed == parts
    for result in results:
        np.testing.assert_array_equal(result, compute(0, rows))
    assert threads.run(folders, rows)[1] == []


def test_all_compute_where_one_has_no_file(tmp_path, monkeypatch) -> None:
    threads, folders = Threads(2, monkeypatch), [tmp_path / str(i) for i in range(2)]
    threads.run(folders, 4)
    (folders[1] / "a.npy").unlink()
    results, computed = threads.run(folders, 4)
    assert computed == [(0, 2), (2, 4)]
    np.testing.assert_array_equal(results[0], results[1])


def test_a_file_of_another_shape_is_not_taken(tmp_path) -> None:
    shared_array(tmp_path / "a.npy", (3, 2), compute)
    np.testing.assert_array_equal(shared_array(tmp_path / "a.npy", (5, 2), compute), compute(0, 5))


def test_no_rows(tmp_path) -> None:
    assert shared_array(tmp_path / "a.npy", (0, 2), compute).shape == (0, 2)
