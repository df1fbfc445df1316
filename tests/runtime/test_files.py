"""Files that are complete or absent, manifests, and the lock of a folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jasper_jax.runtime import files
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.json_text import parse_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_atomic_write_makes_its_folder_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    files.write_atomic(path, "grün")
    files.write_atomic(path, b"bytes")
    assert path.read_bytes() == b"bytes"
    assert names(path.parent) == ["a.json"]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_failed_write_keeps_the_old_content_and_names_the_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    files.write_atomic(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "a temporary")

    monkeypatch.setattr(call, full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        files.write_atomic(path, "new")
    assert raised.value.filename == str(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_mount_that_cannot_flush_folders_can_be_written(tmp_path, monkeypatch, code):
    fsync = os.fsync

    def files_only(fd):
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(code, os.strerror(code))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", files_only)
    with pytest.raises(OSError, match="Input/output") if code == errno.EIO else contextlib.nullcontext():
        files.write_atomic(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "new"


def test_arrays_and_their_checksums(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    files.write_array(tmp_path / "plain.npy", array)
    files.write_cached_array(tmp_path / "cached.npy", array)
    for read in (np.load, files.mapped_array, files.read_cached_array):
        np.testing.assert_array_equal(read(tmp_path / "cached.npy"), array)
    np.testing.assert_array_equal(np.load(tmp_path / "plain.npy"), array)
    assert files.read_cached_array(tmp_path / "none.npy") is None
    assert files.read_cached_array(tmp_path / "plain.npy") is None
    data = bytearray((tmp_path / "cached.npy").read_bytes())
    data[-40] ^= 1
    (tmp_path / "cached.npy").write_bytes(data)
    assert files.read_cached_array(tmp_path / "cached.npy") is None


def test_a_checksum_covers_everything_but_itself():
    value = files.sealed({"format": 1, "rows": 3, "checksum": "of before"})
    assert files.is_whole(value)
    assert files.is_whole({"format": 1, "rows": 4})
    assert not files.is_whole({**value, "rows": 4})
    assert files.sealed(value) == value


def test_equal_values_give_equal_bytes():
    assert files.json_bytes({"b": 1, "a": "é"}) == files.json_bytes({"a": "é", "b": 1})
    assert json.loads(files.json_bytes({"a": "é"})) == {"a": "é"}


def test_json_that_is_nested_too_deeply_is_a_value_error():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)
    deepest = '{"a": [' * 50 + '"["' + "]}" * 50
    for text in (deepest, deepest.encode(), "[" + "[], " * 1000 + "{}]"):
        assert parse_json(text) == json.loads(text)
    for text in (f"[{deepest}]", f"[1, {deepest}]".encode()):
        with pytest.raises(ValueError, match="nested too deeply, in more than 100 levels"):
            parse_json(text)


@pytest.mark.parametrize("digits", [301, 5000])
def test_whole_numbers_of_json_fit_a_float(digits):
    assert float(parse_json("1" * 300)) == float("1" * 300)
    with pytest.raises(ValueError, match=rf"a whole number of {digits:,} digits; at most 300"):
        parse_json("[-" + "1" * (digits - 1) + "]")


def test_a_path_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file, not a folder; take another"):
        files.refuse_blocked(tmp_path / "file" / "below" / "x", "take another")
    with pytest.raises(UserError, match="File name too long; take another"):
        files.refuse_blocked(tmp_path / ("x" * 300), "take another")
    files.refuse_blocked(tmp_path / "not" / "there" / "yet", "take another")


def test_shards_of_a_manifest_are_compared_by_size(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    files.check_files(tmp_path, [{"file": "a", "bytes": 3}], "build again")
    with pytest.raises(UserError, match="a: shard has 3 bytes instead of 4; build again"):
        files.check_files(tmp_path, [{"file": "a", "bytes": 4}], "build again")
    with pytest.raises(UserError, match="b: shard is missing; build again"):
        files.check_files(tmp_path, [{"file": "b", "bytes": 4}], "build again")


def test_a_damaged_manifest(tmp_path):
    manifest = files.sealed({"format": 1, "rows": 3})
    (tmp_path / "manifest.json").write_bytes(files.json_bytes(manifest))
    assert files.read_manifest(tmp_path, "thing", 1) == manifest
    (tmp_path / "manifest.json").write_bytes(files.json_bytes({**manifest, "rows": 4}))
    with pytest.raises(UserError, match="damaged"):
        files.read_manifest(tmp_path, "thing", 1)


HOLD = """
import sys
from pathlib import Path
from jasper_jax.runtime.files import exclusive
with exclusive(Path(sys.argv[1]), "train"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"another process is using this run folder \(jasper train, process \d+ of"):
            with files.exclusive(tmp_path, "embed"):
                pass
        os.kill(holder.pid, 9)
    with files.exclusive(tmp_path, "embed"):
        pass


@pytest.mark.parametrize("name", [".lock", files.AT_WORK])
def test_a_link_where_a_lock_or_its_note_is_written_leads_nowhere(tmp_path, name):
    """Others may write a shared folder of runs."""
    (tmp_path / "key").write_text("a key")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "key")
    try:
        with files.exclusive(tmp_path / "run", "run"):
            assert name == files.AT_WORK
    except UserError as error:
        assert "symbolic links" in str(error)
    assert (tmp_path / "key").read_text() == "a key"


@pytest.mark.parametrize("link", [True, False])
def test_what_holds_a_lock_is_told_from_the_folder_itself(tmp_path, link):
    (tmp_path / "key").write_text("a key")
    with files.exclusive(tmp_path / "run", "run"):
        note = tmp_path / "run" / files.AT_WORK
        note.unlink()
        note.symlink_to(tmp_path / "key") if link else os.mkfifo(note)
        with pytest.raises(UserError, match=r"using this run folder \(starting, or about to end\)"):
            with files.exclusive(tmp_path / "run", "train"):
                pass


def test_only_the_first_content_is_written_once(tmp_path):
    path = tmp_path / "scales.json"
    files.write_once(path, b"first")
    files.write_once(path, b"second")
    assert path.read_bytes() == b"first"
    files.write_atomic(path, b"third")
    assert path.read_bytes() == b"third"
    assert [p.name for p in tmp_path.iterdir()] == ["scales.json"]


def test_write_once_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr("os.link", no_links)
    files.write_once(tmp_path / "a", b"first")
    files.write_once(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 1


def test_leftovers_go_and_nothing_else(tmp_path):
    for name in (".x.123.tmp", ".x.456.tmp", ".y.123.tmp", "x"):
        (tmp_path / name).write_text("")
    files.remove_leftovers(tmp_path, ["x", "z"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [".y.123.tmp", "x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "manifest.json is missing"),
        ("{", "not the manifest of a thing"),
        ("[]", "not the manifest of a thing"),
        ('{"shards": []}', "not the manifest of a thing"),
        ('{"format": 2}', "format version 2, this program reads up to 1"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        files.read_manifest(tmp_path, "thing", 1)


def test_differences_name_keys_and_both_values():
    there = {"a": 1, "b": [{"c": 2}, {"c": 3}], "gone": 4}
    asked = {"a": 1, "b": [{"c": 2}, {"c": 5}], "new": None}
    assert files.differences(there, asked, "texts") == [
        "texts.b[1].c (3 there, 5 asked)",
        "texts.gone (4 there, None asked)",
    ]
    assert files.differences({"b": [1]}, {"b": [1, 2]}, "") == ["b ([1] there, [1, 2] asked)"]
