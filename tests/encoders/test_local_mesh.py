"""The embedder on several devices of one process: the vectors of one device, and parameters where they fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jasper_jax.encoders.local_mesh import local_mesh, mesh_sizes_for
from tests.tiny import write_model

GIB = 2**30

CODE = """
import json, sys
from unittest import mock
import jax, numpy as np
from jasper_jax.embedder import Embedder
from jasper_jax.encoders import local_mesh
from jasper_jax.parameters.sharding import mesh_sizes_of
from tests.tiny import sentences

compiled = []
def note(event, *_, **more):
    if "backend_compile" in event:
        compiled.append(more.get("fun_name", event))

jax.monitoring.register_event_duration_secs_listener(note)

texts = [" ".join(sentences(1 + i % 9)) for i in range(150)]
def run(devices=None, memory=None):
    with mock.patch.object(jax, "local_devices", return_value=jax.devices()[:devices]):
        with mock.patch.object(type(jax.devices()[0]), "memory_stats", return_value=memory and {"bytes_limit": memory}):
            model = Embedder.load(sys.argv[1])
    kernel = model.params["layers"]["feed_forward"]["down"]["kernel"]
    before = len(compiled)
    vectors = model.encode(texts, "query", batch_tokens=2048)
    first = len(compiled) - before
    again = model.encode(texts, "query", batch_tokens=2048)
    share = kernel.addressable_shards[0].data.size / kernel.size
    return vectors, {
        "mesh": mesh_sizes_of(model.mesh), "share": share, "devices": len(kernel.sharding.device_set),
        "shapes": len(model._model._compiled), "compiled": first, "again": len(compiled) - before - first,
        "repeats": bool((vectors == again).all()),
    }

one, _ = run(1)
found = {}
for name, memory in (("replicated", None), ("sharded", 1000)):
    vectors, found[name] = run(memory=memory)
    found[name]["error"] = float(np.abs(vectors - one).max())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    model = write_model(tmp_path_factory.mktemp("models") / "model")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", CODE, str(model)]
    run = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "mesh", "share"), [("replicated", [8, 1, 1], 1), ("sharded", [1, 8, 1], 1 / 8)])
def test_eight_devices_give_the_vectors_of_one(found, name, mesh, share):
    case = found[name]
    assert (case["mesh"], case["share"], case["devices"]) == (mesh, share, 8)
    assert case["error"] < 2e-6
    assert case["repeats"]


@pytest.mark.parametrize("name", ["replicated", "sharded"])
def test_programs_are_compiled_once_and_beforehand(found, name):
    """Two a shape, the encoder's and the output's: a batch compiles nothing that was not compiled ahead of it."""
    case = found[name]
    assert case["shapes"] > 1
    assert case["compiled"] == 2 * case["shapes"]
    assert case["again"] == 0


@pytest.mark.parametrize(
    ("gib", "devices", "memory", "sizes"),
    [
        (3, 8, 80, (8, 1, 1)),
        (14.6, 8, 80, (8, 1, 1)),
        (14.6, 4, 15.75, (2, 2, 1)),
        (14.6, 8, 15.75, (4, 2, 1)),
        (60, 8, 15.75, (1, 8, 1)),
        (600, 8, 15.75, (1, 8, 1)),
        (14.6, 1, 15.75, (1, 1, 1)),
        (14, 6, 8, (2, 3, 1)),
        (14.6, 4, None, (4, 1, 1)),
    ],
)
def test_parameters_are_sharded_over_as_few_devices_as_hold_them(gib, devices, memory, sizes):
    assert mesh_sizes_for(int(gib * GIB), devices, None if memory is None else int(memory * GIB)) == sizes


def test_devices_are_those_of_the_process():
    assert set(local_mesh(1).devices.flat) == set(jax.local_devices())
