"""Writes an exported folder as one ONNX graph, in a separate process: ``python -m jasper_jax.export.onnx_in_torch
job.json``.

sentence-transformers loads the folder and its own modules are exported, so that the graph is what it computes. Inputs
are ``input_ids`` and ``attention_mask``, int64 ``[B, L]``; outputs :data:`TOKENS` ``[B, L, D]``, :data:`SENTENCE`
``[B, E]`` and ``sentence_embedding_{dim}`` for each further dimension. B and L are dynamic. Models of texts and images:
``onnx_vision_in_torch``.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jasper_jax.teachers.torch_settings import no_code

TOKENS = "last_hidden_state"
"""States of the last layer: the name that optimum, sentence-transformers and transformers.js ask for."""
SENTENCE = "sentence_embedding"
"""L2-normalised vectors of the default dimension."""
INPUTS = ("input_ids", "attention_mask")
MODEL, VISION = "model.onnx", "vision_model.onnx"
INLINE = 1_500_000_000
"""Bytes of weights that the ONNX file itself may hold (protobuf ends at 2 GiB); more are in ``model.onnx_data``."""


IMAGE, PIXELS = "image_embeds", "pixel_values"
"""The output and the input of the graph of images, as transformers.js names them."""


def outputs_by_dim(name: str, dims: Sequence[int]) -> list[str]:
    """The outputs of vectors called ``name`` with ``dims``, the default first."""
    return [name, *(f"{name}_{dim}" for dim in dims[1:])]


def output_names(dims: Sequence[int]) -> list[str]:
    """The outputs of a graph with ``dims``, the default first."""
    return [TOKENS, *outputs_by_dim(SENTENCE, dims)]


def main(job_file: str) -> None:
    """Write the graph of the job's ``folder`` into its ``place``, with its ``dims``, the default first, and its
    ``opset``."""
    job = json.loads(Path(job_file).read_text("utf-8"))
    with warnings.catch_warnings(), no_code():
        warnings.simplefilter("ignore")  # of the exporter, on its own code
        write_graph(Path(job["folder"]), Path(job["place"]) / MODEL, job["dims"], job["opset"])


def write_graph(folder: Path, out: Path, dims: Sequence[int], opset: int, inline: int = INLINE) -> None:
    """Write the graph of ``folder``, a model of texts, to ``out``; ``opset``, ``inline``: as of :func:`save_graph`."""
    import torch
    from sentence_transformers import SentenceTransformer

    # Plain matrix products and a softmax: the fused attention's guards of empty rows cost time, and no row is empty.
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"attn_implementation": "eager"})
    steps = list(model.float().eval())
    dense: Any = type(next(step for step in steps if type(step).__name__ == "Dense"))  # its module moved in 6
    heads = [dense.load(str(folder / f"2_Dense_{dim}")).float().eval() for dim in dims]

    class Sentence(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder: Any = steps[0].model
            self.pooling, self.heads = steps[1], torch.nn.ModuleList(heads)

        def forward(self, input_ids, attention_mask):
            tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.to(torch.int32)  # older versions of onnxruntime find no maximum of int64
            pooled = self.pooling({"token_embeddings": tokens, "attention_mask": mask})
            vectors = (head({"sentence_embedding": pooled["sentence_embedding"]}) for head in self.heads)
            return tokens, *(torch.nn.functional.normalize(v["sentence_embedding"], dim=-1) for v in vectors)

    save_graph(Sentence(), two_texts(), output_names(dims), out, opset=opset, inline=inline)


def two_texts() -> dict[str, tuple[Any, dict[int, str]]]:
    """Inputs to trace with: two texts, one of them padded, and the axes that vary."""
    import torch

    ids = torch.full((2, 7), 3)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    axes = {0: "batch", 1: "sequence"}
    return dict(zip(INPUTS, ((ids, axes), (mask, axes)), strict=True))


def save_graph(
    module: Any,
    given: Mapping[str, tuple[Any, dict[int, str]]],
    outputs: Sequence[str],
    out: Path,
    *,
    opset: int,
    inline: int = INLINE,
) -> None:
    """Write ``module`` to ``out``; above ``inline`` bytes its weights go to ``{out}_data``. ``given``: by the name of
    an input, an example and the names of its axes that vary."""
    import onnx
    import torch

    with torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(example for example, _ in given.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(given),
            output_names=list(outputs),
            dynamic_shapes={name: axes for name, (_, axes) in given.items()},
            verbose=False,
        )
    assert program is not None
    graph = _without_traces(program.model_proto)
    if graph.ByteSize() > inline:
        onnx.save_model(graph, str(out), save_as_external_data=True, location=f"{out.name}_data", size_threshold=1024)
    else:
        onnx.save_model(graph, str(out))


def _without_traces(model):
    """The model without the exporter's stack traces, which have the paths of this machine."""
    del model.metadata_props[:]
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        del graph.metadata_props[:]
        for item in (*graph.node, *graph.value_info):
            del item.metadata_props[:]
            item.doc_string = ""
    for item in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    return model


if __name__ == "__main__":
    main(sys.argv[1])
