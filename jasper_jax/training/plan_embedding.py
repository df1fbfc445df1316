"""``jasper plan``: what embedding with each teacher needs of a device, on the devices of one process."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from rich.table import Table

from jasper_jax.encoders.batch_shapes import row_shapes
from jasper_jax.encoders.local_mesh import mesh_sizes_for
from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.encoders.row_programs import Shape, lower_rows
from jasper_jax.parameters.sharding import leaf_shards, row_shards
from jasper_jax.parameters.trees import flatten
from jasper_jax.planning.machine import Machine, Target
from jasper_jax.planning.memory import device_bytes
from jasper_jax.planning.plan import PlannedStage, StagePlan, plan_program
from jasper_jax.planning.report import GIB
from jasper_jax.runtime.progress import say
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.training.lowering import attention_form
from jasper_jax.training.mesh import abstract_params

GPUS_OF_A_HOST, CHIPS_OF_A_HOST = 8, (2, 2)
"""A process embeds on the devices of its host (``encoders.local_mesh``)."""


@dataclasses.dataclass(frozen=True)
class EmbeddingPlan:
    """The largest program of a teacher's embedding on ``target``, the devices of one process; ``shapes`` are those of
    all its programs, ``longest`` the tokens of its longest text."""

    target: Target
    shapes: Sequence[Shape]
    longest: int
    program: StagePlan

    @property
    def tokens_per_second(self) -> float | None:
        """Of one process at most, padding included; None where the program does not fit."""
        bounds = self.program.estimate
        return None if bounds is None else self.program.stage.batch_size / bounds.step_seconds

    @property
    def likely_tokens_per_second(self) -> float | None:
        """Of one process, a guess (``planning.estimate``); None where the program does not fit."""
        bounds = self.program.estimate
        return self.program.stage.batch_size / bounds.likely_seconds if bounds is not None and bounds.fits else None


def of_one_host(target: Target) -> Target:
    """The part of ``target`` that one process has."""
    if isinstance(target, Machine):
        return dataclasses.replace(target, devices=min(target.devices // target.nodes, GPUS_OF_A_HOST), nodes=1)
    target = dataclasses.replace(target, nodes=1)
    host = (*CHIPS_OF_A_HOST, *(1 for _ in target.shape[2:]))
    return target if target.chips <= math.prod(host) else dataclasses.replace(target, shape=host)


def plan_embedding(teacher: TeacherModel, target: Target) -> EmbeddingPlan | None:
    """Compile the largest program of embedding with ``teacher``; None where JAX does not run it."""
    folder, settings = teacher.source, teacher.settings
    if settings.mode == "online" or settings.backend == "torch" or not isinstance(folder, ModelFolder):
        return None
    host = of_one_host(target)
    encoder = encoder_from_config(folder.hf_config, str(folder.path))
    encoder = dataclasses.replace(encoder, attention=attention_form(host.platform))
    dtype = jnp.dtype(settings.compute_dtype)
    shapes: Any = jax.eval_shape(encoder.init, jax.random.key(0))
    params = {"encoder": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)}
    numbers = {name: leaf.size for name, leaf in flatten(params).items()}
    memory = host.chip.per_device.usable_memory
    mesh = host.mesh(mesh_sizes_for(sum(numbers.values()) * dtype.itemsize, host.devices, memory))
    longest = settings.max_length or folder.max_length or encoder.max_positions
    allowed = row_shapes(
        longest,
        host.platform,
        devices=row_shards(mesh),
        flops_per_token=2 * sum(n for name, n in numbers.items() if name.startswith("encoder/layers/")),
    )
    rows, length = max(allowed.every(), key=lambda shape: (shape[1], shape[0]))
    say(f"{host}: compiling the embedding of {teacher.name}")
    placed = abstract_params(params, mesh)
    stage = PlannedStage(
        name=teacher.name,
        batch_size=rows * length,
        steps=1,
        rows=rows,
        empty=0,
        state_bytes={"frozen": device_bytes(placed)},
        model_flops=None,
        leaves=tuple(leaf_shards(flatten(params), mesh)),
    )
    lowered = lower_rows(encoder, folder.pooling, placed["encoder"], (rows, length), mesh, dtype.name)
    return EmbeddingPlan(host, allowed.every(), longest, plan_program(stage, lowered, mesh, host))


def embedding_table(plans: Sequence[EmbeddingPlan]) -> Table:
    """GiB on a device while a teacher embeds, and its programs."""
    host = plans[0].target
    usable = host.chip.per_device.usable_memory / GIB
    title = f"Embedding, a process of {host}: GiB on each device of {usable:.2f} usable"
    headers = ("teacher", "sharded over", "parameters", "temporaries", "peak", "fits", "Mtokens/s", "programs")
    table = Table(*headers, title=title)
    for column in table.columns[1:5]:
        column.justify = "right"
    for plan in plans:
        program, analysis = plan.program, plan.program.analysis
        sizes = program.mesh_sizes
        parameters = f"{program.stage.state_bytes['frozen'] / GIB:.2f}"
        if analysis is not None and program.estimate is not None:
            memory, rate = analysis.memory, plan.tokens_per_second or 0.0
            cells = [f"{memory.temporaries / GIB:.2f}", f"{memory.peak / GIB:.2f}", "yes" if program.fits else "no"]
            cells.append(f"{rate / 1e6:.3f}")
        else:
            assert program.too_large is not None
            cells = ["", f"{program.too_large.needed / GIB:.2f}", "no", ""]
        programs = ", ".join(f"{rows}x{length}" for rows, length in plan.shapes)
        table.add_row(program.stage.name, str(sizes[1]), parameters, *cells, programs)
    table.caption = "Programs: rows x tokens. Tokens per second of a process at the chip's published rates, at most."
    return table
