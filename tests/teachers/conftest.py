"""A text store, and the vector stores that one process makes of it without a stop."""

from __future__ import annotations

import pytest

from jasper_jax.teachers.embedding import embed_teacher
from tests.data.store_helpers import DTYPES, contents, encode, small_store, spec


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("texts"), rows=100, held_out=20, shard_rows=10)


@pytest.fixture(scope="module")
def whole(texts, tmp_path_factory):
    """The files of a store that one process made without a stop."""
    place = tmp_path_factory.mktemp("whole")
    for dtype in DTYPES:
        assert embed_teacher(place / dtype, texts, spec(dtype), encode, progress=False)
    return {dtype: contents(place / dtype) for dtype in DTYPES}
