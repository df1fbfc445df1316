"""``jasper embed --ray``: what is refused before Ray is asked; with Ray, kills of nodes, heads and drivers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jasper_jax.recipe.config import Ray
from jasper_jax.runtime.errors import Interrupted, UserError
from jasper_jax.teachers.ray_cluster import needs, room
from jasper_jax.teachers.ray_connection import interrupts
from tests.data.store_helpers import contents
from tests.tiny import recipe_tree, write_texts

ROOT = Path(__file__).parents[2]

# ------------------------------------------------------------------------------------------ without Ray


def node(alive: bool = True, **resources: float) -> dict:
    """As one of ``ray.nodes()``."""
    return {"Alive": alive, "Resources": {"memory": 1e9, "node:10.0.0.1": 1.0, **resources}}


GPU_NODES = [node(CPU=16, GPU=8), node(CPU=4, GPU=8), node(CPU=64), node(alive=False, CPU=64, GPU=8)]


@pytest.mark.parametrize(
    ("settings", "nodes", "needed", "workers"),
    [
        ({}, [node(CPU=4), node(CPU=2)], {"CPU": 1}, 6),
        ({"num_cpus": 3}, [node(CPU=4), node(CPU=2)], {"CPU": 3}, 1),
        ({}, GPU_NODES, {"CPU": 1, "GPU": 1}, 12),
        ({"num_gpus": 0}, GPU_NODES, {"CPU": 1}, 84),
        ({"num_cpus": 2, "num_gpus": 4}, GPU_NODES, {"CPU": 2, "GPU": 4}, 4),
        ({"resources": {"TPU": 4}}, [node(CPU=8, TPU=4), node(CPU=8)], {"CPU": 1, "TPU": 4}, 1),
    ],
)
def test_what_a_worker_takes_and_how_many_the_nodes_hold(settings, nodes, needed, workers) -> None:
    assert needs(Ray(**settings), nodes) == needed
    assert room(needed, nodes) == workers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_gpus": 1}, "takes 1 CPU, 1 GPU, and no node has that (the most on one node: 4 CPU, 0 GPU)"),
        ({"num_cpus": 5}, "takes 5 CPU, and no node has that (the most on one node: 4 CPU)"),
        ({"resources": {"TPU": 4}}, "the most on one node: 4 CPU, 0 TPU"),
    ],
)
def test_what_no_node_has_is_refused(settings, message) -> None:
    with pytest.raises(UserError) as refused:
        needs(Ray(**settings), [node(CPU=4), node(alive=False, CPU=64, GPU=8, TPU=4)])
    assert message in str(refused.value)
    assert "ray.num_cpus, ray.num_gpus or ray.resources" in str(refused.value)


RECIPE = ROOT / "configs" / "quickstart.yaml"


@pytest.mark.parametrize("words", [["--ray"], ["--ray", "seed=1"], ["--ray", "auto"], ["seed=1", "--ray"]])
def test_without_the_extra_one_line_says_so(refused, monkeypatch, words) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused("--ray needs the extra ray, which is not installed: pip install 'jasper-jax[ray]'", "embed", RECIPE, *words)


@pytest.fixture
def port() -> Iterator[int]:
    """Where something answers that is no Ray cluster."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]


