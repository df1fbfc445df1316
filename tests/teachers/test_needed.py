"""Only texts that the stages draw are embedded; a recipe that draws more has the rest embedded later."""

from __future__ import annotations

import numpy as np
import pytest

from jasper_jax.data.draw_order import DrawOrder
from jasper_jax.data.drawn import Draws, drawn_records
from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.embedding import embed_teacher
from jasper_jax.teachers.held import holds, together
from jasper_jax.teachers.needed import needed_draws
from jasper_jax.teachers.vector_check import dtype_error, verify_store
from jasper_jax.teachers.vectors import VectorStore
from jasper_jax.training.stage_kind import make_kind
from tests.data.store_helpers import contents, encode, small_store, spec
from tests.tiny import recipe

FEW = Draws(((5, 12),), ((0, 6),))
MORE = FEW | Draws(((5, 30), (8, 9)))


class Counting:
    """An encoder that keeps the texts it was given; ``shift`` changes its vectors."""

    def __init__(self, shift: float = 0.0, at: int = 0):
        self.texts, self.shift, self.at, self.calls = [], shift, at, 0

    def __call__(self, texts, kinds):
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("out of memory")
        self.texts += texts
        return encode(texts, kinds) + self.shift


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("texts"), rows=100, held_out=20, shard_rows=10)


def embed(folder, texts, draws, encoder=None, dtype="float16", **options):
    return embed_teacher(folder, texts, spec(dtype), encoder or Counting(), progress=False, draws=draws, **options)


@pytest.fixture(scope="module")
def whole(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {dtype: embed(folder / dtype, texts, None, dtype=dtype) for dtype in ("float16", "int8")}


def drawn(draws):
    return np.flatnonzero(drawn_records(draws, 80))


def test_vectors_are_those_of_drawn_and_held_out_texts(texts, whole, tmp_path):
    encoder = Counting()
    store = embed(tmp_path, texts, FEW, encoder)
    assert len(encoder.texts) == len(set(encoder.texts)) == len(drawn(FEW)) + 20
    np.testing.assert_array_equal(store.rows("train"), drawn(FEW))
    np.testing.assert_array_equal(store.rows("held_out"), np.arange(20))
    for split, rows in (("train", drawn(FEW)), ("held_out", np.arange(20))):
        np.testing.assert_array_equal(store.read(split, rows), whole["float16"].read(split, rows))
    absent = next(row for row in range(80) if row not in drawn(FEW))
    with pytest.raises(UserError, match=f"train text {absent} has no vector.*continue with jasper embed"):
        store.read("train", [drawn(FEW)[0], absent])
    assert verify_store(tmp_path, texts, progress=False).vectors == len(drawn(FEW)) + 20
    assert dtype_error(store, texts, encode).texts == len(drawn(FEW))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_more_draws_add_what_is_missing_and_keep_what_is_there(texts, whole, tmp_path, dtype):
    embed(tmp_path, texts, FEW, dtype=dtype)
    rest = Counting(shift=0.5)  # were a text embedded again, its vector would change
    store = embed(tmp_path, texts, MORE, rest, dtype=dtype)
    np.testing.assert_array_equal(np.setdiff1d(drawn(MORE), store.rows("train")), [])
    first = np.arange(10 if dtype == "int8" else 0)  # the first shard, from which the scales come, was complete
    assert len(rest.texts) == len(np.setdiff1d(drawn(MORE), np.union1d(drawn(FEW), first)))
    np.testing.assert_array_equal(store.read("train", drawn(FEW)), whole[dtype].read("train", drawn(FEW)))
    for fewer in (FEW, MORE):
        assert not embed(tmp_path, texts, fewer, Counting(at=1), dtype=dtype).refuse_lacking(fewer)
    with pytest.raises(UserError, match=r"shards lack vectors of texts that the stages draw; continue with jasper emb"):
        store.refuse_lacking(None)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_all_texts_in_the_end_are_the_store_made_at_once(texts, whole, tmp_path, dtype):
    """Also after a breakdown in the middle, and by two processes."""
    embed(tmp_path, texts, FEW, dtype=dtype)
    with pytest.raises(RuntimeError, match="out of memory"):
        embed(tmp_path, texts, MORE, Counting(at=3), dtype=dtype)
    with pytest.raises(UserError, match="incomplete"):
        VectorStore.open(tmp_path, texts)
    assert not embed(tmp_path, texts, None, dtype=dtype, process_index=1, process_count=2)
    store = embed(tmp_path, texts, None, dtype=dtype, process_index=0, process_count=2)
    store.refuse_lacking(None)
    assert contents(tmp_path) == contents(whole[dtype].folder)


def test_the_stages_draw_nothing_else(tmp_path):
    """Every training text of every batch, and those of the closed-form starts; an epoch needs all."""
    run = Run(recipe(tmp_path), progress=False)
    texts, student = run.data.texts(), None
    size = texts.size("train")
    draws = needed_draws(run.recipe, size)
    expected = np.random.default_rng(0).choice(size, 64, replace=False)
    for stage in run.stages:
        seed = make_kind(run.recipe, stage, student).seed
        expected = np.union1d(expected, DrawOrder(size, seed).records(0, 64))
    np.testing.assert_array_equal(np.flatnonzero(drawn_records(draws, size)), expected)
    assert len(expected) < size
    assert needed_draws(run.recipe, 64) is None
    untaught = {"fc1": {"dim": 12, "target": "pooled"}, "fc2": {"dim": 8, "target": "fc1"}}
    assert needed_draws(recipe(tmp_path, heads=untaught, teachers=[]), size) == Draws()


def test_lines_of_one_file_count_together() -> None:
    """A recipe that draws more, but no record that was lacking, writes the same bytes and a second line."""
    one, other = ({"sha256": "x", "held": {"draws": Draws(((seed, 8),)).as_json(), "vectors": 9}} for seed in (1, 2))
    assert holds(together([one, other]), Draws(((1, 8), (2, 8))))
    assert not holds(one, Draws(((2, 8),)))
    assert holds(together([one, {"sha256": "x"}]), None)
