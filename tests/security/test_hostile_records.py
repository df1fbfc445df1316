"""What a run, an export, a checkpoint or a model says of itself may be somebody else's: names, numbers and counts."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jasper_jax.checkpoints.export_marker import MARKER, refuse_damaged
from jasper_jax.checkpoints.mirror import _files
from jasper_jax.data import pair_table
from jasper_jax.encoders import safetensors
from jasper_jax.encoders.safetensors import open_checkpoint
from jasper_jax.evaluation.plots import plot_training
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import sha256_file
from jasper_jax.runtime.remote import read_text
from jasper_jax.runtime.text_files import LONGEST
from jasper_jax.teachers.torch_teacher import refuse_harmful_files
from jasper_jax.training.events import read_events
from jasper_jax.training.metrics import Metrics

NO_NAMES = ("\0", "a\0b", "a" * 5000, "\ud800", "loop")
"""Names that no file can have, and a link to itself."""


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / safetensors.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    (tmp_path / MARKER).write_text(json.dumps({"made_by": "jasper_jax", "format": 1, "sha256": {name: "0" * 64}}))
    said = "no file can have this name, or its links lead in a circle"
    of_index = "has half of a surrogate pair" if name == "\ud800" else said
    for read, message in ((open_checkpoint, of_index), (refuse_damaged, said)):
        with pytest.raises(UserError, match=message):
            read(tmp_path)


@pytest.mark.parametrize("sums", [5, "ab", [["a", "b"]], [[1, 2]], {"a": 5}, {"a": ["b"]}])
def test_a_marker_whose_checksums_are_none(tmp_path: Path, sums: Any) -> None:
    (tmp_path / MARKER).write_text(json.dumps({"made_by": "jasper_jax", "format": 1, "sha256": sums}))
    with pytest.raises(UserError, match=r"cannot be read \(sha256 is no mapping of names to checksums\)"):
        refuse_damaged(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "/a", "a/../../b", "a//b", "a/", "\0", "a\nb", "\ud800"])
def test_a_mirror_s_checkpoint_names_files_in_it(name: str) -> None:
    assert _files(json.dumps({name: "0" * 64}).encode()) is None


def test_a_header_that_names_very_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "MOST_TENSORS", 9)
    for count in (9, 10):
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        header = json.dumps({f"t{i}": entry for i in range(count)}).encode()
        (tmp_path / safetensors.SINGLE).write_bytes(struct.pack("<Q", len(header)) + header)
        if count == 9:
            assert len(open_checkpoint(tmp_path)) == 9
    with pytest.raises(UserError, match="has 10 tensors; at most 9 are read"):
        open_checkpoint(tmp_path)


STEP = {
    "event": "step",
    "stage": "s",
    "stage_index": 0,
    "step": 1,
    "global_step": 1,
    "loss": 1.0,
    "terms": {"h/x": 1.0},
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("event", value) for value in ([], {}, None)),
        *(("stage", value) for value in ([], "\ud800")),
        *((key, value) for key in ("stage_index", "step", "global_step") for value in (None, "", -1, 0.5, 10**30, [])),
        *(("loss", value) for value in ("", [], {})),
        *(("terms", value) for value in ([], None, {"a": "b"}, {"a": []}, {"\ud800": 1.0})),
        *((key, value) for key in ("time", "seconds") for value in ("", [])),
    ],
)
def test_metrics_of_another_run_are_refused_by_line_and_key(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps({**STEP, **change}) for change in ({}, {key: value}, {})))
    for read in (
        read_events,
        lambda path: Metrics(path, [], keep_before=(1, 0)),
        lambda path: plot_training(path, path),
    ):
        with pytest.raises(UserError, match=rf"metrics\.jsonl:2: {key}.*the file is damaged"):
            read(path)


def test_very_many_loss_terms_are_not_drawn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({**STEP, "terms": {f"h/t{i}": 1.0 for i in range(60)}}))
    with pytest.raises(UserError, match="has 60 loss terms; at most 59 are drawn"):
        plot_training(path, tmp_path / "training.png")


def test_a_name_that_looks_like_a_formula_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({**STEP, "stage": "$\\x$", "terms": {"$\\h$/$\\x$": 1.0}}))
    plot_training(path, tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 1000


@pytest.mark.parametrize("kind", ["long", "pipe", "device", "folder"])
def test_a_recipe_at_an_address_is_a_file_of_bounded_size(tmp_path: Path, kind: str) -> None:
    path = {"long": tmp_path / "long", "pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "folder": tmp_path}[kind]
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "long").open("wb") as file:
        file.truncate(LONGEST + 1)
    with pytest.raises(UserError, match=f"has more than {LONGEST:,} bytes" if kind == "long" else "is not a file"):
        read_text(f"file://{path}")


@pytest.mark.parametrize("change", ["packed", "half", "renamed", "bytes"])
def test_a_table_of_pairs_that_is_none(tmp_path: Path, change: str) -> None:
    out, path = io.BytesIO(), tmp_path / pair_table.NAME
    (np.savez_compressed if change == "packed" else np.savez)(out, allow_pickle=False, x=np.zeros(10**6, np.int8))
    path.write_bytes({"half": out.getvalue()[:900], "bytes": b"PK\x03\x04"}.get(change, out.getvalue()))
    with pytest.raises(UserError, match="not a table of pairs .*; make it again"):
        pair_table.read_tables(tmp_path, sha256_file(path), "make it again")


def test_a_teacher_of_pytorch_loads_no_model_that_an_adapter_names(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/home/me/private"}))
    with pytest.raises(UserError, match="is an adapter without the model it was trained on"):
        refuse_harmful_files("teachers.t", tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="settings of the model that an adapter names.*; merge the adapter where peft"):
        refuse_harmful_files("teachers.t", tmp_path)
