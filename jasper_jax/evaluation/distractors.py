"""Passages of a run's text store that a retrieval test ranks beside its own, as an index of the real size would."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from jasper_jax.data.augment import keyed_hash, normalised
from jasper_jax.data.texts import TextStore
from jasper_jax.runtime.errors import UserError


def draw_distractors(texts: TextStore, count: int, own: Iterable[str], key: str) -> list[str]:
    """The ``count`` passages of the store with the smallest hashes, whatever the order of its rows; a text that differs
    from one of the test's ``own`` by white space alone is none.

    UserError, with the ``key`` of the recipe: the store has fewer.
    """
    seen = {normalised(text) for text in own}

    def others() -> Iterator[tuple[int, str]]:
        for shard in texts.shards:
            for row in texts.read_shard(shard):
                if row.kind == "passage" and (plain := normalised(row.text)) not in seen:
                    seen.add(plain)
                    yield keyed_hash(plain, 0, "distractors"), row.text

    drawn = heapq.nsmallest(count, others())
    if len(drawn) < count:
        raise UserError(
            f"{key}: {count:,} passages, but {texts.folder} has {len(drawn):,} that are not the test's own; ask for"
            " fewer"
        )
    return [text for _, text in drawn]
