"""Transfers: continued, restarted, checked; the hub's errors as one line each."""

from __future__ import annotations

import hashlib
import random

import pytest
import requests

from jasper_jax.assets import download as module
from jasper_jax.assets.download import Unavailable, download, hub_snapshot, persist
from jasper_jax.runtime.errors import UserError
from tests.assets.index_server import IndexServer

DATA = random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "BACK_OFF", (0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with IndexServer() as server:
        server.add("p", "data.bin", DATA)
        yield server


def get(server, target, sha256=SHA256):
    with requests.Session() as session:
        url = f"{server.host}/files/p/data.bin"
        download(session, url, target, size=len(DATA), sha256=sha256, progress=False)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_broken_transfer_is_continued_where_it_stopped(server, tmp_path):
    server.breaks["data.bin"] = [1_000_000, 1_200_000]
    get(server, tmp_path / "data.bin")
    first, second, third = server.asked("data.bin")
    assert first is None
    assert 700_000 < int(second[6:-1]) <= 1_000_000  # at most the last chunk is asked for again
    assert 1_700_000 < int(third[6:-1]) <= 2_200_000
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert left(tmp_path) == ["data.bin"]


def test_a_server_without_ranges_is_asked_for_everything_again(server, tmp_path):
    server.ranges = False
    server.breaks["data.bin"] = [1_500_000]
    get(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert len(server.asked("data.bin")) == 2


def test_breaks_do_not_exhaust_the_tries_while_the_file_grows(server, tmp_path):
    server.breaks["data.bin"] = [400_000] * 6
    get(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA
    server.breaks["data.bin"] = [0] * 6  # no byte gets through
    with pytest.raises(Unavailable, match=r"\(3 tries\)"):
        get(server, tmp_path / "again.bin")


@pytest.mark.parametrize(
    ("partial", "requests_made"),
    [
        (DATA[:10], 1),  # a process was killed
        (DATA, 1),  # it was killed between the last byte and the new name
        (DATA + b"more", 2),  # longer than the file
        (b"x" * 10, 2),  # bytes of another file: the sum is wrong, so once more from zero
    ],
)
def test_a_partial_file_of_an_earlier_process(server, tmp_path, partial, requests_made):
    (tmp_path / "data.bin.part").write_bytes(partial)
    get(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert left(tmp_path) == ["data.bin"]
    assert len(server.asked("data.bin")) == requests_made
    assert server.asked("data.bin")[0] == f"bytes={len(partial)}-"


def test_a_wrong_sha256_is_refused_and_nothing_left(server, tmp_path):
    with pytest.raises(UserError, match=f"data.bin.*{SHA256}, not {'0' * 64}.*PIP_INDEX_URL"):
        get(server, tmp_path / "data.bin", sha256="0" * 64)
    assert left(tmp_path) == []
    assert len(server.asked("data.bin")) == 1


def test_passing_and_lasting_answers(server, tmp_path):
    server.statuses["data.bin"] = [503, 429]
    get(server, tmp_path / "data.bin")
    server.statuses["data.bin"] = [503, 500, 503, 503]
    with pytest.raises(Unavailable, match=r"^503 Server Error: Service Unavailable \(3 tries\)$"):
        get(server, tmp_path / "again.bin")
    server.statuses["data.bin"] = [403]
    before = len(server.requests)
    with pytest.raises(Unavailable, match=r"^403 Client Error: Forbidden$"):
        get(server, tmp_path / "again.bin")
    assert len(server.requests) == before + 1


def test_a_server_that_is_not_there(server, tmp_path):
    url = "http://127.0.0.1:9/data.bin"
    with requests.Session() as session, pytest.raises(Unavailable, match="refused") as caught:
        download(session, url, tmp_path / "data.bin", size=1, sha256=SHA256, progress=False)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_persist_returns_the_result_after_waiting(monkeypatch):
    waits, answers = [], [requests.Timeout("slow"), requests.ConnectionError("gone"), "done"]
    monkeypatch.setattr(module.time, "sleep", waits.append)

    def action():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert persist(action) == "done"
    assert waits == list(module.BACK_OFF[:2])
    answers[:] = [requests.exceptions.SSLError("certificate verify failed")]  # waiting does not mend it
    with pytest.raises(Unavailable, match="certificate"):
        persist(action)


def test_the_bar_shows_name_and_rate(server, tmp_path, capsys):
    with requests.Session() as session:
        url = f"{server.host}/files/p/data.bin"
        download(session, url, tmp_path / "data.bin", size=len(DATA), sha256=SHA256, progress=True)
    shown = capsys.readouterr()
    assert "data.bin" in shown.err
    assert "3.0/3.0 MB" in shown.err
    assert shown.out == ""


# -------------------------------------------------------------------------------------------------- hub


def test_the_hub_is_asked_for_safe_files_of_the_revision(monkeypatch, tmp_path):
    import huggingface_hub

    calls = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo, **given: calls.append((repo, given)) or str(tmp_path),
    )
    assert hub_snapshot("org/name", "abc", progress=False) == tmp_path
    ((repo, given),) = calls
    assert (repo, given["revision"]) == ("org/name", "abc")
    wanted = ["config.json", "1_Pooling/config.json", "model.safetensors", "2_Dense/model.safetensors"]
    wanted += ["vocab.txt", "spiece.model"]
    others = ["pytorch_model.bin", "modeling.py", "onnx/model.onnx", "openvino/config.json", "x.pt", "a.md"]
    patterns = {key: given[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(huggingface_hub.utils.filter_repo_objects(wanted + others, **patterns)) == wanted


def test_hub_errors_are_one_line(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub import errors

    def failing(error):
        def snapshot(repo, **given):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        with pytest.raises(Unavailable) as caught:
            hub_snapshot("org/name", "v1", progress=False)
        return str(caught.value)

    def of(kind):  # the hub's own errors want a whole HTTP response
        return kind.__new__(kind)

    assert failing(of(errors.GatedRepoError)).endswith("then `hf auth login`")
    assert "no such model" in failing(of(errors.RepositoryNotFoundError))
    assert failing(of(errors.RevisionNotFoundError)) == "hub org/name@v1: there is no such revision"
    missing = errors.LocalEntryNotFoundError("Got: ConnectError\nPlease check your connection.")
    assert failing(missing) == "hub org/name@v1: Got: ConnectError"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert failing(missing) == "hub org/name@v1: HF_HUB_OFFLINE is set, and the hub's cache does not have it"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert "bad id" in failing(errors.HFValidationError("bad id"))
