"""Shards given out to workers of a cluster, some of which are lost: always the bytes that one process writes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pytest

from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.scheduling import IN_HAND, Job, Lost, Made, Ready, share_out
from jasper_jax.teachers.shard_maker import ShardMaker, encoding_steps
from jasper_jax.teachers.store_writer import StoreWriter, Task
from jasper_jax.teachers.teacher_worker import Order, TeacherWorker
from tests.data.store_helpers import DTYPES, contents, encode, spec
from tests.tiny import recipe, recipe_tree

pytestmark = pytest.mark.usefixtures("quick_programs")


class Nodes:
    """A cluster in this process. Its workers take turns; each makes one shard at a turn, or is lost.

    ``workers``: by job, gives what makes shards. ``lost``: by turn, whether the shard is written before the worker is
    lost. ``sizes``: how many workers it holds, by turn from which on.
    """

    def __init__(
        self,
        workers: Sequence[Callable[[], Callable[[Task], int]]],
        lost: Mapping[int, bool] | None = None,
        sizes: Mapping[int, int] | None = None,
    ):
        self._workers, self._lost, self._sizes = workers, lost or {}, sizes or {0: 3}
        self.turns, self.made = 0, Counter()
        self.hands: dict[int, deque[Task]] = {}
        self.job_of: dict[int, int] = {}
        self._make: dict[int, Callable[[Task], int]] = {}

    def capacity(self) -> int:
        return next(size for turn, size in reversed(self._sizes.items()) if turn <= self.turns)

    def start(self, job: int) -> int:
        assert len(self.hands) < self.capacity()
        worker = len(self.job_of)
        self.hands[worker], self.job_of[worker] = deque(), job
        return worker

    def give(self, worker: int, job: int, task: Task) -> None:
        assert worker in self._make, "not ready"
        assert self.job_of[worker] == job
        self.hands[worker].append(task)
        assert len(self.hands[worker]) <= IN_HAND

    def stop(self, worker: int) -> None:
        self.hands.pop(worker, None)

    def wait(self):
        for worker, job in self.job_of.items():
            if worker in self.hands and worker not in self._make:
                self._make[worker] = self._workers[job]()
                return [Ready(worker)]
        busy = [worker for worker, hand in self.hands.items() if hand]
        if not busy:
            return []
        worker = busy[self.turns % len(busy)]
        self.turns += 1
        written = self._lost.get(self.turns)
        if written is False:
            return [Lost(worker, "its node is gone"), Lost(worker, "its node is gone")]
        task = self.hands[worker].popleft()
        tokens = self._make[worker](task)
        self.made[self.job_of[worker], task.shard] += 1
        return [Made(worker, task, tokens) if written is None else Lost(worker, "its node is gone")]


def begun(folder, texts, dtype) -> StoreWriter:
    writer = StoreWriter.begin(folder, texts, spec(dtype), None, progress=False)
    assert writer is not None
    return writer


def maker(folder, texts, dtype) -> Callable[[Task], int]:
    """What a worker does with a task, as a process of its own would."""
    writer = begun(folder, texts, dtype)
    shards = ShardMaker(writer, encoding_steps(folder, texts, spec(dtype), encode))

    def make(task: Task) -> int:
        shards.store(task, shards.compute(shards.read(task)))
        return 7

    return make


@pytest.mark.parametrize(
    "lost",
    [{}, {4: False}, {4: True}, {2: False, 9: True, 10: False, 17: True}],
    ids=["none lost", "lost in a shard", "lost after a shard", "several"],
)
@pytest.mark.parametrize("size", [1, 3, 40])
def test_two_stores_have_the_bytes_of_one_process(texts, whole, tmp_path, lost, size) -> None:
    counted, jobs = Counter(), []
    for name in DTYPES:
        writer = begun(tmp_path / name, texts, name)
        made = lambda task, tokens, name=name: counted.update({(name, task.shard): 1, "tokens": tokens})  # noqa: E731
        jobs.append(Job(name, writer.tasks(), lambda w=writer: w.done().keys(), made))
    nodes = Nodes([partial(maker, tmp_path / name, texts, name) for name in DTYPES], lost, {0: size})
    share_out(jobs, nodes)
    for name in DTYPES:
        assert begun(tmp_path / name, texts, name).finish() is not None
        assert contents(tmp_path / name) == whole[name]
    assert {number for what, number in counted.items() if what != "tokens"} == {1}
    assert len(counted) == 1 + 2 * len(texts.shards)
    assert set(nodes.made.values()) == {1}, "what a lost worker has written is not made again"
    assert counted["tokens"] == 7 * (2 * len(texts.shards) - sum(lost.values()))
    assert not nodes.hands, "workers are left"


def test_workers_move_on_to_the_next_store(texts, tmp_path) -> None:
    jobs = [Job(name, begun(tmp_path / name, texts, name).tasks(), frozenset, lambda *_: None) for name in DTYPES]
    nodes = Nodes([lambda: lambda task: 0] * 2, sizes={0: 2})
    share_out(jobs, nodes)
    assert Counter(nodes.job_of.values()) == {0: 2, 1: 2}


def test_nodes_that_come_and_go(texts, tmp_path) -> None:
    tasks = begun(tmp_path / "a", texts, "float16").tasks()
    nodes = Nodes([lambda: lambda task: 0], {3: False}, {0: 2, 3: 1, 6: 4})
    share_out([Job("a", tasks, frozenset, lambda *_: None)], nodes)
    assert sum(nodes.made.values()) == len(tasks)
    assert len(nodes.job_of) == 5, "two at the start; one of them is lost with its node, and three more come later"


def test_no_worker_waits_behind_another_for_the_last_shards(texts, tmp_path) -> None:
    tasks = begun(tmp_path / "a", texts, "float16").tasks()[:4]
    nodes = Nodes([lambda: lambda task: 0], sizes={0: 3})
    most = Counter()
    give = nodes.give
    nodes.give = lambda worker, job, task: (give(worker, job, task), most.update({worker: 1}))[0]
    share_out([Job("a", tasks, frozenset, lambda *_: None)], nodes)
    assert max(most.values()) <= 2
    assert len(most) == 3


def test_a_shard_that_ends_its_workers_ends_the_run(texts, tmp_path) -> None:
    tasks = begun(tmp_path / "a", texts, "float16").tasks()
    nodes = Nodes([lambda: lambda task: 0], dict.fromkeys(range(1, 99), False), {0: 1})
    with pytest.raises(UserError, match=r"teachers.a: 3 workers were lost with shard 0 of the train texts in hand"):
        share_out([Job("a", tasks, frozenset, lambda *_: None)], nodes)
    assert not nodes.hands


class Dying(Nodes):
    """A cluster whose first workers are lost before they are ready, as many as ``deaths``; with their nodes or not."""

    deaths, node_died = 99, False

    def wait(self):
        if self.deaths > 0:
            self.deaths -= len(self.hands)
            return [Lost(worker, "out of memory", self.node_died) for worker in self.hands]
        return super().wait()


def test_workers_that_never_begin_end_the_run(texts, tmp_path) -> None:
    nodes = Dying([])
    with pytest.raises(UserError, match=r"lost before they made a shard \(out of memory\)"):
        share_out([Job("a", begun(tmp_path / "a", texts, "int8").tasks(), frozenset, lambda *_: None)], nodes)
    assert not nodes.hands


def test_nodes_that_die_do_not_end_the_run(texts, tmp_path) -> None:
    tasks = begun(tmp_path / "a", texts, "int8").tasks()
    nodes = Dying([lambda: lambda task: 0])
    nodes.deaths, nodes.node_died = 12, True
    share_out([Job("a", tasks, frozenset, lambda *_: None)], nodes)
    assert sum(nodes.made.values()) == len(tasks)


def test_an_error_of_a_worker_ends_the_run(texts, tmp_path) -> None:
    def bad(task: Task) -> int:
        raise UserError("zero or not finite")

    nodes = Nodes([lambda: bad])
    with pytest.raises(UserError, match="zero or not finite"):
        share_out([Job("a", begun(tmp_path / "a", texts, "int8").tasks(), frozenset, lambda *_: None)], nodes)
    assert not nodes.hands


# ------------------------------------------------------------------------------- the workers themselves


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A run with the store of its teacher, made by this process."""
    place = tmp_path_factory.mktemp("run")
    run = Run(recipe(place, teachers=recipe_tree(place)["teachers"][:1]), progress=False)
    assert run.vectors.embed(run.teachers[0], run.data.texts())
    return run


