"""Tiny vision models and picture-caption pairs for tests: coloured shapes, named as they look."""

from __future__ import annotations

import atexit
import functools
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
from PIL import Image, ImageDraw

from jasper_jax.encoders.weights import save
from jasper_jax.vision.encoder import vision_from_config
from jasper_jax.vision.preprocess import default_for

VISION = {
    "siglip_vision_model": {"intermediate_size": 24},
    "clip_vision_model": {"intermediate_size": 24},
    "dinov2": {"mlp_ratio": 2, "layerscale_value": 0.5},
}
COLOURS = {"old": "brown", "young": "green", "long": "blue", "broken": "red", "last": "orange", "small": "purple"}
THINGS = {"river": "line", "doctor": "ellipse", "map": "rectangle", "train": "cross", "letter": "frame", "bird": "dot"}
PLACES = {"morning": (0, 0), "winter": (12, 0), "harbour": (0, 12), "water": (12, 12)}


def write_vision(folder: Path, model_type: str = "dinov2", *, layers: int = 2, hidden: int = 12, seed: int = 5) -> Path:
    """A vision model's folder with random weights, 28 pixels, patches of 7."""
    return shutil.copytree(_vision(model_type, layers, hidden, seed), folder, dirs_exist_ok=True)


_MADE = Path(tempfile.mkdtemp(prefix="jasper-vision-"))
atexit.register(shutil.rmtree, _MADE, ignore_errors=True)


@functools.cache
def _vision(model_type: str, layers: int, hidden: int, seed: int) -> Path:
    """The folder that :func:`write_vision` copies."""
    folder = _MADE / f"{model_type}-{layers}-{hidden}-{seed}"
    config = {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
        **VISION[model_type],
    }
    encoder = vision_from_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    save(encoder.init(jax.random.key(seed)), encoder, folder)
    preprocessing = default_for(model_type).with_size(28)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing.to_hf()))
    return folder


def picture(colour: str, shape: str, corner: tuple[int, int]) -> Image.Image:
    """28 pixels of a side."""
    image = Image.new("RGB", (28, 28), "white")
    draw, (x, y) = ImageDraw.Draw(image), corner
    box = (x + 2, y + 2, x + 14, y + 14)
    if shape == "line":
        draw.line(box, fill=colour, width=3)
    elif shape == "ellipse":
        draw.ellipse(box, fill=colour)
    elif shape == "rectangle":
        draw.rectangle(box, fill=colour)
    elif shape == "cross":
        draw.line((x + 8, y + 2, x + 8, y + 14), fill=colour, width=3)
        draw.line((x + 2, y + 8, x + 14, y + 8), fill=colour, width=3)
    elif shape == "frame":
        draw.rectangle(box, outline=colour, width=2)
    else:
        draw.ellipse((x + 6, y + 6, x + 10, y + 10), fill=colour)
    return image


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_pairs(folder: Path) -> Path:
    """144 pictures and ``captions.jsonl``."""
    return shutil.copytree(_pairs(), folder, dirs_exist_ok=True)


@functools.cache
def _pairs() -> Path:
    """The folder that :func:`write_pairs` copies."""
    folder = _MADE / "pairs"
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for adjective, colour in COLOURS.items():
        for noun, shape in THINGS.items():
            for place, corner in PLACES.items():
                name = f"pictures/{adjective}-{noun}-{place}.png"
                (folder / name).write_bytes(png(picture(colour, shape, corner)))
                lines.append({"image": name, "caption": f"the {adjective} {noun} near the {place}"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def vision_changes(place: Path, model_type: str = "dinov2", **vision: Any) -> dict[str, Any]:
    """Changes to a tiny recipe that give its student a vision encoder and the recipe pairs."""
    folder, pairs = place / f"vision-{model_type}", place / "pairs"
    if not folder.is_dir():
        write_vision(folder, model_type)
    if not pairs.is_dir():
        write_pairs(pairs)
    return {
        "vision": {"model": str(folder), "tokens": 4, **vision},
        "images": {
            "sources": [{"folder": str(pairs), "captions": "captions.jsonl"}],
            "held_out": 16,
            "test": 24,
            "shard_rows": 32,
        },
    }
