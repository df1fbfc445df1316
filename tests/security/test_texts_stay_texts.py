"""A text may be a path or an address: a model of texts and images is not asked to open it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jasper_jax.recipe.config import Teacher
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.torch_teacher import TorchEncoder
from tests.tiny import write_tokenizer

pytest.importorskip("sentence_transformers")
PIL = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sentence-transformers takes texts and images to."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    vocabulary = write_tokenizer(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    text = {**sizes, **ids, "vocab_size": vocabulary, "max_position_embeddings": 64}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, PreTrainedTokenizerFast.from_pretrained(folder)).save_pretrained(folder)
    return folder


def teacher(folder: Path) -> Callable[[list[str]], np.ndarray]:
    settings = Teacher(name="t", model=str(folder), backend="torch", dim=8, dtype="float32")
    encoder = TorchEncoder(settings, folder, {"query": "what is "})
    assert "image" in encoder._model.modalities, "else no text is taken for one"
    return lambda texts: encoder(texts, ["query", "passage"] * (len(texts) // 2))


def scored(folder: Path) -> Callable[[list[str]], np.ndarray]:
    pytest.importorskip("mteb")
    from jasper_jax.benchmarks.encoder import torch_model

    model = torch_model(folder, {})
    return lambda texts: model.encode(texts, None, 8)


@pytest.mark.parametrize("load", [teacher, scored])
def test_no_text_is_opened(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import image_utils

    monkeypatch.setattr(image_utils, "load_image", lambda *_: pytest.fail("an image was loaded"))
    encode, private = load(clip), tmp_path / "private.png"
    PIL.new("RGB", (16, 16), "blue").save(private)
    addresses = ["http://localhost:9/latest/meta-data/x.png", "data:image/png;base64,AAAA"]
    first = encode([str(private), *addresses, str(private)])
    PIL.new("RGB", (16, 16), "red").save(private)
    np.testing.assert_array_equal(first, encode([str(private), *addresses, str(private)]))
    private.unlink()
    np.testing.assert_array_equal(first, encode([str(private), *addresses, str(private)]))
    if load is teacher:
        plain = SentenceTransformer(str(clip), device="cpu")
        np.testing.assert_allclose(encode(["a map", "a map"])[1], plain.encode("a map"), rtol=1e-5)
        np.testing.assert_allclose(encode(["a map", "a map"])[0], plain.encode("what is a map"), rtol=1e-5)


@pytest.mark.parametrize("prompt", ["{}/private.png", "https://localhost:9/x.png", "data:image/png;base64,AAAA"])
def test_no_prompt_is_opened(clip: Path, tmp_path: Path, prompt: str) -> None:
    """sentence-transformers counts the tokens of a prompt, and takes it for an input of its own."""
    PIL.new("RGB", (16, 16), "blue").save(tmp_path / "private.png")
    settings = Teacher(name="t", model=str(clip), backend="torch", dim=8)
    encoder = TorchEncoder(settings, clip, {"query": prompt.format(tmp_path)})
    with pytest.raises(UserError, match="is a path or an address, which a model of images would open; set another one"):
        encoder(["a map"], ["query"])
    assert encoder(["a map"], ["passage"]).shape == (1, 8)
