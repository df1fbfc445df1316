"""The vector store: what is read back, in each dtype, alone and as one view; and what open and verify refuse."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest

from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.codec import Codec, int8_scales
from jasper_jax.teachers.embedding import embed_teacher
from jasper_jax.teachers.online import join
from jasper_jax.teachers.vector_check import dtype_error, verify_store
from jasper_jax.teachers.vectors import TeacherView, VectorStore, normalize_rows, store_bytes
from tests.data.store_helpers import contents, encode, expected, small_store, spec, vector

ERROR = {"float32": 1e-7, "float16": 5e-4, "int8": 0.02}


def embedded(folder, texts, dtype="float16", dim=24, **keys):
    store = embed_teacher(folder, texts, spec(dtype, dim, **keys), lambda t, k: encode(t, k, dim), progress=False)
    assert store is not None
    return store


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    # the first shard is large enough for its scales to fit the others
    return small_store(tmp_path_factory.mktemp("texts"), rows=300, held_out=40, shard_rows=128)


@pytest.fixture(scope="module", params=["float32", "float16", "int8"])
def made(request, texts, tmp_path_factory):
    return embedded(tmp_path_factory.mktemp("vectors") / request.param, texts, request.param)


def test_rows_are_aligned_with_the_texts(made, texts):
    for split in ("train", "held_out"):
        found, exact = made.read(split, range(made.size(split))), expected(texts, split)
        assert found.dtype == np.float32
        clipped = made.manifest["clipped"]
        if made.dtype != "int8":
            np.testing.assert_allclose(found, exact, atol=ERROR[made.dtype])
            assert clipped == 0
        else:
            scales = np.array(made.manifest["scales"])
            inside = np.abs(exact) <= 127.5 * scales
            assert (np.abs(found - exact) <= scales / 2 + 1e-6)[inside].all()
            np.testing.assert_allclose(np.abs(found), np.minimum(np.abs(exact), 127 * scales), atol=0.004)
            assert clipped >= np.count_nonzero(~inside)
            assert clipped < 0.002 * 300 * 24
    rows = [259, 0, 131, 131]
    np.testing.assert_array_equal(made.read("train", rows), made.read("train", range(260))[rows])
    assert [made.read_shard(s)[1].shape for s in made.shards] == [(128, 24), (128, 24), (4, 24), (40, 24)]


def test_verify_and_pickle_and_threads(made, texts):
    checked = verify_store(made.folder, texts, progress=False)
    assert (checked.vectors, checked.shards) == (300, 4)
    assert checked.smallest_norm == pytest.approx(1, abs=ERROR[made.dtype] * 10)
    again = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(again.read("train", [7]), made.read("train", [7]))
    everything = made.read("train", range(260))
    with ThreadPoolExecutor(6) as pool:
        asked = [np.random.default_rng(i).integers(0, 260, 16) for i in range(100)]
        for rows, found in zip(asked, pool.map(lambda r: made.read("train", r), asked)):
            np.testing.assert_array_equal(found, everything[rows])


def test_tfds_reads_it_without_tensorflow(made, tmp_path):
    code = f"""
        import sys, numpy as np, tensorflow_datasets as tfds
        data = tfds.builder_from_directory({str(made.folder)!r}).as_data_source()
        for split in ("train", "held_out"):
            np.save({str(tmp_path)!r} + "/" + split, np.stack([r["vector"] for r in data[split]]))
        assert "tensorflow" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    for split in ("train", "held_out"):
        found = np.load(tmp_path / f"{split}.npy")
        assert found.dtype == made.dtype
        scales = 1.0 if made.dtype != "int8" else np.array(made.manifest["scales"], np.float32)
        np.testing.assert_array_equal(found.astype(np.float32) * scales, made.read(split, range(len(found))))


def test_grain_reads_it(made):
    grain = pytest.importorskip("grain")
    import tensorflow_datasets as tfds

    data = tfds.builder_from_directory(made.folder).as_data_source("train")
    found = [row["vector"] for row in grain.MapDataset.source(data)[:5]]
    assert np.stack(found).shape == (5, 24)


def test_the_dtypes_cost_in_similarity(made, texts):
    error = dtype_error(made, texts, encode, sample=100)
    limit = {"float32": 1e-6, "float16": 5e-4, "int8": 0.03}[made.dtype]
    assert error.texts == 100
    assert 0 < error.mean < error.largest < limit
    if made.dtype != "float32":
        rounding = {"float16": 1e-5, "int8": 5e-4}[made.dtype]
        assert error.largest > rounding
    other = dtype_error(made, texts, lambda t, k: encode(t, k)[:, ::-1] ** 3)
    assert other.mean > 0.1


