"""Replica groups in every form XLA writes them, and the axes of the mesh that they cross."""

from __future__ import annotations

import numpy as np
import pytest

from jasper_jax.planning.groups import crossed_axes, device_groups
from jasper_jax.planning.hlo import parse_module

SIZES, NAMES = (2, 4, 2), ("data", "fsdp", "tensor")
PLACES = np.arange(16).reshape(SIZES)
ALONG = {
    ("tensor",): PLACES.reshape(-1, 2),
    ("fsdp",): PLACES.transpose(0, 2, 1).reshape(-1, 4),
    ("data",): PLACES.transpose(1, 2, 0).reshape(-1, 2),
    ("data", "fsdp"): PLACES.transpose(2, 0, 1).reshape(-1, 8),
    ("data", "fsdp", "tensor"): PLACES.reshape(1, -1),
}


def groups(attributes: str):
    lines = [
        "ENTRY %main (a: f32[2]) -> f32[2] {",
        "  %a = f32[2] parameter(0)",
        f"  ROOT %r = f32[2] all-reduce(%a), {attributes}",
        "}",
    ]
    return device_groups(parse_module("\n".join(lines)).entry.root, 16)


def same(found, expected) -> bool:
    return {frozenset(row) for row in found.tolist()} == {frozenset(row) for row in expected.tolist()}


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("replica_groups=[8,2]<=[16], use_global_device_ids=true", ("tensor",)),
        ("replica_groups={{0,2,4,6},{8,10,12,14},{1,3,5,7},{9,11,13,15}}, dimensions={1}", ("fsdp",)),
        ("replica_groups=[4,4]<=[2,4,2]T(0,2,1)", ("fsdp",)),
        ("replica_groups=[8,2]<=[2,8]T(1,0)", ("data",)),
        ("replica_groups=[2,8]<=[8,2]T(1,0)", ("data", "fsdp")),
        ("replica_groups={{0,2,4,6,8,10,12,14},{1,3,5,7,9,11,13,15}}", ("data", "fsdp")),
        ("replica_groups={}, to_apply=%add", ("data", "fsdp", "tensor")),
        ("channel_id=1", ("data", "fsdp", "tensor")),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1,'axis_2'=2] {'axis_2'}, dimensions={3}", ("tensor",)),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0'}, dimensions={3}", ("data", "fsdp")),
        ("replica_groups=mesh['a'=8,'b'=2] {'a':(2)4}, dimensions={3}", ("fsdp",)),
        ("replica_groups=mesh['a'=8,'b'=2] {'a':(1)2}, dimensions={3}", ("data",)),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=8], device_ids=([8,2]T(1,0)) {'a','b'}, to_apply=%add", ("tensor",)),
        ("replica_groups=mesh['a'=2,'b'=8], device_ids=(0,2,4,6,8,10,12,14,1,3,5,7,9,11,13,15) {'a'}", ("tensor",)),
        ("replica_groups=mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'b'}, dimensions={3}", ("data", "fsdp")),
    ],
)
def test_forms(text: str, axes: tuple[str, ...]):
    found = groups(text)
    assert same(found, ALONG[axes])
    assert crossed_axes(found, SIZES, NAMES) == axes


def test_permutations_cross_the_axes_in_which_source_and_target_differ():
    found = groups("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}")
    assert crossed_axes(found, SIZES, NAMES) == ("tensor",)
    assert crossed_axes(groups("source_target_pairs={{0,8},{8,0}}"), SIZES, NAMES) == ("data",)
    assert crossed_axes(groups("source_target_pairs={{0,0},{3,3}}"), SIZES, NAMES) == ()


def test_a_group_of_one_crosses_nothing():
    assert crossed_axes(groups("replica_groups=[16,1]<=[16]"), SIZES, NAMES) == ()


def test_a_form_that_is_not_known_is_not_guessed():
    assert groups("replica_groups=[novel]") is None
    assert groups("replica_groups={{0,1},{2}}") is None
    assert groups("replica_groups=mesh['a'=2,'b'=8], device_ids=(novel) {'a'}") is None
