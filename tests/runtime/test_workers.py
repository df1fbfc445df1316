"""Functions in other processes: order, errors at their place, and that nothing is left behind."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.workers import Workers


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with Workers(2, alone=0.0) as workers:
        yield workers


def stopping_items(n: int) -> Iterator[int]:
    yield from range(1, n + 1)
    raise UserError("no more")


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_order_and_errors_at_their_place(count: int, two: Workers) -> None:
    workers = two if count == 2 else Workers(1)
    assert list(workers.map(operator.neg, range(50))) == [-i for i in range(50)]
    results = workers.map(operator.neg, stopping_items(9))
    assert [next(results) for _ in range(9)] == [-i for i in range(1, 10)]
    with pytest.raises(UserError, match="no more"):
        next(results)
    results = workers.map(operator.index, [1, 2, "three", 4])  # type: ignore[list-item]
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        next(results)


def test_other_processes_do_it(two: Workers) -> None:
    found: list[Future[int]] = [two.submit(os.getpid) for _ in range(40)]
    assert os.getpid() not in {future.result() for future in found}
    assert Workers(1, alone=0.0).submit(os.getpid).result() == os.getpid()


def test_short_work_starts_no_process() -> None:
    with Workers(2, alone=60.0) as workers:
        assert {workers.submit(os.getpid).result() for _ in range(9)} == {os.getpid()}


def test_a_lost_process_ends_the_work() -> None:
    with Workers(2, alone=0.0) as workers:
        pid = workers.submit(os.getpid).result()
        with pytest.raises(UserError, match=r"a process of posix was lost \(signal 9; is the memory full\?\)"):
            _ = [workers.submit(os.kill, pid, signal.SIGKILL).result() for _ in range(8)]


def test_a_script_without_a_guard_that_is_killed_leaves_no_process() -> None:
    code = """
        import os, signal
        from jasper_jax.runtime.workers import Workers
        workers = Workers(2, alone=0.0)
        print(*{f.result() for f in [workers.submit(os.getpid) for _ in range(40)]}, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    # the pipes are closed only when all processes that have them are gone
    assert 1 <= len(done.stdout.split()) <= 2, done.stderr
    assert os.getpid() not in map(int, done.stdout.split())
