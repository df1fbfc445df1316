"""The parameters of a run while one stage trains: trained, frozen, and those that the stage does not see."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jasper_jax.parameters.sharding import shardings
from jasper_jax.parameters.trees import flatten, unflatten
from jasper_jax.training.mesh import abstract_params, abstract_state, begin_state, put_params
from jasper_jax.training.partition import Flat
from jasper_jax.training.stage_kind import Params, StageKind
from jasper_jax.training.step import CompiledPrograms, StageProgram


class StageState:
    """Trained leaves with their optimizer state, frozen leaves, leaves that the stage does not see, and the parameters
    of teachers that run in the step."""

    def __init__(self, kind: StageKind, program: StageProgram, params: Params, mesh: Mesh, teachers: Mapping[str, Any]):
        """``params``: the canonical ones, on the mesh. They are taken over, not copied: do not use them again, for the
        first step donates those that are trained."""
        self._partition, self._mesh, self._optimizer = program.partition, mesh, program.optimizer
        active = kind.active(params)
        seen = flatten(active)
        self._unseen: Flat = {name: leaf for name, leaf in flatten(params).items() if name not in seen}
        self.trained, self.frozen = self._partition.split(active, partial(_cut, mesh=mesh))
        self.optimizer: Any = None
        self.teachers = {name: put_params(params, mesh) for name, params in teachers.items()}

    def begin(self) -> None:
        """A fresh optimizer state."""
        self.optimizer = begin_state(self._optimizer, self.trained, self._mesh)

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint within the stage holds."""
        return {"trained": self.trained, "optimizer": self.optimizer}

    @property
    def abstract(self) -> dict[str, Any]:
        """:attr:`saved` as shapes with shardings, whether or not the optimizer state exists."""
        state = abstract_state(self._optimizer, self.trained, self._mesh)
        return {"trained": abstract_params(self.trained, self._mesh), "optimizer": state}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from what a checkpoint within the stage held."""
        self.trained, self.optimizer = saved["trained"], saved["optimizer"]

    def step(self, programs: CompiledPrograms, batch: Any, number: int) -> dict[str, jax.Array]:
        """One train step on a loaded batch; its metrics, on the device."""
        self.trained, self.optimizer, metrics = programs.step(
            self.trained, self.optimizer, self.frozen, self.teachers, batch, np.int32(number)
        )
        return metrics

    def evaluate(self, programs: CompiledPrograms, batch: Any) -> dict[str, jax.Array]:
        """The losses of a loaded batch."""
        return programs.evaluate(self.trained, self.frozen, self.teachers, batch)

    def canonical(self) -> Params:
        """All parameters with one stack of layers. They are handed over, not copied, and the optimizer state is
        dropped: do not use this state again."""
        self.optimizer = None
        seen = self._partition.canonical(self.trained, self.frozen, partial(_join, mesh=self._mesh))
        return unflatten({**self._unseen, **flatten(seen)})


def _cut(leaf: jax.Array, cut: int, names: tuple[str, str], *, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """The two parts of a stacked leaf, each laid by the rules of its name."""

    def cut_in_two(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x[:cut], x[cut:]

    placed = shardings(dict(zip(names, jax.eval_shape(cut_in_two, leaf))), mesh)
    parts = jax.jit(cut_in_two, out_shardings=tuple(placed[name] for name in names))(leaf)
    leaf.delete()  # taken over: whoever still names it must not keep its memory
    return parts


def _join(below: jax.Array, above: jax.Array, name: str, *, mesh: Mesh) -> jax.Array:
    """The inverse of :func:`_cut`; the parts are deleted."""

    def joined(below: jax.Array, above: jax.Array) -> jax.Array:
        return jnp.concatenate([below, above])

    placed = shardings({name: jax.eval_shape(joined, below, above)}, mesh)
    whole = jax.jit(joined, out_shardings=placed[name])(below, above)
    below.delete()
    above.delete()
    return whole
