"""Slices by name: what they hold, what is refused, and the message."""

from __future__ import annotations

import importlib.util

import pytest

from jasper_jax.planning.chips import GPUS, TPUS
from jasper_jax.planning.topology import Topology, topology_devices, topology_mesh
from jasper_jax.runtime.errors import UserError


@pytest.mark.parametrize(
    ("text", "shape", "chips", "devices"),
    [
        ("v5e:4x4", (4, 4), 16, 16),
        ("V5E:16X16", (16, 16), 256, 256),
        ("v5e:1x1", (1, 1), 1, 1),
        ("v4:2x2x2", (2, 2, 2), 8, 8),
        ("v5p:8x8x16", (8, 8, 16), 1024, 1024),
        ("tpu7x:2x2x1", (2, 2, 1), 4, 8),
        ("2xv5e:4x4", (4, 4), 32, 32),
    ],
)
def test_slices(text, shape, chips, devices):
    slice_ = Topology.parse(text)
    assert (slice_.shape, slice_.chips, slice_.devices) == (shape, chips, devices)
    assert str(slice_) == text.lower()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("v9:4x4", ("'v9:4x4'", "v4, v5e, v5p, v6e, tpu7x", "e.g. v5e:4x4")),
        ("", ("names no TPU", "v5e:4x4")),
        ("v5e", ("2 sides", "v5e:4x4")),
        ("v5e:16", ("2 sides", "v5e:16x16")),
        ("v5e:4x4x4", ("2 sides",)),
        ("v5p:4x4", ("3 sides", "v5p:2x2x1")),
        ("v5e:3x4", ("2x2 chips", "v5e:2x2")),
        ("v5e:0x4", ("2x2 chips",)),
        ("0xv5e:4x4", ("1 to 64 slices, got 0",)),
        ("2xv4:2x2x2", ("no network rate of v4 between nodes is published", "v5e, v5p, v6e, h100")),
        ("v6e:32x32", ("256 chips of a pod", "v6e:16x16")),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(text, parts):
    with pytest.raises(UserError) as refused:
        Topology.parse(text)
    message = str(refused.value)
    assert message.startswith("topology: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jasper-jax\[plan\]'"):
        topology_devices(Topology.parse("v5e:4x4"))


def test_axes_that_do_not_fill_the_slice():
    with pytest.raises(UserError, match="data 2 x fsdp 4 = 8, but v5e:4x4 has 16 devices"):
        topology_mesh(Topology.parse("v5e:4x4"), {"data": 2, "fsdp": 4})


@pytest.mark.parametrize("chip", [*TPUS.values(), *GPUS.values()], ids=lambda chip: chip.name)
def test_figures_are_of_a_plausible_size(chip):
    """A slipped factor of a thousand, of 8 bits, or of 1000 against 1024 three times over shows here."""
    assert 1e14 < chip.peak_flops < 3e15
    assert 15e9 < chip.memory < 220e9
    assert 0.93 * chip.memory <= chip.usable_memory <= 1.01 * chip.memory
    assert 50 < chip.peak_flops / chip.bandwidth < 600
    assert chip.link_bandwidth < chip.bandwidth
    assert chip.per_device.peak_flops * chip.devices_per_chip == chip.peak_flops
