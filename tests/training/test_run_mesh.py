"""The sizes of a run's mesh: what ``auto`` chooses, and what is refused with its numbers."""

from __future__ import annotations

import jax
import pytest
import yaml

from jasper_jax.commands.validation import validate
from jasper_jax.parameters.sharding import mesh_sizes_of
from jasper_jax.recipe.config_training import Mesh as Sizes
from jasper_jax.recipe.load import load_recipe
from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from jasper_jax.student.start import make_student
from jasper_jax.training import run_mesh as module
from jasper_jax.training.run_mesh import MOST_SHARDS, Needs, mesh_needs, mesh_sizes, run_mesh
from tests.tiny import recipe, recipe_tree, write_model
from tests.tiny_vision import vision_changes


def needs(heads: dict[str, int] | None = None, *shapes: tuple[int, ...]) -> Needs:
    """Of models with these key-value heads, the first with parameters of these ``shapes``."""
    leaves = {f"encoder/layers/{i}/kernel": jax.ShapeDtypeStruct(shape, "float32") for i, shape in enumerate(shapes)}
    return Needs(heads or {"the student": 2}, {"the student": leaves})


TWO = needs()


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Batches of 16."""
    return Run(recipe(tmp_path_factory.mktemp("sizes"))).stages


def test_auto(stages) -> None:
    assert mesh_sizes("auto", 1, stages, TWO) == (1, 1, 1)
    assert mesh_sizes("auto", 8, stages, TWO) == (1, 8, 1)
    assert mesh_sizes("auto", 32, stages, TWO) == (1, 16, 2)
    with pytest.raises(UserError, match="mesh: auto finds no way to divide batches of 16 texts and 2 key-value heads"):
        mesh_sizes("auto", 64, stages, TWO)
    with pytest.raises(UserError, match="texts and 1 key-value heads over 32 devices; choose"):
        mesh_sizes("auto", 32, stages, needs({"the student": 2, "the online teacher a": 3}))


def test_auto_keeps_fsdp_and_tensor_inside_a_node(stages) -> None:
    assert mesh_sizes("auto", 8, stages, TWO, nodes=2) == (2, 4, 1)
    assert mesh_sizes("auto", 16, stages, TWO, nodes=16) == (16, 1, 1)
    assert mesh_sizes("auto", 32, stages, TWO, nodes=2) == (2, 8, 2)
    with pytest.raises(UserError, match="over 12 devices in 3 nodes; choose stages"):
        mesh_sizes("auto", 12, stages, TWO, nodes=3)
    assert mesh_sizes(Sizes(fsdp=8), 8, stages, TWO, nodes=2) == (1, 8, 1), "more than a node where it is asked for"


def test_sizes_of_the_recipe(stages) -> None:
    assert mesh_sizes(Sizes(data=2, fsdp=2), 4, stages, TWO) == (2, 2, 1)
    with pytest.raises(UserError, match=r"mesh: data 2 × fsdp 1 × tensor 1 is 2, there is 1 device; the product must"):
        mesh_sizes(Sizes(data=2), 1, stages, TWO)
    with pytest.raises(UserError, match=r"stages\[0\].batch_size: 16 texts do not divide over data × fsdp = 3 devices"):
        mesh_sizes(Sizes(fsdp=3), 3, stages, TWO)


@pytest.mark.parametrize(
    ("tensor", "heads", "devices", "nodes", "message"),
    [
        (
            4,
            {"the student": 2},
            16,
            1,
            "4 does not divide the 2 key-value heads of the student; allowed are 1, 2; take more",
        ),
        (4, {"the student": 12}, 12, 2, "4 does not divide the 6 devices of a node; allowed are 1, 2, 3, 6;"),
        (16, {"the student": 32}, 16, 2, "16 does not divide the 8 devices of a node; allowed are 1, 2, 4, 8;"),
        (
            8,
            {"the student": 8, "the online teacher a": 12},
            8,
            1,
            "the 12 key-value heads of the online teacher a; allowed",
        ),
    ],
)
def test_a_tensor_that_does_not_divide(stages, tensor, heads, devices, nodes, message) -> None:
    with pytest.raises(UserError, match=f"^mesh.tensor: .*{message}"):
        mesh_sizes(Sizes(data=devices // tensor, tensor=tensor), devices, stages, needs(heads), nodes)


def test_heads_of_all_models_of_a_step(tmp_path) -> None:
    """Grouped queries: 1 key-value head of 2. Teachers count where they run in the step."""
    tree = recipe_tree(tmp_path)
    grouped = str(write_model(tmp_path / "grouped", model_type="qwen2-causal"))
    online = {**tree["teachers"][0], "model": grouped, "mode": "online"}
    vision = vision_changes(tmp_path)
    changes = {"teachers": [online, tree["teachers"][1]], "student": {**tree["student"], "vision": vision["vision"]}}
    run = Run(recipe(tmp_path, **changes, images=vision["images"]))
    student = make_student(run.recipe, run.teacher_dim, run.student)
    found = mesh_needs(student, run.vectors)
    assert found.heads == {"the student": 2, "the student's vision encoder": 2, "the online teacher a": 1}


@pytest.mark.parametrize("command", ["check", "train", "run"])
def test_commands_refuse_a_wide_tensor(refused, tmp_path, command: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(tmp_path)))
    refused("mesh.tensor: 4 does not divide the 2 key-value heads of the student", command, path, "mesh={tensor: 4}")


@pytest.mark.parametrize("command", ["train", "run"])
def test_the_mesh_comes_before_texts(refused, tmp_path, command: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(tmp_path)))
    refused("mesh: data 2 × fsdp 1 × tensor 1 is 2, there is 1 device", command, path, "mesh={data: 2}")
    assert not (tmp_path / "run").exists()


def test_an_fsdp_of_several_nodes_is_named(tmp_path, monkeypatch, capsys) -> None:
    class Device:
        platform = "gpu"

        def __init__(self, node: int):
            self.slice_index = node

    run = Run(recipe(tmp_path, mesh={"fsdp": 16}))
    student = make_student(run.recipe, run.teacher_dim, run.student)
    abstract = jax.sharding.AbstractMesh((1, 16, 1), ("data", "fsdp", "tensor"))
    monkeypatch.setattr(jax, "devices", lambda: [Device(i // 8) for i in range(16)])
    monkeypatch.setattr(module, "make_mesh", lambda sizes: abstract)
    assert mesh_sizes_of(run_mesh(run.recipe, student, run.vectors)) == (1, 16, 1)
    assert "mesh: fsdp 16 spans 2 nodes, so every step sends parameters between nodes" in capsys.readouterr().err


def test_auto_shards_parameters_over_as_many_devices_as_they_divide_by(stages) -> None:
    """A matrix of 24 columns divides by 8 of 16 devices; one that divides by none is refused with its name."""
    assert mesh_sizes("auto", 16, stages, needs(None, (8, 1 << 16, 24))) == (1, 16, 1), "its other side divides"
    assert mesh_sizes("auto", 16, stages, needs(None, ((1 << 16) + 1, 24))) == (2, 8, 1)
    with pytest.raises(UserError, match=r"mesh: encoder/layers/0/kernel \[65537, 25\] does not divide by fsdp = 16"):
        mesh_sizes(Sizes(fsdp=16), 16, stages, needs(None, ((1 << 16) + 1, 25)))
    assert mesh_sizes("auto", 16, stages, needs(None, ((1 << 16) + 1, 25))) == (16, 1, 1), "repeated on all"


@pytest.mark.parametrize("name", ["jasper_2b", "stella_400m"])
@pytest.mark.parametrize(("devices", "nodes"), [(8, 1), (64, 1), (256, 1), (1024, 1), (1024, 128), (2048, 8)])
def test_auto_finds_a_mesh_for_the_large_recipes(name: str, devices: int, nodes: int) -> None:
    batches = [f"stages.{number}.batch_size={8 * devices}" for number in range(3)]
    run = Run(load_recipe(f"configs/{name}.yaml", batches), describe=True)
    student, _ = validate(run)
    sizes = mesh_sizes("auto", devices, run.stages, mesh_needs(student, run.vectors), nodes)
    fsdp = min(devices // nodes, MOST_SHARDS)
    assert sizes == (devices // fsdp, fsdp, 1)
