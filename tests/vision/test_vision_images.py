"""Image files of any make become upright 8-bit RGB; a bad one is a line that names it, and nothing stays open."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.images import FORMATS, ImageFile, open_image


def encoded(image, kind="PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def colours(width=12, height=8, seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def levels(source, **options) -> np.ndarray:
    image = open_image(source, "row 3", **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def png(width, height, body=b"") -> bytes:
    """A PNG that claims a size, whatever its data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA", "QOI", "WEBP"])
def test_lossless_formats(kind):
    image = colours()
    data = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(levels(data), image)
    assert kind in FORMATS


def test_jpeg_and_one_pixel():
    flat = Image.new("RGB", (30, 20), (200, 50, 100))
    assert np.abs(levels(encoded(flat, "JPEG")).astype(int) - np.asarray(flat)).max() <= 3
    one = Image.new("RGB", (1, 1), (1, 2, 3))
    assert levels(encoded(one)).tolist() == [[[1, 2, 3]]]
    assert levels(one).tolist() == [[[1, 2, 3]]]


def test_an_image_of_pillows_is_left_as_it_is(tmp_path):
    image = colours().convert("RGBA")
    image.putalpha(128)
    before = image.tobytes()
    open_image(image, "row 3")
    assert image.tobytes() == before
    assert image.mode == "RGBA"
    plain = colours()
    result = open_image(plain, "row 3")
    result.putpixel((0, 0), (9, 9, 9))
    assert plain.tobytes() == colours().tobytes()


# --------------------------------------------------------------------------------------------- modes


def test_transparency_is_over_white():
    image = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(10, 20, 30, 255), (10, 20, 30, 0), (0, 100, 200, 128)]):
        image.putpixel((x, 0), pixel)
    found = levels(encoded(image))
    assert found[0, :2].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert np.abs(found[0, 2].astype(int) - [127, 177, 227]).max() <= 1
    grey = Image.new("LA", (2, 1), (0, 0))
    assert levels(encoded(grey)).min() == 255
    keyed = Image.new("RGB", (2, 1), (5, 6, 7))
    assert levels(encoded(keyed, transparency=(5, 6, 7))).min() == 255


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_palettes(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 128, 255, 9, 9, 9])
    image.putpixel((1, 0), 1)
    assert levels(encoded(image)).tolist() == [[[0, 128, 255], [9, 9, 9]]]
    assert levels(encoded(image, transparency=transparency)).tolist() == [[[0, 128, 255], [255, 255, 255]]]


def test_one_bit_and_grey():
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert levels(encoded(bits)).tolist() == [[[0] * 3, [255] * 3]]
    assert levels(encoded(Image.new("L", (1, 1), 77))).tolist() == [[[77] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    values = np.array([[0, 128, 257, 25700, 65535]], np.uint16)
    found = levels(encoded(Image.fromarray(values), kind))
    assert found[0, :, 0].tolist() == [0, 0, 1, 100, 255]
    assert (found == found[:, :, :1]).all()


@pytest.mark.parametrize(("values", "message"), [(np.int32(70000), "32-bit grey"), (np.float32(0.5), "floating-point")])
def test_grey_without_a_white(values, message):
    data = encoded(Image.fromarray(np.full((2, 2), values)), "TIFF")
    with pytest.raises(UserError, match=f"row 3: {message}.*8 or 16 bits"):
        open_image(data, "row 3")


def test_cmyk():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        assert np.abs(levels(encoded(image, kind)).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = colours()
    inverse = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for turn in inverse.get(orientation, []):
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(levels(encoded(stored, exif=exif.tobytes())), upright)


def test_broken_exif_says_nothing():
    image = colours()
    np.testing.assert_array_equal(levels(encoded(image, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")), image)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(kind):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(levels(data), frames[0])


# --------------------------------------------------------------------------------------- what is refused


def test_too_many_pixels_are_refused_from_the_header():
    with pytest.raises(UserError, match=r"row 3: the image has 12 x 8 = 96 pixels, at most 95 are read: scale"):
        open_image(encoded(colours()), "row 3", max_pixels=95)
    with pytest.raises(UserError, match="12 x 8 = 96"):
        open_image(colours(), "row 3", max_pixels=95)
    assert levels(encoded(colours()), max_pixels=96).shape == (8, 12, 3)


@pytest.mark.parametrize("side", [9_000, 11_000, 60_000])
def test_decompression_bombs(side):
    """Below Pillow's warning, where it warns, where it raises; a user's filter does not matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=r"row 3: the image has .*000,000 pixels, at most 64,000,000 are read"):
            open_image(png(side, side), "row 3")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_files(kind):
    data = encoded(colours(64, 64), kind)
    for share in (0.5, 0.9):
        with pytest.raises(UserError, match="row 3: (the image cannot be decoded|not a readable image)"):
            open_image(data[: int(len(data) * share)], "row 3")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"row 3: the image is empty \(0 bytes\)"),
        (b"not an image at all", "row 3: not a readable image; the formats are JPEG, PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable image"),
        (b"\xff\xd8\xff", "row 3: "),
        (png(4, 4, b""), "row 3: the image cannot be decoded"),
        (png(0, 4, b""), "row 3: "),
    ],
)
def test_what_is_no_image(data, message):
    with pytest.raises(UserError, match=message) as caught:
        open_image(data, "row 3")
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_damaged_files_end_in_a_line(tmp_path):
    """Random bytes changed in every format: an image or a UserError, nothing else."""
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "QOI", "AVIF"):
        data = np.frombuffer(encoded(colours(24, 16), kind), np.uint8)
        for _ in range(40):
            damaged = data.copy()
            where = rng.integers(0, min(len(data), 200), 3)
            damaged[where] = rng.integers(0, 256, 3)
            try:
                assert levels(damaged.tobytes(), max_pixels=10_000_000).ndim == 3
            except UserError as error:
                assert str(error).startswith("row 3: ")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files by /proc")
def test_no_file_stays_open(tmp_path):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime")]
    good, bad = tmp_path / "a.gif", tmp_path / "b.png"
    good.write_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    bad.write_bytes(encoded(colours(64, 64))[:300])
    kept = []
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        kept.append(open_image(ImageFile(tmp_path, Path("a.gif")).read("a"), "a"))
        with pytest.raises(UserError):
            open_image(ImageFile(tmp_path, Path("b.png")).read("b"), "b")
    assert len(os.listdir("/proc/self/fd")) == before
