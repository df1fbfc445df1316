"""Batches and their static shapes: equal to what Grain's order and packing batch after batch give, and cached."""

from __future__ import annotations

from pathlib import Path

import grain
import numpy as np
import pytest

from jasper_jax.batches import batch_sizes
from jasper_jax.batches.batch_sizes import TokenCounts
from jasper_jax.batches.batches import Batches
from jasper_jax.batches.draws import BatchDraws
from jasper_jax.batches.loading import ProcessShare
from jasper_jax.data.texts import TextStore, build_text_store
from jasper_jax.encoders.packing import WHOLE, RowDivision, choose_rows, pack, row_length
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.runtime.errors import UserError
from tests.data.store_helpers import lines, recipe
from tests.tiny import sentences, write_tokenizer

PROMPTS = {"query": "what is ", "passage": ""}
SIZE, STEPS, SEED = 16, 12, 4


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> TextStore:
    place = tmp_path_factory.mktemp("batches")
    many = [" ".join(sentences(n % 4 + 1, seed=n)) for n in range(90)]
    return build_text_store(recipe(lines(place / "t.txt", many), held_out=40), place / "texts", seed=3, progress=False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder).with_max_length(32)


def make(texts: TextStore, tokenizer: Tokenizer, folder: Path, **changes) -> Batches:
    counts = TokenCounts(texts, tokenizer, PROMPTS, folder)
    size = changes.pop("batch_size", SIZE)
    draws = BatchDraws(
        "texts", texts.size("train"), texts.size("held_out"), batch_size=size, seed=changes.pop("seed", SEED)
    )
    given = {"draws": draws, "steps": STEPS, "shapes": 2, "folder": folder, **changes}
    return Batches(texts, None, tokenizer, PROMPTS, counts, **given)


def known_lengths(texts: TextStore, tokenizer: Tokenizer) -> list[np.ndarray]:
    """Token counts of every batch, training and held out, drawn from Grain one by one."""

    def count(split: str, indices: np.ndarray) -> np.ndarray:
        return tokenizer.lengths([PROMPTS[r.kind] + r.text for r in texts.read(split, indices)])

    order = grain.MapDataset.range(texts.size("train")).shuffle(seed=SEED).repeat(9)
    train = [np.array([order[i] for i in range(k * SIZE, (k + 1) * SIZE)]) for k in range(STEPS)]
    held = np.arange(texts.size("held_out") // SIZE * SIZE).reshape(-1, SIZE)
    return [*(count("train", indices) for indices in train), *(count("held_out", indices) for indices in held)]


@pytest.mark.parametrize(("row", "division", "tile"), [(None, WHOLE, 1), (40, WHOLE, 1), (None, RowDivision(4, 9), 8)])
def test_shapes_are_those_of_packing_batch_after_batch(texts, tokenizer, tmp_path, row, division, tile) -> None:
    batches = make(texts, tokenizer, tmp_path, row=row, division=division, tile=tile)
    known = known_lengths(texts, tokenizer)
    assert len(known) == STEPS + 2
    chosen = row_length(max(max(k) for k in known), float(np.mean([k.sum() for k in known])))
    tokens = row or -(-chosen // tile) * tile
    packings = [pack(lengths, tokens) for lengths in known]
    needed = np.array([division.fill(packing.rows) for packing in packings])
    assert batches.packer.row_length == tokens
    assert batches.packer.texts_per_row == max(packing.texts for packing in packings)
    np.testing.assert_array_equal(batches.packer.row_counts, choose_rows(needed, 2))
    for number in range(STEPS):
        loaded = batches.load(number)
        assert loaded.tokens == known[number].sum()
        packing = packings[number]
        np.testing.assert_array_equal(
            loaded.arrays["slots"], packing.row * batches.packer.texts_per_row + packing.place
        )
        for text, record in enumerate(texts.read("train", loaded.indices)):
            ids = tokenizer.encode([PROMPTS[record.kind] + record.text])[0]
            start = packing.column[text]
            np.testing.assert_array_equal(loaded.arrays["ids"][packing.row[text], start : start + len(ids)], ids)


def test_a_start_packs_nothing_and_a_second_start_computes_nothing(texts, tokenizer, tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("computed at the start")

    monkeypatch.setattr("jasper_jax.batches.row_packer.pack", refuse)
    first = make(texts, tokenizer, tmp_path)
    monkeypatch.setattr(batch_sizes, "packed_sizes", refuse)
    monkeypatch.setattr(BatchDraws, "records", refuse)
    monkeypatch.setattr(Tokenizer, "lengths", refuse)
    second = make(texts, tokenizer, tmp_path)
    np.testing.assert_array_equal(first.packer.row_counts, second.packer.row_counts)
    assert (first.packer.row_length, first.packer.texts_per_row) == (
        second.packer.row_length,
        second.packer.texts_per_row,
    )


@pytest.mark.parametrize(
    "changes", [{"seed": 5}, {"batch_size": 8}, {"steps": 11}, {"row": 50}, {"tile": 16}], ids=lambda c: next(iter(c))
)
def test_cached_sizes_of_other_settings_are_not_taken(texts, tokenizer, tmp_path, changes) -> None:
    make(texts, tokenizer, tmp_path / "shared")
    beside = make(texts, tokenizer, tmp_path / "shared", **changes)
    alone = make(texts, tokenizer, tmp_path / "own", **changes)
    assert (beside.packer.row_length, beside.packer.texts_per_row) == (
        alone.packer.row_length,
        alone.packer.texts_per_row,
    )
    np.testing.assert_array_equal(beside.packer.row_counts, alone.packer.row_counts)


@pytest.mark.parametrize("prefix", ["train-", "batch-tokens-", "batch-rows-"])
def test_a_damaged_cache_file_is_computed_anew(texts, tokenizer, tmp_path, prefix) -> None:
    before = make(texts, tokenizer, tmp_path)
    (path,) = tmp_path.glob(f"{prefix}*.npy")
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    path.write_bytes(damaged)
    after = make(texts, tokenizer, tmp_path)
    assert path.read_bytes() == whole
    np.testing.assert_array_equal(before.packer.row_counts, after.packer.row_counts)


def test_a_row_too_short_for_a_text_is_refused(texts, tokenizer, tmp_path) -> None:
    with pytest.raises(UserError, match=r"training.row_length: 5 is less than the \d+ tokens of the longest text"):
        make(texts, tokenizer, tmp_path, row=5)


def test_processes_load_the_rows_that_one_would(texts, tokenizer, tmp_path) -> None:
    whole = make(texts, tokenizer, tmp_path, division=RowDivision(4)).load(3).arrays
    parts = [
        make(texts, tokenizer, tmp_path, division=RowDivision(4), share=ProcessShare(pieces, 4)).load(3).arrays
        for pieces in ((0, 2), (1, 3))
    ]
    for name in ("ids", "lengths"):
        quarters = [half for part in parts for half in np.split(part[name], 2)]
        np.testing.assert_array_equal(np.concatenate([quarters[i] for i in (0, 2, 1, 3)]), whole[name])
    np.testing.assert_array_equal(parts[1]["slots"], whole["slots"])
