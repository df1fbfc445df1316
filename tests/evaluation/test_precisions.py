"""Retrieval with vectors in fewer bits, against rankings written the obvious way."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from jasper_jax.assets.corpora import RetrievalTest
from jasper_jax.encoders.quantization import measure_ranges, quantize
from jasper_jax.evaluation.precisions import (
    precision_markdown,
    precision_rows,
    precision_table,
    rankings,
    refuse_impossible,
)
from jasper_jax.evaluation.similarity import unit
from jasper_jax.evaluation.text_tests import HELD_OUT
from jasper_jax.runtime.errors import UserError
from tests.tiny import recipe

PRECISIONS = ["float32", "int8", "binary", "binary, float32 queries", "binary, rescored"]


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    passages = unit(rng.normal(size=(300, 20)) + 0.3)
    queries = unit(passages[::10] + 0.15 * rng.normal(size=(30, 20)))
    return queries, passages, [f"{i:03}" for i in range(300)]


def test_each_ranking_is_what_its_index_would_give(data) -> None:
    queries, passages, ids = data
    ranges = measure_ranges(passages)
    found = {name: (size, nearest) for name, size, nearest in rankings(queries, passages, ranges, ids)}
    assert {name: size for name, (size, _) in found.items()} == dict(zip(PRECISIONS, (80, 20, 3, 3, 3)))
    bits = [np.unpackbits(quantize(x, "ubinary"), axis=1) for x in (queries, passages)]
    hamming = (bits[0][:, None] != bits[1][None]).sum(axis=2)
    signs = np.where(passages > 0, 1.0, -1.0)
    codes = [quantize(x, "int8", ranges).astype(float) for x in (queries, passages)]
    codes = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in codes]
    for q in range(len(queries)):
        near = np.lexsort((np.arange(300), hamming[q]))[:40]
        expected = {
            "float32": np.argsort(-(passages @ queries[q]))[:11],
            "int8": np.argsort(-(codes[1] @ codes[0][q]))[:11],
            "binary": near[:11],
            "binary, float32 queries": near[np.argsort(-(signs[near] @ queries[q]), kind="stable")][:11],
            "binary, rescored": near[np.argsort(-(passages[near] @ queries[q]), kind="stable")][:11],
        }
        for name, order in expected.items():
            np.testing.assert_array_equal(found[name][1][q], order, err_msg=name)


def test_the_table_and_the_plot_have_every_row(data, tmp_path) -> None:
    queries, passages, ids = data
    test = RetrievalTest(
        queries={f"q{i}": "" for i in range(30)},
        passages=dict.fromkeys(ids, ""),
        relevant={f"q{i}": {ids[10 * i]: 1} for i in range(30)},
    )
    tests = type("Tests", (), {"retrieval": {"made up": test}})()
    rows = []
    for dim in (20, 8):
        cut = {"made up/queries": queries[:, :dim], "made up/passages": passages[:, :dim], HELD_OUT: passages[:, :dim]}
        rows += precision_rows(dim, cut, tests)
    assert [(row.dim, row.precision) for row in rows] == [(dim, name) for dim in (20, 8) for name in PRECISIONS]
    scores = {(row.dim, row.precision): row.retrieval["made up"].ndcg10.value for row in rows}
    assert scores[20, "float32"] > 0.8
    assert abs(scores[20, "int8"] - scores[20, "float32"]) < 0.02
    assert scores[20, "binary"] < scores[20, "binary, rescored"] <= scores[20, "float32"] + 0.02
    console = Console(width=120, record=True)
    console.print(precision_table(rows))
    text = console.export_text()
    assert text.count("100.0%") >= 2
    assert f"{scores[8, 'binary']:.3f} ±" in text
    lines = precision_markdown(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert [line.split(" | ")[1] for line in lines[2:]] == list(PRECISIONS) * 2
    assert f"| 8 | binary | 1 | {scores[8, 'binary']:.3f} ±" in lines[-3]

    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from jasper_jax.evaluation.precision_plot import plot_precisions

    plot_precisions(rows, tmp_path / "precisions.png")
    assert (imread(tmp_path / "precisions.png")[..., :3] < 0.98).any(axis=-1).mean() > 0.01


def test_scores_that_cannot_be_made_are_refused_before_the_run(tmp_path) -> None:
    refuse_impossible(recipe(tmp_path), 0)
    asked = recipe(tmp_path, evaluation={"precisions": True})
    with pytest.raises(UserError, match=r"evaluation.precisions: needs a test in evaluation.retrieval"):
        refuse_impossible(asked, 200)
    tests = [{"name": "mine", "beir": str(tmp_path)}]
    asked = recipe(tmp_path, evaluation={"precisions": True, "retrieval": tests})
    refuse_impossible(asked, 100)
    with pytest.raises(UserError, match=r"evaluation.precisions: int8 needs at least 100 held-out texts.*got 99"):
        refuse_impossible(asked, 99)
