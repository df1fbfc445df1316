"""A data set of a stranger is made of its own files: its README, manifest and links name no file of this machine."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jasper_jax.assets.corpora import read_beir
from jasper_jax.data.hf_files import refuse_other_files
from jasper_jax.data.libraries import hf_rows, refuse_other_types, skip_images, tfds_rows
from jasper_jax.data.pairs import build_pair_store
from jasper_jax.data.source_files import label, matching
from jasper_jax.recipe.config_sources import ImageSource
from jasper_jax.runtime.errors import UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of one text; beside it a private file."""
    (tmp_path / "private.txt").write_text("a secret\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a text\n")
    return tmp_path / "data"


def texts(folder: Path) -> list[str]:
    return [row.values["text"] for row in hf_rows(str(folder), None, [], "texts.sources")]


def readme(folder: Path, line: str) -> None:
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {line}\n---\n")


def packed(folder: Path) -> Path:
    """A private document: a zip file, as those of offices are."""
    with zipfile.ZipFile(folder / "private.docx", "w") as archive:
        archive.writestr("document.txt", "a secret")
    return folder / "private.docx"


NAMED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absolute": (
        lambda folder: readme(folder, f"data_files: {folder.parent}/private.txt"),
        "private.txt, which is not",
    ),
    "relative": (
        lambda folder: readme(folder, "data_files: ../private.txt"),
        "private.txt, which is not a file of its",
    ),
    "folder": (lambda folder: readme(folder, f"data_dir: {folder.parent}"), "which is not a file of its own"),
    "in an archive": (
        lambda folder: readme(folder, f"data_files: zip://*::{packed(folder.parent)}"),
        "private.docx, which is not a file of its own",
    ),
    "address": (
        lambda folder: readme(folder, f"data_files: local://{folder.parent}/private.txt"),
        "private.txt, which is not a file of its own",
    ),
    "link": (
        lambda folder: (folder / "b.txt").symlink_to(folder.parent / "private.txt"),
        "is a link to a file outside",
    ),
}


@pytest.mark.parametrize(("plant", "message"), NAMED.values(), ids=NAMED)
def test_no_file_of_the_machine_becomes_a_text(folder: Path, plant: Callable, message: str) -> None:
    readme(folder, "data_files: a.txt")
    assert texts(folder) == ["a text"]
    plant(folder)
    with pytest.raises(UserError, match=message):
        texts(folder)


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("hf://datasets/org/set@0123/a.parquet", True),
        *((file, False) for file in ("/home/me/.ssh/id_rsa", "hf://datasets/me/private@0/a", "https://x.y/a")),
        ("hf://datasets/org/set@0/a::file:///home/me/.ssh/id_rsa", False),
        *((file, False) for file in ("zip://a::hf://datasets/org/set@0/a.zip", "hf://org/set@0/a", "a.txt")),
    ],
)
def test_a_data_set_of_the_hub_lists_its_own_files(file: str, own: bool, tmp_path: Path) -> None:
    files = {"train": ["hf://datasets/org/set@0123/b.parquet", file]}
    if own:
        refuse_other_files(files, tmp_path / "org" / "set", "org/set", "k")
    else:
        with pytest.raises(UserError, match="k: the data set org/set lists .*, which is not a file of its own"):
            refuse_other_files(files, tmp_path / "org" / "set", "org/set", "k")


