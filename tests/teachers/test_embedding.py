"""Filling a vector store: resuming, several processes, kills; always the same bytes in the end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from jasper_jax.data import shards
from jasper_jax.data.texts import TextStore
from jasper_jax.runtime.errors import Interrupted, UserError
from jasper_jax.teachers.embedding import embed_teacher
from jasper_jax.teachers.vector_check import verify_store
from jasper_jax.teachers.vectors import VectorStore
from tests.data.store_helpers import DTYPES, contents, encode, small_store, spec

pytestmark = pytest.mark.usefixtures("quick_programs")


class Failing:
    """An encoder that breaks down at its call number ``at``."""

    def __init__(self, at: int):
        self.at, self.calls, self.tokens = at, 0, 0

    def __call__(self, texts, kinds):
        self.calls += 1
        self.tokens += 7 * len(texts)
        if self.calls == self.at:
            raise RuntimeError("out of memory")
        return encode(texts, kinds)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_breakdown_costs_one_shard(texts, whole, tmp_path, dtype):
    folder = tmp_path / dtype
    with pytest.raises(RuntimeError, match="out of memory"):
        embed_teacher(folder, texts, spec(dtype), Failing(4), progress=False)
    with pytest.raises(UserError, match="incomplete, 3 of 10 shards"):
        VectorStore.open(folder, texts)
    rest = Failing(0)
    assert embed_teacher(folder, texts, spec(dtype), rest, progress=False)
    assert rest.calls == 7
    assert contents(folder) == whole[dtype]
    assert embed_teacher(folder, texts, spec(dtype), Failing(1), progress=False)  # nothing is left to do


def test_a_stop_while_a_shard_is_written_leaves_nothing_of_it(texts, whole, tmp_path, monkeypatch):
    write = shards.write_records

    def interrupted(path, records, *, compress):
        write(path, records[:3], compress=compress)
        raise Interrupted

    monkeypatch.setattr(shards, "write_records", interrupted)
    with pytest.raises(Interrupted):
        embed_teacher(tmp_path, texts, spec("float16"), encode, progress=False)
    assert os.listdir(tmp_path) == ["spec.json"]
    monkeypatch.undo()
    assert embed_teacher(tmp_path, texts, spec("float16"), encode, progress=False)
    assert contents(tmp_path) == whole["float16"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_processes_one_after_another(texts, whole, tmp_path, dtype):
    folder = tmp_path / dtype
    for i in (2, 0):
        assert not embed_teacher(folder, texts, spec(dtype), encode, process_index=i, process_count=3, progress=False)
    last = embed_teacher(folder, texts, spec(dtype), encode, process_index=1, process_count=3, progress=False)
    assert last is not None
    assert contents(folder) == whole[dtype]
    verify_store(folder, texts, progress=False)


def _embed(text_folder, folder, dtype, index, out):
    texts = TextStore.open(text_folder)
    store = embed_teacher(folder, texts, spec(dtype), encode, process_index=index, process_count=3, progress=False)
    out.put((index, store is not None))


@pytest.mark.parametrize("dtype", DTYPES)
def test_three_processes_at_once_give_the_same_bytes(texts, whole, tmp_path, dtype):
    folder = tmp_path / dtype
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    args = [(str(texts.folder), str(folder), dtype, i, out) for i in range(3)]
    workers = [context.Process(target=_embed, args=a) for a in args]
    for w in workers:
        w.start()
    finished = dict(out.get(timeout=120) for _ in workers)
    for w in workers:
        w.join()
    assert sorted(finished) == [0, 1, 2]
    assert any(finished.values())
    assert contents(folder) == whole[dtype]


def test_a_killed_process(texts, whole, tmp_path):
    folder = tmp_path / "v"
    code = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from tests.data.store_helpers import encode, spec
        from jasper_jax.teachers.embedding import embed_teacher
        from jasper_jax.data.texts import TextStore

        def slow(texts, kinds):
            time.sleep(0.3)
            return encode(texts, kinds)

        embed_teacher({str(folder)!r}, TextStore.open({str(texts.folder)!r}), spec(), slow, progress=False)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    while len(list(folder.glob("vectors-*"))) < 2 and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    # what a kill in the middle of a write leaves: half a shard under a temporary name, half a line
    (folder / ".vectors-train.array_record-00003-of-00008.0a1b2c3d.tmp").write_bytes(b"half a shard")
    [ledger] = folder.glob("done-*.jsonl")
    ledger.write_text(ledger.read_text() + '{"file": "vectors-tra')
    assert len(list(folder.glob("vectors-*"))) >= 2
    assert not (folder / "manifest.json").exists()
    rest = Failing(0)
    assert embed_teacher(folder, texts, spec(), rest, progress=False)
    assert 0 < rest.calls <= 8
    assert contents(folder) == whole["float16"]


def test_a_shard_without_its_line_is_made_again(texts, whole, tmp_path):
    folder = tmp_path / "v"
    with pytest.raises(RuntimeError):
        embed_teacher(folder, texts, spec(), Failing(4), progress=False)
    [ledger] = folder.glob("done-*.jsonl")
    first, *others = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(others))
    rest = Failing(0)
    assert embed_teacher(folder, texts, spec(), rest, progress=False)
    assert rest.calls == 8
    assert contents(folder) == whole["float16"]
    assert "array_record-00000" in first


def test_two_runs_that_made_the_same_shard_differently(texts, tmp_path):
    """A GPU may give other bits the second time: the manifest's sha256 is that of the file that stayed."""
    folder = tmp_path / "v"
    inner = []

    def outer(texts_, kinds):
        if not inner:  # while this run is at its first shard, another one makes three
            inner.append(1)
            with pytest.raises(RuntimeError):
                embed_teacher(folder, texts, spec(), Failing(4), progress=False)
        return encode(texts_, kinds) + 1e-2

    assert embed_teacher(folder, texts, spec(), outer, progress=False)
    verify_store(folder, texts, progress=False)


