"""A stage's programs on a mesh, compiled when a shape is first seen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jasper_jax.training.mesh import put_batch, share_of
from jasper_jax.training.step import StageProgram


class CompiledPrograms:
    """``step`` and ``evaluate`` of a stage, one program for each shape of a batch; counts them and the seconds that
    compiling took."""

    def __init__(self, program: StageProgram, mesh: Mesh, whole: Sequence[str]):
        """``whole``: the arrays of a batch that lie on every device."""
        self._program, self._mesh, self._share, self._whole = program, mesh, share_of(mesh), whole
        self._compiled: dict[Any, Any] = {}
        self.seconds = 0.0

    @property
    def count(self) -> int:
        """Programs compiled so far, the evaluation's among them."""
        return len(self._compiled)

    def step(self, trained: Any, optimizer: Any, frozen: Any, teachers: Any, batch: Any, number: Any) -> Any:
        """``StageProgram.step`` on a loaded batch."""
        batch = put_batch(batch, self._mesh, self._share, self._whole)
        return self._call("step", (trained, optimizer, frozen, teachers, batch, number), batch)

    def evaluate(self, trained: Any, frozen: Any, teachers: Any, batch: Any) -> Any:
        """``StageProgram.evaluate`` on a loaded batch."""
        batch = put_batch(batch, self._mesh, self._share, self._whole)
        return self._call("evaluate", (trained, frozen, teachers, batch), batch)

    def _call(self, name: str, arguments: tuple[Any, ...], batch: Any) -> Any:
        key = (name, *(np.shape(leaf) for leaf in jax.tree.leaves(batch)))
        if key not in self._compiled:
            began = time.monotonic()
            with jax.set_mesh(self._mesh):
                self._compiled[key] = getattr(self._program, name).lower(*arguments).compile()
            self.seconds += time.monotonic() - began
        return self._compiled[key](*arguments)
