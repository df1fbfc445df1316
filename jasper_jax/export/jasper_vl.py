"""Export of a student of texts and images, in the layout and with the names of the public Jasper checkpoint.

One folder for ``AutoModel`` and sentence-transformers, with the code that inserts image tokens among words
(``export/remote``, which a loader runs only with ``trust_remote_code``). Every dimension has its own
``vector_linear_{dim}``; ``vector_dim`` in config.json, or in ``config_kwargs`` when loading, selects one.
"""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.encoders.safetensors import SINGLE, write_safetensors
from jasper_jax.encoders.weights import config_of, state_dict
from jasper_jax.export.model import TrainedStudent, exported_prompts, write_json
from jasper_jax.export.tokenizer import write_tokenizer
from jasper_jax.vision.vision_model import END, IMAGE, IMAGE_TOKENS, START, VisionModel

CODE = ("configuration_jasper_vl.py", "modeling_jasper_vl.py", "sentence_jasper_vl.py")
"""Files of ``export/remote``, copied verbatim."""
MODULE = "sentence_jasper_vl.JasperVLModule"
AUTO_MAP = {"AutoConfig": "configuration_jasper_vl.JasperVLConfig", "AutoModel": "modeling_jasper_vl.JasperVL"}
"""The names by which they are loaded: of modules.json and of config.json."""
_PARTS = {"siglip_vision_model": {"vision_use_head": False}, "dinov2": {"use_mask_token": False}}
"""Settings that remove from a vision encoder the layers that its token states do not pass through."""


def write_jasper_vl(folder: Path, trained: TrainedStudent) -> None:
    """Write every file of such a folder except README.md and the marker; the student has a ``vision_model``."""
    student, vision_model = trained.student, trained.student.vision_model
    assert vision_model is not None
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.asarray(x).astype(trained.dtype) for name, x in _tensors(trained, vision_model).items()}
    write_safetensors(folder / SINGLE, tensors)
    write_json(folder / "config.json", _config(trained, vision_model))
    write_tokenizer(folder, trained.tokenizer, trained.source, "jasper_vl", IMAGE_TOKENS)
    write_json(folder / "preprocessor_config.json", vision_model.preprocessing.to_hf())
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": MODULE}])
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": student.max_length})
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": exported_prompts(student.prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    for name in CODE:
        with as_file(files("jasper_jax.export") / "remote" / name) as path:
            shutil.copyfile(path, folder / name)


def _tensors(trained: TrainedStudent, vision_model: VisionModel) -> dict[str, np.ndarray]:
    """The tensors by the public checkpoint's names; a head without a bias gets one of zeros."""
    params = trained.params
    out = {f"model.{name}": x for name, x in state_dict(params["encoder"], trained.student.encoder).items()}
    kind = vision_model.encoder.family.model_type
    prefix = "vision_model.vision_model." if kind == "siglip_vision_model" else "vision_model."
    out |= {f"{prefix}{name}": x for name, x in state_dict(params["vision"], vision_model.encoder).items()}
    for dim in trained.served:
        head = trained.head(dim)
        out[f"vector_linear_{dim}.weight"] = np.asarray(head["kernel"]).T
        out[f"vector_linear_{dim}.bias"] = np.asarray(head["bias"]) if "bias" in head else np.zeros(dim, np.float32)
    if vision_model.projector != "none":
        out["vision_projector.weight"] = np.asarray(params["projector"]["kernel"]).T
        out["vision_projector.bias"] = np.asarray(params["projector"]["bias"])
    return out


def _config(trained: TrainedStudent, vision_model: VisionModel) -> dict[str, Any]:
    student, dtype = trained.student, trained.settings.dtype
    text = config_of(student.encoder)
    if student.encoder.family.has_causal:
        text["is_causal"] = student.encoder.config.causal
    modes = student.pooling.modes
    return {
        "model_type": "jasper_vl",
        "architectures": ["JasperVL"],
        "auto_map": AUTO_MAP,
        "dtype": dtype,
        "text_config": {**text, "dtype": dtype},
        "vision_config": {
            **config_of(vision_model.encoder),
            **_PARTS.get(vision_model.encoder.family.model_type, {}),
            "dtype": dtype,
        },
        "is_text_encoder": False,
        "vector_dim": trained.default,
        "vector_dims": list(trained.served),
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
        "normalize": trained.settings.normalize,
    }
