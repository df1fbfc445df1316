"""docs/serving.md: its code is run as it is written there, and finds what the table of evaluation scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jasper_jax.assets.corpora import RetrievalTest
from jasper_jax.embedder import Embedder
from jasper_jax.encoders.quantization import RANGES, measure_ranges
from jasper_jax.evaluation.precisions import rankings
from jasper_jax.evaluation.retrieval import score_ranking
from tests.pages import group, run_block
from tests.tiny import sentences, write_model

PASSAGES, QUESTIONS = 300, 150


def test_indices_find_what_the_table_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    pytest.importorskip("usearch")
    folder = write_model(tmp_path / "runs" / "quickstart" / "export", hidden=256, layers=1)
    passages = sentences(PASSAGES)
    questions = [text.replace(" the ", " a ").removesuffix(".") for text in passages[:QUESTIONS]]
    (tmp_path / "passages.txt").write_text("\n".join(passages))
    (tmp_path / "questions.txt").write_text("\n".join(questions))
    ranges = measure_ranges(Embedder.load(folder).encode(passages))
    (folder / RANGES).write_text(json.dumps({"texts": PASSAGES, "ranges": {"256": ranges.tolist()}}))
    monkeypatch.chdir(tmp_path)

    ids = [f"{i:03}" for i in range(PASSAGES)]
    test = RetrievalTest(
        queries={f"q{i}": text for i, text in enumerate(questions)},
        passages=dict(zip(ids, passages)),
        relevant={f"q{i}": {ids[i]: 1} for i in range(QUESTIONS)},
    )
    start, *searches = group("index")
    names: dict[str, Any] = {}
    run_block(start, names)
    table = {name: nearest for name, _, nearest in rankings(names["queries"], names["vectors"], ranges, ids)}
    found_names = [block.mark.removeprefix("run: index ") for block in searches]
    assert found_names == [name for name in ("float32", "int8", "binary, rescored") for _ in range(2)]
    rows: list[tuple[str, float, float, float]] = []
    for name, block in zip(found_names, searches, strict=True):
        run_block(block, names)
        expected, nearest = table[name], np.asarray(names["nearest"])
        assert nearest.shape == (QUESTIONS, 10)
        # FAISS's inner products of codes, and candidates of equal Hamming distance, may change places.
        same = np.mean([len(np.intersect1d(a, b[:10])) / 10 for a, b in zip(nearest, expected)])
        found, wanted = (score_ranking(order, test).ndcg10.value for order in (nearest.astype(int), expected))
        rows.append((name, round(same, 4), round(found, 4), round(wanted, 4)))
    # A search that finds nothing would agree with a table of nothing.
    assert all(same > 0.97 and found > 0.3 and abs(found - wanted) < 0.01 for _, same, found, wanted in rows), rows
    assert all(same == 1.0 for name, same, *_ in rows if "float32" in name), rows