def test_addresses_that_are_none(refused, monkeypatch, port) -> None:
    monkeypatch.setitem(sys.modules, "ray", sys.modules["json"])  # found, and not asked
    for address in ("head", "10.0.0.1:0", "10.0.0.1:99999", "ray://10.0.0.1:10001"):
        refused(f"--ray {address}: expected host:port of the cluster's head", "embed", RECIPE, "--ray", address)
    refused("no Ray cluster", "embed", RECIPE, "--ray", f"127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    refused("cannot be reached", "embed", RECIPE, "--ray", f"127.0.0.1:{free}")
    refused("leave out --process-index", "embed", RECIPE, "--ray", "--process-index", "1")


def test_a_request_to_stop_in_code_that_returns_a_result() -> None:
    with pytest.raises(Interrupted), interrupts():
        raise SystemError("CoreWorker.wait returned a result with an exception set") from Interrupted()
    with pytest.raises(SystemError), interrupts():
        raise SystemError("of another cause") from OSError()


# --------------------------------------------------------------------------------------------- with Ray

full = pytest.mark.full


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A recipe of two teachers, and their stores as one process writes them, in ``one``."""
    pytest.importorskip("ray")
    place = tmp_path_factory.mktemp("ray")
    write_texts(place / "texts.jsonl", 1200)
    tree = recipe_tree(place)
    tree["texts"]["shard_rows"] = 16
    tree["teachers"][1]["dtype"] = "int8"
    for stage in tree["stages"]:
        stage["steps"] = 200
    (place / "recipe.yaml").write_text(yaml.safe_dump(tree))
    assert embed(place, "one").wait(timeout=300) == 0
    return place


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
import psutil  # Ray brings it

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(int(sys.argv[1]))]
print(cluster.address, flush=True)
for line in sys.stdin:
    head = line.strip() == "head"
    node = cluster.head_node if head else nodes.pop()
    (raylet,) = node.all_processes["raylet"]
    workers = psutil.Process(raylet.process.pid).children(recursive=True)
    if head:
        for processes in node.all_processes.values():
            for one in processes:
                one.process.kill()
    else:
        cluster.remove_node(node, allow_graceful=False)
    for worker in workers:  # which would go on for seconds, as they do not where a machine is lost
        try:
            worker.kill()
        except psutil.NoSuchProcess:
            pass
    print("killed", flush=True)
    if head:
        break
cluster.shutdown()
"""


class Nodes:
    """A cluster of this machine whose nodes have one core each."""

    def __init__(self, number: int, environment: dict[str, str] | None = None):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **(environment or {})},
        )
        self.address = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self, which: str = "node") -> None:
        """End a node, or the ``head``, and all its processes, without warning."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{which}\n")
        self.process.stdin.flush()
        assert self._line() == "killed"

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.communicate(timeout=60)


@pytest.fixture
def cluster(place) -> Iterator[Nodes]:
    nodes = Nodes(3)
    yield nodes
    nodes.end()


def embed(place: Path, name: str, *words: str) -> subprocess.Popen:
    """Starts ``jasper embed`` with stores in ``place/name``; what it prints goes to ``place/name.log``."""
    with (place / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jasper_jax.cli", "embed", "recipe.yaml", f"run_dir={place / name}", *words],
            cwd=place,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        )


def wait_for_shards(place: Path, name: str, number: int, driver: subprocess.Popen) -> None:
    while len(list((place / name).glob("vectors/*/vectors-*"))) < number:
        assert driver.poll() is None, (place / f"{name}.log").read_text()
        time.sleep(0.02)


def last_line(place: Path, name: str) -> str:
    return (place / f"{name}.log").read_text().splitlines()[-1]


def same_as_one(place: Path, name: str) -> bool:
    return all(contents(place / name / "vectors" / t) == contents(place / "one" / "vectors" / t) for t in ("a", "b"))


@full
def test_three_nodes_of_which_one_is_killed(place, cluster) -> None:
    driver = embed(place, "three", "--ray", cluster.address)
    wait_for_shards(place, "three", 8, driver)
    cluster.kill()
    assert driver.wait(timeout=200) == 0, (place / "three.log").read_text()
    assert same_as_one(place, "three")
    log = (place / "three.log").read_text()
    assert "a worker was lost (" in log
    assert "Traceback" not in log


@full
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, -9)], ids=["term", "int", "kill"]
)
@pytest.mark.parametrize("where", ["here", "cluster"])
def test_a_driver_that_is_stopped_continues(place, request, number, code, where) -> None:
    name = f"{where}-{number.name}"
    words = ["--ray", request.getfixturevalue("cluster").address] if where == "cluster" else ["--ray"]
    driver = embed(place, name, *words)
    wait_for_shards(place, name, 6, driver)
    driver.send_signal(number)
    assert driver.wait(timeout=200) == code
    if number != signal.SIGKILL:
        assert last_line(place, name) == "jasper: stopped; run the same command to continue"
    made = len(list((place / name).glob("vectors/*/vectors-*")))
    assert made < len(list((place / "one").glob("vectors/*/vectors-*")))
    assert embed(place, name, *words).wait(timeout=200) == 0, (place / f"{name}.log").read_text()
    assert same_as_one(place, name)


@full
def test_a_cluster_that_lost_its_head(place, cluster) -> None:
    """Nothing of it can be kept; a new cluster goes on with the shards that are there."""
    driver = embed(place, "headless", "--ray", cluster.address)
    wait_for_shards(place, "headless", 8, driver)
    cluster.kill("head")
    assert driver.wait(timeout=200) == 2, (place / "headless.log").read_text()
    said = last_line(place, "headless")
    assert f"the head of the cluster, {cluster.address}, has not answered for 20 s" in said
    assert "Traceback" not in (place / "headless.log").read_text()
    made = {path: path.stat().st_mtime_ns for path in (place / "headless").glob("vectors/*/vectors-*")}
    assert len(made) < len(list((place / "one").glob("vectors/*/vectors-*")))
    again = Nodes(2)
    try:
        assert embed(place, "headless", "--ray", again.address).wait(timeout=200) == 0
    finally:
        again.end()
    assert same_as_one(place, "headless")
    assert all(path.stat().st_mtime_ns == written for path, written in made.items())


@full
def test_two_drivers_on_one_store(place, cluster) -> None:
    first = embed(place, "two", "--ray", cluster.address)
    wait_for_shards(place, "two", 1, first)
    second = embed(place, "second", f"stores={place / 'two'}", "--ray", cluster.address)
    assert second.wait(timeout=200) == 2
    assert "another process is using this" in last_line(place, "second")
    assert "jasper embed --ray" in last_line(place, "second")
    assert first.wait(timeout=200) == 0
    assert same_as_one(place, "two")


@full
def test_nodes_that_cannot_do_it(place, tmp_path) -> None:
    other = tmp_path / "flax-0.0.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: flax\nVersion: 0.0.1\n")
    nodes = Nodes(1, {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    try:
        for words, message in {
            (): "has other versions: flax is 0.0.1, at the driver",
            ("ray.num_gpus=1",): "a worker takes 1 CPU, 1 GPU, and no node has that",
        }.items():
            assert embed(place, "unlike", *words, "--ray", nodes.address).wait(timeout=200) == 2
            assert message in last_line(place, "unlike")
            assert not (place / "unlike").exists()
    finally:
        nodes.end()
