"""Which worker of a cluster makes which shard: whoever is free takes the next one, and a lost worker's go to others.

The driver keeps the queues and asks the cluster for workers, each of which has one teacher loaded. It knows nothing of
how a cluster starts and reaches them (``Cluster``; ``ray_cluster`` is one).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from jasper_jax.data.shards import ShardInfo
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import say
from jasper_jax.teachers.store_writer import Task

IN_HAND = 2
"""Shards that a worker has at once: it reads one while its devices compute another."""
LOSSES = 3
"""Workers that end by themselves with one shard in hand, or one after another before they made any, end the run."""


class Ready(NamedTuple):
    """The worker has loaded its teacher."""

    worker: Any


class Made(NamedTuple):
    """The worker has written the task's shard, and encoded ``tokens`` since the one before."""

    worker: Any
    task: Task
    tokens: int


class Lost(NamedTuple):
    """The worker is gone. What it had in hand may have been written or not."""

    worker: Any
    why: str
    node_died: bool = False
    """With all that ran on its node, so neither the shard nor the teacher is the cause."""


class Cluster(Protocol):
    """Starts workers and reaches them. A worker may be any hashable value."""

    def capacity(self) -> int:
        """How many workers all its nodes can hold."""
        ...

    def start(self, job: int) -> Hashable:
        """Ask for a worker for the job of this number; :class:`Ready` follows when it has loaded the teacher."""
        ...

    def give(self, worker: Any, job: int, task: Task) -> None:
        """Let the worker make a shard; :class:`Made` follows."""
        ...

    def stop(self, worker: Any) -> None:
        """End the worker, which makes room for another."""
        ...

    def wait(self) -> Iterable[Ready | Made | Lost]:
        """What has happened since the last call; waits a moment if nothing has. Raises what a worker raised."""
        ...


@dataclass
class Job:
    """The store of one teacher: its name, the shards to make, which of them are ``complete`` on disk by now, and what
    is called for each that is made, with the tokens that were encoded."""

    name: str
    tasks: Sequence[Task]
    complete: Callable[[], AbstractSet[ShardInfo]]
    made: Callable[[Task, int], None]


@dataclass
class _Member:
    job: int
    ready: bool = False
    hand: list[Task] = field(default_factory=list)


def share_out(jobs: Sequence[Job], cluster: Cluster) -> None:
    """Have all shards of all jobs made by workers of the cluster, those of the first job first. No worker is left.

    Raises:
      UserError: a worker raised it; or workers are lost again and again with the same shard, or before they are ready.
    """
    schedule = _Schedule(jobs, cluster)
    try:
        while not schedule.is_done():
            schedule.hire()
            schedule.give()
            for event in cluster.wait():
                schedule.take(event)
            schedule.dismiss()
    finally:
        for worker in schedule.crew:
            cluster.stop(worker)


class _Schedule:
    def __init__(self, jobs: Sequence[Job], cluster: Cluster):
        self.jobs, self.cluster = jobs, cluster
        self.queues = [deque(job.tasks) for job in jobs]
        self.crew: dict[Any, _Member] = {}
        self.losses: Counter[tuple[int, ShardInfo]] = Counter()
        self.idle_losses: Counter[int] = Counter()
        """By job, the workers lost with nothing in hand since one of its shards was made."""

    def is_done(self) -> bool:
        return not any(self.queues) and not any(member.hand for member in self.crew.values())

    def _of(self, job: int) -> list[_Member]:
        return [member for member in self.crew.values() if member.job == job]

    def hire(self) -> None:
        """Ask for as many workers as there is room for and shards wait for."""
        room = self.cluster.capacity() - len(self.crew)
        for job, queue in enumerate(self.queues):
            starting = sum(not member.ready for member in self._of(job))
            for _ in range(min(room, len(queue) - starting)):
                self.crew[self.cluster.start(job)] = _Member(job)
                room -= 1

    def give(self) -> None:
        """Give every worker a shard; a second one to read ahead while there are more shards than workers, so that the
        last ones are not kept waiting behind others."""
        for most in range(1, IN_HAND + 1):
            for worker, member in self.crew.items():
                queue = self.queues[member.job]
                enough = bool(queue) if most == 1 else len(queue) > len(self._of(member.job))
                if member.ready and len(member.hand) < most and enough:
                    task = queue.popleft()
                    member.hand.append(task)
                    self.cluster.give(worker, member.job, task)

    def dismiss(self) -> None:
        """End the workers for which no shard is left."""
        for worker, member in list(self.crew.items()):
            if not member.hand and not self.queues[member.job]:
                del self.crew[worker]
                self.cluster.stop(worker)

    def take(self, event: Ready | Made | Lost) -> None:
        if (member := self.crew.get(event.worker)) is None:
            return  # stopped meanwhile
        if isinstance(event, Ready):
            member.ready = True
        elif isinstance(event, Made):
            member.hand.remove(event.task)
            self.idle_losses[member.job] = 0
            self.jobs[member.job].made(event.task, event.tokens)
        else:
            del self.crew[event.worker]
            self.cluster.stop(event.worker)
            self._return(member, event.why, 0 if event.node_died else 1)

    def _return(self, member: _Member, why: str, counted: int) -> None:
        """Queue again what a lost worker had in hand and has not written."""
        job = self.jobs[member.job]
        complete = job.complete() if member.hand else frozenset()
        say(f"{job.name}: a worker was lost ({why}); others take its shards.")
        again: list[Task] = []
        for task in member.hand:
            if task.shard in complete:
                job.made(task, 0)
                continue
            self.losses[member.job, task.shard] += counted
            if self.losses[member.job, task.shard] >= LOSSES:
                what = f"shard {task.shard.index} of the {task.shard.split} texts"
                raise UserError(self._again(job, f"{LOSSES} workers were lost with {what} in hand", why))
            again.append(task)
        self.queues[member.job].extendleft(reversed(again))
        self.idle_losses[member.job] += 0 if member.hand else counted
        if self.idle_losses[member.job] >= LOSSES:
            raise UserError(self._again(job, f"{LOSSES} workers were lost before they made a shard", why))

    @staticmethod
    def _again(job: Job, what: str, why: str) -> str:
        return f"teachers.{job.name}: {what} ({why}); give a worker more (ray.num_cpus, ray.num_gpus), then run again"
