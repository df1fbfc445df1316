"""Converts DINOv2-S/14 from an ONNX file, in which it is the backbone of another model, to a transformers folder.

Norms, biases and layer scales have transformers' names after ``backbone.``. Matrices have lost their names; the
operations that use them identify them. The class token plus its position, and the positions of patches, are constants;
their shapes and uses identify them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from jasper_jax.encoders.safetensors import write_safetensors
from jasper_jax.runtime.errors import UserError

CONFIG = {
    "architectures": ["Dinov2Model"],
    "dtype": "float32",
    "hidden_act": "gelu",
    "hidden_size": 384,
    "image_size": 518,
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 6,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 14,
    "qkv_bias": True,
    "use_mask_token": False,
    "use_swiglu_ffn": False,
}
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}
_BACKBONE, _FIRST, _POSITIONS = "backbone.", (1, 1, 384), (1, 37 * 37, 384)


def convert(folder: Path) -> None:
    """``vit_s_focus.onnx`` in ``folder`` -> ``config.json``, ``model.safetensors``, ``preprocessor_config.json`` there.

    Raises:
      UserError: onnx is not installed.
      ValueError: the file does not have the expected constants.
    """
    try:
        import onnx
    except ImportError:
        raise UserError("asset 'dinov2-small' needs onnx: pip install 'jasper-jax[vision]', then run again") from None
    graph = onnx.load(folder / "vit_s_focus.onnx").graph
    floats = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in floats}
    tensors = {n.removeprefix(_BACKBONE): x for n, x in weights.items() if n.startswith(_BACKBONE)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in weights:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{name}.weight"] = weights[node.input[1]].T
    patches = [x for x in weights.values() if x.shape == _POSITIONS]
    joined = [n.input[0] for n in graph.node if n.op_type == "Concat" and n.name.startswith("/backbone/embeddings/")]
    first = [weights[name] for name in joined if name in weights and weights[name].shape == _FIRST]
    if len(patches) != 1 or len(first) != 1:
        raise ValueError(
            f"{folder}: expected 1 table of positions and 1 class token, got {len(patches)} and {len(first)}"
        )
    tensors["embeddings.position_embeddings"] = np.concatenate([first[0], patches[0]], axis=1)
    write_safetensors(folder / "model.safetensors", tensors)
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", PROCESSOR)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