def test_the_estimate_of_the_size(texts, tmp_path):
    for count, dim, dtype in [(260, 24, "float16"), (260, 3000, "int8"), (260, 3000, "float32")]:
        store = embedded(tmp_path / f"{dim}{dtype}", texts, dtype, dim)
        size = sum(e["bytes"] for e in store.manifest["shards"] if e["split"] == "train")
        assert store_bytes(count, dim, dtype, 128) == pytest.approx(size, rel=0.3)


# ------------------------------------------------------------------------------------------- records


def test_int8_scales_and_clipping():
    vectors = np.array([[0.4, 0.0, -0.08], [-0.8, 0.0, 0.05]], np.float32)
    scales = int8_scales(vectors)
    np.testing.assert_allclose(scales * 127, [1.0, 1.0, 0.1])  # a dimension of zeros takes the largest
    codec = Codec(3, "int8", scales)
    records, clipped = codec.encode(np.array([[2.0, 0.25, -0.3], [0.5, 0, 0.1]], np.float32))
    assert clipped == 2
    np.testing.assert_allclose(codec.decode(records), [[1, 0.25, -0.1], [0.5, 0, 0.1]], atol=0.005)


def test_records_of_another_form_are_refused():
    records, _ = Codec(4, "float16").encode(np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="not float32 vectors of dimension 4"):
        Codec(4, "float32").decode(records)
    with pytest.raises(ValueError, match="not int8 vectors of dimension 8"):
        Codec(8, "int8").decode([b"\x00" + r[1:] for r in records])


def test_a_record_is_what_tfds_writes():
    import tensorflow_datasets as tfds

    feature = tfds.features.Tensor(shape=(300,), dtype=np.float16, encoding=tfds.features.Encoding.BYTES)
    features = tfds.features.FeaturesDict({"vector": feature})
    x = np.random.default_rng(0).standard_normal(300).astype(np.float16)
    [record], _ = Codec(300, "float16").encode(x[None].astype(np.float32))
    assert record == features.serialize_example({"vector": x})


def test_normalise_leaves_zero_at_zero():
    np.testing.assert_allclose(normalize_rows(np.array([[0.0, 0.0], [3.0, 4.0]])), [[0, 0], [0.6, 0.8]], rtol=1e-7)


def test_the_room_above_the_int8_scales_is_worth_its_rounding():
    first, later = np.random.default_rng(0).standard_normal((2, 1024, 200)).astype(np.float32)
    errors = []
    for room in (1.0, 1 / 1.25):
        codec = Codec(200, "int8", int8_scales(first) * np.float32(room))
        errors.append(np.std(codec.decode(codec.encode(later)[0]) - later))
    assert errors[0] < 0.8 * errors[1]
    assert errors[0] == pytest.approx(0.0096, rel=0.1)


# -------------------------------------------------------------------------------------- several teachers


