"""The corpora as documents and as tests; folders in BEIR's format."""

from __future__ import annotations

import gzip
import hashlib
import json

import numpy as np
import pytest

from jasper_jax.assets import corpora as module
from jasper_jax.assets.cache import is_cached
from jasper_jax.assets.catalogue import CATALOGUE
from jasper_jax.assets.corpora import (
    SPLITS,
    SQUAD_SPLITS,
    Document,
    RetrievalTest,
    lee_similarities,
    read_beir,
    read_corpus,
    retrieval_test,
    subset,
)
from jasper_jax.runtime.errors import UserError

PARAGRAPHS = {
    "squad": [("Passage one. ", ["What one?", "What?"]), ("Passage two.", ["What two? ", "What?"])],
    "new_wiki": [("Passage three.", ["What three?"])],
    "nyt": [("Passage one.", ["What again?"])],
    "reddit": [],
    "amazon": [("Passage\nfour é.", ["What four?"])],
}


def sha1(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


@pytest.fixture
def assets(monkeypatch, tmp_path):
    """Small corpora in the form of the real ones."""
    for name in SPLITS:
        (tmp_path / name).mkdir()
    for split, paragraphs in PARAGRAPHS.items():
        rows = [
            {"context": context, "qas": [{"question": question, "id": "x"} for question in questions]}
            for context, questions in paragraphs
        ]
        data = {"data": [{"title": "t", "paragraphs": [row]} for row in rows], "canary": "c"}
        (tmp_path / "squad-shifts" / SQUAD_SPLITS[split]).write_text(json.dumps(data), "utf-8")
    (tmp_path / "randfacts" / "safe.txt").write_text("Fact one.\nFact “two”.\n\nFact one.\n", "utf-8")
    (tmp_path / "lee" / "lee.cor").write_bytes("A £ text.\nB text.\nC text.".encode("latin-1"))
    (tmp_path / "lee" / "similarities0-1.txt").write_text("1\t0.3\t0.24\n0\t1\t0.5\n0\t0\t1\n")
    monkeypatch.setattr(module, "fetch_asset", lambda name: tmp_path / name)
    return tmp_path


def cached(*names):
    return all(is_cached(CATALOGUE[name]) for name in names)


# --------------------------------------------------------------------------------------------- documents


def test_a_passage_comes_with_its_questions_and_once(assets):
    assert list(read_corpus("squad-shifts", ["nyt", "squad"])) == [
        Document("Passage one.", "passage", "squad-shifts/nyt"),
        Document("What again?", "query", "squad-shifts/nyt"),
        Document("What one?", "query", "squad-shifts/squad"),
        Document("What?", "query", "squad-shifts/squad"),
        Document("Passage two.", "passage", "squad-shifts/squad"),
        Document("What two?", "query", "squad-shifts/squad"),
    ]


def test_kinds_and_splits_select(assets):
    everything = list(read_corpus("squad-shifts"))
    assert list(read_corpus("squad-shifts", list(SQUAD_SPLITS))) == everything
    queries = [document for document in everything if document.kind == "query"]
    assert list(read_corpus("squad-shifts", None, "query")) == queries
    assert list(read_corpus("squad-shifts", None, "passage")) == [d for d in everything if d not in queries]
    assert [d.text for d in everything if d.source.endswith("amazon")] == ["Passage\nfour é.", "What four?"]


def test_texts_of_the_other_corpora(assets):
    assert list(read_corpus("randfacts")) == [
        Document("Fact one.", "passage", "randfacts"),
        Document("Fact “two”.", "passage", "randfacts"),
    ]
    assert [document.text for document in read_corpus("lee", None, "passage")] == [
        "A £ text.",
        "B text.",
        "C text.",
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("squad-shifts", ["nyc"]),
            r"no split 'nyc'; did you mean 'nyt'\?; it has squad, new_wiki, nyt, reddit, am",
        ),
        (
            ("squad-shift",),
            r"no corpus 'squad-shift'; did you mean 'squad-shifts'\?; the corpora are squad-shifts, r",
        ),
        (("all-MiniLM-L6-v2",), "no corpus 'all-MiniLM-L6-v2'; the corpora are"),
        (("randfacts", ["train"]), "'randfacts' has no splits, but split is 'train'"),
        (("randfacts", None, "query"), "'randfacts' has no documents of kind 'query'; it has passage"),
        (
            ("squad-shifts", None, "title"),
            "'squad-shifts' has no documents of kind 'title'; it has query and passage",
        ),
    ],
)
def test_what_cannot_be_read_is_said_at_once(assets, args, message):
    with pytest.raises(UserError, match=message):
        read_corpus(*args)


