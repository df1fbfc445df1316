"""Tiny students of texts and images, their folders, and what they should give.

``python -m tests.export.vision_students job.json`` is the torch side of it, in a process of its own (torch's loaders
warn, and tests turn warnings into errors).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

DIMS = (24, 12, 8)
VISION = {
    "siglip_vision_model": {"image_size": 28, "patch_size": 7, "intermediate_size": 48},
    "clip_vision_model": {"image_size": 28, "patch_size": 7, "intermediate_size": 48},
    "dinov2": {"image_size": 28, "patch_size": 7, "mlp_ratio": 2},
}
QUERY = "what is "


def pictures() -> list[Any]:
    """An opaque image, a transparent one, a grey one; of other shapes than what an encoder reads."""
    from PIL import Image

    rng = np.random.default_rng(3)

    def smooth(*shape: int) -> np.ndarray:
        low = rng.integers(0, 256, (3, 4, *shape)).astype(np.uint8)
        return low.repeat(15, 0).repeat(17, 1)

    return [Image.fromarray(smooth(3)), Image.fromarray(smooth(4), "RGBA"), Image.fromarray(smooth())]


def inputs(folder: Path) -> list[Any]:
    """Texts, images and mixtures of unequal length, in no order."""
    one, two, three = pictures()
    folder.mkdir(exist_ok=True)
    two.save(folder / "two.png")
    return [
        "a young doctor finds two questions .",
        one,
        [{"type": "text", "content": "the old river"}, {"type": "image", "content": one}],
        "a map <|jasper_img_token|>",
        {"type": "image_path", "content": str(folder / "two.png")},
        [
            {"type": "image_bytes", "content": (folder / "two.png").read_bytes()},
            {"type": "text", "text": "repairs the broken bridge in the morning"},
            {"type": "image", "image": three},
            {"type": "text", "content": "."},
        ],
        {"type": "text", "content": "every student"},
    ]


def parts_of(given: Any) -> list[Any]:
    """An input as texts and images of Pillow's."""
    import io

    from PIL import Image

    out = []
    for part in given if isinstance(given, list) else [given]:
        value = part
        if isinstance(part, dict):
            value = next(v for k, v in part.items() if k != "type")
            if part["type"] == "image_path":
                value = Image.open(value)
            elif part["type"] == "image_bytes":
                value = Image.open(io.BytesIO(value))
        out.append(value)
    return out


def run_torch(scratch: Path, **job: Any) -> dict[str, Any]:
    """The job in another process; a transformers cache of code in ``scratch``."""
    file = scratch / "job.json"
    file.write_text(json.dumps({**job, "out": str(scratch / "out")}))
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "code")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.export.vision_students", str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, **offline},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(scratch / "out.npz") as arrays:
        vectors = {name: arrays[name] for name in arrays.files}
    return {**json.loads((scratch / "out.json").read_text()), "vectors": vectors}


def reference(job: dict[str, Any]) -> dict[str, np.ndarray]:
    """The vectors by transformers' own two models and the heads, one input at a time, no code of the export."""
    import torch
    from transformers import AutoModel

    text = AutoModel.from_pretrained(job["text"]).eval()
    vision = AutoModel.from_pretrained(job["vision"]).eval()
    given = np.load(job["given"])
    width = text.config.hidden_size
    vectors: dict[str, list[np.ndarray]] = {f"{kind}/{dim}": [] for kind in ("query", "passage") for dim in DIMS}
    for kind in ("query", "passage"):
        for i in range(job["inputs"]):
            ids = torch.tensor(given[f"{kind}/ids/{i}"])[None]
            words = text.get_input_embeddings()(ids)
            if f"pixels/{i}" in given:
                states = vision(pixel_values=torch.tensor(given[f"pixels/{i}"])).last_hidden_state
                size = (job["tokens"], states.shape[-1] if job["projector"] else width)
                tokens = torch.nn.AdaptiveAvgPool2d(size)(states)
                if job["projector"]:
                    kernel, bias = torch.tensor(given["projector/kernel"]), torch.tensor(given["projector/bias"])
                    shape = tokens.shape[:-1]
                    tokens = (tokens.reshape(-1, len(kernel)) @ kernel + bias).reshape(*shape, width)
                words = words.clone()
                words[ids == job["image_id"]] = tokens.reshape(-1, width)
            pooled = text(inputs_embeds=words).last_hidden_state[0].mean(0)
            for dim in DIMS:
                kernel, bias = given[f"kernel/{dim}"], given[f"bias/{dim}"]
                vectors[f"{kind}/{dim}"].append(pooled.numpy() @ kernel + bias)
    return {f"reference/{name}": np.stack(rows) for name, rows in vectors.items()}


def refusals(model: Any) -> dict[str, str]:
    """What the model says to inputs that it cannot take."""
    one = pictures()[0]
    bad = {
        "type": ["a", "b c d e f", {"type": "video", "content": "x"}],
        "number": ["a", 3],
        "content": [[{"type": "image_bytes", "content": 5}]],
        "empty": ["a", []],
        "mark": [[{"type": "text", "content": "the <|jasper_img_token|> of"}, {"type": "image", "content": one}]],
        "long": ["a", one, [{"type": "image", "content": one}, {"type": "image", "content": one}] * 9],
    }
    said = {}
    for name, given in bad.items():
        try:
            model.encode(given, show_progress_bar=False)
            said[name] = ""
        except ValueError as error:
            said[name] = str(error)
    return said


def main(file: str) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    torch.set_num_threads(2)
    job = json.loads(Path(file).read_text())
    folder, vectors, facts = job["folder"], {}, {}
    pictures = Path(job["out"]).parent / "pictures"
    given = inputs(pictures)
    root = {"image_root": str(pictures)}
    with torch.no_grad():
        vectors |= reference(job)
    for dim in DIMS:
        model = SentenceTransformer(
            folder, device="cpu", trust_remote_code=True, config_kwargs={"vector_dim": dim}, processor_kwargs=root
        ).float()
        for kind in ("query", "passage"):
            vectors[f"{kind}/{dim}"] = model.encode(given, prompt_name=kind, batch_size=3, show_progress_bar=False)
    facts["refused"] = refusals(model)
    alone = model.encode(given[4])
    vectors["alone"], vectors["of many"] = alone, model.encode(given)[4]
    facts["resaved"] = str(Path(job["out"]).parent / "resaved")
    model.save(facts["resaved"])
    again = SentenceTransformer(facts["resaved"], device="cpu", trust_remote_code=True, processor_kwargs=root).float()
    vectors["resaved"] = again.encode(given, prompt_name="query", show_progress_bar=False)
    _, report = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    facts["loading"] = {name: sorted(map(str, keys)) for name, keys in report.items() if keys}
    text = SentenceTransformer(folder, device="cpu", trust_remote_code=True, config_kwargs={"is_text_encoder": True})
    facts["vision built"] = hasattr(text[0].model, "vision_model")
    vectors["text encoder"] = text.float().encode([given[0], given[3]], show_progress_bar=False)
    for name, bad in (("image", [given[1]]), ("item", ["a", given[2]])):
        try:
            text.encode(bad)
            facts[f"text encoder refused {name}"] = ""
        except ValueError as error:
            facts[f"text encoder refused {name}"] = str(error)
    np.savez(f"{job['out']}.npz", allow_pickle=False, **vectors)
    Path(f"{job['out']}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1])
