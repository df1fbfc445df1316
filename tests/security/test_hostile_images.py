"""An input of ``encode`` may come from a stranger: no file that the caller did not offer, no other program, no bomb.

Both readers are asked the same: this package's and that of the exported folder.
"""

from __future__ import annotations

import inspect
import io
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jasper_jax.embedder import Embedder
from jasper_jax.runtime.errors import UserError
from jasper_jax.vision import images
from jasper_jax.vision.mixtures import read_mixture
from tests.security.hostile_images import EPS, exported_code, icon, picture, png, tiled

EXPORTED = exported_code()
DECODERS = {"package": lambda source: images.open_image(source, "it"), "exported": EXPORTED.opened}
READERS = {
    "package": lambda root, name: images.ImageFile(root, Path(name)).read("it"),
    "exported": lambda root, name: EXPORTED.file_bytes(root, Path(name)),
}
ERRORS = (UserError, ValueError)
both = pytest.mark.parametrize("reader", ["package", "exported"])


def test_both_readers_have_one_list_of_formats_and_one_limit() -> None:
    for name in ("FORMATS", "MAX_PIXELS", "MAX_BYTES"):
        assert getattr(images, name) == getattr(EXPORTED, name)
    assert not {"EPS", "ICO", "WMF", "FPX", "MIC", "PDF", "PSD"} & set(images.FORMATS)


# ------------------------------------------------------------------------------------------------ paths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that the caller offers, and beside it things that it does not."""
    root = tmp_path / "offered"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "good.png").write_bytes(picture())
    (tmp_path / "private.png").write_bytes(picture())
    (root / "out.png").symlink_to(tmp_path / "private.png")
    (root / "within.png").symlink_to("sub/good.png")
    (root / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.png")
    os.truncate(os.open(root / "huge.png", os.O_CREAT | os.O_WRONLY), images.MAX_BYTES + 1)
    (root / "loop.png").symlink_to("loop.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "socket.png"))
    return root


@both
def test_only_regular_files_of_the_offered_folder_are_read(reader: str, root: Path) -> None:
    read = READERS[reader]
    assert read(root, "sub/good.png") == read(root, "within.png") == read(root, root / "sub" / "good.png") == picture()
    bad = ["out.png", "../private.png", root.parent / "private.png", "zero.png", "/dev/zero", "pipe.png", "huge.png"]
    said = set()
    for name in [*bad, "missing.png", "sub", "", "loop.png", "socket.png", "x" * 5000, "sub/good.png/x"]:
        with pytest.raises(ERRORS) as caught:
            read(root, name)
        said.add(str(caught.value).replace(repr(str(Path(name))), "NAME"))
    assert len(said) == 1, said  # one answer, so that it tells nothing of what is there


def embedder(**options: Any) -> Callable[[Any], Any]:
    """How ``Embedder`` reads an input."""
    vision = type("Vision", (), {"written": "<image>"})()
    return lambda item: read_mixture(item, vision, "texts[0]", lambda: "", **options)


def exported(root: Path | None) -> Callable[[Any], Any]:
    """How the exported module reads an input, as far as paths are refused."""
    module = object.__new__(EXPORTED.JasperVLModule)
    module.image_root, module.processor, module.image, module.marks = root, object(), "<image>", ("<image>",) * 3
    module.max_seq_length, module.tokenizer = None, lambda texts: {"input_ids": [[] for _ in texts]}
    module.model = type("Model", (), {})()
    module.model.config = type("Config", (), {"img_end_token_id": 1, "num_img_tokens": 1})()
    return lambda item: module.read([item])


@pytest.mark.parametrize("path", ["/dev/zero", "../x.png", "x.png"])
def test_without_an_offered_folder_no_path_is_opened(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr("builtins.open", opened)
    ways = [Path(path), [Path(path)], {"type": "image", "content": path}, {"type": "image_path", "image_path": path},
            {"type": "image_bytes", "content": path}, [{"type": "image", "image": path}]]  # fmt: skip
    for item in ways:
        with pytest.raises(UserError, match=r"is the path of an image; .* image_root=FOLDER"):
            embedder()(item)
        with pytest.raises(ValueError, match=r"the path of an image; .*image_root"):
            exported(None)(item)


def test_nobody_offers_a_folder_by_default() -> None:
    for function in (Embedder.__init__, Embedder.load, read_mixture, EXPORTED.JasperVLModule.__init__):
        assert inspect.signature(function).parameters["image_root"].default is None


# --------------------------------------------------------------------------------------------- decoders


@both
@pytest.mark.parametrize("kind", ["EPS", "EPS image", "ICO", "XBM"])
def test_other_formats_reach_no_decoder(reader: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def ghostscript(*_: Any, **__: Any) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    Image.init()
    source = {
        "EPS": lambda: EPS,
        "EPS image": lambda: Image.open(io.BytesIO(EPS)),
        "ICO": lambda: icon(png(13_000, 13_000)),
        "XBM": lambda: b"#define x_width 9999\n#define x_height 9999\nstatic char x_bits[] = {0};",
    }[kind]()
    with pytest.raises((*ERRORS, Image.UnidentifiedImageError)):
        DECODERS[reader](source)


@both
@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_tiles_larger_than_an_image_are_refused_before_they_are_unpacked(
    reader: str, order: str, big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 x 64 pixels in 1.9 MB were 1.9 GB; Pillow reads the last of two sizes, libtiff the first."""
    good = tiled(64, order=order, big=big)
    assert np.asarray(DECODERS[reader](good)).shape == (64, 64, 3)
    monkeypatch.setattr(images, "_tile_pixels", lambda file, found=images._tile_pixels: found(file) * 10_000)
    monkeypatch.setattr(EXPORTED, "tile_pixels", lambda file, found=EXPORTED.tile_pixels: found(file) * 10_000)
    bombs = [tiled(128, order=order, big=big)]
    bombs += [tiled(64, (322, kind, 128), (323, 4, 128), order=order, big=big) for kind in (3, 4, 13)]
    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", lambda _: pytest.fail("it was decoded"))
    for bomb in bombs:
        with pytest.raises(ERRORS, match="tiles of"):
            DECODERS[reader](bomb)


@both
def test_a_bomb_is_refused_before_it_is_decoded(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFile

    bomb = png(8_001, 8_000)
    assert len(bomb) < 20_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    for source in (bomb, Image.open(io.BytesIO(bomb))):
        with pytest.raises(ERRORS, match=r"8,?001 x 8,?000"):
            DECODERS[reader](source)


@both
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_what_people_send_is_read(reader: str, kind: str) -> None:
    data = picture(kind)
    for source in (data, Image.open(io.BytesIO(data)), Image.new("RGB", (6, 4))):
        assert DECODERS[reader](source).size == (6, 4)


def test_the_exported_code_holds_one_decoded_image_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of small files may be gigabytes of pixels."""
    events: list[str] = []
    module = EXPORTED.JasperVLModule.__new__(EXPORTED.JasperVLModule)
    module.image_root, module.processor = None, lambda **_: events.append("scaled") or {"pixel_values": 0}
    module.tokenizer = type("T", (), {"pad_token_id": 0})()
    module.model = type("M", (), {"config": type("C", (), {"img_token_id": 1})()})()
    module.read = lambda *_: ([[1]], [[b"a", b"b", b"c"]])
    monkeypatch.setattr(EXPORTED, "opened", lambda *_: events.append("opened"))
    for name in ("tensor", "cat"):
        monkeypatch.setattr(EXPORTED.torch, name, lambda value: np.array(value), raising=False)
    module.preprocess(["an input"])
    assert events == ["opened", "scaled"] * 3
