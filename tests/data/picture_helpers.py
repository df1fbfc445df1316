"""Tiny pictures and the sources made of them."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

from PIL import Image

from jasper_jax.assets.cache import is_cached
from jasper_jax.assets.catalogue import CATALOGUE
from jasper_jax.recipe.config_sources import Images, ImageSource


def picture(number: int, form: str = "PNG", size: int = 4) -> bytes:
    """A picture that differs for every number."""
    data = io.BytesIO()
    Image.frombytes("RGB", (size, size), random.Random(number).randbytes(3 * size * size)).save(data, form)
    return data.getvalue()


def images(*sources: ImageSource, **keys) -> Images:
    return Images(**{"sources": list(sources), "held_out": 0, "test": 0, "skip_share": 0.0, "shard_rows": 8, **keys})


def folder(place: Path, rows: list[dict], pictures: dict[str, bytes], **keys) -> ImageSource:
    """``rows`` as captions.jsonl beside ``pictures``."""
    for name, data in pictures.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    place.mkdir(parents=True, exist_ok=True)
    (place / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ImageSource(folder=str(place), captions="captions.jsonl", **keys)


def many(place: Path, pairs: int = 30, **keys) -> ImageSource:
    """``pairs`` pictures with a caption each."""
    rows = [{"image": f"{i}.png", "caption": f"picture {i}"} for i in range(pairs)]
    return folder(place, rows, {f"{i}.png": picture(i) for i in range(pairs)}, **keys)


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def openmoji_is_cached() -> bool:
    return is_cached(CATALOGUE["openmoji"])