def test_several_teachers_are_one(texts, tmp_path):
    first = embedded(tmp_path / "a", texts, "float32", 24)
    second = embedded(tmp_path / "b", texts, "float16", 40)
    view = TeacherView([first, second])
    assert (view.dim, view.size("train")) == (64, 260)
    rows = [5, 200, 17]
    parts = [expected(texts, "train", dim)[rows] for dim in (24, 40)]
    whole = np.concatenate(parts, axis=1) / np.sqrt(2)
    found = view.read("train", rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whole, atol=5e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    # each half has norm 1/√2: no teacher outweighs another by its dimension or its dtype's rounding
    np.testing.assert_allclose(np.linalg.norm(found[:, :24], axis=1), 0.5**0.5, atol=1e-6)
    np.testing.assert_allclose(
        TeacherView([second]).read("train", rows), parts[1], atol=5e-4
    )  # one teacher: normalised once


def test_a_weight_is_the_share_of_the_similarity(texts, tmp_path):
    first = embedded(tmp_path / "a", texts, "float32", 24)
    second = embedded(tmp_path / "b", texts, "float32", 40)
    rows = np.arange(30)
    one, other = (TeacherView([store]).read("train", rows) for store in (first, second))
    weighted = TeacherView([first, second], [0.5, 2.0]).read("train", rows)
    np.testing.assert_allclose(weighted @ weighted.T, (0.5 * one @ one.T + 2 * other @ other.T) / 2.5, atol=1e-5)
    in_program = join([jnp.asarray(one), jnp.asarray(other)], [0.5, 2.0])
    np.testing.assert_allclose(in_program, weighted, atol=1e-6)
    extreme = TeacherView([first, second], [1e-300, 1e300]).read("train", rows)
    np.testing.assert_allclose(extreme @ extreme.T, other @ other.T, atol=1e-5)
    equal = TeacherView([first, second], [3.0, 3.0]).read("train", rows)
    np.testing.assert_allclose(equal, TeacherView([first, second]).read("train", rows), atol=1e-6)


def test_a_view_of_nothing_or_of_other_texts(texts, tmp_path):
    other = embedded(tmp_path / "other", small_store(tmp_path, rows=20))
    mine = embedded(tmp_path / "mine", texts)
    with pytest.raises(UserError, match=f"{other.fingerprint}.*{mine.fingerprint}"):
        TeacherView([mine, other])
    with pytest.raises(ValueError, match="at least one"):
        TeacherView([])


# ------------------------------------------------------------------------------------------- refusals


def copy(store, folder):
    shutil.copytree(store.folder, folder)
    return folder


def test_a_store_of_other_texts_is_refused_with_both_fingerprints(made, texts, tmp_path):
    other = small_store(tmp_path, rows=20)
    with pytest.raises(UserError, match=f"{texts.fingerprint}.*{other.fingerprint}"):
        VectorStore.open(made.folder, other)


def test_another_spec_is_refused_by_name(made, texts):
    assert VectorStore.open(made.folder, texts, made.spec).dim == 24
    asked = spec(made.dtype, teacher={"id": "fake", "revision": "2"}, prompts={"query": "", "passage": ""})
    with pytest.raises(UserError) as e:
        VectorStore.open(made.folder, texts, asked)
    assert "teacher.revision ('1' there, '2' asked)" in str(e.value)
    assert "prompts.query ('search: ' there, '' asked)" in str(e.value)
    assert "max_length" not in str(e.value)


@pytest.mark.parametrize("damage", ["missing", "cut", "later", "incomplete", "nothing"])
def test_stores_that_cannot_be_opened(made, texts, tmp_path, damage):
    folder = copy(made, tmp_path / "vectors")
    path = folder / made.manifest["shards"][1]["file"]
    manifest = folder / "manifest.json"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "later":
        manifest.write_text(json.dumps(made.manifest | {"format": 2}))
    elif damage == "incomplete":
        manifest.unlink()
        path.unlink()
    else:
        shutil.rmtree(folder)
    message = {
        "missing": f"{path.name}: shard is missing; delete this file and embed again",
        "cut": f"{path.name}: shard has .* bytes instead of",
        "later": "format version 2, this program reads up to 1; install a newer",
        "incomplete": "vectors are incomplete, 3 of 4 shards are there; continue with jasper embed",
        "nothing": "no complete vector store here",
    }[damage]
    with pytest.raises(UserError, match=message):
        VectorStore.open(folder, texts)


def test_verify_finds_a_flipped_byte_and_wrong_norms(made, texts, tmp_path):
    folder = copy(made, tmp_path / "vectors")
    path = folder / made.manifest["shards"][1]["file"]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    VectorStore.open(folder, texts)  # the size is right
    with pytest.raises(UserError, match=f"{path.name}: sha256 is .*; delete this file and embed again"):
        verify_store(folder, texts, progress=False)


def test_verify_finds_vectors_that_are_not_of_norm_1(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("jasper_jax.teachers.vectors.normalize_rows", lambda x: np.asarray(x, np.float32) * 0.1)
    store = embedded(tmp_path / "vectors", texts)
    with pytest.raises(UserError, match=r"array_record-00000-of-00003, row 0: norm .*128 such rows"):
        verify_store(store.folder, texts, progress=False)


def test_repair_makes_only_what_is_missing(made, texts, tmp_path):
    folder = copy(made, tmp_path / "vectors")
    before = contents(folder)
    (folder / made.manifest["shards"][1]["file"]).unlink()
    (folder / made.manifest["shards"][3]["file"]).write_bytes(b"cut")
    asked = []

    def counted(texts_, kinds):
        asked.append(len(texts_))
        return encode(texts_, kinds)

    store = embed_teacher(folder, texts, made.spec, counted, progress=False)
    assert store is not None
    assert asked == [128, 40]
    assert contents(folder) == before
    assert vector("a", "query", 24).shape == (24,)