# ---------------------------------------------------------------------------------------------- retrieval


def test_the_same_question_is_one_query_with_several_passages(assets):
    test = retrieval_test("squad-shifts", "squad")
    one, two = sha1("Passage one."), sha1("Passage two.")
    assert test.passages == {one: "Passage one.", two: "Passage two."}
    assert test.queries == {sha1(text): text for text in ("What one?", "What?", "What two?")}
    assert test.relevant == {sha1("What one?"): {one: 1}, sha1("What?"): {one: 1, two: 1}, sha1("What two?"): {two: 1}}


def test_corpora_without_a_retrieval_test(assets):
    with pytest.raises(UserError, match="'lee' has no retrieval test; squad-shifts has"):
        retrieval_test("lee", None)
    with pytest.raises(UserError, match="needs split: one of squad, new_wiki"):
        retrieval_test("squad-shifts", None)
    with pytest.raises(UserError, match="no split 'wiki'"):
        retrieval_test("squad-shifts", "wiki")


def test_a_subset_is_the_first_by_sorted_id():
    passages = {f"p{i}": f"passage {i}" for i in (3, 1, 0, 2)}
    relevant = {"q0": {"p0": 2}, "q1": {"p0": 1, "p3": 1}, "q2": {"p0": 1}, "q3": {"p1": 1, "p2": 1}, "q4": {"p3": 1}}
    test = RetrievalTest(passages, {query: query for query in reversed(relevant)}, relevant)
    assert subset(test, None, None) == test
    small = subset(test, 2, None)
    assert list(small.passages) == ["p1", "p0"]  # the order stays that of the test
    assert small.relevant == {"q0": {"p0": 2}, "q1": {"p0": 1}, "q2": {"p0": 1}, "q3": {"p1": 1}}
    assert list(small.queries) == ["q3", "q2", "q1", "q0"]
    assert subset(test, 2, 1).relevant == {"q0": {"p0": 2}, "q3": {"p1": 1}}
    assert subset(test, 99, 2).relevant == {
        "q0": {"p0": 2},
        "q1": {"p0": 1, "p3": 1},
        "q3": {"p1": 1, "p2": 1},
        "q4": {"p3": 1},
    }


# --------------------------------------------------------------------------------------------------- BEIR

CORPUS = ['{"_id": "d1", "title": "Title", "text": "text one"}', '{"_id": "d2", "title": "", "text": "two"}']
QUERIES = ['{"_id": "q1", "text": "first?"}', '{"_id": "q2", "text": "second?", "metadata": {}}']
QRELS = ["query-id\tcorpus-id\tscore", "q1\td1\t1", "q1\td2\t2", "q2\td1\t0"]


@pytest.fixture
def beir(tmp_path):
    def write(corpus=CORPUS, queries=QUERIES, qrels=QRELS):
        (tmp_path / "qrels").mkdir(exist_ok=True)
        for name, lines in (("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels/test.tsv", qrels)):
            (tmp_path / name).write_text("\n".join(lines) + "\n", "utf-8")
        return tmp_path

    return write


def test_a_beir_folder(beir):
    expected = RetrievalTest({"d1": "Title text one", "d2": "two"}, {"q1": "first?"}, {"q1": {"d1": 1, "d2": 2}})
    assert read_beir(beir()) == expected
    assert read_beir(str(beir(qrels=QRELS[1:]))) == expected  # without the header
    untitled = ['{"_id": "d1", "text": "text one"}', "", '{"_id": "d2", "title": null, "text": "two"}']
    assert read_beir(beir(corpus=untitled)).passages == {"d1": "text one", "d2": "two"}


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        ({"corpus": [*CORPUS, "{"]}, r"corpus\.jsonl:3: not JSON"),
        ({"corpus": ['{"_id": 1.5, "text": "x"}']}, r"corpus\.jsonl:1: '_id' is missing or not a string"),
        ({"corpus": ["[1]"]}, r"corpus\.jsonl:1: '_id' is missing"),
        (
            {"corpus": ['{"_id": "d", "title": 3, "text": "x"}']},
            r"corpus\.jsonl:1: 'title' is missing or not a str",
        ),
        ({"corpus": [*CORPUS, CORPUS[0]]}, r"corpus\.jsonl:3: id 'd1' is not unique"),
        ({"corpus": []}, r"corpus\.jsonl: no texts"),
        ({"queries": [QUERIES[0], '{"_id": "q2"}']}, r"queries\.jsonl:2: 'text' is missing"),
        ({"qrels": [*QRELS, "q1 d1 1"]}, r"test\.tsv:5: expected 3 tab-separated columns: .*; got 1"),
        ({"qrels": [*QRELS, "q1\td1\tyes"]}, r"test\.tsv:5: score 'yes' is not an integer"),
        (
            {"qrels": [*QRELS, "q1\td1\t2147483647"]},
            r"test\.tsv:5: score 2147483647; expected a gain of at most 100,000",
        ),
        ({"qrels": [*QRELS, f"q1\td1\t1{'0' * 4000}"]}, r"test\.tsv:5: score 10+; expected a gain of at most 100,000"),
        (
            {"qrels": ["q9\td1\t1"]},
            r"test\.tsv: no query has .*1 rows name queries that queries\.jsonl lacks, e\.g\. 'q9'",
        ),
        ({"qrels": ["q1\td9\t1"]}, r"corpus\.jsonl has none of the 1 ids that it names, e\.g\. 'd9'"),
        ({"qrels": [QRELS[0], QRELS[3]]}, r"test\.tsv: no query has a relevant passage"),
    ],
)
def test_a_faulty_beir_folder_is_named_with_file_and_line(beir, faulty, message):
    with pytest.raises(UserError, match=message):
        read_beir(beir(**faulty))


