"""Students of texts and images with random weights, and their exported folders."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.encoders.weights import save
from jasper_jax.export.jasper_vl import write_jasper_vl
from jasper_jax.export.model import TrainedStudent
from jasper_jax.recipe.config import Export
from jasper_jax.student.dimensions import providers
from jasper_jax.student.heads import HeadShape
from jasper_jax.student.student import Student
from jasper_jax.vision.encoder import vision_from_config
from jasper_jax.vision.images import open_image
from jasper_jax.vision.preprocess import default_for
from jasper_jax.vision.vision_model import make_vision_model, with_image_tokens
from jasper_jax.vision.words import grow_words, with_vocabulary
from tests.export.vision_students import QUERY, VISION, inputs, parts_of, run_torch
from tests.tiny import write_model

pytest.importorskip("torch")
pytest.importorskip("PIL")


CASES = {
    "siglip": ("qwen2-bidirectional", "siglip_vision_model", 300, "none"),
    "dinov2": ("bert", "dinov2", 9, "linear"),
    "clip": ("mpnet", "clip_vision_model", 20, "linear"),
    "joint": ("bert", "dinov2", 5, "joint"),
}


class Case:
    """A student with random weights, its folder, and what torch made of it."""

    def __init__(self, name: str, place: Path, dtype: str = "float32"):
        text, vision, tokens, projector = CASES[name]
        source = write_model(place / "text-source", model_type=text, layers=2)
        folder = read_model_folder(source)
        longest = 700 if text.startswith("qwen2") else 60
        tokenizer = with_image_tokens(Tokenizer.load(source, longest))
        encoder = encoder_from_config({**folder.hf_config, "max_position_embeddings": max(longest, 64)})
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, **VISION[vision]}
        tower = vision_from_config({"model_type": vision, **sizes})
        self.vision_model = make_vision_model(
            tower,
            default_for(vision).with_size(28),
            tokens=tokens,
            width=encoder.hidden_size,
            projector=projector,
            tokenizer=tokenizer,
            max_length=longest,
        )
        rows = max(encoder.vocab_size, self.vision_model.end_id + 1)
        heads = {"fc1": HeadShape(24, (24, 12), True), "fc2": HeadShape(8, (8,), False)}
        self.student = Student(
            encoder=with_vocabulary(encoder, rows),
            pooling=Pooling(),
            heads=heads,
            prompts={"query": QUERY, "passage": ""},
            max_length=longest,
            compute_dtype="float32",
            remat="none",
            dropout=0.0,
            vector_dropout=0.2,
            vision_model=self.vision_model,
        )
        noise = jax.random.key(5)
        drawn = self.student.init(1)
        drawn = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.fold_in(noise, x.size), x.shape), drawn)
        self.params = {**drawn, "encoder": grow_words(drawn["encoder"], rows)}
        self.tokenizer, self.folder, self.source = tokenizer, place / "export", source
        self.write(self.folder, dtype)
        save(self.params["encoder"], self.student.encoder, place / "text")
        save(self.params["vision"], tower, place / "vision")
        self.place = place

    def write(self, folder: Path, dtype: str = "float32") -> None:
        write_jasper_vl(folder, self.trained(Export(dtype=dtype)))

    def trained(self, settings: Export) -> TrainedStudent:
        served = providers(self.student.heads, {})
        return TrainedStudent(self.student, self.params, self.tokenizer, self.source, served, 12, settings)

    def torch(self) -> dict:
        """What ``tests.export.vision_students`` makes of it."""
        given = inputs(self.place / "pictures")
        arrays: dict[str, np.ndarray] = {}
        for i, one in enumerate(map(parts_of, given)):
            text = "".join(part if isinstance(part, str) else self.vision_model.written for part in one)
            for kind, prompt in (("query", QUERY), ("passage", "")):
                prompt = prompt if isinstance(one[0], str) else ""
                (arrays[f"{kind}/ids/{i}"],) = (x.astype(np.int64) for x in self.tokenizer.encode([prompt + text]))
            if pixels := [self.pixels(part) for part in one if not isinstance(part, str)]:
                arrays[f"pixels/{i}"] = np.stack(pixels)
        for dim, head in ((24, "fc1"), (12, "fc1"), (8, "fc2")):
            arrays[f"kernel/{dim}"] = np.asarray(self.params["heads"][head]["kernel"])[:, :dim]
            bias = self.params["heads"][head].get("bias", np.zeros(dim, np.float32))
            arrays[f"bias/{dim}"] = np.asarray(bias)[:dim]
        for name, x in self.params.get("projector", {}).items():
            arrays[f"projector/{name}"] = np.asarray(x)
        np.savez(self.place / "given.npz", allow_pickle=False, **arrays)
        return run_torch(
            self.place,
            folder=str(self.folder),
            text=str(self.place / "text"),
            vision=str(self.place / "vision"),
            given=str(self.place / "given.npz"),
            inputs=len(given),
            tokens=self.vision_model.tokens,
            projector=self.vision_model.projector != "none",
            image_id=self.vision_model.image_id,
        )

    def pixels(self, image) -> np.ndarray:
        """[3, S, S], as transformers wants them."""

        levels = self.vision_model.preprocessing.prepare(open_image(image, "test"))
        return np.asarray(self.vision_model.preprocessing.normalise(levels)).transpose(2, 0, 1)
