"""Files of a run that are written where they are, not replaced: other names of theirs, and places that lead elsewhere.

An archive can hold a run folder with links of both kinds: to ``../../.ssh/id``, and by another name of the same file.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from jasper_jax.checkpoints.export_marker import MARKER, read_marker, write_marker
from jasper_jax.checkpoints.run_folder import RunFolder
from jasper_jax.data.row_store import build_or_open
from jasper_jax.data.texts import TextStore
from jasper_jax.recipe.load import parse_recipe
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import exclusive
from jasper_jax.runtime.in_place import own_database
from jasper_jax.runtime.remote import Store
from jasper_jax.training.loggers import LOGGERS
from tests.tiny import recipe_tree

_MAGIC = bytes.fromhex("d9d505f920a163d7")


def write_database(path: Path, mode: str = "delete") -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"pragma journal_mode={mode}")
    connection.execute("create table t(x)")
    connection.commit()
    connection.close()


def journal(database: Path, super_journal: Path | None) -> bytes:
    """What a killed transaction leaves: SQLite takes it back when it next opens the database."""
    head = _MAGIC + struct.pack(">5I", 0, 1, database.stat().st_size // 4096, 512, 4096)
    if super_journal is None:
        return head.ljust(512, b"\0")
    name = str(super_journal).encode()
    end = struct.pack(">I", (1 << 30) // 4096 + 1) + name + struct.pack(">2I", len(name), sum(name)) + _MAGIC
    return head.ljust(512, b"\0") + end


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """Somebody's file, with the mode of a key."""
    path = tmp_path / "private"
    path.write_text("precious\n")
    path.chmod(0o600)
    return path


