"""Export of a student of texts and images, in the layout and with the names of the public Jasper checkpoint.

One folder for ``AutoModel`` and sentence-transformers, with the code that puts image tokens among words
(``export/remote``, which a loader runs only when told to trust it). Every dimension has its own
``vector_linear_{dim}``; ``vector_dim`` in config.json, or in ``config_kwargs`` at loading, chooses among them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.encoders.hf_config import read_object
from jasper_jax.encoders.safetensors import SINGLE, write_safetensors
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.encoders.weights import config_of, state_dict
from jasper_jax.export.files import DTYPES, write_json
from jasper_jax.recipe.config import Export
from jasper_jax.student.dimensions import Provider
from jasper_jax.student.heads import nested_head
from jasper_jax.student.student import Student
from jasper_jax.vision.vision_model import END, IMAGE, IMAGE_TOKENS, START, VisionModel

CODE = ("configuration_jasper_vl.py", "modeling_jasper_vl.py", "sentence_jasper_vl.py")
"""Files of ``export/remote``, copied as they are."""
FILES = (*CODE, "preprocessor_config.json")
"""What such a folder has beside the files of a text-only export."""
_PARTS = {"siglip_vision_model": {"vision_use_head": False}, "dinov2": {"use_mask_token": False}}
"""Settings that leave out of a vision encoder what its token states do not pass through."""
_SPECIAL = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


def write_jasper_vl(
    folder: Path,
    *,
    student: Student,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    source: Path,
    served: Mapping[int, Provider],
    default: int,
    settings: Export,
) -> None:
    """Every file of such a folder except README.md and the marker.

    Args:
      student: with its ``vision_model``.
      params: ``encoder``, ``heads``, ``vision``, and ``projector`` where it has one.
      tokenizer: the student's, with the image tokens.
      source: where the names of the tokenizer's special tokens come from (``tokenizer_config.json``).
      served: the dimensions and the heads that provide them.
      default: ``vector_dim``.
    """
    vision_model = student.vision_model
    assert vision_model is not None
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(DTYPES[settings.dtype])
    tensors = {name: np.asarray(x).astype(dtype) for name, x in _tensors(student, vision_model, params, served).items()}
    write_safetensors(folder / SINGLE, tensors)
    write_json(folder / "config.json", _config(student, vision_model, list(served), default, settings))
    tokenizer.save(folder)
    write_json(folder / "tokenizer_config.json", _tokenizer_config(source, student.max_length))
    write_json(folder / "preprocessor_config.json", vision_model.preprocessing.to_hf())
    module = "sentence_jasper_vl.JasperVLModule"
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": module}])
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": student.max_length})
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": dict(student.prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    for name in CODE:
        with as_file(files("jasper_jax.export") / "remote" / name) as path:
            shutil.copyfile(path, folder / name)


def _tensors(
    student: Student, vision_model: VisionModel, params: Mapping[str, Any], served: Mapping[int, Provider]
) -> dict[str, np.ndarray]:
    """By the public checkpoint's names; a nested dimension is the first rows of its head. A head without a bias has
    one of zeros."""
    out = {f"model.{name}": x for name, x in state_dict(params["encoder"], student.encoder).items()}
    kind = vision_model.encoder.family.model_type
    prefix = "vision_model.vision_model." if kind == "siglip_vision_model" else "vision_model."
    out |= {f"{prefix}{name}": x for name, x in state_dict(params["vision"], vision_model.encoder).items()}
    for dim, provider in served.items():
        head = nested_head(params["heads"][provider.head], dim)
        out[f"vector_linear_{dim}.weight"] = np.asarray(head["kernel"]).T
        out[f"vector_linear_{dim}.bias"] = np.asarray(head["bias"]) if "bias" in head else np.zeros(dim, np.float32)
    if vision_model.projector != "none":
        out["vision_projector.weight"] = np.asarray(params["projector"]["kernel"]).T
        out["vision_projector.bias"] = np.asarray(params["projector"]["bias"])
    return out


def _config(
    student: Student, vision_model: VisionModel, dims: list[int], default: int, settings: Export
) -> dict[str, Any]:
    text = config_of(student.encoder)
    if student.encoder.family.has_causal:
        text["is_causal"] = student.encoder.config.causal
    modes = student.pooling.modes
    return {
        "model_type": "jasper_vl",
        "architectures": ["JasperVL"],
        "auto_map": {
            "AutoConfig": "configuration_jasper_vl.JasperVLConfig",
            "AutoModel": "modeling_jasper_vl.JasperVL",
        },
        "dtype": settings.dtype,
        "text_config": {**text, "dtype": settings.dtype},
        "vision_config": {
            **config_of(vision_model.encoder),
            **_PARTS.get(vision_model.encoder.family.model_type, {}),
            "dtype": settings.dtype,
        },
        "is_text_encoder": False,
        "vector_dim": default,
        "vector_dims": dims,
        "vector_dropout_p": student.vector_dropout,
        "num_img_tokens": vision_model.tokens,
        "img_start_token": START,
        "img_token": IMAGE,
        "img_end_token": END,
        "img_start_token_id": vision_model.start_id,
        "img_token_id": vision_model.image_id,
        "img_end_token_id": vision_model.end_id,
        "projector": vision_model.projector,
        "pooling_mode": modes[0] if len(modes) == 1 else list(modes),
        "normalize": settings.normalize,
    }


def _tokenizer_config(source: Path, max_length: int) -> dict[str, Any]:
    """The special tokens' roles. The class is the one that takes ``tokenizer.json`` as it is: those named after models
    make normalizers and templates anew."""
    path = source / "tokenizer_config.json"
    given = read_object(path) if path.is_file() else {}
    roles = {}
    for role in _SPECIAL:
        token = given.get(role)
        content = token.get("content") if isinstance(token, Mapping) else token
        if content is not None:
            roles[role] = content
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "padding_side": "right",
        **roles,
        "extra_special_tokens": list(IMAGE_TOKENS),
    }
