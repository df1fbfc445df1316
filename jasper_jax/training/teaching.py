"""What teaches a stage on texts: stored vectors, and teachers that run in the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from jasper_jax.parameters.sharding import WIDE, constrain
from jasper_jax.teachers.online import OnlineTeacher, join
from jasper_jax.teachers.vectors import TeacherView


@dataclass(frozen=True)
class Teaching:
    """``dims``: teacher -> dimension of its vectors, in the order in which they are joined; ``online``: those that run
    in the step; ``weights``: of each in the joined vectors."""

    dims: Mapping[str, int] = field(default_factory=dict)
    online: Mapping[str, OnlineTeacher] = field(default_factory=dict)
    weights: Sequence[float] = ()

    @classmethod
    def of(cls, view: TeacherView | None) -> Teaching:
        """The teachers of a run, none where ``view`` is None."""
        if view is None:
            return cls()
        dims = {store.name: store.dim for store in view.stores}
        return cls(dims, {store.name: store.teacher for store in view.online}, view.weights)

    @property
    def dim(self) -> int | None:
        """T, the dimension of the joined vectors; None without teachers."""
        return sum(self.dims.values()) if self.dims else None

    def vectors(self, params: Mapping[str, Any], batch: Mapping[str, Any], at_once: int | None) -> jax.Array | None:
        """``[B, T]``: the target of heads that the teachers teach; None where no head needs it. ``params``: of the
        teachers that run in the step, by name.

        Their texts come divided over the devices; their dimensions leave it so, like those of the heads."""
        texts = len(batch["slots"])  # the rows of stored vectors may be filled up, to divide over the devices
        if "online" not in batch:
            stored = batch.get("teachers")
            return None if stored is None else constrain(stored[:texts], None, WIDE)
        return join(
            [
                constrain(self.online[name].vectors(params[name], batch["online"][name], at_once=at_once), None, WIDE)
                if name in self.online
                else constrain(batch["cached"][name][:texts], None, WIDE)
                for name in self.dims
            ],
            self.weights,
        )
