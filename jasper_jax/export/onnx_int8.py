"""``onnx/model_quantized.onnx``: an ONNX model with int8 matrices, made by onnxruntime's dynamic quantisation.

The matrices of the encoder and its embedding table are stored in int8; activations are quantised as they come, so no
calibration is needed. The heads stay float32: they are small, and their error is that of the vector.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.evaluation.agreement import score_agreement
from jasper_jax.export.onnx_in_torch import SENTENCE

OPERATORS = ("MatMul", "Gather")
"""What is quantised: products of matrices, and tables that are looked up."""


def quantize_model(source: Path, out: Path, external: bool) -> None:
    """Write the int8 form of ``source`` to ``out``; ``external``: with its weights in a file beside it."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-not-found]

    heads = head_nodes(onnx.load(source, load_external_data=False).graph)
    with _quiet():
        quantize_dynamic(
            source,
            out,
            op_types_to_quantize=list(OPERATORS),
            weight_type=QuantType.QInt8,
            per_channel=True,
            # The quantiser first makes a Gemm two nodes, the first of which has this name.
            nodes_to_exclude=[*heads, *(f"{name}_MatMul" for name in heads)],
            use_external_data_format=external,
        )


def head_nodes(graph: Any) -> list[str]:
    """The names of the last matrix products before each vector of the graph: its heads."""
    made_by = {name: node for node in graph.node for name in node.output}
    waiting, found = [o.name for o in graph.output if o.name.startswith(SENTENCE)], {}
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.op_type in ("MatMul", "Gemm"):
            found[node.name] = None
        elif node is not None:
            waiting += node.input
    return list(found)


def agreement_lost(floats: Sequence[np.ndarray], codes: Sequence[np.ndarray]) -> float:
    """1 - the Spearman correlation of the similarities of all pairs of texts, of the worst dimension.

    ``floats`` and ``codes``: the vectors ``[n, E]`` of each dimension, of the float32 and the int8 model.
    """
    scores = [score_agreement(b, a).spearman for a, b in zip(floats, codes, strict=True)]
    return 1.0 - min(-1.0 if score is None else score for score in scores)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice to pre-process, on the root logger: the graph has its shapes."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
