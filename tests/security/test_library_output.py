"""What libraries log of somebody's files has no control characters when a command shows it."""

from __future__ import annotations

import io
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jasper_jax.checkpoints.arrays import Saving, metadata
from jasper_jax.recipe.config import Teacher
from jasper_jax.runtime.ending import run_to_end
from jasper_jax.teachers.torch_teacher import TorchEncoder
from tests.tiny import write_model

CLIPBOARD = "x\x1b]52;c;cm0gLXJm\x07 https://user:password@host/a"
VISIBLE = r"x\x1b]52;c;cm0gLXJm\x07 https://***@host/a"


@pytest.fixture
def logged():
    """What a handler of a library writes, as to a terminal."""
    stream, logger = io.StringIO(), logging.getLogger("library")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)


def test_records_and_warnings(logged: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        logger = logging.getLogger("library")
        logger.warning("a tensor %s", CLIPBOARD)
        logger.warning("\x1b[1mREPORT\x1b[0m")
        try:
            raise ValueError(CLIPBOARD)
        except ValueError:
            logger.exception("failed")
        print(warnings.formatwarning(CLIPBOARD, UserWarning, "a.py", 1))  # what is printed of a warning

    before = logging.getLogRecordFactory(), warnings.formatwarning
    run_to_end(command)
    assert (logging.getLogRecordFactory(), warnings.formatwarning) == before
    lines = logged.getvalue().splitlines()
    assert lines[:3] == [f"a tensor {VISIBLE}", "REPORT", "failed"]
    assert lines[-1] == f"ValueError: {VISIBLE}"
    assert VISIBLE in capsys.readouterr().out


def test_the_metadata_of_a_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Orbax names a handler that it does not have."""
    Saving(tmp_path / "start", {"a": np.ones(2, np.float32)}, {"format": 1}).wait()
    path = tmp_path / "start" / "_CHECKPOINT_METADATA"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "item_handlers": {"state": CLIPBOARD}}))
    with caplog.at_level(logging.WARNING):
        run_to_end(lambda: print(metadata(tmp_path / "start")))
    assert VISIBLE in caplog.text
    assert "\x1b" not in caplog.text


def test_the_names_of_tensors(tmp_path: Path) -> None:
    """transformers reports those that a model does not have."""
    pytest.importorskip("sentence_transformers")
    from transformers.utils import logging as transformers_logging

    write_model(tmp_path, hidden=8)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, CLIPBOARD: np.zeros(1, np.float32)}, tmp_path / "model.safetensors", {"format": "pt"})
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    transformers_logging.add_handler(handler)
    try:
        encoder = TorchEncoder(Teacher(name="t", model=str(tmp_path), backend="torch", dim=8), tmp_path, {})
        encoder(["a map"], ["passage"])
    finally:
        transformers_logging.remove_handler(handler)
    assert VISIBLE in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
