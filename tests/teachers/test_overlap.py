"""Three steps that overlap: one item is computed while the next is read and the one before is stored."""

from __future__ import annotations

import threading

import pytest

from jasper_jax.teachers.overlap import overlapped

PATIENCE = 20  # seconds, of a test that fails


def test_an_item_is_computed_while_its_neighbours_are_read_and_stored() -> None:
    """Each step waits for the others of the same moment, so without overlap this does not end."""
    meeting = threading.Barrier(3)
    main, log = threading.get_ident(), []

    def meet(item: int) -> None:
        if item == 1:
            meeting.wait(PATIENCE)

    def read(item: int) -> int:
        meet(item - 1)
        return 10 * item

    def compute(value: int) -> int:
        assert threading.get_ident() == main
        meet(value // 10)
        return value + 1

    def store(item: int, made: int) -> None:
        meet(item + 1)
        log.append((item, made))

    overlapped([0, 1, 2], read, compute, store)
    assert log == [(0, 1), (1, 11), (2, 21)]
    overlapped([], read, compute, store)


@pytest.mark.parametrize(
    ("failing", "stored"), [("read", [0, 1]), ("compute", [0, 1]), ("store", [0, 1])], ids=lambda value: str(value)
)
def test_what_was_computed_before_a_failure_is_stored(failing: str, stored: list[int]) -> None:
    log: list[int] = []

    def step(name: str, item: int) -> int:
        if (name, item) == (failing, 2):
            raise OSError("a full disk")
        return item

    def store(item: int, made: int) -> None:
        step("store", item)
        log.append(item)

    with pytest.raises(OSError, match="a full disk"):
        overlapped(range(4), lambda item: step("read", item), lambda item: step("compute", item), store)
    assert log == stored