@pytest.mark.parametrize("name", ["../../private.arrow", "/etc/passwd", "..", 5, None, ["a"]])
def test_a_saved_data_set_names_its_own_files(folder: Path, name: Any) -> None:
    datasets.Dataset.from_dict({"text": ["a text"]}).save_to_disk(folder / "saved")
    assert texts(folder / "saved") == ["a text"]
    state = json.loads((folder / "saved" / "state.json").read_text())
    for changed in ({**state, "_data_files": [{"filename": name}]}, {**state, "_indices_data_files": [name]}):
        (folder / "saved" / "state.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"state\.json names .*, which is not in its folder"):
            texts(folder / "saved")
    (folder / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(UserError, match=r"dataset_dict\.json names .*, which is not in its folder"):
        texts(folder / "saved")


@pytest.mark.parametrize("kind", ["custom", "torch", "evil"])
def test_the_format_of_a_saved_data_set_does_not_count(folder: Path, kind: str) -> None:
    datasets.Dataset.from_dict({"text": ["a text"], "b": [1]}).save_to_disk(folder / "saved")
    state = json.loads((folder / "saved" / "state.json").read_text())
    changes = {"_format_type": kind, "_format_kwargs": {"transform": "os.system"}, "_format_columns": ["b"]}
    (folder / "saved" / "state.json").write_text(json.dumps({**state, **changes}))
    if kind == "evil":
        with pytest.raises(UserError, match="cannot be read"):
            texts(folder / "saved")
    else:
        assert texts(folder / "saved") == ["a text"]


@pytest.mark.parametrize(
    "content", ["---\nconfigs: [[[\n---\n", "---\nconfigs: 5\n---\n", "---\ndataset_info: 5\n---\n"]
)
def test_a_readme_that_is_damaged_is_a_line_or_nothing(folder: Path, content: str) -> None:
    (folder / "README.md").write_text(content)
    try:
        assert texts(folder) == ["a text"]
    except UserError as error:
        assert "cannot be read" in str(error)


def test_a_damaged_row_is_a_line(folder: Path) -> None:
    (folder / "a.txt").rename(folder / "a.jsonl")
    with pytest.raises(UserError, match="the next row cannot be read"):
        texts(folder)


def test_images_are_not_decoded_by_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand an EPS to another program, and the path of a row may be any file."""
    rows = {"image": [{"bytes": b"%!PS-Adobe-3.0 EPSF-3.0", "path": None}], "text": ["a"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "saved")
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("it was decoded"))
    (row,) = hf_rows(str(folder / "saved"), None, [], "k")
    assert row.values["image"]["bytes"] == rows["image"][0]["bytes"]


@pytest.mark.parametrize("template", ["../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "/srv/{DATASET}", "..\\x"])
def test_tfds_reads_the_folders_own_shards(folder: Path, template: str) -> None:
    (folder / "features.json").write_text("{}")
    split = {"name": "train", "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
    info = {"name": "data", "version": "1.0.0", "splits": [split]}
    named = template.replace("{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "texts")
    for changed in (
        {**info, "splits": [{**split, "filepathTemplate": template}]},
        {**info, "splits": [{**split, "name": named}]},
        {**info, "name": named},  # {DATASET}
    ):
        (folder / "dataset_info.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match="are not in the data set's folder"):
            refuse_other_types(folder, "texts.sources")
    (folder / "dataset_info.json").write_text(json.dumps(info))
    refuse_other_types(folder, "texts.sources")


def test_tfds_follows_no_link(folder: Path) -> None:
    (folder / "features.json").write_text("{}")
    (folder / "dataset_info.json").symlink_to(folder.parent / "private.txt")
    with pytest.raises(UserError, match="is a link to a file outside"):
        next(tfds_rows(str(folder), None, [], ["text"], "texts.sources"))


@pytest.mark.parametrize("name", ["pandas", "csv", "text"])
def test_a_folder_is_not_taken_for_a_reader_of_the_library(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``pandas`` is the reader of pickles, which in datasets 4.0 unpickled the files of the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "train.jsonl").write_text('{"text": "a text"}\n')
    assert texts(Path(name)) == ["a text"]


@pytest.mark.parametrize("suffix", ["wav", "mp4"])
def test_other_formats_of_the_library_are_not_read(folder: Path, suffix: str) -> None:
    (folder / "a.txt").rename(folder / f"a.{suffix}")
    with pytest.raises(UserError, match=r"texts\.sources: .* has the format \w+folder; arrow, csv, .* are read"):
        texts(folder)


def test_no_image_of_a_tfds_row_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no column: Pillow would hand an EPS to Ghostscript."""
    import tensorflow_datasets as tfds

    f, eps = tfds.features, b"%!PS-Adobe-3.0 EPSF-3.0"
    features = {"text": f.Text(), "image": f.Image(), "inner": {"image": f.Image()}, "images": f.Sequence(f.Image())}
    lists = {"list": f.Sequence({"image": f.Image(), "text": f.Text()}), "rows": f.Dataset({"image": f.Image()})}
    form = f.FeaturesDict({**features, **lists})

    def image() -> Any:
        return io.BytesIO(eps)  # TFDS takes bytes for a path

    row = {"text": "a text", "image": image(), "inner": {"image": image()}, "images": [image()]}
    row |= {"list": {"image": [image()], "text": ["a"]}, "rows": [{"image": image()}]}
    record = form.serialize_example(row)
    monkeypatch.setattr(f.Image, "decode_example_np", lambda *_: pytest.fail("it was decoded"))
    found = form.deserialize_example_np(record, decoders=skip_images(form))
    assert (found["text"], found["image"], found["inner"]["image"]) == (b"a text", eps, eps)
    assert [*found["images"], *found["list"]["image"]] == [eps, eps]
    assert next(iter(found["rows"]))["image"] == eps
    assert skip_images(f.FeaturesDict({"text": f.Text()})) is None


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "queries.jsonl.gz", "qrels/train.tsv", "qrels"])
def test_a_folder_of_beir_is_made_of_its_own_files(tmp_path: Path, name: str) -> None:
    folder, private = tmp_path / "beir", tmp_path / "private"
    (folder / "qrels").mkdir(parents=True)
    for file in ("corpus.jsonl", "queries.jsonl"):
        (folder / file).write_text('{"_id": "a", "text": "a text"}\n')
    (folder / "qrels" / "train.tsv").write_text("a\ta\t1\n")
    assert read_beir(folder, "train").passages == {"a": "a text"}
    (folder / name.removesuffix(".gz")).rename(private)
    (folder / name).symlink_to(private)
    with pytest.raises(UserError, match="is a link to a file outside its folder"):
        read_beir(folder, "train")


