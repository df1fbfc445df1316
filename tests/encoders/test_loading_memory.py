"""Loading a model holds it once: what the host allocates stays near the bytes of the parameters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.encoders.safetensors import write_safetensors

CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 40_000,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 2048,
    "is_causal": False,
}
LOAD = """
import json, sys, threading, time
import jax, jax.numpy as jnp
from jasper_jax.encoders.registry import encoder_from_folder
from jasper_jax.encoders.weights import load_params

def anonymous():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

encoder = encoder_from_folder(sys.argv[1])
jax.block_until_ready(jnp.zeros(3))
before, peak, done = anonymous(), [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
params = jax.block_until_ready(load_params(sys.argv[1], encoder, dtype=sys.argv[2]))
done.set()
watcher.join()
held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(json.dumps({"held": held, "peak": peak[0] - before, "after": anonymous() - before}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint of 53 million parameters in bfloat16."""
    folder = tmp_path_factory.mktemp("large")
    encoder = encoder_from_config(CONFIG)
    shapes, tensors = encoder.shapes(), {}
    for weight in encoder.family.weights(encoder.config):
        shape = shapes[weight.path]
        stacked = weight.path.startswith("layers/")
        one = shape[1:] if stacked else shape
        for i in range(shape[0] if stacked else 1):
            tensor = np.ones(one[::-1] if weight.transpose else one, ml_dtypes.bfloat16)
            tensors[weight.name.format(i)] = tensor
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 2), ("float32", 4)])
def test_peak_memory_of_loading(folder: Path, dtype: str, width: int) -> None:
    run = subprocess.run([sys.executable, "-c", LOAD, folder, dtype], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert found["held"] > 50e6 * width
    assert 0.9 * found["held"] < found["peak"] < 1.3 * found["held"]
