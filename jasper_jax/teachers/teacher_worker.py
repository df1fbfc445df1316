"""A worker of a cluster: it loads one teacher once and makes the shards that it is given."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jasper_jax.data.drawn import Draws
from jasper_jax.recipe.config import Teacher
from jasper_jax.runtime.errors import UserError, first_three
from jasper_jax.teachers.store_writer import StoreWriter, Task

PACKAGES = ("jasper-jax", "jax", "jaxlib", "flax", "tokenizers", "transformers", "array-record")
"""What the bytes of a shard may depend on, besides the kind of device."""


def version_reader(packages: Sequence[str] = PACKAGES) -> Callable[[], dict[str, str]]:
    """A function that reads the versions which must be the same on all nodes.

    It needs nothing but Python: Ray sends a function that is made in another by its code, so it runs on a node
    without this package too.
    """

    def read() -> dict[str, str]:
        import importlib.metadata
        import importlib.util
        import platform

        found = {"python": platform.python_version()}
        for name in packages:
            if importlib.util.find_spec(name.replace("-", "_")) is None:
                found[name] = "not installed"
                continue
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:  # a copy of the repository that is on the path
                found[name] = "not recorded"
        return found

    return read


def refuse_other_versions(own: Mapping[str, str], node: Mapping[str, str], where: str) -> None:
    """UserError: the node ``where`` has other versions than the driver."""
    different = [
        f"{name} is {node.get(name)}, at the driver {own[name]}" for name in own if own[name] != node.get(name)
    ]
    if different:
        raise UserError(
            f"node {where} has other versions: {first_three(different)}; install the same on the driver and all nodes"
        )


@dataclass(frozen=True)
class Order:
    """What a worker is started with: the teacher, and the folders of its store and of the texts on all nodes."""

    teacher: Teacher
    folder: Path
    texts: Path
    draws: Draws | None
    token: Path
    """A file that the driver made beside ``folder``: a node that does not see it has another disk there."""
    versions: Mapping[str, str]
    current_folder: str
    """Of the driver, from which relative paths are meant."""


class TeacherWorker:
    """Makes shards of one store. Several threads may call :meth:`make`: one reads while another computes."""

    def __init__(self, order: Order):
        self._order = order
        self._reading, self._computing, self._storing = (threading.Lock() for _ in range(3))
        self._counted = 0

    def __repr__(self) -> str:  # Ray's dashboard shows it
        return self._order.teacher.name

    def load(self) -> str:
        """Load the teacher; returns the name of this node.

        Raises:
          UserError: other versions than the driver's, folders that are not the driver's, a model that is not here or
            is another one. The message ends with the node's name.
        """
        with self._naming_the_node():
            order = self._order
            refuse_other_versions(order.versions, version_reader()(), socket.gethostname())
            with contextlib.suppress(OSError):
                os.chdir(order.current_folder)
            self._refuse_another_disk()
            self._load()
        return socket.gethostname()

    def _refuse_another_disk(self) -> None:
        from jasper_jax.runtime.agreement import folder_problem

        token = self._order.token
        own = token.with_name(f"{token.name.removesuffix('.tmp')}.{socket.gethostname()}.{os.getpid()}.tmp")
        try:
            problem = folder_problem(own, seen=token)
        finally:
            with contextlib.suppress(OSError):
                own.unlink()
        if problem:
            raise UserError(
                f"stores: {token.parent} is not one folder for driver and nodes: this one {problem}; put it on a disk"
                f" that all of them mount (NFS, Filestore, Lustre)"
            )

    def _load(self) -> None:
        from jasper_jax.data.texts import TextStore
        from jasper_jax.runtime.compilers import hidden_compilers
        from jasper_jax.runtime.program_cache import cache_programs
        from jasper_jax.teachers.models import TeacherModel
        from jasper_jax.teachers.shard_maker import ShardMaker, encoding_steps

        order = self._order
        with hidden_compilers():
            cache_programs()
            texts = TextStore.open(order.texts)
            model = TeacherModel(order.teacher, progress=False)
            writer = StoreWriter(order.folder, texts, model.spec, order.draws)
            writer.pin()
            self._encoder = model.encoder()
            self._tokens()  # loads the model, before several threads ask for it
            self._maker = ShardMaker(writer, encoding_steps(order.folder, texts, model.spec, self._encoder))

    def make(self, task: Task) -> int:
        """Write one shard, whole; returns the tokens encoded since the last call returned, 0 if they are not counted.

        Raises:
          UserError: vectors that cannot be stored. The message ends with the node's name.
        """
        with self._naming_the_node():
            with self._reading:
                inputs = self._maker.read(task)
            with self._computing:
                made = self._maker.compute(inputs)
            with self._storing:
                self._maker.store(task, made)
                before, self._counted = self._counted, self._tokens()
                return self._counted - before

    def _tokens(self) -> int:
        return getattr(self._encoder, "tokens", 0)

    @contextlib.contextmanager
    def _naming_the_node(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise UserError(f"{error} (on {socket.gethostname()})") from error
