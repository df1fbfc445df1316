"""A data set cannot name code: only TFDS's own types are read, and only its own builders are made. Nor is a module run
that lies in the current folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jasper_jax.assets.package_index import pip_settings
from jasper_jax.data.libraries import refuse_other_types, tfds_rows
from jasper_jax.encoders import tokenizer_file
from jasper_jax.export.check import run_in_torch
from jasper_jax.runtime.children import keep_to_installed_modules
from jasper_jax.runtime.errors import UserError
from jasper_jax.training.loggers import make_sinks

EVIL = "evil_module_of_a_test.X"
TEXT = "tensorflow_datasets.core.features.text_feature.Text"
DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


def legacy(name: str) -> dict[str, Any]:
    return {"type": DICT, "content": {"text": {"type": name, "content": {}}}}


def nested(name: str) -> dict[str, Any]:
    """As a string of JSON within the JSON."""
    return {"pythonClassName": DICT, "jsonFeature": {"json": json.dumps({"text": {"type": name, "content": {}}})}}


def proto(name: str, key: str = "pythonClassName") -> dict[str, Any]:
    return {"pythonClassName": DICT, "featuresDict": {"features": {"text": {key: name, "text": {}}}}}


FORMS = {
    "top": lambda name: {"type": name, "content": {}},
    "legacy": legacy,
    "nested": nested,
    "proto": proto,
    "snake case": lambda name: proto(name, "python_class_name"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a mark when it is imported, and a data set's folder."""
    (tmp_path / "evil_module_of_a_test.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "data").mkdir()
    info = {"name": "data", "version": "1.0.0", "fileFormat": "array_record", "splits": []}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    return tmp_path / "data"


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", [EVIL, "os.path", f"{TEXT};x.Y", f"evil.{TEXT}", "tensorflow_datasets.scripts.cli.X"])
def test_a_type_that_is_not_of_tfds_is_never_imported(folder: Path, form: Any, name: str) -> None:
    (folder / "features.json").write_text(json.dumps(form(name)))
    with pytest.raises(
        UserError, match=r"texts\.sources: .*features\.json: the type .* is not TFDS's own, and reading"
    ):
        list(tfds_rows(str(folder), None, [], ["text"], "texts.sources"))
    assert not (folder.parent / "imported").exists()
    assert "evil_module_of_a_test" not in sys.modules


def test_the_attack_works_on_tfds_itself(folder: Path) -> None:
    """So that the test above fails when TFDS reads another key than those that are looked at."""
    import tensorflow_datasets as tfds

    for form in FORMS.values():
        (folder.parent / "imported").unlink(missing_ok=True)
        sys.modules.pop("evil_module_of_a_test", None)
        (folder / "features.json").write_text(json.dumps(form(EVIL)))
        with pytest.raises(Exception):  # noqa: B017, PT011
            tfds.features.FeatureConnector.from_config(str(folder))
        assert (folder.parent / "imported").exists()
    sys.modules.pop("evil_module_of_a_test", None)


def test_all_types_of_tfds_are_allowed(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    f = tfds.features
    inner = {"text": f.Text(), "image": f.Image(), "label": f.ClassLabel(num_classes=3), "box": f.BBoxFeature(),
             "list": f.Sequence({"x": f.Tensor(shape=(2,), dtype=np.float32)}), "n": f.Scalar(dtype=np.int64),
             "type": f.Text(), "pair": f.Translation(languages=["a", "b"]),
             "data": f.Dataset({"y": f.Text()})}  # fmt: skip
    f.FeaturesDict(inner).save_config(str(tmp_path))
    refuse_other_types(tmp_path, "texts.sources")
    (tmp_path / "features.json").write_text(json.dumps(legacy(TEXT)))
    refuse_other_types(tmp_path, "texts.sources")


@pytest.mark.parametrize("name", ["kaggle:anything", "huggingface:anything", "somebody:data/config:1.0.0"])
def test_builders_of_others_are_not_fetched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds, "builder", lambda *_, **__: pytest.fail("code would be fetched and run"))
    with pytest.raises(UserError, match=r"texts\.sources: TFDS data set .* its code would be fetched and run"):
        list(tfds_rows(name, None, [], ["text"], "texts.sources"))


@pytest.mark.parametrize(("name", "config"), [("data/data_dir={}", None), ("data", "a:1.0.0/data_dir={}")])
def test_a_builders_name_leads_to_no_folder(folder: Path, name: str, config: str | None) -> None:
    """Whose ``features.json`` would be read unchecked, and where the data set would be prepared."""
    (folder / "1.0.0").mkdir()
    for file, content in (("features.json", legacy(EVIL)), ("dataset_info.json", {"name": "data", "version": "1.0.0"})):
        (folder / "1.0.0" / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"texts\.sources: TFDS data set data.* sets data_dir of its builder"):
        list(
            tfds_rows(
                name.format(folder.parent), config and config.format(folder.parent), [], ["text"], "texts.sources"
            )
        )
    assert not (folder.parent / "imported").exists()


def test_damaged_features_are_a_line(folder: Path) -> None:
    for content in ("{", "[" * 100_000):
        (folder / "features.json").write_text(content)
        with pytest.raises(UserError, match=r"features\.json: cannot be read"):
            refuse_other_types(folder, "texts.sources")


CHILDREN = {
    "export": lambda place: run_in_torch("jasper_jax.runtime.shown", place / "job.json", place),
    "tokenizer": lambda place: tokenizer_file._tried(b"{}"),
    "pip": lambda place: pip_settings(),
    "of a library": lambda place: subprocess.run([sys.executable, "-c", "import json"], check=True),
}


@pytest.mark.parametrize("child", CHILDREN)
def test_no_module_of_the_current_folder_is_run(child: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jasper_jax", "pip", "json", "tokenizers"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    if child == "of a library":
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, "/usr/bin/jasper", "check"])
        keep_to_installed_modules()
        assert os.environ["PYTHONSAFEPATH"] == "1"
    CHILDREN[child](tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_and_biases_runs_no_program_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``WANDB_SAVE_CODE`` it asks git what has changed, and git runs what the repository's settings name."""
    pytest.importorskip("wandb")
    for arguments in (["init", "-q"], ["config", "core.fsmonitor", "touch broken;"], ["add", "a.txt"]):
        (tmp_path / "a.txt").write_text("a")
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, "commit", "-qm", "a"], cwd=tmp_path, check=True)
    (tmp_path / "broken").unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SAVE_CODE", "true")
    (tmp_path / "run").mkdir()
    (sink,) = make_sinks(["wandb"], tmp_path / "run", "tiny")
    sink.close()
    assert not (tmp_path / "broken").exists()
    subprocess.run(["git", "diff", "HEAD"], cwd=tmp_path, check=True)
    assert (tmp_path / "broken").exists(), "git runs it"
