"""Nodes: which devices are joined by fast links, and what of a mesh stays inside one."""

from __future__ import annotations

import numpy as np
import pytest

from jasper_jax.parameters.nodes import count_nodes, device_grid, divide, node_of
from jasper_jax.runtime.errors import UserError
from tests.parameters.devices import Device, chips, gpus
from tests.training.processes import run_together


def nodes_in(grid: np.ndarray) -> np.ndarray:
    return np.vectorize(node_of, otypes=[int])(grid)


def test_a_node_is_a_host_of_gpus_a_slice_of_tpus_or_a_process_of_cpus() -> None:
    assert [node_of(device) for device in gpus(2, 2, per_process=1)] == [0, 0, 1, 1]
    assert {node_of(chip) for chip in chips(2)} == {0, 1}
    assert node_of(Device(0, 3, 0, platform="cpu")) == 3


@pytest.mark.parametrize(
    ("axes", "per_node", "inside", "between"),
    [
        ((2, 8, 1), 8, (1, 8, 1), (2, 1, 1)),
        ((4, 2, 2), 8, (2, 2, 2), (2, 1, 1)),  # two replicas in a node
        ((1, 16, 1), 8, (1, 8, 1), (1, 2, 1)),  # fsdp of two nodes
        ((2, 16, 2), 8, (1, 4, 2), (2, 4, 1)),
        ((1, 16, 4, 1), 8, (1, 2, 4, 1), (1, 8, 1, 1)),  # a long fsdp, two axes
        ((6, 1, 4), 8, (2, 1, 4), (3, 1, 1)),
        ((8, 3, 1), 8, (8, 1, 1), (1, 3, 1)),
    ],
)
def test_the_last_axes_stay_inside_a_node(axes, per_node, inside, between) -> None:
    assert divide(axes, per_node) == (inside, between)


def test_nodes_must_be_equal() -> None:
    assert count_nodes([0, 0, 5, 5, 7, 7]) == 3
    with pytest.raises(UserError, match="mesh: nodes have 8, 4 devices; expected as many in each"):
        count_nodes([0] * 8 + [1] * 4)


@pytest.mark.parametrize("per_process", [1, 8])
def test_data_lies_between_hosts(per_process: int) -> None:
    devices = gpus(2, 8, per_process=per_process)
    grid = nodes_in(device_grid((2, 4, 2), devices[::-1]))
    assert (grid == np.array([0, 1])[:, None, None]).all()
    spanning = nodes_in(device_grid((1, 16, 1), devices)).ravel()
    assert spanning.tolist() == [0] * 8 + [1] * 8


def test_data_lies_between_slices() -> None:
    grid = device_grid((2, 16, 1), chips(2))
    assert (nodes_in(grid) == np.array([0, 1])[:, None, None]).all()
    assert len({device.id for device in grid.flat}) == 32
    tensor = device_grid((2, 4, 4), chips(2))
    assert (nodes_in(tensor) == np.array([0, 1])[:, None, None]).all()


LAYOUT = """
import numpy as np
from jasper_jax.parameters.sharding import make_mesh
from jasper_jax.runtime import joining
joining.connect()
for sizes in ((2, 2, 1), (2, 1, 2), (1, 4, 1)):
    print("mesh", np.vectorize(lambda device: device.process_index)(make_mesh(sizes).devices).tolist())
"""


def test_processes_of_cpus_are_nodes() -> None:
    for code, output in run_together(LAYOUT, XLA_FLAGS="--xla_force_host_platform_device_count=2"):
        assert code == 0, output
        meshes = [line.removeprefix("mesh ") for line in output.splitlines() if line.startswith("mesh ")]
        assert meshes == ["[[[0], [0]], [[1], [1]]]", "[[[0, 0]], [[1, 1]]]", "[[[0], [0], [1], [1]]]"]
