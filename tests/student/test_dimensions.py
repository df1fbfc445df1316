"""Which dimensions a server gives by cutting: those of one nested head, unless another head hides them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jasper_jax.recipe.load import load_recipe
from jasper_jax.recipe.stages import nested_heads, resolve_stages
from jasper_jax.student.dimensions import cut_dimensions, default_dimension, providers
from jasper_jax.student.heads import HeadShape
from tests.tiny import recipe

HEADS = {"fc1": HeadShape(24, (24, 12, 8), True), "fc2": HeadShape(8, (8,), True), "fc3": HeadShape(6, (6, 4), True)}


@pytest.mark.parametrize(
    ("chosen", "default", "cut"),
    [
        ({}, 24, (24, 12)),
        ({8: "fc1"}, 24, (24, 12, 8)),
        ({8: "fc1"}, 12, (12, 8)),
        ({}, 12, ()),
        ({}, 8, ()),
        ({}, 6, (6, 4)),
    ],
)
def test_a_cut_is_the_head_of_the_default_dimension(chosen, default, cut) -> None:
    served = providers(HEADS, chosen)
    assert cut_dimensions(served, default, HEADS) == cut
    assert cut_dimensions(served, default, ()) == ()


def test_the_default_is_the_largest() -> None:
    served = providers(HEADS, {})
    assert (default_dimension(served, None), default_dimension(served, 12)) == (24, 12)


def test_without_a_loss_on_similarities_a_nested_dimension_is_not_trained(tmp_path: Path) -> None:
    stages = [{"stage": 1, "steps": 2, "learning_rate": 0.1, "losses": {"similarity": 0, "relative": 0}}]
    assert nested_heads(resolve_stages(recipe(tmp_path, stages=stages))) == set()
    assert nested_heads(resolve_stages(recipe(tmp_path))) == {"fc1", "fc2", "fc3"}


def test_the_recipe_for_servers_gives_every_short_dimension_in_one_folder() -> None:
    shown = load_recipe(Path(__file__).parents[2] / "configs" / "server_dimensions.yaml")
    heads = {"fc1": HeadShape(1152, (1152,), True)}
    for name, head in shown.heads.items():
        if isinstance(head.dim, int):
            heads[name] = HeadShape(head.dim, (head.dim, *head.nested), head.bias)
    served = providers(heads, shown.export.dims)
    default = default_dimension(served, shown.export.dim)
    assert cut_dimensions(served, default, nested_heads(resolve_stages(shown))) == (512, 256, 128, 64)