def test_judgements_of_unknown_ids_are_beirs_own_practice(beir, capsys):
    test = read_beir(beir(qrels=[*QRELS, "q1\td9\t1", "q9\td1\t1"]))
    assert test.relevant == {"q1": {"d1": 1, "d2": 2, "d9": 1}}  # d9 counts as not retrieved
    assert "1 queries that queries.jsonl lacks were skipped, e.g. 'q9'" in capsys.readouterr().err
    assert subset(test, None, None) == test
    assert subset(test, 1, None).relevant == {"q1": {"d1": 1}}


def test_ids_may_be_numbers_and_files_compressed(beir):
    folder = beir(corpus=['{"_id": 7, "text": "seven"}'], qrels=["q1\t7\t1"])
    corpus = folder / "corpus.jsonl"
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.read_bytes()))
    corpus.unlink()
    assert read_beir(folder) == RetrievalTest({"7": "seven"}, {"q1": "first?"}, {"q1": {"7": 1}})


def test_a_missing_or_binary_file_is_named(beir, tmp_path):
    with pytest.raises(UserError, match=r"corpus\.jsonl: No such file.*a BEIR folder has"):
        read_beir(tmp_path)
    (beir() / "queries.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"queries\.jsonl: is UTF-16, expected UTF-8"):
        read_beir(tmp_path)


# --------------------------------------------------------------------------------------------- similarity


def test_the_upper_triangle_becomes_symmetric(assets):
    texts, human = lee_similarities()
    assert texts == ["A £ text.", "B text.", "C text."]
    np.testing.assert_array_equal(human, [[1, 0.3, 0.24], [0.3, 1, 0.5], [0.24, 0.5, 1]])
    (assets / "lee" / "lee.cor").write_text("only one")
    with pytest.raises(UserError, match="1 texts, but"):
        lee_similarities()


# ------------------------------------------------------------------------------------------ the real ones


@pytest.mark.skipif(not cached("squad-shifts"), reason="358 MB to download: read where it is cached")
def test_the_numbers_of_squad_shifts():
    kinds = [document.kind for document in read_corpus("squad-shifts")]
    assert (kinds.count("passage"), kinds.count("query")) == (9748, 46936)
    sizes = {}
    for split in SQUAD_SPLITS:
        test = retrieval_test("squad-shifts", split)
        assert set(test.relevant) == set(test.queries)
        assert set().union(*test.relevant.values()) == set(test.passages)
        sizes[split] = (len(test.passages), len(test.queries))
    assert sizes == {
        "squad": (2067, 10528),
        "new_wiki": (1581, 7732),
        "nyt": (2017, 9772),
        "reddit": (2033, 9551),
        "amazon": (2050, 9382),
    }
    small = subset(retrieval_test("squad-shifts", "nyt"), 200, 2)
    assert (len(small.passages), len(small.queries)) == (200, 400)


@pytest.mark.skipif(not cached("lee"), reason="23 MB to download: read where it is cached")
def test_the_numbers_of_lee():
    texts, human = lee_similarities()
    assert len(texts) == 50
    assert human.shape == (50, 50)
    assert human[np.triu_indices(50, 1)].mean() == pytest.approx(0.3265, abs=1e-4)
    assert any("£" in text for text in texts)
