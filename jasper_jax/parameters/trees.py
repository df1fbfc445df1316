"""Nested dicts of arrays <-> flat dicts keyed by '/'-joined paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": x}}`` -> ``{"a/b": x}``, in the order of the dicts.

    Items of a tuple or list are named by position (``layers/0/...``); ``unflatten`` does not restore those.
    """
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, (tuple, list)):
        items = enumerate(tree)
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat.update(flatten(value, f"{prefix}/{key}" if prefix else str(key)))
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a/b": x}`` -> ``{"a": {"b": x}}``. Raises ValueError when one path is both a leaf and a branch."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *branches, leaf = path.split("/")
        node = tree
        for name in branches:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path}: {name!r} is already a leaf")
        if leaf in node:
            raise ValueError(f"{path}: given twice, or already a branch")
        node[leaf] = value
    return tree
