"""The set of hashes on disk."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from jasper_jax.data import seen as module
from jasper_jax.data.seen import Seen


def digests(n: int) -> list[bytes]:
    return [hashlib.blake2b(str(i).encode(), digest_size=16).digest() for i in range(n)]


def test_each_hash_is_new_once_also_beyond_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_KIB", 16)
    path = tmp_path / "a folder?#%20" / "seen"
    path.parent.mkdir()
    first, second = digests(4000)[:3000], digests(4000)[2000:]
    with Seen(path) as seen:
        seen.expect(first)
        assert [seen.add(own) for own in first] == [True] * 3000
        assert [seen.add(own) for own in first] == [False] * 3000
        seen.expect(second)
        assert path.stat().st_size > 32 << 10
        assert [seen.add(own) for own in second[:1900]] == [False] * 1000 + [True] * 900
        assert [own in seen for own in (first[0], second[1899], second[1900])] == [True, True, False]
    assert list(path.parent.iterdir()) == []


def test_a_full_disk_is_the_systems_error(tmp_path: Path) -> None:
    with Seen(tmp_path / "seen") as seen:
        seen._execute("PRAGMA max_page_count=4").fetchall()
        seen.expect(digests(4000))
        with pytest.raises(OSError, match="No space left on device") as raised:
            _ = [seen.add(own) for own in digests(4000)], digests(1)[0] in seen
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "seen"))
    assert list(tmp_path.iterdir()) == []
