"""A run folder of somebody else: what a report or a resumed run reads of it is a small regular file that is in it."""

from __future__ import annotations

import ast
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import jasper_jax
from jasper_jax.evaluation import by_text
from jasper_jax.runtime import bounded
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.text_files import LONGEST
from jasper_jax.training.events import read_events
from jasper_jax.training.loggers import LOGGERS, run_id
from tests.reporting.run_folders import write_run


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def holes(path: Path) -> None:
    """A file of 1 TB that takes no room, as archives can hold."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


def link(path: Path) -> None:
    private = path.parent.parent / "private"
    private.write_text('{"password": "x"}\n')
    path.symlink_to(private)


@pytest.mark.parametrize("attack", [pipe, device, holes, link])
@pytest.mark.parametrize(
    "name", ["recipe.yaml", "evaluation.json", by_text.FILE, "metrics.jsonl", "timings.json", "texts/manifest.json"]
)
def test_a_report_reads_small_regular_files(call, tmp_path: Path, name: str, attack: Callable[[Path], None]) -> None:
    pytest.importorskip("plotly")
    run = write_run(tmp_path / "run")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    attack(run / name)
    code, out, err = call("report", run)
    assert (code, len(err.splitlines())) == ((2, 1) if code else (0, 0)), err
    assert code == 2 or "password" not in Path(out.strip()).read_text("utf-8")


def test_metrics_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"event": "start"}\n' + bytes(LONGEST + 1))
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: longer than 16,777,216 bytes"):
        read_events(path)
    path.write_bytes(b'{"event": "start"}\n\n{"event": "step", "sta')
    assert read_events(path) == [{"event": "start"}], "a kill cuts the last line"


NOT_WHOLE = {
    "assets": "files that are compared with the catalogue, or come with the package",
    "data/pair_table.py": "as large as the manifest says, and any table of pairs can be large",
    "checkpoints/mirror.py": "its own files, in the run folder and complete",
    "evaluation/figures.py": "its own",
    "commands/evaluate.py": "its own plot",
    "data/shards.py": "a temporary folder's",
    "encoders/published.py": "the package's",
    "encoders/tokenizer_file.py": "the user's cache",
    "export/check.py": "a temporary folder's",
    "export/onnx_in_torch.py": "a temporary folder's",
    "export/onnx_vision_in_torch.py": "a temporary folder's",
    "export/own_code.py": "the package's",
    "export/reload_in_torch.py": "an export that was just written",
    "publishing/repository.py": "a file of an export that was checked, smaller than 10 MB; or what was just downloaded",
    "reporting/page.py": "the package's",
    "runtime/files.py": "arrays, whose size nobody can know",
    "export/model_card.py": "an example in the card",
}
"""Files that may read others whole, and why."""


def read_whole(tree: ast.AST) -> Iterator[int]:
    """Lines that call ``read_bytes`` or ``read_text`` of a path."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    for called in (call.func for call in calls):
        if isinstance(called, ast.Attribute) and called.attr in ("read_bytes", "read_text"):
            yield called.lineno


def test_no_file_is_read_whole_without_a_bound() -> None:
    package = Path(jasper_jax.__file__).parent
    found = {
        f"{name}:{line}"
        for path in package.rglob("*.py")
        for name in [path.relative_to(package).as_posix()]
        if name not in NOT_WHOLE and name.partition("/")[0] not in NOT_WHOLE
        for line in read_whole(ast.parse(path.read_text("utf-8")))
    }
    assert not found, "read_regular of runtime/bounded.py"


def test_a_record_of_the_largest_size_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "RECORD", 9)
    (tmp_path / "a").write_bytes(b"123456789")
    assert bounded.read_record_bytes(tmp_path / "a") == b"123456789"
    (tmp_path / "a").write_bytes(b"123456789+")
    with pytest.raises(OSError, match="more than 9 bytes"):
        bounded.read_record_bytes(tmp_path / "a")


# ------------------------------------------------------------------------------------------------ loggers


@pytest.mark.parametrize("attack", [pipe, device, holes])
def test_the_id_of_a_run_is_no_file_of_this_machine(tmp_path: Path, attack: Callable[[Path], None]) -> None:
    """It is sent to a server: a link to a token that has the form of an id would be, too."""
    (tmp_path / "run").mkdir()
    (tmp_path / "token").write_text("hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456")
    (tmp_path / "run" / "wandb_id").symlink_to("../token")
    attack(tmp_path / "run" / "mlflow_id")
    for name in ("wandb_id", "mlflow_id"):
        with pytest.raises(UserError, match=rf"{name}: .*(link to a file outside|not a regular|more than \d+ bytes)"):
            run_id(tmp_path / "run", name)


@pytest.mark.parametrize("text", ["", "a' OR tags.x = 'b", "a\nb", "../x", "a" * 65])
def test_the_id_of_a_run_has_the_form_of_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "mlflow_id").write_text(text)
    with pytest.raises(UserError, match="mlflow_id: .* delete it"):
        run_id(tmp_path, "mlflow_id")
    (tmp_path / "wandb_id").write_text("my-run_7\n")
    assert run_id(tmp_path, "wandb_id") == "my-run_7"
    assert run_id(tmp_path, "trackio_id") == run_id(tmp_path, "trackio_id")


def test_mlflow_writes_no_database_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "mine.db").write_bytes(b"")  # an empty file is an SQLite database
    (tmp_path / "run" / "mlflow.db").symlink_to("../mine.db")
    with pytest.raises(UserError, match=r"mlflow\.db: is a link to a file outside its folder"):
        LOGGERS["mlflow"](tmp_path / "run", "tiny", 0)
    assert (tmp_path / "mine.db").read_bytes() == b""


@pytest.mark.parametrize("name", ["mine.db?", "mine%2Edb", "x%2F..%2Fmine.db?a=b"])
def test_mlflow_s_database_is_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The run folder is part of an address, in which ``mine.db?/mlflow.db`` was the file ``mine.db``."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    modules = {"mlflow": types.ModuleType("mlflow"), "mlflow.entities": types.ModuleType("mlflow.entities")}
    modules["mlflow.entities"].Metric = None  # type: ignore[attr-defined]
    modules["mlflow"].MlflowClient = lambda **options: pytest.fail(f"{options} was opened")  # type: ignore[attr-defined]
    for package, module in modules.items():
        monkeypatch.setitem(sys.modules, package, module)
    (tmp_path / name).mkdir()
    with pytest.raises(
        UserError, match=r"in the address of a database . has a meaning, so another one would be written; set run_dir"
    ):
        LOGGERS["mlflow"](tmp_path / name, "tiny", 0)