# ------------------------------------------------------------------------------------------------ names of files


def test_a_name_that_no_record_can_have_is_a_line_before_any_work(tmp_path: Path) -> None:
    """Else the store's manifest could not be written, at the end of its build."""
    name = b"\xff\x1b]0;x\x07.jsonl"
    try:
        (tmp_path / os.fsdecode(name)).write_text('{"text": "a"}\n')
    except OSError:
        pytest.skip("a file system without such names")
    with pytest.raises(UserError) as raised:
        matching(str(tmp_path / "*.jsonl"))
    assert str(raised.value).endswith(r"\udcff\x1b]0;x\x07.jsonl: the name is not UTF-8; rename the file")


def test_an_image_whose_name_is_not_utf8_is_skipped_or_a_line(tmp_path: Path) -> None:
    """Not the end of the build, with a traceback."""
    pytest.importorskip("PIL.Image")
    from tests.data.picture_helpers import folder, images, picture, tar

    members = [(f"{n}.{end}", data) for n in range(4) for end, data in (("png", picture(n)), ("txt", b"%d" % n))]
    source = ImageSource(webdataset=str(tar(tmp_path / "a.tar", [*members, ("\udcff.png", picture(9))])))
    store = build_pair_store(images(source, skip_share=0.9), tmp_path / "images", 0, progress=False)
    assert store.manifest["skipped"][label(source)]["without a caption"]["first"] == [r"a.tar/\udcff"]

    named = {"0.png": picture(0), "\udcff.png": picture(1)}
    rows = [{"image": name, "caption": f"of {name!r}"} for name in named]
    try:
        source = folder(tmp_path / "folder", rows, named)
    except OSError:
        pytest.skip("a file system without such names")
    with pytest.raises(UserError, match=r"udcff\.png: the name is not UTF-8; rename the file"):
        build_pair_store(images(source), tmp_path / "more", 0, progress=False)
