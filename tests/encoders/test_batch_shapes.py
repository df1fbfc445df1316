"""Every text is in one batch that holds it, and the shapes are the best few."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jasper_jax.encoders.batch_shapes import (
    RowShapes,
    choose_lengths,
    length_table,
    plan_batches,
    row_shapes,
    texts_per_row,
)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), max_size=80),
    batch_tokens=st.integers(1, 2000),
    program_cost=st.floats(0, 1e5),
    tile=st.sampled_from([1, 64, 128]),
    devices=st.sampled_from([1, 3, 8]),
)
def test_every_text_once_in_a_batch_that_holds_it(lengths, batch_tokens, program_cost, tile, devices):
    lengths = np.array(lengths, np.int64)
    shapes = RowShapes(300, batch_tokens, program_cost, tile, devices)
    batches = plan_batches(lengths, shapes)
    seen = np.concatenate([batch.indices for batch in batches]) if batches else np.empty(0, int)
    np.testing.assert_array_equal(np.sort(seen), np.arange(len(lengths)))
    for batch in batches:
        assert batch.rows * batch.length <= max(batch_tokens, devices * batch.length)
        assert batch.rows % devices == 0
        packing = batch.packing
        assert packing.row.max() < batch.rows
        if tile > 1:
            assert (batch.rows, batch.length) in shapes.every()
            assert batch.length % tile == 0
        else:
            assert batch.length in {*length_table(300), *length_table(128)}
            assert batch.rows < 2 * (packing.row.max() + 1) + devices - 1, "less than half are empty"
        taken = np.zeros((batch.rows, batch.length), int)
        for text, row, column in zip(batch.indices, packing.row, packing.column, strict=True):
            assert column + lengths[text] <= batch.length
            taken[row, column : column + lengths[text]] += 1
        assert taken.max(initial=0) <= 1, "texts lie over each other"
        for row in range(packing.row.max() + 1):
            here = packing.row == row
            assert 1 <= here.sum() <= texts_per_row(batch.length)
            np.testing.assert_array_equal(packing.place[here], np.arange(here.sum()))
            starts = np.cumsum([0, *np.maximum(lengths[batch.indices[here]], 1)])[:-1]
            np.testing.assert_array_equal(packing.column[here], starts, err_msg="texts lie side by side from column 0")


def test_the_same_lengths_run_in_the_same_shapes():
    """In any order, so that a resumed job repeats itself."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 256, 500)
    allowed = RowShapes(256, 2048, 6000)
    shapes = [batch[-2:] for batch in plan_batches(lengths, allowed)]
    assert shapes == [batch[-2:] for batch in plan_batches(rng.permutation(lengths), allowed)]


@pytest.mark.parametrize("cost", [0, 50, 500, 5000])
def test_choice_of_lengths_against_all_choices(cost):
    rng = np.random.default_rng(cost)
    table = length_table(72)
    counts = rng.integers(0, 12, len(table)) * rng.integers(0, 2, len(table))
    counts[-2] = 3

    def price(chosen):
        padded = np.asarray(chosen)[np.searchsorted(chosen, table)]
        return (padded * counts).sum() + cost * len(chosen)

    longest = max(length for length, count in zip(table, counts, strict=True) if count)
    fitting = [
        sorted(chosen)
        for n in range(1, len(table) + 1)
        for chosen in combinations([length for length in table if length <= longest], n)
        if max(chosen) == longest
    ]

    def clipped(chosen):
        return price([*chosen, *([table[-1]] if chosen[-1] < table[-1] else [])]) - (
            cost if chosen[-1] < table[-1] else 0
        )

    assert clipped(choose_lengths(counts, table, cost)) == pytest.approx(min(map(clipped, fitting)))


def test_table():
    table = length_table(512)
    assert table[:3] == [8, 16, 24]
    assert table[-1] == 512
    assert len(table) == 32
    steps = np.diff(table)
    assert (steps[np.array(table[:-1]) >= 64] / np.array(table[:-1])[np.array(table[:-1]) >= 64]).max() <= 0.125
    assert length_table(5) == [5]


@pytest.mark.parametrize("number", [300, 5000])
def test_padding_of_ordinary_texts_is_small(number):
    lengths = np.random.default_rng(0).gamma(1.2, 40, number).astype(int).clip(2, 256)
    batches = plan_batches(lengths, RowShapes(256, 2048, 2000))
    assert sum(batch.rows * batch.length for batch in batches) < 1.12 * lengths.sum()
    assert len({batch[-2:] for batch in batches}) <= 12


def test_a_few_short_texts_run_in_short_rows():
    (batch,) = plan_batches(np.array([9]), RowShapes(256, 2048, 2000))
    assert (batch.rows, batch.length) == (1, 16)


@pytest.mark.parametrize(("platform", "lengths"), [("gpu", [64, 128, 256, 512]), ("tpu", [128, 256, 512])])
@pytest.mark.parametrize("devices", [1, 4, 8])
def test_accelerators_run_few_programs_with_little_padding(platform, lengths, devices):
    """The kernels' lengths, two programs each, known beforehand, over shards of several kinds of texts."""
    allowed = row_shapes(512, platform, devices=devices, flops_per_token=3e9)
    assert sorted({length for _, length in allowed.every()}) == lengths
    rng, used = np.random.default_rng(0), set()
    for mean in (15, 60, 120, 250):
        texts = rng.gamma(1.2, mean / 1.2, 8192).astype(int).clip(2, 512)
        batches = plan_batches(texts, allowed)
        used |= {batch[-2:] for batch in batches}
        padding = sum(batch.rows * batch.length for batch in batches) / texts.sum() - 1
        assert padding < 0.15, (mean, padding)
    assert used <= set(allowed.every())
    assert len(allowed.every()) == 2 * len(lengths)


def test_lengths_of_accelerators():
    assert length_table(512, 128) == [128, 256, 512]
    assert length_table(100, 64) == [64, 128]
    assert length_table(514, 128) == [128, 256, 512, 640]
    assert length_table(40, 128) == [128]
