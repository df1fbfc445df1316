"""Labelled pairs in the text store: whole groups held out, every text once, and pairs that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jasper_jax.data.texts import build_text_store
from jasper_jax.recipe.config_sources import Texts
from jasper_jax.runtime.errors import UserError


def store_of(place: Path, rows: list[dict], **changes):
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"jsonl": str(place / "pairs.jsonl"), **changes.pop("source", {})}
    return build_text_store(
        Texts.model_validate({"pairs": [source], "held_out_pairs": 0, **changes}), place / "texts", 0, progress=False
    )


def texts_of(store, split: str) -> list[tuple[str, str]]:
    return [(row.text, row.kind) for row in store.read(split, range(store.size(split)))]


def test_rows_of_the_table_are_the_texts_of_the_pairs(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "passage": f"p{i // 2}", "no": [f"p{i // 2 + 1}", f"n{i}"]} for i in range(8)]
    store = store_of(tmp_path, [*rows, rows[0]], source={"negatives": "no"})
    table, texts = store.pairs["train"], texts_of(store, "train")
    assert len(texts) == len(set(texts)), "every text is one row"
    for pair, row in enumerate(rows):
        assert texts[table.query[pair]] == (row["query"], "query")
        assert texts[table.passage[pair]] == (row["passage"], "passage")
        assert [texts[n][0] for n in table.negatives[pair]] == row["no"]
    assert store.manifest["counts"][f"pairs jsonl:{tmp_path}/pairs.jsonl"]["pairs"]["duplicates"] == 1
    np.testing.assert_array_equal(table.answers(table.query[:2], table.passage[:3]), [[1, 1, 0], [1, 1, 0]])


def test_neither_passage_nor_question_is_on_both_sides(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "passage": f"p{i // 3}"} for i in range(60)]
    (tmp_path / "plain.txt").write_text("".join(f"p{i}\n" for i in range(20)) + "other\nanother\n")
    store = store_of(tmp_path, rows, held_out_pairs=16, held_out=0, sources=[{"text": str(tmp_path / "plain.txt")}])
    held, train = (dict(texts_of(store, split)) for split in ("held_out", "train"))
    assert len(store.pairs["held_out"]) == 15, "groups of 3, never more than asked"
    assert not set(held) & set(train), "plain documents of a held-out pair are left out"
    assert len(store.pairs["train"]) == 45
    (tmp_path / "again").mkdir()
    again = store_of(tmp_path / "again", rows[::-1], held_out_pairs=16, held_out=0)
    assert {text for text, _ in texts_of(again, "held_out")} == set(held), "the order of rows does not matter"


@pytest.mark.parametrize(
    ("row", "source", "message"),
    [
        ({"query": "q"}, {}, "line 2: no column 'passage'"),
        ({"query": " ", "passage": "p"}, {}, "line 2: column 'query' is empty; fill it in or remove the row"),
        ({"query": "q", "passage": ["p", "r"]}, {}, "column 'passage' holds 2 texts; expected one, and a row for each"),
        ({"query": "q", "passage": "p", "s": 3}, {"score": "s"}, "column 's' is 3; expected a number from 0 to 1"),
    ],
)
def test_a_pair_that_cannot_be_used_is_one_line(tmp_path: Path, row, source, message) -> None:
    with pytest.raises(UserError) as error:
        store_of(tmp_path, [{"query": "a", "passage": "b", "s": 1}, row], source=source)
    assert message in str(error.value)


def test_negatives_that_are_answers_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"query": "q", "passage": "p", "no": ["r", "p", "n"]}, {"query": "q", "passage": "r", "no": []}]
    store = store_of(tmp_path, rows, source={"negatives": "no"})
    texts = texts_of(store, "train")
    assert [texts[n][0] for n in store.pairs["train"].negatives[0]] == ["n"]
    (counts,) = store.manifest["counts"].values()
    assert counts["pairs"]["negatives that are an answer"] == 2
