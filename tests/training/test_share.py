"""A process loads only the positions of a batch that its own devices hold."""

from __future__ import annotations

import numpy as np
import pytest

from jasper_jax.batches.loading import ProcessShare
from jasper_jax.parameters.sharding import make_mesh, row_sharding
from jasper_jax.training.mesh import share_of
from tests.parameters.devices import chips, gpus

ROWS = 192
"""Of a batch: 96 or fewer shards divide them."""


@pytest.mark.parametrize(
    ("devices", "sizes"),
    [
        pytest.param(chips(2), (2, 16, 1), id="two slices"),
        pytest.param(chips(2), (2, 4, 4), id="two slices, tensor"),
        pytest.param(chips(3), (1, 48, 1), id="fsdp over three slices, in two axes"),
        pytest.param(chips(1), (1, 16, 1), id="one slice"),
        pytest.param(gpus(2, 8, per_process=8), (2, 8, 1), id="a process for each node"),
        pytest.param(gpus(2, 8, per_process=1), (2, 4, 2), id="a process for each GPU"),
    ],
)
def test_positions_loaded_are_those_held(devices, sizes) -> None:
    mesh = make_mesh(sizes, devices)
    places = row_sharding(mesh).devices_indices_map((ROWS,))
    seen: set[int] = set()
    for process in {device.process_index for device in devices}:
        held = [places[device][0] for device in devices if device.process_index == process]
        positions = {row for part in held for row in range(*part.indices(ROWS))}
        share = share_of(mesh, process)
        loaded = share.of_rows(ROWS).tolist()
        assert len(loaded) / len(positions) == 1.0
        assert loaded == sorted(positions)
        for start, stop, _ in (part.indices(ROWS) for part in held):  # what each device gets is what it holds
            first = share.place_of(start, ROWS)
            assert loaded[first : first + stop - start] == list(range(start, stop))
        seen |= positions
    assert seen == set(range(ROWS))


def test_hosts_of_a_tpu_hold_pieces_that_are_not_adjacent() -> None:
    """Why a share is not a range: a range over all its pieces would be up to four times too large."""
    pieces = share_of(make_mesh((2, 16, 1), chips(2)), 0).pieces
    assert len(pieces) == 4
    assert pieces[-1] - pieces[0] >= 4


def test_places_in_a_share() -> None:
    share = ProcessShare((1, 3), 4)
    np.testing.assert_array_equal(share.of_rows(8), [2, 3, 6, 7])
    assert [share.place_of(row, 8) for row in (2, 3, 6, 7)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="tuple"):
        share.place_of(4, 8)
