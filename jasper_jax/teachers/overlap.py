"""Reading, computing and storing of a sequence of items, overlapped: devices wait neither for reads nor for writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")


def overlapped(
    items: Sequence[Item],
    read: Callable[[Item], Any],
    compute: Callable[[Any], Any],
    store: Callable[[Item, Any], None],
) -> None:
    """``store(item, compute(read(item)))`` for each item, in order.

    While an item is computed, in the calling thread, a second thread reads the next one and a third stores the one
    before. So at most three items are in memory. The first is read in the calling thread, where a model that is loaded
    on first use can be interrupted. The first exception of any step ends it, once what was computed before is stored.
    """
    stored: Future[None] | None = None
    with ThreadPoolExecutor(1, "read ahead") as reader, ThreadPoolExecutor(1, "store") as writer:
        value = read(items[0]) if items else None
        for item, following in zip(items, [*items[1:], None]):
            ahead = None if following is None else reader.submit(read, following)
            made = compute(value)
            if stored is not None:
                stored.result()
            stored = writer.submit(store, item, made)
            value = None if ahead is None else ahead.result()
        if stored is not None:
            stored.result()
