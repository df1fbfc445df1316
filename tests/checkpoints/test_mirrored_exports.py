"""The export in a mirror: it counts by its marker, and what is somebody else's stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jasper_jax.checkpoints.mirror import Mirror
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.remote import Store
from tests.checkpoints.mirrored import (
    FIRST,
    URL,
    Cut,
    attached,
    cut_after,
)

pytestmark = pytest.mark.usefixtures("bucket")


def write_export(run: Path, files: dict[str, str], **marker: object) -> None:
    """An exported folder of ``files``."""
    shutil.rmtree(run / "export", ignore_errors=True)
    for name, text in files.items():
        (run / "export" / name).parent.mkdir(parents=True, exist_ok=True)
        (run / "export" / name).write_text(text)
    content = {"made_by": "jasper_jax", "sha256": dict.fromkeys(files, "0"), "texts": list(files.values()), **marker}
    (run / "export" / "jasper.json").write_text(json.dumps(content))


def exported(mirror: Mirror) -> dict[str, bytes | None]:
    return {name: mirror.store.read(f"export/{name}") for name in mirror.store.names("export")}


EARLIER = {"1_Pooling/config.json": "0", "vocab.txt": "0"}
LATER = {"1_Pooling/config.json": "1", "config.json": "1"}


def test_the_export_counts_by_its_marker(run: Path, tmp_path: Path) -> None:
    """Cut after any operation, half a folder has no marker, and the next push completes it."""
    mirror = attached(run)
    mirror.push()
    operations, finished = 0, False
    while not finished:
        write_export(run, EARLIER)
        mirror.push()
        assert exported(mirror).keys() == {*EARLIER, "jasper.json"}
        write_export(run, LATER)
        with pytest.MonkeyPatch.context() as patch:
            cut_after(operations, patch)
            try:
                mirror.push()
                finished = True
            except Cut:
                operations += 1
        found = exported(mirror)
        if (marker := found.pop("jasper.json", None)) is not None:
            assert found == {n: text.encode() for n, text in (EARLIER if b"vocab" in marker else LATER).items()}
        mirror.refuse_other_files()
        mirror.push()
        assert exported(mirror).keys() == {*LATER, "jasper.json"}
    assert operations > 4
    assert mirror.store.read("export-files.json") is None


def put(name: str, text: str = "mine") -> None:
    Store(URL).write(name, text.encode())


@pytest.mark.parametrize("name", ["export/thesis.tex", "export/tokenizer.json", "export/sub/README.md"])
def test_a_file_of_somebody_else_in_the_mirrors_export_stays(name: str, run: Path) -> None:
    """Also one with the name of a file of an export that the marker there does not name."""
    mirror = attached(run)
    write_export(run, EARLIER)
    mirror.push()
    put(name)
    write_export(run, LATER)
    with pytest.raises(UserError, match=f"{URL}/{name}: no export wrote this, and a new one would delete it; move"):
        mirror.push()
    with pytest.raises(UserError, match="no export wrote this"):
        Mirror(URL, run).refuse_other_files()
    assert mirror.store.read(name) == b"mine"
    assert mirror.store.read("export/vocab.txt") == b"0"


def test_a_marker_that_no_export_wrote_names_nothing(run: Path) -> None:
    for marker in (
        '{"sha256": {"config.json": "0"}}',
        "[]",
        "x",
        '{"made_by": "jasper_jax", "sha256": ["config.json"]}',
    ):
        put("export/jasper.json", marker)
        put("export/config.json")
        write_export(run, LATER)
        with pytest.raises(UserError, match="export/config.json: no export wrote this"):
            attached(run).push()


def test_what_an_export_does_not_have_is_not_sent(run: Path, tmp_path: Path) -> None:
    mirror = attached(run)
    (tmp_path / "private").write_text("a key")
    write_export(run, LATER, sha256={**LATER, "../recipe.yaml": "0", "notes.txt": "0"})
    (run / "export" / "notes.txt").write_text("mine")
    mirror.push()
    assert exported(mirror).keys() == {*LATER, "jasper.json"}
    write_export(run, EARLIER)
    (run / "export" / "vocab.txt").unlink()
    (run / "export" / "vocab.txt").symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match="vocab.txt: is a link to a file outside its folder"):
        mirror.push()
    assert not [name for name in mirror.store.names("") if mirror.store.read(name) == b"a key"]


@pytest.mark.parametrize(
    "name",
    [
        *("metrics.jsonl", "evaluations/lee.json", f"checkpoints/{FIRST}/state/array"),
        f"checkpoints/{FIRST}.sha256.json",
    ],
)
def test_a_link_out_of_the_run_folder_is_not_sent(name: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("a key\n")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "private")
    mirror = attached(run)
    with pytest.raises(UserError, match="is a link to a file outside its folder"):
        mirror.push()
    assert not [found for found in mirror.store.names("") if b"a key" in (mirror.store.read(found) or b"")]


@pytest.mark.parametrize("with_recipe", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        *("metrics.jsonl", "evaluation.json", "checkpoints/mine.txt", "evaluations/mine.json"),
        *("owner.json", "export-files.json"),
    ],
)
def test_a_folder_of_somebody_else_is_no_mirror(name: str, with_recipe: bool, run: Path) -> None:
    """Also not that in which somebody keeps the recipe itself."""
    put(name)
    if with_recipe:
        put("recipe.yaml", "name: one\n")
        name = r"(recipe.yaml|owner.json)"
    with pytest.raises(UserError, match=f"{URL}/{name}: no run wrote this .*set mirror=... to another folder"):
        Mirror(URL, run).refuse_other_files()
