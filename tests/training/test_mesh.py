"""One step, any mesh: losses and parameters do not depend on the devices, and each device holds its part alone."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.parameters.sharding import AXES, place
from jasper_jax.runtime.errors import UserError
from tests.families import CASES as FAMILIES

ONE = (1, 1, 1)
CASES: dict[str, dict] = {
    **{f"stage {n}": {"mesh": ONE, "stage": n} for n in (1, 2, 3)},
    "stage 1, 1x8x1": {"mesh": (1, 8, 1), "stage": 1, "count": True},
    "stage 2, 2x2x2": {"mesh": (2, 2, 2), "stage": 2, "count": True},
    "stage 3, 1x2x1": {"mesh": (1, 2, 1), "stage": 3},
    "stage 3, 8x1x1": {"mesh": (8, 1, 1), "stage": 3},
    "stage 3, 1x8x1": {"mesh": (1, 8, 1), "stage": 3, "count": True},
    "stage 3, 2x2x2": {"mesh": (2, 2, 2), "stage": 3},
    "stage 3, micro": {"mesh": ONE, "stage": 3, "micro": 4},
    "stage 3, 1x4x2, micro": {"mesh": (1, 4, 2), "stage": 3, "micro": 4},
    "online": {"mesh": ONE, "stage": 3, "online": True},
    "online, 2x2x2, micro": {"mesh": (2, 2, 2), "stage": 3, "online": True, "micro": 4},
    "stage 4": {"mesh": ONE, "stage": 4},
    "stage 4, 1x8x1": {"mesh": (1, 8, 1), "stage": 4},
    "stage 4, 2x2x2, micro": {"mesh": (2, 2, 2), "stage": 4, "micro": 4},
    "float32": {"mesh": ONE, "stage": 3, "dtype": "float32", "rate": 1e-4},
    "float32, 2x2x2": {"mesh": (2, 2, 2), "stage": 3, "dtype": "float32", "rate": 1e-4},
    "relative": {"sizes": ONE, "method": "partitioned"},
    "relative, 128 texts": {"sizes": ONE, "method": "partitioned", "texts": 128},
    "relative, 128 texts, 8": {"sizes": (1, 8, 1), "method": "merged", "texts": 128},
    "rows": {"sizes": ONE, "texts": 256},
    "rows, 2x2x2": {"sizes": (2, 2, 2), "texts": 256},
    **{
        f"relative, {method}, {name}": {"sizes": sizes, "method": method}
        for method in ("tiled", "merged")
        for name, sizes in {"8": (1, 8, 1), "2x2x2": (2, 2, 2)}.items()
    },
}
FULL = (
    *("stage 3, 1x2x1", "stage 3, 8x1x1", "stage 3, 2x2x2", "stage 3, micro", "stage 4, 1x8x1"),
    *("float32", "float32, 2x2x2", "relative, tiled, 2x2x2", "relative, merged, 8"),
)
"""Cases of the long campaign: what they add is between the others."""


def case(name: str, *values):
    return pytest.param(name, *values, marks=[pytest.mark.full] if name in FULL else [])


ZERO_GRADIENT = "attention/key/bias"
"""Adds the same to all scores of a query: its true gradient is zero, and Adam makes steps of the rounding."""


@pytest.fixture(scope="module")
def found(tmp_path_factory, request) -> dict[str, dict]:
    place = tmp_path_factory.mktemp("meshes")
    full = request.config.getoption("--full")
    (place / "cases").write_bytes(pickle.dumps({k: v for k, v in CASES.items() if full or k not in FULL}))
    environment = {
        **os.environ,
        "JAX_ENABLE_X64": "1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0" if full else "1",  # half of the time, and the same partitioning
    }
    command = [sys.executable, "-m", "tests.training.on_meshes", str(place), str(place / "cases"), str(place / "out")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads((place / "out").read_bytes())


def base_of(name: str) -> str:
    return name.partition(",")[0]


@pytest.mark.parametrize(
    "name",
    [case(name) for name, settings in CASES.items() if "," in name and "stage" in settings],
)
def test_a_mesh_changes_nothing(found, name: str) -> None:
    run, base = found[name], found[base_of(name)]
    loss, leaf = (1e-5, 1e-4) if name.startswith("float32") else (1e-9, 1e-9)
    np.testing.assert_allclose(run["losses"], base["losses"], rtol=loss)
    np.testing.assert_allclose(run["norms"], base["norms"], rtol=100 * loss)
    for leaf_name, value in base["parameters"].items():
        if not leaf_name.endswith(ZERO_GRADIENT):
            away = np.linalg.norm(run["parameters"][leaf_name] - value)
            assert away <= leaf * np.linalg.norm(value), leaf_name
    assert min(base["moved"].values()) > 0  # else all would agree


def test_devices_hold_their_part_alone(found) -> None:
    one, eight = found["stage 3"], found["stage 3, 1x8x1"]
    assert set(one["shares"].values()) == {1.0}
    large = [name for name in eight["moved"] if name.endswith(("kernel", "embedding"))]
    assert {eight["shares"][name] for name in large} == {1 / 8}
    moments = [share for path, share in eight["moments"].items() if path.endswith(("kernel']", "embedding']"))]
    assert set(moments) == {1 / 8}
    assert len(moments) == 2 * len(large)


@pytest.mark.parametrize(("name", "trained"), [("stage 1, 1x8x1", 0), ("stage 2, 2x2x2", 1), ("stage 3, 1x8x1", 2)])
def test_divided_programs_hold_no_backward_pass_of_what_is_frozen(found, name: str, trained: int) -> None:
    """A layer's backward pass costs two forward ones: of two layers, the step of a stage that trains k of them takes
    the operations of 1 + k forward passes; heads and losses are small beside them. The optimizer has moments of trained
    leaves alone."""
    flops, moved, moments = (found[name][key] for key in ("flops", "moved", "moments"))
    assert flops["step"] / flops["forward"] == pytest.approx(1 + trained, rel=0.1)
    assert sum(any(f"'{leaf}'" in path for leaf in moved) for path in moments) == 2 * len(moved)
    assert sum("encoder" in path for path in moments) == 2 * sum("encoder" in leaf for leaf in moved)


@pytest.mark.parametrize("name", [case("relative, tiled, 8"), case("relative, tiled, 2x2x2")])
def test_devices_share_the_comparisons_of_the_relative_loss(found, name: str) -> None:
    """Counts are whole numbers: the gradient has the same bits. A device compares an eighth of 4,371 pairs with all."""
    one, eight = found["relative"], found[name]
    assert eight["value"] == pytest.approx(one["value"], rel=1e-6)
    np.testing.assert_array_equal(eight["gradient"], one["gradient"])
    assert "s32[1,547]" in eight["program"]
    assert re.search(r"s32\[1,4376\]\S* all-gather", eight["program"])


@pytest.mark.parametrize(
    ("name", "alone", "entries"),
    [
        case("relative, merged, 8", "relative", 2048),
        case("relative, merged, 2x2x2", "relative", 2048),
        case("relative, 128 texts, 8", "relative, 128 texts", 2048),
    ],
)
def test_devices_share_the_sorting_of_the_relative_loss(found, name: str, alone: str, entries: int) -> None:
    """A device holds two entries for each of an eighth of the pairs, padded to a power of 2, and swaps them."""
    one, eight = found[alone], found[name]
    assert eight["value"] == pytest.approx(one["value"], rel=1e-6)
    np.testing.assert_array_equal(eight["gradient"], one["gradient"])
    assert re.search(rf"f32\[1,{entries}\]\S* collective-permute", eight["program"])


def test_no_device_holds_the_similarities_of_all_texts(found) -> None:
    """Their rows lie over the devices, and so do those of their gradients; the texts' vectors are on each."""
    one, eight = found["rows"], found["rows, 2x2x2"]
    assert eight["value"] == pytest.approx(one["value"], rel=1e-5)
    for alone, shared in zip(one["gradients"], eight["gradients"]):
        np.testing.assert_allclose(shared, alone, rtol=1e-4, atol=1e-6 * np.abs(alone).max())
    assert re.search(r"f32\[(2,)?256,256\]", one["program"])
    assert not re.search(r"f32\[(\d,)?256,256\]", eight["program"])
    assert re.search(r"f32\[(2,)?32,256\]", eight["program"])


