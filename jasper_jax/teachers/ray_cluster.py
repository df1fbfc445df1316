"""A Ray cluster whose actors embed: what its nodes have room for, and its actors as workers."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jasper_jax.recipe.config import Ray
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import say
from jasper_jax.teachers.ray_connection import Head
from jasper_jax.teachers.scheduling import IN_HAND, Lost, Made, Ready
from jasper_jax.teachers.store_writer import Task
from jasper_jax.teachers.teacher_worker import Order, TeacherWorker, refuse_other_versions, version_reader

LOOK = 5.0
"""Seconds between two looks at the nodes, which may come and go."""
PATIENCE = 60.0
"""Seconds without any node that could hold a worker, or without a worker that is ready, before that is said."""


NODE_DIED = "its node has died"
"""What Ray says of an actor that was lost with its node."""


def refuse_unlike_nodes(ray: Any, needed: Mapping[str, float]) -> None:
    """UserError: a node that can hold a worker has another version of a package, lacks it, or does not answer."""
    from ray.util import scheduling_strategies  # pyright: ignore[reportMissingImports]

    names = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if room(needed, [node])}
    read = ray.remote(num_cpus=0, max_retries=0)(version_reader())
    on = scheduling_strategies.NodeAffinitySchedulingStrategy
    calls = [read.options(scheduling_strategy=on(node, False)).remote() for node in names]
    own = version_reader()()
    for call, name in zip(calls, names.values()):
        try:
            refuse_other_versions(own, ray.get(call, timeout=PATIENCE), name)
        except ray.exceptions.RayError as error:
            raise UserError(f"--ray: node {name} runs no task ({_reason(error)}); see its logs, or stop it") from error


def needs(settings: Ray, nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What a worker takes of a node, by Ray's names. ``nodes``: as of ``ray.nodes()``.

    Raises:
      UserError: no node has it.
    """
    available = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = settings.num_gpus
    if gpus is None:
        gpus = int(any(resources.get("GPU", 0) >= 1 for resources in available))
    needed = {"CPU": float(settings.num_cpus), "GPU": float(gpus), **settings.resources}
    needed = {name: amount for name, amount in needed.items() if amount}
    if not room(needed, nodes):
        most = {name: max((r.get(name, 0.0) for r in available), default=0.0) for name in needed}
        raise UserError(
            f"ray: a worker takes {listed(needed)}, and no node has that (the most on one node: {listed(most)}); change"
            f" ray.num_cpus, ray.num_gpus or ray.resources, or start such nodes first"
        )
    return needed


def room(needed: Mapping[str, float], nodes: Sequence[Mapping[str, Any]]) -> int:
    """How many workers the live ``nodes`` can hold."""
    return sum(
        min(int(node["Resources"].get(name, 0) // amount) for name, amount in needed.items())
        for node in nodes
        if node["Alive"]
    )


def listed(resources: Mapping[str, float]) -> str:
    """``2 CPU, 1 GPU``."""
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


class RayCluster:
    """Workers that are actors of Ray, one for an :class:`Order`."""

    def __init__(self, ray: Any, needed: Mapping[str, float], orders: Sequence[Order]):
        self._ray, self._orders, self._needed = ray, orders, dict(needed)
        self._calls: dict[Any, tuple[Any, Task | None]] = {}
        """By reference of its result: the worker, and the task or None for loading the teacher."""
        self._room, self._looked = 0, -math.inf
        self._head = Head(ray.get_runtime_context().gcs_address)
        self._had_room = self._had_ready = time.monotonic()
        threads = str(int(needed.get("CPU", 1)))
        variables = dict.fromkeys(("PJRT_NPROC", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"), threads)
        variables |= {name: os.environ[name] for name in ("JASPER_CACHE",) if name in os.environ}
        self._actor = ray.remote(TeacherWorker).options(
            num_cpus=needed.get("CPU", 0),
            num_gpus=needed.get("GPU", 0),
            resources={name: amount for name, amount in needed.items() if name not in ("CPU", "GPU")},
            max_concurrency=IN_HAND,
            max_restarts=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": variables},
        )

    def capacity(self) -> int:
        """UserError: for a minute no node could hold a worker, or the head is lost."""
        now = time.monotonic()
        if now - self._looked >= LOOK:
            self._looked = now
            if not self._head.answers():
                self._head.refuse_lost()
                self._room = 0  # no one is hired
                return 0
            self._room = room(self._needed, self._ray.nodes())
        if self._room:
            self._had_room = now
        elif now - self._had_room > PATIENCE:
            raise UserError(
                f"ray: no node is left that has {listed(self._needed)}; start some, then run the same command again"
            )
        return self._room

    def start(self, job: int) -> Any:
        worker = self._actor.remote(self._orders[job])
        self._calls[worker.load.options(name=f"load {self._orders[job].teacher.name}").remote()] = worker, None
        return worker

    def give(self, worker: Any, job: int, task: Task) -> None:
        name = f"{self._orders[job].teacher.name}: {task.shard.split} {task.shard.index}"
        self._calls[worker.make.options(name=name).remote(task)] = worker, task

    def stop(self, worker: Any) -> None:
        self._calls = {call: of for call, of in self._calls.items() if of[0] != worker}
        if self._head.answers():  # else the worker goes with its cluster
            self._ray.kill(worker)

    def wait(self) -> list[Ready | Made | Lost]:
        self._say_if_waiting()
        if not self._calls:
            time.sleep(0.2)
            return []
        finished, _ = self._ray.wait(list(self._calls), timeout=1.0)
        if finished:
            finished, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        return [self._event(call) for call in finished]

    def _event(self, call: Any) -> Ready | Made | Lost:
        worker, task = self._calls.pop(call)
        errors = self._ray.exceptions
        try:
            result = self._ray.get(call)
        except errors.RayTaskError as error:  # the worker raised it
            if isinstance(error.cause, UserError | OSError):
                raise error.cause from error
            raise
        except errors.RayError as error:
            return Lost(worker, _reason(error), NODE_DIED in str(error))
        self._had_ready = time.monotonic()
        return Ready(worker) if task is None else Made(worker, task, result)

    def _say_if_waiting(self) -> None:
        if any(task for _, task in self._calls.values()):
            self._had_ready = time.monotonic()
        elif time.monotonic() - self._had_ready > PATIENCE:
            self._had_ready = time.monotonic()
            free = {name: self._ray.available_resources().get(name, 0.0) for name in self._needed}
            say(f"Ray: no worker is ready yet; one takes {listed(self._needed)}, free are {listed(free)}.")


def _reason(error: BaseException) -> str:
    """What Ray says of a lost worker, in one line: the last line of a traceback, else what is said of its process."""
    text = str(error)
    node = re.search(r"\bip[:=] ?([0-9a-fA-F.:]+)", text)
    text = text.rpartition("Worker exit detail: ")[2].partition(" Some common causes include")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    said = NODE_DIED if NODE_DIED in text else re.sub(r" [0-9a-f]{32}\b", "", lines[-1])[:300]
    return f"{said} on {node[1]}" if node else said