def test_a_run_whose_store_another_run_finished(texts, whole, tmp_path):
    folder = tmp_path / "v"
    inner = []

    def outer(texts_, kinds):
        if not inner:
            inner.append(embed_teacher(folder, texts, spec(), encode, progress=False))
        return encode(texts_, kinds) + 1e-2

    assert embed_teacher(folder, texts, spec(), outer, progress=False)
    assert inner[0] is not None
    assert contents(folder) == whole["float16"]


@pytest.mark.parametrize("where", ["jasper_jax.data.shards.write_atomic", "jasper_jax.runtime.files.os.replace"])
def test_two_processes_that_finish_at_once(texts, whole, tmp_path, monkeypatch, where):
    """Both find all shards whole; the second one finishes while the first is about to write a file."""
    import importlib

    folder = tmp_path / "v"
    for i in (0, 1):
        embed_teacher(folder, texts, spec(), encode, process_index=i, process_count=3, progress=False)
    module, name = where.rsplit(".", 1)
    owner = os if module.endswith(".os") else importlib.import_module(module)
    real, inner = getattr(owner, name), []

    def interrupted(*args):
        if not inner and "dataset_info" in str(args[-1] if owner is os else args[0]):
            inner.append(None)
            inner.append(embed_teacher(folder, texts, spec(), encode, progress=False))
        return real(*args)

    monkeypatch.setattr(owner, name, interrupted)
    last = embed_teacher(folder, texts, spec(), encode, process_index=2, process_count=3, progress=False)
    assert last is not None
    assert inner[1] is not None
    assert contents(folder) == whole["float16"]


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("finished", [False, True])
def test_a_resume_with_another_teacher_is_refused(texts, tmp_path, finished):
    folder = tmp_path / "v"
    if finished:
        embed_teacher(folder, texts, spec(), encode, progress=False)
    else:
        with pytest.raises(RuntimeError):
            embed_teacher(folder, texts, spec(), Failing(3), progress=False)
    before = contents(folder)
    changes = [
        ({"prompts": {"query": "find: ", "passage": ""}}, "prompts.query ('search: ' there, 'find: ' asked)"),
        ({"teacher": {"id": "fake", "revision": "2"}}, "teacher.revision ('1' there, '2' asked)"),
        ({"dtype": "int8"}, "dtype ('float16' there, 'int8' asked)"),
        ({"max_length": None}, "max_length (32 there, None asked)"),
        ({"pooling": "cls"}, "pooling ('mean' there, 'cls' asked)"),
        ({"dim": 12}, "dim (24 there, 12 asked)"),
    ]
    for change, message in changes:
        with pytest.raises(UserError) as e:
            embed_teacher(folder, texts, spec(**change), encode, progress=False)
        assert message in str(e.value)
        assert "delete the folder and embed again" in str(e.value)
    other = small_store(tmp_path, rows=30)
    with pytest.raises(UserError, match=f"{texts.fingerprint}.*{other.fingerprint}"):
        embed_teacher(folder, other, spec(), encode, progress=False)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:, :5], r"vectors of shape \[10, 5\] for 10 texts; expected \[10, 24\]"),
        (lambda v: v[1:], r"vectors of shape \[9, 24\] for 10 texts"),
        (lambda v: np.where(np.arange(10)[:, None] == 3, np.nan, v), "train text 3 is zero or not finite .1 such"),
        (lambda v: np.where(np.arange(10)[:, None] > 7, 0, v), r"train text 8 is zero .*\(2 such in this shard\)"),
    ],
)
def test_vectors_that_cannot_be_stored(texts, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        embed_teacher(tmp_path / "v", texts, spec(), lambda t, k: change(encode(t, k)), progress=False)
    assert not list((tmp_path / "v").glob("vectors-*"))


def test_a_folder_of_something_else_is_left_alone(texts, tmp_path):
    (tmp_path / "done-today.jsonl").write_text('{"my": "list"}')
    (tmp_path / ".hidden").touch()
    before = contents(tmp_path)
    with pytest.raises(UserError, match="not empty and not a vector store"):
        embed_teacher(tmp_path, texts, spec(), encode, progress=False)
    assert contents(tmp_path) == before


def test_an_unreadable_or_later_spec(texts, tmp_path):
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(UserError, match=r"spec.json: cannot be read"):
        embed_teacher(tmp_path, texts, spec(), encode, progress=False)
    (tmp_path / "spec.json").write_text('{"format": 2, "texts": "", "spec": {}}')
    with pytest.raises(UserError, match="format version 2, this program writes 1"):
        embed_teacher(tmp_path, texts, spec(), encode, progress=False)


def test_a_process_that_is_none_of_them(texts, tmp_path):
    with pytest.raises(ValueError, match="process_index 3 is not below process_count 3"):
        embed_teacher(tmp_path, texts, spec(), encode, process_index=3, process_count=3)


def test_progress_counts_texts_and_tokens(texts, tmp_path, capsys):
    counting = Failing(0)
    assert embed_teacher(tmp_path / "bge", texts, spec(), counting)
    shown = capsys.readouterr().err
    assert "bge" in shown
    assert "100 of 100" in shown
