"""What an encoder reads of an image equals what transformers makes of it, from the same preprocessor_config.json."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.preprocess import default_for
from jasper_jax.vision.processor_config import CONFIG, preprocessing_from_folder, read_preprocessing

CLASSES = {
    "SiglipImageProcessor": SiglipImageProcessorPil,
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "BitImageProcessor": BitImageProcessorPil,
}
CONFIGS = {
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 48, "width": 48}, "resample": 3},
    "siglip by default": {"image_processor_type": "SiglipImageProcessor"},
    "siglip bilinear, fast": {
        "image_processor_type": "SiglipImageProcessorFast",
        "size": {"height": 33, "width": 33},
        "resample": 2,
        "do_convert_rgb": None,
    },
    "clip, old": {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": 40,
        "crop_size": 40,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
    },
    "clip": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 37},
        "crop_size": {"height": 32, "width": 32},
    },
    "clip by default": {"image_processor_type": "CLIPImageProcessorFast"},
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 56, "width": 56},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
    "crop beyond the image": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 20},
        "crop_size": 33,
    },
    "exact size, then crop": {
        "image_processor_type": "BitImageProcessor",
        "size": {"height": 40, "width": 40},
        "crop_size": 30,
    },
    "not normalised": {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 16, "width": 16},
        "do_normalize": False,
    },
    "not rescaled": {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 16, "width": 16},
        "do_rescale": False,
        "image_mean": 100,
        "image_std": [1, 2, 3],
    },
}


def picture(width, height, seed=0) -> Image.Image:
    """A smooth picture with an edge: noise alone would hide a shift in its own variance."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.array(coarse)
    pixels[: height // 3, : width // 2] = (250, 3, 90)
    return Image.fromarray(pixels)


PICTURES = {
    "landscape": picture(90, 61),
    "portrait": picture(50, 131),
    "square": picture(64, 64),
    "tiny": picture(3, 2),
    "one pixel": Image.new("RGB", (1, 1), (1, 200, 30)),
    "long": picture(300, 10),
    "grey": picture(70, 50).convert("L"),
}


def theirs(config):
    name = (config.get("image_processor_type") or "CLIPImageProcessor").removesuffix("Fast")
    return CLASSES[name](**{k: v for k, v in config.items() if not k.endswith("_type") and v is not None})


def images_of(processor, image):
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_to_transformers(name, tmp_path):
    config = CONFIGS[name]
    ours = read_preprocessing(config, "cfg")
    processor = theirs(config)
    (tmp_path / CONFIG).write_text(json.dumps(ours.to_hf()))
    again = CLASSES[ours.kind].from_pretrained(tmp_path)
    assert preprocessing_from_folder(tmp_path, "dinov2") == ours
    one_level = ours.rescale_factor / min(ours.std)
    for image in PICTURES.values():
        pixels = ours.prepare(image)
        assert pixels.shape == (ours.size, ours.size, 3)
        assert pixels.dtype == np.uint8
        found = ours.normalise(pixels)
        assert found.dtype == np.float32
        expected = images_of(processor, image)
        assert np.abs(found - expected).max() <= one_level * 1e-3  # the levels agree; the rest is rounding
        np.testing.assert_array_equal(images_of(again, image), expected)
    assert expected.std() > 0


def test_normalise_in_a_jitted_step():
    ours = default_for("clip_vision_model")
    pixels = ours.prepare(PICTURES["landscape"])
    inside = jax.jit(ours.normalise)(jnp.asarray(pixels))
    assert inside.dtype == jnp.float32
    np.testing.assert_allclose(inside, ours.normalise(pixels), atol=1e-6)
    assert hash(ours) == hash(default_for("clip_vision_model"))


def test_another_size():
    exact, cropped = default_for("siglip_vision_model"), default_for("dinov2")
    assert exact.with_size(384).size == 384
    assert (cropped.resize, cropped.size) == (256, 224)
    larger = cropped.with_size(448)
    assert (larger.resize, larger.size) == (512, 448)
    assert larger.prepare(PICTURES["portrait"]).shape == (448, 448, 3)
    assert cropped.with_size(224) is cropped
    assert larger.to_hf()["crop_size"] == {"height": 448, "width": 448}


def test_a_strip_does_not_fill_the_memory():
    strip = Image.new("RGB", (100_000, 1), (9, 9, 9))
    strip.paste((200, 0, 0), (49_990, 0, 50_010, 1))
    pixels = default_for("dinov2").prepare(strip)
    assert pixels.shape == (224, 224, 3)
    assert (pixels == (200, 0, 0)).all()


def test_a_folder_without(tmp_path, caplog):
    found = preprocessing_from_folder(tmp_path, "dinov2").with_size(518)
    assert found == default_for("dinov2").with_size(518)
    assert f"has no {CONFIG}; images are processed as for published dinov2 models" in caplog.text
    with pytest.raises(UserError, match=r"no image processing is known for 'vit'; those known are siglip_vision_model"):
        preprocessing_from_folder(tmp_path, "vit")
    part = {"image_processor": CONFIGS["dinov2"], "processor_class": "X"}
    (tmp_path / "processor_config.json").write_text(json.dumps(part))
    assert preprocessing_from_folder(tmp_path, "dinov2").size == 56


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type is 'ViTImageProcessor'; Siglip"),
        ({"image_processor_type": None}, "image_processor_type is None"),
        ({"do_resize": False}, "do_resize is False"),
        ({"do_pad": True}, "do_pad is True"),
        ({"do_center_crop": "yes"}, "do_center_crop is 'yes'"),
        ({"do_center_crop": False}, "size is the shortest edge .* images would not be square"),
        ({"size": {"height": 3, "width": 4}}, r"size is \{'height': 3, 'width': 4\}; expected pixels"),
        ({"size": {"longest_edge": 3}}, "size is"),
        ({"size": 0}, "size is 0"),
        ({"size": True}, "size is True"),
        ({"crop_size": {"height": 3, "width": 4}}, "crop_size is"),
        ({"resample": 9}, "resample is 9"),
        ({"rescale_factor": -1}, "rescale_factor is -1"),
        ({"image_mean": [1, 2]}, r"image_mean is \[1, 2\]; expected three numbers"),
        ({"image_mean": [float("nan")] * 3}, "image_mean is"),
        ({"image_std": [1, 0, 1]}, r"image_std is \[1, 0, 1\]; expected three positive numbers"),
        ({"offset": True}, "offset not implemented for BitImageProcessor; those read are crop_size"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(UserError, match=f"cfg: {message}"):
        read_preprocessing({"image_processor_type": "BitImageProcessor", **change}, "cfg")
