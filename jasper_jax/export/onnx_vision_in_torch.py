"""Writes the two ONNX graphs of a model of texts and images, in a separate process as ``onnx_in_torch``:
``model.onnx`` for texts, and ``vision_model.onnx`` for images, each an input of its own.

The modules are this package's own (``export/remote``), not the copies in the folder, which may be somebody else's. The
image graph's input is ``pixel_values`` float32 ``[N, 3, S, S]``, as the folder's preprocessor makes them; its outputs
are ``image_embeds`` ``[N, E]`` and ``image_embeds_{dim}`` for each further dimension, as transformers.js names them.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jasper_jax.export.onnx_in_torch import (
    IMAGE,
    MODEL,
    PIXELS,
    VISION,
    output_names,
    outputs_by_dim,
    save_graph,
    two_texts,
)
from jasper_jax.export.remote.configuration_jasper_vl import JasperVLConfig
from jasper_jax.export.remote.modeling_jasper_vl import JasperVL, pool
from jasper_jax.teachers.torch_settings import no_code
from jasper_jax.vision.resampling import pooling_matrix


def load(folder: Path) -> JasperVL:
    """The model of an exported folder, in float32."""
    config: Any = JasperVLConfig.from_pretrained(folder)
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = "eager"  # as in the graphs of texts
    return JasperVL.from_pretrained(folder, config=config, dtype=torch.float32).eval()


class Heads(torch.nn.Module):
    """States ``[B, L, D]`` -> a normalised vector ``[B, E]`` for each of ``dims``."""

    def __init__(self, model: JasperVL, dims: Sequence[int]):
        super().__init__()
        self.modes = model.pooling_modes
        self.heads = torch.nn.ModuleList(getattr(model, f"vector_linear_{dim}") for dim in dims)

    def forward(self, states, mask):
        pooled = torch.cat([pool(states, mask, mode) for mode in self.modes], -1)
        return tuple(torch.nn.functional.normalize(head(pooled), dim=-1) for head in self.heads)


class Texts(torch.nn.Module):
    """Token ids and their mask -> the states of tokens, and the vectors."""

    def __init__(self, model: JasperVL, dims: Sequence[int]):
        super().__init__()
        self.encoder, self.heads = model.model, Heads(model, dims)

    def forward(self, input_ids, attention_mask):
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states, *self.heads(states, attention_mask.to(torch.int32))


class Images(torch.nn.Module):
    """Pixels -> the vectors of images, each alone between the tokens ``alone`` that an image is written with.
    ``example``: pixels of the only size that it takes."""

    def __init__(self, model: JasperVL, dims: Sequence[int], alone: Sequence[int], example: torch.Tensor):
        super().__init__()
        config: Any = model.config
        self.encoder, self.heads = model.model, Heads(model, dims)
        self.vision, self.projector = model.vision_model, getattr(model, "vision_projector", None)
        vision = config.vision_config
        resized = vision.model_type != "dinov2" and example.shape[-1] != vision.image_size  # DINOv2 always does
        self.options = {"interpolate_pos_encoding": True} if resized else {}
        self.shape = (config.num_img_tokens, config.text_config.hidden_size)
        at = [i for i, token in enumerate(alone) if token == config.img_token_id]
        with torch.no_grad():
            words = model.get_input_embeddings()(torch.tensor(alone))
            _, patches, width = self.fixed_states(example).shape
        columns = self.shape[1] if self.projector is None else width
        parts = {
            "before": words[: at[0]],
            "after": words[at[-1] + 1 :],
            "rows": averages(patches, self.shape[0]),
            "columns": averages(width, columns).T,
        }
        for name, part in parts.items():
            self.register_buffer(name, part)

    def states(self, pixel_values):
        return self.vision(pixel_values=pixel_values, **self.options).last_hidden_state

    def fixed_states(self, example):
        """:meth:`states`; from now on tables of positions are constants, those of ``example``'s size."""

        def once(part, resize):
            def call(*arguments, **named):
                found = resize(*arguments, **named).detach()
                part.interpolate_pos_encoding = lambda *_, **__: found
                return found

            return call

        part: Any
        for part in self.vision.modules():
            if resize := getattr(part, "interpolate_pos_encoding", None):
                part.interpolate_pos_encoding = once(part, resize)
        return self.states(example)

    def forward(self, pixel_values):
        tokens = self.rows @ self.states(pixel_values) @ self.columns
        if self.projector is not None:
            tokens = self.projector(tokens.reshape(len(tokens), -1, self.projector.in_features))
        tokens = tokens.reshape(len(tokens), *self.shape)
        sides: Any = (self.before, self.after)
        before, after = (side.expand(len(tokens), -1, -1) for side in sides)
        embeddings = torch.cat([before, tokens, after], 1)
        states = self.encoder(inputs_embeds=embeddings).last_hidden_state
        return self.heads(states, torch.ones_like(embeddings[:, :, 0], dtype=torch.int32))


def averages(size: int, cells: int):
    """Adaptive average pooling, for which ONNX has no operator, as a matrix ``[cells, size]``."""
    return torch.from_numpy(pooling_matrix(size, cells).astype(np.float32))


def main(job_file: str) -> None:
    """Write both graphs of the job's ``folder`` into its ``place``, with its ``dims``, the default first, and its
    ``opset``; ``alone`` are the token ids of an input that is one image of ``pixels`` by ``pixels``."""
    job = json.loads(Path(job_file).read_text("utf-8"))
    place, dims, opset = Path(job["place"]), job["dims"], job["opset"]
    example = torch.zeros(2, 3, job["pixels"], job["pixels"])
    with warnings.catch_warnings(), no_code():
        warnings.simplefilter("ignore")  # of the exporter, on its own code
        model = load(Path(job["folder"]))
        save_graph(Texts(model, dims), two_texts(), output_names(dims), place / MODEL, opset=opset)
        images = {PIXELS: (example, {0: "batch"})}
        vision, vectors = Images(model, dims, job["alone"], example), outputs_by_dim(IMAGE, dims)
        save_graph(vision, images, vectors, place / VISION, opset=opset)


if __name__ == "__main__":
    main(sys.argv[1])