@pytest.mark.parametrize("case", FAMILIES)
def test_every_leaf_of_every_family_has_a_rule(case: str) -> None:
    model_type, settings = FAMILIES[case]
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    config = {"model_type": model_type, "num_hidden_layers": 2, "max_position_embeddings": 64, "pad_token_id": 1}
    shapes = encoder_from_config({**config, **sizes, **settings}).shapes()
    mesh = AbstractMesh((2, 4, 2), AXES)
    for name, shape in shapes.items():
        where = place(f"encoder/{name}", shape, mesh)
        divided = np.prod(where.shard(mesh)) < np.prod(shape)
        vector = name.endswith(("bias", "scale"))
        assert divided or vector or where.note, name


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((28, 1536, 8960), PartitionSpec(None, "fsdp", "tensor")),
        ((28, 1537, 8960), PartitionSpec(None, None, ("tensor", "fsdp"))),  # what one side lacks the other takes
        ((3, 7, 9), PartitionSpec(None, None, None)),  # small: repeated, and said so
    ],
)
def test_sides_that_do_not_divide(shape, spec) -> None:
    where = place("encoder/layers/feed_forward/up/kernel", shape, AbstractMesh((1, 4, 2), AXES))
    assert where.spec == spec
    assert bool(where.note) == (shape[0] == 3)


def test_what_is_left_of_a_divided_leaf_may_be_repeated() -> None:
    """SigLIP's positions at 384 pixels on 256 chips: fsdp takes all that the width divides by."""
    mesh = AbstractMesh((1, 128, 2), AXES)
    where = place("vision/positions", (729, 1152), mesh)
    assert where.shard(mesh) == (729, 9)
    assert where.note == "[729, 1152] does not divide by tensor = 2"


def test_a_large_leaf_is_never_repeated() -> None:
    with pytest.raises(UserError, match=r"heads/fc1/kernel \[1537, 1151\] does not divide by fsdp = 4 and tensor = 2"):
        place("heads/fc1/kernel", (1537, 1151), AbstractMesh((1, 4, 2), AXES))
    with pytest.raises(KeyError, match="no sharding rule covers"):
        place("encoder/new/thing", (4, 4), AbstractMesh((1, 1, 1), AXES))


def test_micro_batches_need_the_memory_of_a_piece() -> None:
    """At 1,024 texts, of which 32 at a time: below 15% of the whole, by the compiler's own account."""
    from jasper_jax.encoders.packed import encode_packed
    from jasper_jax.encoders.pooling import Pooling

    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    encoder = encoder_from_config({"model_type": "bert", "vocab_size": 1000, **sizes})
    params = jax.eval_shape(encoder.init, jax.random.key(0))
    packed = {"ids": (1024, 64), "lengths": (1024, 1), "slots": (1024,)}
    texts = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in packed.items()}

    def temporaries(at_once: int | None) -> int:
        def loss(params, texts):
            vectors = encode_packed(encoder, Pooling(), params, texts, at_once=at_once, training=True)
            return jnp.square(vectors @ vectors.T).mean()

        return jax.jit(jax.grad(loss)).lower(params, texts).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(32) < 0.15 * temporaries(None)