def test_sqlite_deletes_what_a_journal_names(tmp_path: Path, private: Path) -> None:
    """So that the next test is of a true danger."""
    write_database(tmp_path / "mlflow.db")
    (tmp_path / "mlflow.db-journal").write_bytes(journal(tmp_path / "mlflow.db", private))
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    connection.execute("select * from t")
    connection.close()
    assert not private.exists()


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_in_a_run_folder_names_no_file_to_be_deleted(tmp_path: Path, private: Path, mode: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_database(run / "mlflow.db", mode)
    (run / "mlflow.db-journal").write_bytes(journal(run / "mlflow.db", private))
    with pytest.raises(UserError, match=r"mlflow\.db-journal: names another file, which SQLite would delete, and "):
        own_database(run / "mlflow.db")
    (run / "mlflow.db-journal").write_bytes(journal(run / "mlflow.db", None))
    assert own_database(run / "mlflow.db") == run / "mlflow.db", "a kill leaves such a journal"
    assert private.read_text() == "precious\n"


@pytest.mark.parametrize("name", ["mlflow.db", "mlflow.db-journal", "mlflow.db-wal", "mlflow.db-shm"])
def test_no_file_of_a_database_is_one_of_others(tmp_path: Path, private: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    database = own_database(tmp_path / "run" / "mlflow.db")
    os.link(private, tmp_path / "run" / name)
    with pytest.raises(UserError, match=rf"{name}: has a second name elsewhere .a hard link.*; "):
        own_database(database)
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).symlink_to(private)
    with pytest.raises(UserError, match=rf"{name}: is a link to a file outside its folder"):
        own_database(database)


@pytest.mark.parametrize("folder", ["cookies.sqlite?", "%2E.%2Fother"])
def test_the_address_of_a_database_means_no_other(tmp_path: Path, folder: str) -> None:
    """MLflow would have written its tables into ``cookies.sqlite``, and ``../other/mlflow.db``."""
    with pytest.raises(UserError, match=r"mlflow\.db: in the address of a database [?%] has a meaning.*; set run_dir="):
        own_database(tmp_path / folder / "mlflow.db")


def test_mlflow_opens_no_other(tmp_path: Path, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is asked for anything."""
    package, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    package.MlflowClient = entities.Metric = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_database(tmp_path / "mlflow.db")
    (tmp_path / "mlflow.db-journal").write_bytes(journal(tmp_path / "mlflow.db", private))
    with pytest.raises(UserError, match="names another file"):
        LOGGERS["mlflow"](tmp_path, "tiny", 0)


# ------------------------------------------------------------------------------------------------ locks


def lock_of_a_run(folder: Path) -> None:
    with exclusive(folder, "train"):
        pass


def lock_of_a_store(folder: Path) -> None:
    build_or_open(TextStore, folder / "texts", lambda place: None, lambda store: None, progress=False)


@pytest.mark.parametrize(("name", "use"), [(".lock", lock_of_a_run), (".texts.lock", lock_of_a_store)])
def test_a_lock_is_no_file_of_others(tmp_path: Path, private: Path, name: str, use: Callable[[Path], None]) -> None:
    """Some versions of filelock empty it, and let everybody read it."""
    (tmp_path / "run").mkdir()
    os.link(private, tmp_path / "run" / name)
    with pytest.raises(UserError, match=rf"{name}: has a second name elsewhere .a hard link"):
        use(tmp_path / "run")
    assert (private.read_text(), private.stat().st_mode & 0o777) == ("precious\n", 0o600)


def test_a_copy_of_hard_links_can_be_locked(tmp_path: Path) -> None:
    """``cp -al runs backup`` makes one, and its lock is empty."""
    for folder in ("run", "backup"):
        (tmp_path / folder).mkdir()
    lock_of_a_run(tmp_path / "run")
    (tmp_path / "run" / ".lock").touch()
    os.link(tmp_path / "run" / ".lock", tmp_path / "backup" / ".lock")
    lock_of_a_run(tmp_path / "backup")


# ------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize(
    "name",
    ["profile/stage-1", "profile/stage-1/plugins", "captions/0123456789abcdef", "exports/8", "export", "wandb/a/files",
     "tensorboard/x", "evaluation/teacher", "vectors/b/x"],
)  # fmt: skip
def test_no_folder_that_a_run_writes_in_leads_out_of_it(tmp_path: Path, name: str) -> None:
    run = RunFolder(parse_recipe(recipe_tree(tmp_path, run_dir=str(tmp_path / "run")), "tiny"))
    run.claim()
    (tmp_path / "elsewhere").mkdir()
    (run.path / name).parent.mkdir(parents=True, exist_ok=True)
    (run.path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"{name}: is a link out of "):
        run.claim()
    (run.path / name).unlink()
    (run.path / "latest").mkdir()
    (run.path / name).symlink_to(run.path / "latest")  # as wandb/latest-run is one
    run.claim()


# ------------------------------------------------------------------------------------------------ markers


def test_a_marker_is_replaced(tmp_path: Path) -> None:
    """``jasper export --onnx`` writes it again: in a copy by hard links, that of the other export too."""
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
    write_marker(tmp_path / "mine", {"format": 1, "sha256": {"a": "0"}})
    before = (tmp_path / "mine" / MARKER).read_bytes()
    os.link(tmp_path / "mine" / MARKER, tmp_path / "theirs" / MARKER)
    write_marker(tmp_path / "theirs", {"format": 1, "sha256": {}})
    assert (tmp_path / "mine" / MARKER).read_bytes() == before
    assert read_marker(tmp_path / "theirs")["sha256"] == {}


# ------------------------------------------------------------------------------------------------ mirrors


def test_a_mirror_on_a_disk_writes_no_second_name(tmp_path: Path, private: Path) -> None:
    mirror, run = tmp_path / "mirror", tmp_path / "run"
    for folder in (mirror / "export", run):
        folder.mkdir(parents=True)
    for name in ("metrics.jsonl", "export/model.safetensors"):
        os.link(private, mirror / name)
    (run / "model.safetensors").write_bytes(b"weights")
    store = Store(f"file://{mirror}")
    store.write("metrics.jsonl", b"{}")
    store.send(run, ["model.safetensors"], "export")
    assert (mirror / "metrics.jsonl").read_bytes() == b"{}"
    assert (mirror / "export" / "model.safetensors").read_bytes() == b"weights"
    assert private.read_text() == "precious\n"