def elsewhere(embedded: Run, place) -> Run:
    """The same teachers and texts, with stores of vectors in ``place``."""
    run = Run(embedded.recipe.model_copy(update={"stores": str(place)}), progress=False)
    place.mkdir(exist_ok=True)
    (place / "texts").symlink_to(embedded.data.text_folder.resolve(), target_is_directory=True)
    return run


def on_nodes(lost: Mapping[int, bool], orders: Sequence[Order]) -> Nodes:
    def start(order: Order) -> Callable[[Task], int]:
        worker = TeacherWorker(order)
        worker.load()
        return worker.make

    return Nodes([partial(start, order) for order in orders], lost, {0: 2})


def test_a_teacher_on_workers_gives_the_bytes_of_one_process(embedded, tmp_path, capsys) -> None:
    run = elsewhere(embedded, tmp_path / "stores")
    texts = run.data.texts()
    run.vectors.progress = True
    run.vectors.embed_on(partial(on_nodes, {2: False, 5: True}), run.teachers, texts)
    for teacher in run.teachers:
        assert contents(run.vectors.folder(teacher)) == contents(embedded.vectors.folder(teacher))
        assert run.vectors.open(teacher, texts)
    shown = capsys.readouterr().err
    assert "vectors: 152 of 152" in shown
    assert shown.count("a worker was lost (its node is gone); others take its shards") == 2
    assert not list((tmp_path / "stores" / "vectors").glob(".shared*"))
    run.vectors.embed_on(lambda orders: pytest.fail("nothing is left to do"), run.teachers, texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda order: {"versions": {**order.versions, "jax": "0.1"}},
            r"other versions: jax is [0-9.]+, at the driver 0.1;",
        ),
        (lambda order: {"token": order.token.with_name(".shared.other.tmp")}, "not one folder for driver and nodes"),
        (lambda order: {"texts": order.texts / "nowhere"}, "no complete text store here"),
        (lambda order: {"teacher": order.teacher.model_copy(update={"max_length": 9})}, r"max_length \(32 there, 9"),
    ],
    ids=["versions", "another disk", "no texts", "another model"],
)
def test_a_node_that_differs_is_refused(embedded, tmp_path, change, message) -> None:
    run = elsewhere(embedded, tmp_path / "stores")

    def other(orders: Sequence[Order]) -> Nodes:
        return on_nodes({}, [replace(order, **change(order)) for order in orders])

    with pytest.raises(UserError, match=message) as refused:
        run.vectors.embed_on(other, run.teachers, run.data.texts())
    assert "(on " in str(refused.value)
    assert not list((tmp_path / "stores" / "vectors").glob("*/vectors-*"))
