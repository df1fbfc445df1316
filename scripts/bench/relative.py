"""Time and memory of the relative-similarity loss: both exact forms, and the formula written out in PyTorch.

    python scripts/bench/relative.py --batch 128 512 1024 --heads 1 8

A step is value and gradient, from student vectors [H, B, dim] and teacher vectors [B, dim] to the gradient of the
student vectors; ranking the teacher's pairs is part of it. The contenders of a size take turns, so that whatever
else the machine does falls on all of them. Forms that would take longer than --patience for one step are left
out, judged by the number of comparisons (tiled) or the size of the P x P table (formula).
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jasper_jax.losses import pair_similarities, teacher_order
from jasper_jax.losses.relative import METHODS, relative_from_similarities

MARGIN = 0.015
MOST_TABLE_BYTES = 4 << 30  # of one P x P float32 table; the formula needs a few


@dataclass
class Contender:
    name: str
    step: Callable[[], float]  # runs one step to its end, returns the value
    compile_s: float | None = None
    memory_mib: float | None = None
    milliseconds: list[float] = field(default_factory=list)
    value: float = float("nan")

    def run(self) -> None:
        start = time.perf_counter()
        self.value = self.step()
        self.milliseconds.append((time.perf_counter() - start) * 1e3)


def with_jax(method: str, students: np.ndarray, teacher: np.ndarray) -> Contender:
    def loss(students: jax.Array, teacher: jax.Array) -> jax.Array:
        similarities = jax.vmap(pair_similarities)(students)
        return relative_from_similarities(similarities, teacher_order(teacher), MARGIN, method).sum()

    arguments = jnp.asarray(students), jnp.asarray(teacher)
    start = time.perf_counter()
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
    compile_s = time.perf_counter() - start
    memory = compiled.memory_analysis()
    mib = None if memory is None else (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20
    return Contender(method, lambda: float(jax.block_until_ready(compiled(*arguments))[0]), compile_s, mib)


def with_torch(students: np.ndarray, teacher: np.ndarray) -> Contender:
    """Equation 3 as it stands: P x P tables, written with as few of them as autograd allows."""
    import torch

    vectors, target = torch.tensor(students), torch.tensor(teacher)
    rows, columns = torch.triu_indices(len(teacher), len(teacher), 1)
    comparisons = len(rows) * (len(rows) - 1) / 2

    def step() -> float:
        student = vectors.clone().requires_grad_()
        t = torch.nn.functional.normalize(target, dim=-1)
        t = (t @ t.T)[rows, columns]
        ordered = t[:, None] > t[None, :]
        total = 0.0
        for one in student:
            s = torch.nn.functional.normalize(one, dim=-1)
            s = (s @ s.T)[rows, columns]
            hinge = torch.relu(s[None, :] - (s[:, None] - MARGIN))
            loss = torch.where(ordered, hinge, 0).sum() / comparisons
            loss.backward()
            total += float(loss.detach())
        return total

    pairs = len(rows)
    return Contender("formula, PyTorch", step, memory_mib=3 * pairs * pairs * 4 / 2**20)


def contenders(batch: int, heads: int, dim: int, methods: list[str], patience: float) -> list[Contender]:
    rng = np.random.default_rng(batch)
    teacher = rng.standard_normal((batch, dim), np.float32)
    students = teacher + 0.5 * rng.standard_normal((heads, batch, dim), np.float32)
    pairs = batch * (batch - 1) // 2
    cpu = jax.default_backend() == "cpu"
    rate = 5e9 if cpu else 1e12  # comparisons a second of the tiled form, roughly
    found = [
        with_jax(method, students, teacher)
        for method in methods
        if method in ("auto", "partitioned") or (method == "tiled" and heads * pairs**2 / rate <= patience)
    ]
    torch_is_here = importlib.util.find_spec("torch") is not None
    if "formula" in methods and torch_is_here and 4 * pairs**2 <= MOST_TABLE_BYTES:
        found.append(with_torch(students, teacher))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dim", type=int, default=256, help="of teacher and students")
    parser.add_argument("--rounds", type=int, default=7)
    choices = [*METHODS, "formula"]
    parser.add_argument("--methods", nargs="+", choices=choices, default=["tiled", "partitioned", "formula"])
    parser.add_argument("--patience", type=float, default=20.0, help="seconds a step may take")
    arguments = parser.parse_args()

    device = jax.devices()[0]
    table = Table(title=f"relative-similarity loss, value and gradient, on {device.device_kind} ({device.platform})")
    for name in ("batch", "pairs", "heads", "form", "median ms", "least ms", "compile s", "memory MiB", "value"):
        table.add_column(name, justify="left" if name == "form" else "right")
    table.add_column("against the fastest", justify="right")
    for batch in arguments.batch:
        for heads in arguments.heads:
            found = contenders(batch, heads, arguments.dim, arguments.methods, arguments.patience)
            for one in found:
                one.step()  # warm caches and allocators
            for _ in range(arguments.rounds):
                for one in found:
                    one.run()
            fastest = min((statistics.median(one.milliseconds) for one in found), default=0.0)
            for one in found:
                median = statistics.median(one.milliseconds)
                table.add_row(
                    *(str(number) for number in (batch, batch * (batch - 1) // 2, heads)),
                    one.name,
                    f"{median:.2f}",
                    f"{min(one.milliseconds):.2f}",
                    "" if one.compile_s is None else f"{one.compile_s:.2f}",
                    "" if one.memory_mib is None else f"{one.memory_mib:,.1f}",
                    f"{one.value:.6f}",
                    f"{median / fastest:,.1f} x",
                )
            table.add_section()
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
