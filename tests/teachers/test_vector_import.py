"""Vectors made elsewhere: matched by text, whatever their order, and refused when they do not fit."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jasper_jax.data.texts import build_text_store
from jasper_jax.recipe.config_sources import TextSource
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.embedding import embed_teacher
from jasper_jax.teachers.vector_check import verify_store
from jasper_jax.teachers.vector_import import import_vectors, vectors_of
from tests.data.store_helpers import contents, encode, expected, lines, recipe, spec, vector

FLOAT = pa.float32()
NAMES = [f"text  number {i}" for i in range(60)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """60 passages, the first 20 of them also as queries."""
    place = tmp_path_factory.mktemp("texts")
    passages = lines(place / "p.txt", NAMES)
    queries = lines(place / "q.txt", NAMES[:20])
    queries = TextSource(text=queries.text, kind="query")
    return build_text_store(recipe(passages, queries, held_out=9, shard_rows=16), place / "texts", 0, progress=False)


def parquet(path, names, vectors, kinds=None, kind=pa.list_, value=FLOAT):
    columns = {"text": names, "embedding": pa.array([v.tolist() for v in vectors], kind(value))}
    if kinds is not None:
        columns["kind"] = kinds
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def both_kinds():
    names, kinds = NAMES + NAMES[:20], ["passage"] * 60 + ["query"] * 20
    order = np.random.default_rng(0).permutation(80)
    return [names[i] for i in order], [kinds[i] for i in order]


def check(store, texts, atol=5e-4):
    for split in ("train", "held_out"):
        found = store.read(split, range(texts.size(split)))
        np.testing.assert_allclose(found, expected(texts, split), atol=atol)


@pytest.mark.parametrize(
    ("list_type", "value"),
    [
        (pa.list_, pa.float32()),
        (pa.large_list, pa.float64()),
        (lambda v: pa.list_(v, 24), pa.float16()),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_parquet_with_kinds(texts, tmp_path, list_type, value, dtype):
    names, kinds = both_kinds()
    vectors = encode(names, kinds).astype(value.to_pandas_dtype())
    file = parquet(tmp_path / "a.parquet", names, vectors, kinds, list_type, value)
    done = import_vectors([file], texts, tmp_path / "v" / "api", spec(dtype), progress=False)
    assert (done.rows, done.extra, done.duplicates) == (80, 0, 0)
    if dtype != "int8":  # whose scales come from only 16 rows here
        check(done.store, texts, 1e-3)
        verify_store(tmp_path / "v" / "api", texts, progress=False)
    assert [p.name for p in (tmp_path / "v").iterdir()] == ["api"]
    assert not (tmp_path / "v" / "api" / "spool").exists()


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_imported_and_embedded_vectors_are_the_same_bytes(texts, tmp_path, dtype):
    names, kinds = both_kinds()
    file = parquet(tmp_path / "a.parquet", names, encode(names, kinds).astype(np.float32), kinds)
    import_vectors([file], texts, tmp_path / "imported", spec(dtype), progress=False)
    embed_teacher(tmp_path / "embedded", texts, spec(dtype), encode, progress=False)
    assert contents(tmp_path / "imported") == contents(tmp_path / "embedded")


def test_without_kinds_a_vector_serves_both(texts, tmp_path):
    file = parquet(tmp_path / "a.parquet", [f" {n.replace('  ', chr(9))} " for n in NAMES], encode(NAMES, ["x"] * 60))
    store = import_vectors([file], texts, tmp_path / "v", spec("float32"), progress=False).store
    for split in ("train", "held_out"):
        rows = texts.read(split, range(texts.size(split)))
        exact = np.stack([vector(r.text, "x", 24) for r in rows])
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
        np.testing.assert_allclose(store.read(split, range(len(rows))), exact, atol=1e-6)


def test_npy_files_with_texts_beside_them(texts, tmp_path):
    names, kinds = both_kinds()
    vectors = encode(names, kinds)
    np.save(tmp_path / "a.npy", vectors[:50].astype(np.float32))
    rows = [{"text": n, "kind": k} for n, k in zip(names[:50], kinds[:50])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    np.save(tmp_path / "b.npy", vectors[50:])
    (tmp_path / "b.json").write_text("")
    rows = [{"text": n, "kind": k} for n, k in zip(names[50:], kinds[50:])]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pair = (tmp_path / "b.npy", tmp_path / "c.jsonl")
    store = import_vectors([tmp_path / "a.npy", pair], texts, tmp_path / "v", spec(), progress=False).store
    check(store, texts)


def test_extra_and_repeated_vectors_are_counted(texts, tmp_path):
    names = [*NAMES, "of nobody", NAMES[3], NAMES[3]]
    vectors = encode(names, ["x"] * 63)
    vectors[-1] += 1  # the first one counts
    np.save(tmp_path / "a.npy", vectors)
    (tmp_path / "a.txt").write_text("\n".join(names))
    done = import_vectors([tmp_path / "a.npy"], texts, tmp_path / "v", spec("float32"), progress=False)
    assert (done.rows, done.extra, done.duplicates) == (63, 1, 2)
    assert str(done).startswith("63 vectors read, 1 for texts that are not in the text store, 2 duplicates")
    rows = texts.read("train", range(texts.size("train"))) + texts.read("held_out", range(texts.size("held_out")))
    assert NAMES[3] in {r.text for r in rows}
    for row, found in zip(rows, done.store.read("train", range(texts.size("train")))):
        exact = vector(row.text, "x", 24)
        np.testing.assert_allclose(found, exact / np.linalg.norm(exact), atol=1e-6)


def test_texts_without_a_vector_are_counted_and_named(texts, tmp_path):
    file = parquet(tmp_path / "a.parquet", NAMES[5:], encode(NAMES[5:], ["x"] * 55))
    with pytest.raises(UserError, match=r"^10 of 80 texts have no vector in the files: 'text  number \d' \(") as e:
        import_vectors([file], texts, tmp_path / "v", spec(), progress=False)
    assert str(e.value).count("number") == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet"]


BAD = [
    (lambda v: np.where(np.arange(60)[:, None] == 8, 0, v), r"a.npy, row 9: the vector is zero or not finite"),
    (lambda v: np.where(np.arange(60)[:, None] == 59, np.inf, v), r"a.npy, row 60: the vector is zero or not"),
    (lambda v: v[:, :7], "vectors of dimension 7, the teacher's is 24"),
    (lambda v: v[:59], "a.txt: 60 texts, .*a.npy has 59 vectors"),
    (lambda v: np.concatenate([v, v]), "a.txt: 60 texts, .*a.npy has 120 vectors"),
    (lambda v: v[0], r"float64 of shape \[24\]; expected floats of shape \[n, T\]"),
    (lambda v: v.astype(int), "int64 of shape"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_arrays_that_cannot_be_imported(texts, tmp_path, change, message):
    np.save(tmp_path / "a.npy", change(encode(NAMES, ["x"] * 60)))
    (tmp_path / "a.txt").write_text("\n".join(NAMES))
    with pytest.raises(UserError, match=message):
        import_vectors([tmp_path / "a.npy"], texts, tmp_path / "v", spec(), progress=False)
    assert not (tmp_path / "v").exists()


def test_files_that_cannot_be_imported(texts, tmp_path):
    def refused(message, *files, **keys):
        with pytest.raises(UserError, match=message):
            import_vectors(files, texts, tmp_path / "v", spec(), progress=False, **keys)

    refused("b.parquet: no such file", tmp_path / "b.parquet")
    (tmp_path / "b.parquet").write_text("no")
    refused("b.parquet: cannot be read as Parquet", tmp_path / "b.parquet")
    vectors = encode(NAMES, ["x"] * 60)
    file = parquet(tmp_path / "a.parquet", NAMES, vectors)
    refused("no column 'body'; there are text, embedding", file, text_column="body")
    refused("column 'text' is string; expected a list of floats", file, vector_column="text")
    refused(
        r"row 3: 'embedding' has 23 values, others 24",
        parquet(tmp_path / "c.parquet", NAMES, [*vectors[:2], vectors[2][:-1], *vectors[3:]]),
    )
    table = pa.table({"text": NAMES, "embedding": [*vectors[:4].tolist(), None, *vectors[5:].tolist()]})
    pq.write_table(table, tmp_path / "d.parquet")
    refused("row 5: 'embedding' has 0 values, others 24", tmp_path / "d.parquet")
    holes = vectors.tolist()
    holes[6][0] = None
    pq.write_table(pa.table({"text": NAMES, "embedding": holes}), tmp_path / "e.parquet")
    refused("row 7: the vector is zero or not finite", tmp_path / "e.parquet")
    refused(
        "row 1: kind is 'title'; expected query or passage",
        parquet(tmp_path / "f.parquet", NAMES, vectors, ["title"] * 60),
    )
    np.save(tmp_path / "g.npy", vectors)
    refused("g.npy: no file with its texts; expected .*g.jsonl or .*g.txt", tmp_path / "g.npy")
    (tmp_path / "g.jsonl").write_text('{"text": "a"}\n{"txt": "a"}\n')
    refused("g.jsonl, line 2: expected .*text", tmp_path / "g.npy")
    (tmp_path / "g.jsonl").write_bytes(b'{"text": "\xff"}\n')
    refused("g.jsonl, line 1: not UTF-8", tmp_path / "g.npy")
    (tmp_path / "g.npy").write_bytes(b"no")
    refused("g.npy: cannot be read as .npy", tmp_path / "g.npy")
    assert not (tmp_path / "v").exists()
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "mine").write_text("")
    refused("v: not empty", file)


def test_the_advice_about_columns_and_dimension(texts, tmp_path):
    names, kinds = both_kinds()
    vectors = encode(names, kinds)
    file = parquet(tmp_path / "a.parquet", names, vectors, kinds)
    table = pq.read_table(file)
    pq.write_table(table.rename_columns(["body", "embedding", "kind"]), file)
    with pytest.raises(UserError, match="there are body, embedding, kind: rename the text's column to text"):
        import_vectors([file], texts, tmp_path / "v", spec(), progress=False)
    pq.write_table(table, file)
    with pytest.raises(UserError, match="vectors of dimension 24, the teacher's is 7; set the teacher's dim to 24"):
        import_vectors([file], texts, tmp_path / "v", replace(spec(), dim=7), progress=False)
    check(import_vectors([file], texts, tmp_path / "v", replace(spec(), dim=24), progress=False).store, texts)


def npy(header, body=bytes(64)):
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + body


def archive():
    out = io.BytesIO()
    np.savez(out, a=np.ones((2, 8), np.float32))
    return out.getvalue()


SHAPED = "{{'descr': '<f4', 'fortran_order': False, 'shape': {}, }}\n"
HOSTILE = {
    "empty": b"",
    "archive": archive(),
    "no archive": b"PK\3\4xxxx",
    "pickle": pickle.dumps([1]),
    "wide": npy(SHAPED.format((2**63, 8))),
    "wider": npy(SHAPED.format((10**30, 8))),
    "short": npy(SHAPED.format((2**40, 8))),
    "bool": npy(SHAPED.format((True, 8))),
    "negative": npy(SHAPED.format((-1, 8))),
    "open": npy("{'descr': (\n"),
    "deep": npy("-" * 9000 + "1\n"),
    "unhashable": npy("{[]: 1}\n"),
    "mixed": npy("{1: 1, 'a': 2, 'descr': 3}\n"),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 8), }\n"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_files_that_are_no_npy(name, tmp_path):
    path = tmp_path / "v.npy"
    path.write_bytes(HOSTILE[name])
    path.with_suffix(".txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"v\.npy: cannot be read as \.npy \("):
        vectors_of([path], ["a"], ["query"], spec(dim=8))


@pytest.mark.parametrize("texts", [[1], [["a"]], [b"\xff"], [{"x": "a"}], [1.5]], ids=str)
def test_texts_that_are_no_strings(texts, tmp_path):
    path = parquet(tmp_path / "v.parquet", texts, np.ones((1, 8), np.float32))
    with pytest.raises(UserError, match=r"v\.parquet: column 'text' is .*; expected strings"):
        vectors_of([path], ["a"], ["query"], spec(dim=8))


@pytest.mark.parametrize("name", ["text", "embedding", "kind"])
def test_a_column_that_is_there_twice(name, tmp_path):
    columns = {"text": pa.array(["a"]), "embedding": pa.array([[1.0] * 8]), "kind": pa.array(["query"])}
    names = [*columns, name]
    pq.write_table(pa.Table.from_arrays([columns[n] for n in names], names), tmp_path / "v.parquet")
    with pytest.raises(UserError, match=rf"v\.parquet: has the column '{name}' more than once"):
        vectors_of([tmp_path / "v.parquet"], ["a"], ["query"], spec(dim=8))
