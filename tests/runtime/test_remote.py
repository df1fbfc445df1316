"""Recipes from object storage, and what is said when it cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import yaml

from jasper_jax.recipe.load import load_recipe, parse_recipe
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.remote import Store
from tests.tiny import recipe_tree


@pytest.fixture
def bucket():
    """An empty bucket in memory."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def test_a_recipe_is_read_from_its_address(bucket, tmp_path: Path) -> None:
    tree = recipe_tree(tmp_path)
    bucket.pipe_file("/recipes/tiny.yaml", yaml.safe_dump(tree).encode())
    found = load_recipe("memory://recipes/tiny.yaml", ["stages.2.steps=7"])
    assert found == parse_recipe({**tree, "stages": [*tree["stages"][:2], {**tree["stages"][2], "steps": 7}]}, "local")


def test_the_command_takes_an_address(bucket, call: Callable, tmp_path: Path) -> None:
    bucket.pipe_file("/recipes/tiny.yaml", yaml.safe_dump(recipe_tree(tmp_path)).encode())
    code, out, err = call("check", "memory://recipes/tiny.yaml")
    assert code == 0, err
    assert "teacher-a" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "memory://recipes/tiny.yaml: nothing is there"),
        (b"\xff\xfe", "memory://recipes/tiny.yaml: not UTF-8 at byte 0"),
        (b"a: [", "memory://recipes/tiny.yaml:2: not valid YAML"),
    ],
)
def test_an_address_without_a_recipe(content: bytes | None, message: str, bucket, refused: Callable) -> None:
    if content is not None:
        bucket.pipe_file("/recipes/tiny.yaml", content)
    refused(message, "check", "memory://recipes/tiny.yaml")


def test_an_unknown_kind_of_storage() -> None:
    with pytest.raises(UserError, match="ftq://host/x: ftq:// is not read; allowed are gs://, s3://"):
        Store("ftq://host/x").read()


@pytest.mark.parametrize(("protocol", "remedy"), [("gs", r"pip install 'jasper-jax\[gcs\]'"), ("s3", r"\[s3\]")])
def test_a_kind_whose_package_is_missing(protocol: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install it")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(UserError, match=f"{protocol}:// needs a package that is not installed: .*{remedy}"):
        Store(f"{protocol}://bucket/x").read()


def test_what_a_client_raises_is_one_line_and_a_defect_is_not(monkeypatch: pytest.MonkeyPatch, bucket) -> None:
    class Denied(Exception):
        """As client libraries raise them: of no class that others share."""

    Denied.__module__ = "gcsfs.retry"
    store = Store("memory://bucket")

    def failing(error: Exception) -> Callable:
        def call(*_: object) -> None:
            raise error

        return call

    monkeypatch.setattr(bucket, "pipe_file", failing(Denied("403 no access\nto it")))
    with pytest.raises(UserError, match="memory://bucket/a: cannot be reached or written: 403 no access; fix"):
        store.write("a", b"")
    monkeypatch.setattr(bucket, "pipe_file", failing(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match="Permission denied"):
        store.write("a", b"")
    monkeypatch.setattr(bucket, "pipe_file", failing(TypeError("a defect")))
    with pytest.raises(TypeError, match="a defect"):
        store.write("a", b"")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"run_dir": "gs://bucket/run"},
            "run_dir: 'gs://bucket/run' is in object storage.*and set the address as mirror",
        ),
        ({"stores": "s3://bucket/run"}, "stores: 's3://bucket/run' is in object storage.*copied first"),
        (
            {"mirror": "runs/mine"},
            "mirror: 'runs/mine' is not an address in object storage; expected e.g. gs://bucket/folder",
        ),
    ],
)
def test_what_may_be_an_address(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        parse_recipe(recipe_tree(tmp_path, **changes), "tiny")
