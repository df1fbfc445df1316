"""Every kind of source of pairs: what it reads, what it leaves out and counts, and how it refuses."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from jasper_jax.assets.openmoji import drawings, named, rendered
from jasper_jax.data import shards as sh
from jasper_jax.data.image_log import SourceLog
from jasper_jax.data.image_sources import Example, _encoded, check_image_sources, read_image_source
from jasper_jax.recipe.config_sources import Images, ImageSource
from jasper_jax.runtime.errors import UserError
from tests.data.picture_helpers import folder, images, many, openmoji_is_cached, picture, tar


def read(source: ImageSource, **keys) -> tuple[list[Example], SourceLog]:
    log = SourceLog(source, "images.sources[0]")
    return list(read_image_source(source, images(source, **keys), log)), log


def own_group(data: bytes) -> str:
    return f"image {hashlib.sha256(data).hexdigest()[:32]}"


# -------------------------------------------------------------------------------------------- folder


def test_a_folder_with_captions(tmp_path):
    rows = [
        {"image": "a.png", "caption": " one "},
        {"image": "deep/b.jpg", "caption": ["two", "deux"], "set": 7},
        {"image": "a.png", "caption": "once more"},
    ]
    a, b = picture(1), picture(2, "JPEG")
    source = folder(tmp_path / "p", rows, {"a.png": a, "deep/b.jpg": b})
    found, log = read(source)
    assert found == [
        Example(a, "one", "a.png", own_group(a)),
        Example(b, "two", "deep/b.jpg", own_group(b)),
        Example(b, "deux", "deep/b.jpg", own_group(b)),
        Example(a, "once more", "a.png", own_group(a)),
    ]
    assert (log.given, log.skipped) == (4, {})
    assert set(log.files) == {str(tmp_path / "p" / n) for n in ("captions.jsonl", "a.png", "deep/b.jpg")}
    assert len(read(source.model_copy(update={"limit": 2}))[0]) == 2


def test_columns_groups_and_parquet(tmp_path):
    place = tmp_path / "p"
    many(place, 3)
    (place / "captions.jsonl").unlink()
    table = {"file": ["0.png", "1.png", "2.png"], "text": ["x", "y", "z"], "scene": [4, None, 4]}
    pq.write_table(pa.table(table), place / "captions.parquet")
    keys = {"image": "file", "caption": "text", "group": "scene"}
    found, _ = read(ImageSource(folder=str(place), captions="captions.parquet", **keys))
    assert [(e.caption, e.name, e.group) for e in found] == [
        ("x", "0.png", "4"),
        ("y", "1.png", own_group(picture(1))),
        ("z", "2.png", "4"),
    ]


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "link.png", "deep/../../secret.png", "folder/x.png"]
)
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(picture(0))
    source = folder(tmp_path / "p", [{"image": name, "caption": "x"}], {})
    (tmp_path / "p" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "p" / "folder").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"captions\.jsonl, line 1: '.*' leads out of the folder"):
        read(source, skip_share=1.0)
    outside = ImageSource(folder=str(tmp_path / "p"), captions="../captions.jsonl")
    with pytest.raises(UserError, match=r"images\.sources\[0\]\.captions: .* leads out of the folder"):
        read(outside)


def test_a_link_within_the_folder_is_followed(tmp_path):
    source = folder(tmp_path / "p", [{"image": "b.png", "caption": "x"}], {"a.png": picture(1)})
    (tmp_path / "p" / "b.png").symlink_to("a.png")
    [example], log = read(source)
    assert (example.image, log.skipped) == (picture(1), {})


def test_what_cannot_be_used_is_counted_and_named(tmp_path):
    rows = [{"image": f"{i}.png", "caption": f"c{i}"} for i in range(4)]
    rows += [
        {"image": "gone.png", "caption": "x"},
        {"image": None, "caption": "x"},
        {"image": "1.png", "caption": "  "},
        {"image": "2.png", "caption": None},
        {"image": "bad.png", "caption": ["x", "y"]},
        {"image": "cut.png", "caption": "x"},
        {"image": "large.png", "caption": "x"},
    ]
    pictures = {f"{i}.png": picture(i) for i in range(4)}
    pictures |= {"bad.png": b"no picture", "cut.png": picture(9, size=32)[:200], "large.png": picture(10, size=64)}
    source = folder(tmp_path / "p", rows, pictures | {"alone.jpg": picture(11, "JPEG")})
    found, log = read(source, skip_share=0.8, max_pixels=2048)
    assert [e.caption for e in found] == ["c0", "c1", "c2", "c3"]
    assert log.skipped == {
        "captions without an image": 2,
        "with an empty caption": 2,
        "that cannot be used as images": 3,
        "without a caption": 1,
    }
    assert log.first["without a caption"] == ["alone.jpg"]
    assert log.first["with an empty caption"] == ["1.png", "2.png"]
    for name, line in zip(("bad.png", "cut.png", "large.png"), log.first["that cannot be used as images"]):
        assert name in line
    message = (
        r"images\.sources\[0\]: 8 of 12 in folder:.* were skipped, more than images\.skip_share 0\.6 allows: "
        r"2 captions without an image \(gone\.png of .*line 5, .*line 6\); 2 with an empty caption \(1\.png, 2\.png\); "
        r".*raise images\.skip_share to 0\.66"
    )
    with pytest.raises(UserError, match=message):
        read(source, skip_share=0.6, max_pixels=2048)


def test_only_the_first_names_are_kept(tmp_path):
    rows = [{"image": f"{i}.png", "caption": ""} for i in range(9)] + [{"image": "0.png", "caption": "x"}]
    source = folder(tmp_path / "p", rows, {f"{i}.png": picture(i) for i in range(9)})
    with pytest.raises(UserError, match=r"9 with an empty caption \(0\.png, 1\.png, 2\.png, 3\.png, 4\.png, \.\.\.\)"):
        read(source)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"image": "0.png", "caption": "x"}', "{broken"], r"captions\.jsonl, line 2: not JSON"),
        (["[1]"], r"line 1: expected a JSON object, got list"),
        (['{"image": "0.png", "text": "x"}'], r"line 1: no column 'caption'; there are image, text"),
        (['{"image": 3, "caption": "x"}'], r"line 1: column 'image' holds int; expected a path in .*"),
        (['{"image": "0.png", "caption": 3}'], r"line 1: column 'caption' holds int"),
        (['{"image": "\\u0000.png", "caption": "x"}'], r"leads out of the folder"),
        (['{"image": "%s", "caption": "x"}' % ("x" * 5000)], r"leads out of the folder .*cp -rL"),
        ([], r"gives no pairs$"),
    ],
)
def test_captions_files_that_are_wrong_stop_at_once(tmp_path, lines, message):
    source = many(tmp_path / "p", 0)
    if lines:
        (tmp_path / "p" / "0.png").write_bytes(picture(0))
    (tmp_path / "p" / "captions.jsonl").write_text("".join(line + "\n" for line in lines))
    with pytest.raises(UserError, match=message):
        read(source, skip_share=1.0)


def test_folders_and_files_that_are_not_there(tmp_path):
    many(tmp_path / "p", 1)
    (tmp_path / "p" / "captions.csv").write_text("image,caption\n")
    for source, message in [
        (ImageSource(folder=str(tmp_path / "no"), captions="a.jsonl"), r"\.folder: no folder .*no"),
        (ImageSource(folder=str(tmp_path / "p"), captions="a.jsonl"), r"\.captions: no file 'a.jsonl' in"),
        (
            ImageSource(folder=str(tmp_path / "p"), captions="captions.csv"),
            r"unsupported format; expected \.jsonl, \.parquet",
        ),
        (ImageSource(folder=str(tmp_path / "p"), captions="captions.jsonl", caption="text"), "no column 'text'"),
        (ImageSource(webdataset=str(tmp_path / "*.tar")), r"\[0\]\.webdataset: no file matches"),
        (
            ImageSource(asset="openmojo"),
            r"no asset 'openmojo'; did you mean 'openmoji'\?; the image collections are openmoji",
        ),
        (ImageSource(asset="lee"), "asset 'lee' is not an image collection"),
    ]:
        with pytest.raises(UserError, match=message):
            check_image_sources(images(source))


def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch):
    for module, source, extra in [
        ("PIL", many(tmp_path / "p", 1), "vision"),
        ("resvg_py", ImageSource(asset="openmoji"), "vision"),
        ("datasets", ImageSource(hf="x/y"), "datasets"),
    ]:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(UserError, match=rf"pip install 'jasper-jax\[{extra}\]'"):
                check_image_sources(images(source))


def test_the_recipe_says_what_a_source_takes():
    for keys, message in [
        ({"folder": "a"}, "folder and captions belong together"),
        ({"folder": "a", "captions": "b", "split": "train"}, "split has no meaning"),
        ({"webdataset": "a", "group": "g"}, "group has no meaning"),
        ({"asset": "openmoji", "hf": "x"}, "exactly one of"),
    ]:
        with pytest.raises(ValidationError, match=message):
            ImageSource(**keys)


# ---------------------------------------------------------------------------------------- WebDataset


def test_webdataset_members_pair_by_stem(tmp_path):
    tar(
        tmp_path / "b.tar.gz",
        [("x.png", picture(3)), ("x.json", b"{}"), ("x.txt", b"three")],
    )
    tar(
        tmp_path / "a.tar",
        [
            ("s/1.txt", b"one"),
            ("s/1.JPG", picture(1, "JPEG")),
            ("s/2.webp", picture(2, "WEBP")),  # apart from its caption
            ("t/1.png", picture(4)),
            ("t/1.txt", "vier é".encode()),
            ("s/2.txt", b"two"),
        ],
    )
    found, log = read(ImageSource(webdataset=str(tmp_path / "*.tar*")))
    assert [(e.name, e.caption, e.image) for e in found] == [
        ("a.tar/s/1", "one", picture(1, "JPEG")),
        ("a.tar/t/1", "vier é", picture(4)),
        ("a.tar/s/2", "two", picture(2, "WEBP")),
        ("b.tar.gz/x", "three", picture(3)),
    ]
    assert set(log.files) == {str(tmp_path / "a.tar"), str(tmp_path / "b.tar.gz")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "b.tar.gz"]  # nothing was unpacked


def test_webdataset_members_of_other_extensions_and_alone(tmp_path):
    members = [("1.pic.png", picture(1)), ("1.cap", b"one"), ("2.pic.png", picture(2)), ("3.cap", b"three")]
    members += [("4.pic.png", picture(4)), ("4.cap", b"\xff"), ("1.txt", b"other")]
    tar(tmp_path / "a.tar", members)
    path = str(tmp_path / "a.tar")
    found, log = read(ImageSource(webdataset=path, image="pic.png", caption=".cap"), skip_share=0.9)
    assert [(e.name, e.caption) for e in found] == [("a.tar/1", "one")]
    assert log.first == {
        "with a caption that is not UTF-8 text": ["a.tar/4"],
        "without a caption": ["a.tar/2"],
        "captions without an image": ["a.tar/3"],
    }
    message = r"holds no members \.gif or \.vtt, but 3 \.pic\.png, 3 \.cap, 1 \.txt; set image and caption"
    with pytest.raises(UserError, match=message):
        read(ImageSource(webdataset=path, image="gif", caption="vtt"))


@pytest.mark.parametrize("damage", ["cut", "cut gzip", "text"])
def test_damaged_tars_are_refused(tmp_path, damage):
    path = tmp_path / ("a.tar.gz" if damage == "cut gzip" else "a.tar")
    tar(path, [(f"{i}.{e}", d) for i in range(3) for e, d in (("png", picture(i, size=40)), ("txt", b"x"))])
    data = path.read_bytes()
    path.write_bytes(b"no tar at all" * 100 if damage == "text" else data[: len(data) // 2 - 100])
    with pytest.raises(UserError, match=r"a\.tar(\.gz)?: damaged, or not a tar file"):
        read(ImageSource(webdataset=str(path)))


# ----------------------------------------------------------------------------------------- data sets


@pytest.fixture
def tfds_folder(tmp_path):
    """A prepared data set of two splits with an Image feature."""
    import tensorflow_datasets as tfds

    captions = tfds.features.Sequence(tfds.features.Text())
    features = {"image": tfds.features.Image(), "caption": captions, "scene": tfds.features.Text()}
    shards = sh.shard_map({"train": 3, "test": 1}, 4)
    form = tfds.features.FeaturesDict(features)
    for s in shards:
        rows = [{"image": picture(s.start + i), "caption": [f"é{i}", "x"], "scene": "s"} for i in range(s.rows)]
        records = [form.serialize_example(row) for row in rows]
        sh.write_records(tmp_path / sh.shard_file("mine", s, shards), records, compress=True)
    sh.write_metadata(tmp_path, "mine", features, shards, {"train": 1, "test": 1}, "for tests")
    return str(tmp_path)


def test_tfds_images_stay_encoded(tfds_folder):
    found, _ = read(ImageSource(tfds=tfds_folder, split="train", group="scene"))
    names = [hashlib.sha256(picture(i)).hexdigest()[:16] for i in range(3)]
    expected = [Example(picture(i), c, names[i], "s") for i in range(3) for c in (f"é{i}", "x")]
    assert found == expected
    for keys, message in [
        ({}, r"images\.sources\[0\]: .* has the splits .*; choose with split"),
        ({"split": "no"}, "has no split 'no'"),
        ({"split": "train", "image": "img"}, "no column 'img'; there are .*image"),
        ({"split": "train", "caption": "scenes"}, "no column 'scenes'.*did you mean 'scene'"),
        (
            {"split": "train", "image": "caption"},
            "column 'caption' holds list; expected an Image feature or the bytes of an encoded image",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            read(ImageSource(tfds=tfds_folder, **keys))
    with pytest.raises(UserError, match=r"images\.sources\[0\]: no TFDS data set"):
        read(ImageSource(tfds="no_such_data_set"))


def test_hugging_face_images_stay_encoded(tmp_path):
    datasets = importlib.import_module("datasets")
    (tmp_path / "x.jpg").write_bytes(picture(2, "JPEG"))
    rows = {
        "image": [
            {"bytes": picture(0), "path": "a.png"},
            {"bytes": picture(1), "path": None},
            {"bytes": None, "path": str(tmp_path / "x.jpg")},
            None,
        ],
        "caption": ["c0", "c1", "c2", "c3"],
        "raw": [picture(5)] * 4,
    }
    features = {"image": datasets.Image(), "caption": datasets.Value("string"), "raw": datasets.Value("binary")}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    made.save_to_disk(str(tmp_path / "hf"))
    found, log = read(ImageSource(hf=str(tmp_path / "hf")), skip_share=0.5)
    assert [(e.image, e.caption) for e in found] == [
        (picture(0), "c0"),
        (picture(1), "c1"),
        (picture(2, "JPEG"), "c2"),
    ]
    assert [found[0].name, found[2].name] == ["a.png", "x.jpg"]
    assert found[1].name == hashlib.sha256(picture(1)).hexdigest()[:16]
    assert log.skipped == {"that cannot be used as images": 1}
    gone = {"bytes": None, "path": str(tmp_path / "gone.jpg")}
    assert _encoded(gone, "image", "row 3", tmp_path) == f"row 3: {tmp_path / 'gone.jpg'} (No such file or directory)"
    raw, _ = read(ImageSource(hf=str(tmp_path / "hf"), image="raw"))
    assert {e.image for e in raw} == {picture(5)}
    with pytest.raises(UserError, match=r"no column 'text'; there are image, caption, raw"):
        read(ImageSource(hf=str(tmp_path / "hf"), caption="text"))
    with pytest.raises(UserError, match=r"column 'caption' holds str, not an image"):
        read(ImageSource(hf=str(tmp_path / "hf"), image="caption", caption="caption"))


# ------------------------------------------------------------------------------------------- OpenMoji


@pytest.mark.parametrize(
    ("characters", "name", "caption", "group", "toned"),
    [
        ("👋🏻", ":waving_hand_light_skin_tone:", "waving hand: light skin tone", "waving hand", True),
        ("👩🏿‍🦰", ":woman_dark_skin_tone_red_hair:", "woman: dark skin tone, red hair", "person", True),
        ("🚶‍♂️‍➡️", ":man_walking_facing_right:", "man walking facing right", "walking", False),
        ("🧑‍🎨", ":artist:", "artist", "artist", False),
        ("👨‍🎨", ":man_artist:", "man artist", "artist", False),
        ("👨‍👩‍👦", ":family_man_woman_boy:", "family: man, woman, boy", "family", False),
        ("💋", ":kiss_mark:", "kiss mark", "kiss mark", False),
        ("🇫🇷", ":France:", "flag: France", "flag: France", False),
        ("#⃣", ":keycap_#:", "keycap: #", "keycap: #", False),
        ("👫", ":woman_and_man_holding_hands:", "woman and man holding hands", "people holding hands", False),
        ("👴", ":old_man:", "old man", "old person", False),
        ("🗝", ":old_key:", "old key", "old key", False),
        ("🏿", ":dark_skin_tone:", "dark skin tone", "dark skin tone", False),
    ],
)
def test_names_of_emoji(characters, name, caption, group, toned):
    found = named(characters, name)
    assert found[:3] == (caption, group, toned)
    assert "skin tone" not in found.alike or name.startswith(":dark_skin")


@pytest.mark.skipif(not openmoji_is_cached(), reason="32 MB to download: read where it is cached")
def test_the_numbers_of_openmoji():
    found = list(drawings(progress=False))
    plain = [d for d in found if not d.named.toned]
    assert (len(found), len({d.named.caption for d in found})) == (3953, 3953)
    assert (len(plain), len({d.named.group for d in plain})) == (1923, 1696)
    assert {d.named.group for d in found} == {d.named.group for d in plain}
    assert not any("<text" in d.svg for d in found)  # no font plays a part
    first = rendered(found[0].svg)
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert first == rendered(found[0].svg)


def test_an_empty_list_of_sources_is_no_recipe():
    with pytest.raises(ValidationError):
        Images.model_validate(json.loads('{"sources": []}'))


@pytest.mark.skipif(not openmoji_is_cached(), reason="32 MB to download: read where it is cached")
def test_emoji_without_those_of_another_skin_tone():
    every, _ = read(ImageSource(asset="openmoji", limit=800))
    yellow, _ = read(ImageSource(asset="openmoji", limit=800, tones=False))
    assert any("skin tone" in e.caption for e in every)
    assert not any(": " in e.caption and "skin tone" in e.caption for e in yellow)
    assert {e.name for e in every if e.eligible} <= {e.name for e in yellow}
    with pytest.raises(ValidationError, match="tones has no meaning"):
        ImageSource(hf="x", tones=False)
