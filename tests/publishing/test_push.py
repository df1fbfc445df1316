"""An export and its run's texts on a hub: complete or not at all, continued after a break, others' files untouched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard, constants

from jasper_jax.checkpoints.export_marker import MARKER, checksums, write_marker
from jasper_jax.publishing import repository
from jasper_jax.run import Run
from tests.publishing.hub_server import Hub, running
from tests.tiny import recipe, recipe_tree
from tests.training.runs import fill

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running() as server:
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        api = huggingface_hub.HfApi(endpoint=server.address)
        monkeypatch.setattr(repository, "HfApi", lambda: api)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its attempts
        yield server


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return write_export(tmp_path / "run" / "export")


def write_export(folder: Path, weights: bytes = b"weights", dims: tuple[int, ...] = (8, 4)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    for dim in dims:
        (folder / f"2_Dense_{dim}").mkdir(exist_ok=True)
        (folder / f"2_Dense_{dim}" / "config.json").write_text("{}")
        (folder / f"2_Dense_{dim}" / "model.safetensors").write_bytes(bytes([dim]) * 64)
    (folder / "config.json").write_text("{}")
    (folder / "modules.json").write_text("[]")
    (folder / "README.md").write_text("# Card\n")
    write_marker(folder, {"format": 1, "made_by": "jasper_jax", "sha256": checksums(folder)})
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_export_is_there_as_it_is_here_and_nothing_else(hub: Hub, export: Path, call) -> None:
    expected = contents(export)
    (export / "notes.txt").write_text("of somebody")
    code, out, err = call("push", export, "alice/student", "--private")
    assert code == 0, err
    assert "alice/student" in out
    there = hub.files["alice/student"]
    assert there.pop(".gitattributes") == b""
    assert there == expected
    assert hub.private["alice/student"]


def test_a_break_in_the_middle_changes_nothing_and_the_same_command_sends_the_rest(
    hub: Hub, export: Path, call
) -> None:
    hub.breaks_after = 2
    code, _, err = call("push", export, "alice/student")
    assert code == 2, err
    assert "run the same command again" in err
    assert set(hub.files["alice/student"]) == {".gitattributes"}
    assert len(hub.received) == 2
    hub.breaks_after = None
    assert call("push", export, "alice/student")[0] == 0
    assert len(hub.received) == len(set(hub.received)) == 3, "no object is sent twice"
    assert hub.files["alice/student"].keys() == {".gitattributes", *contents(export)}


def test_a_killed_push_changes_nothing_and_the_same_command_sends_the_rest(
    hub: Hub, export: Path, call, tmp_path: Path
) -> None:
    hub.waits_after = 1
    command = [sys.executable, "-m", "jasper_jax.cli", "push", str(export), "alice/student"]
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    process = subprocess.Popen(command, env=os.environ | settings)
    assert hub.waiting.wait(120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert set(hub.files["alice/student"]) == {".gitattributes"}
    hub.waits_after = None
    assert call("push", export, "alice/student")[0] == 0
    assert len(hub.received) == len(set(hub.received)) == 3, "no object is sent twice"
    assert hub.files["alice/student"].keys() == {".gitattributes", *contents(export)}


def test_without_a_hub_nothing_is_sent(hub: Hub, export: Path, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(repository, "HfApi", lambda: nobody)
    refused("nothing was sent, run the same command again", "push", export, "alice/student")


def test_a_later_export_replaces_the_files_of_the_earlier_one_alone(hub: Hub, export: Path, call, tmp_path) -> None:
    assert call("push", export, "alice/student")[0] == 0
    hub.files["alice/student"]["figure.png"] = b"added on the hub"
    later = write_export(tmp_path / "later" / "export", b"other", dims=(8,))
    assert call("push", later, "alice/student")[0] == 0
    there = hub.files["alice/student"]
    assert there.keys() == {".gitattributes", "figure.png", *contents(later)}
    assert there["model.safetensors"] == b"other"


def test_a_repository_with_other_content_is_refused(hub: Hub, export: Path, refused) -> None:
    hub.files["alice/student"] = {".gitattributes": b"", "pytorch_model.bin": b"of somebody"}
    hub.private["alice/student"] = False
    refused("has 1 files that no `jasper push` sent (pytorch_model.bin, ...)", "push", export, "alice/student")
    assert hub.files["alice/student"]["pytorch_model.bin"] == b"of somebody"
    assert not hub.received


def test_nothing_private_goes_to_what_is_public_already(hub: Hub, export: Path, call, refused) -> None:
    assert call("push", export, "alice/student")[0] == 0
    (export / "README.md").write_text("# Of a customer\n")
    sent = len(hub.received)
    refused("alice/student: is public, and --private was given", "push", export, "alice/student", "--private")
    assert hub.files["alice/student"]["README.md"] == b"# Card\n"
    hub.private["alice/student"] = True
    assert call("push", export, "alice/student", "--private")[0] == 0
    assert len(hub.received) == sent


@pytest.mark.parametrize(
    ("name", "message"), [("student", "is no name of a repository"), ("a/b/c", "is no name"), ("../x", "is no name")]
)
def test_names(hub: Hub, export: Path, name: str, message: str, refused) -> None:
    refused(message, "push", export, name)


def test_what_cannot_be_sent_is_one_line(hub: Hub, export: Path, refused, monkeypatch, tmp_path: Path) -> None:
    refused("not an exported folder", "push", tmp_path / "run", "alice/student")
    (export / "config.json").write_text("changed")
    refused("config.json: missing, or not as it was exported", "push", export, "alice/student")
    write_export(export)
    (export / "README.md").unlink()
    (export / "README.md").symlink_to("/etc/hostname")
    refused("README.md", "push", export, "alice/student")
    (export / "README.md").unlink()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused("the hub refused", "push", export, "alice/student")
    monkeypatch.setattr(repository, "get_token", lambda: None)
    refused("run `hf auth login`, or set HF_TOKEN", "push", export, "alice/student")
    assert not hub.files


def test_scores_by_mteb_go_with_the_export_that_has_them(hub: Hub, call, refused, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("mteb")
    pytest.importorskip("sentence_transformers")
    from mteb._hf_integration.eval_result_model import HFEvalResults
    from mteb.get_tasks import _TASKS_REGISTRY

    from jasper_jax.benchmarks.run import run_benchmark
    from tests.benchmarks.local_tasks import LocalSTS
    from tests.tiny import write_model

    class Known(LocalSTS):
        metadata = LocalSTS.metadata.model_copy(
            update={"name": "Known", "dataset": {"path": "mteb/known", "revision": "1" * 40}}
        )

    for task in (Known, LocalSTS):
        monkeypatch.setitem(_TASKS_REGISTRY, task.metadata.name, task)
    export = write_model(tmp_path / "run" / "export")
    write_marker(export, {"format": 1, "made_by": "jasper_jax", "sha256": checksums(export)})
    results = tmp_path / "results"
    refused("no results of", "push", export, "alice/student", "--results", results)
    done = run_benchmark(export, "local/run", [Known(), LocalSTS()], results, dims=[16, 8])
    assert call("push", export, "alice/student", "--results", results)[0] == 0
    there = hub.files["alice/student"]
    found = HFEvalResults.model_validate(yaml.safe_load(there[".eval_results/jasper_jax.yaml"]))
    value = round(100 * done.scores.models[0].scores["Known"], 5)
    assert [(one.dataset.task_id, one.value) for one in found.root] == [("Known", value), ("Known_default_test", value)]
    assert {one.dataset.id for one in found.root} == {"mteb/known"}, "a task without data on the hub is left out"
    there[".eval_results/other.yaml"] = b"of somebody"
    assert call("push", write_export(tmp_path / "later" / "export"), "alice/student")[0] == 0
    assert [name for name in hub.files["alice/student"] if "eval_results" in name] == [".eval_results/other.yaml"]


def test_the_texts_and_vectors_of_a_run_are_a_data_set(hub: Hub, tmp_path: Path, call) -> None:
    import pyarrow.parquet as pq

    run = Run(recipe(tmp_path), progress=False)
    run.run_folder.claim()
    texts, view = fill(run)
    export = write_export(tmp_path / "run" / "export")
    code, out, err = call("push", export, "alice/student", "--with-vectors", "--private")
    assert code == 0, err
    assert "alice/student-texts" in out
    there = hub.files["datasets/alice/student-texts"]
    assert hub.private["datasets/alice/student-texts"]
    for store in view.stores:
        name = f"{store.name}/train-00000.parquet"
        (tmp_path / "one.parquet").write_bytes(there[name])
        table = pq.read_table(tmp_path / "one.parquet")
        rows = store.rows("train")
        assert table["text"].to_pylist() == [record.text for record in texts.read("train", rows.tolist())]
        vectors = np.array(table["embedding"].to_pylist(), np.float32)
        np.testing.assert_array_equal(vectors, store.read("train", rows))
    data = DatasetCard(there["README.md"].decode()).data
    assert [config["config_name"] for config in data.configs] == ["texts", "a", "b"]  # pyright: ignore[reportAttributeAccessIssue]
    assert str(tmp_path) not in there["README.md"].decode() + there["jasper-texts.json"].decode()
    assert set(json.loads(there["jasper-texts.json"])["files"]) == {n for n in there if n.endswith(".parquet")}
    assert recipe_tree(tmp_path)["name"] in there["README.md"].decode()
    assert MARKER in hub.files["alice/student"]
    sent = len(hub.received)
    assert call("push", export, "alice/student", "--with-vectors")[0] == 0
    assert len(hub.received) == sent, "the same command again sends no object"


def test_a_run_of_others_does_not_choose_which_texts_are_sent(hub: Hub, tmp_path: Path, call, refused) -> None:
    private = Run(recipe(tmp_path), progress=False)
    private.run_folder.claim()
    fill(private)
    theirs = tmp_path / "theirs"
    export = write_export(theirs / "export")
    push = ("push", export, "alice/student", "--with-vectors")

    (theirs / "recipe.yaml").write_text(f"{(tmp_path / 'run' / 'recipe.yaml').read_text()}\n")
    for name in ("texts", "vectors"):
        (theirs / name).symlink_to(tmp_path / "run" / name)
    refused("'texts' is not a folder inside", *push)
    (theirs / "texts").unlink()
    shutil.copytree(tmp_path / "run" / "texts", theirs / "texts")
    refused("'vectors/a' is not a folder inside", *push)
    shard = next((theirs / "texts").glob("*train*"))
    shard.unlink()
    shard.symlink_to(tmp_path / "run" / "texts" / shard.name)
    refused("is a link to a file outside its folder", *push)
    stores = json.dumps(str(tmp_path / "run"))
    text = (theirs / "recipe.yaml").read_text().replace("stores: null", f"stores: {stores}")
    (theirs / "recipe.yaml").write_text(text)
    refused(f"if they are to be sent, add --stores {tmp_path / 'run'}", *push)
    assert not hub.received
    assert call(*push, "--stores", tmp_path / "run")[0] == 0
    assert "datasets/alice/student-texts" in hub.files
