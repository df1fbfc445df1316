"""What all processes of a run must have in common: recipe, versions, and the folders on disk. Checked at the start."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError, first_three
from jasper_jax.runtime.files import differences


def refuse_unlike(recipe: Mapping[str, Any]) -> None:
    """Check that all processes run the same recipe with the same versions; called before any other collective.

    Raises:
      UserError: in every process, with the differing keys and both values.
    """
    if processes.count() == 1:
        return
    packages = {name: version(name) for name in ("jasper-jax", "jax", "jaxlib", "flax", "optax")}
    own = {"recipe": recipe, "versions": {"python": platform.python_version(), **packages}}
    first, *others = map(json.loads, processes.gather_text(json.dumps(own, sort_keys=True)))
    for number, other in enumerate(others, 1):
        if changes := differences(first, other, ""):
            raise UserError(
                f"processes 0 and {number} do not run the same: {first_three(changes)}; start all with one recipe and"
                f" one installation"
            )
