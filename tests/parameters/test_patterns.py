"""Patterns over leaf names, and the partition of parameters they make."""

from __future__ import annotations

import numpy as np
import pytest

from jasper_jax.parameters.patterns import compile_pattern, first_match, trained_leaves
from jasper_jax.parameters.trees import flatten, unflatten
from jasper_jax.runtime.errors import UserError
from jasper_jax.training.optimizer import WEIGHT_DECAY
from jasper_jax.training.partition import make_partition

LEAVES = {
    "encoder/embeddings/word/embedding": (9, 4),
    "encoder/layers/attention/query/kernel": (6, 4, 4),
    "encoder/layers/attention/query/bias": (6, 4),
    "encoder/layers/norm/scale": (6, 4),
    "heads/fc1/kernel": (4, 3),
    "heads/fc1/bias": (3,),
}


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("**", "a/b/c", True),
        ("heads/**", "heads/fc1/kernel", True),
        ("heads/**", "headsx/fc1", False),
        ("heads/*/bias", "heads/fc1/bias", True),
        ("heads/*", "heads/fc1/bias", False),
        ("**/bias", "encoder/layers/attention/query/bias", True),
        ("**/bias", "bias", True),
        ("encoder/**/kernel", "encoder/kernel", True),
        ("encoder/layers[-2:]/**", "encoder/layers/norm/scale", True),
        ("a.b/**", "axb/c", False),
    ],
)
def test_what_a_pattern_matches(pattern: str, name: str, matches: bool) -> None:
    assert compile_pattern(pattern, "here").matches(name) is matches


def test_slices_of_layers() -> None:
    trained = trained_leaves(["heads/**", "encoder/layers[-2:]/**"], LEAVES, "train")
    assert trained["encoder/layers/norm/scale"] == 4
    assert trained["heads/fc1/bias"] == 0
    assert "encoder/embeddings/word/embedding" not in trained


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ["heads/fc5/**"],
            r"train\[0\]: pattern 'heads/fc5/\*\*' matches no parameter; groups of parameters are .*heads/fc1",
        ),
        (["encoder/layers[-7:]/**"], r"slices 6 layers; allowed: -6 to 5"),
        (["encoder/layers[6:]/**"], r"slices 6 layers"),
        (["encoder/layers[1:3]/**"], r"a slice runs to the end"),
        (["encoder/layers[-2:]/norm/**", "encoder/layers[-3:]/attention/**"], r"different layers \[3, 4\]"),
        (["a[-1:]/b[-1:]"], r"slices twice"),
    ],
)
def test_patterns_that_do_not_fit(patterns: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trained_leaves(patterns, LEAVES, "train")


def params() -> dict:
    rng = np.random.default_rng(0)
    return unflatten({name: rng.normal(size=shape) for name, shape in LEAVES.items()})


@pytest.mark.parametrize(
    ("patterns", "moving"),
    [
        (["**"], 6),
        (["heads/**"], 2),
        (["heads/**", "encoder/layers[-2:]/**"], 5),
        (["encoder/layers[-2:]/attention/**"], 2),
        (["encoder/layers/norm/**", "encoder/layers[-2:]/attention/**"], 4),
    ],
)
def test_a_partition_splits_and_joins_to_the_same_parameters(patterns: list[str], moving: int) -> None:
    tree = params()
    partition = make_partition(patterns, tree, "train")
    trained, frozen = partition.split(tree)
    assert len(trained) == moving
    back = flatten(partition.canonical(trained, frozen))
    assert back.keys() == flatten(tree).keys()
    for name, leaf in flatten(tree).items():
        np.testing.assert_array_equal(back[name], leaf)


def test_two_stacks_hold_all_layers_in_order() -> None:
    tree = params()
    partition = make_partition(["encoder/layers[-2:]/**"], tree, "train")
    first, second = partition.merge(*partition.split(tree))["encoder"]["layers"]
    assert first["norm"]["scale"].shape == (4, 4)
    np.testing.assert_array_equal(second["norm"]["scale"], tree["encoder"]["layers"]["norm"]["scale"][4:])


def test_every_leaf_is_covered_by_the_decay_table() -> None:
    decayed = {name: first_match(WEIGHT_DECAY, name) for name in LEAVES}
    assert [n for n, d in decayed.items() if not d] == [
        "encoder/layers/attention/query/bias",
        "encoder/layers/norm/scale",
        "heads/fc1/bias",
    ]
    with pytest.raises(KeyError, match="no pattern covers"):
        first_match([("heads/**", True)], "encoder/x")


@pytest.mark.parametrize("name", ["losses/sigmoid/log_scale", "losses/sigmoid/bias", "vision/class_token"])
def test_weight_decay_leaves_alone_what_is_not_a_matrix(name: str) -> None:
    assert first_match(WEIGHT_DECAY, name) is False
