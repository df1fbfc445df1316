"""What Ray costs the embedding of shards: two workers of one core each beside one process that uses both cores.

    python scripts/bench/ray_workers.py --model all-MiniLM-L6-v2 --shards 8 --words 12 --rounds 2

Each round fills a store both ways in turn, in processes of their own. The first shard of a process or worker, in which
programs are compiled, is left out: from its end to the end of the last shard are measured the texts/s, the share of the
time in which no shard is computed, and the processor's time. The figures are medians of the rounds; Ray's of a worker
are means of its workers, texts/s their sum. A call of Ray that makes nothing is timed too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jasper_jax.assets.corpora import read_corpus
from jasper_jax.data.texts import TextStore, build_text_store
from jasper_jax.recipe.config import Teacher
from jasper_jax.recipe.config_sources import Augment, Texts, TextSource
from jasper_jax.teachers import ray_cluster, ray_connection, shard_maker
from jasper_jax.teachers.cluster_embedding import TeacherStore, embed_on_cluster
from jasper_jax.teachers.embedding import embed_teacher
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.teachers.teacher_worker import TeacherWorker

ROWS = 1024
CALLS = 500


def build_texts(place: Path, shards: int, words: int) -> None:
    """A text store of ``shards`` shards, of the first words of passages and questions."""
    documents = list(read_corpus("squad-shifts", ["nyt", "reddit", "amazon"]))
    lines = [" ".join(document.text.split()[:words]) for document in documents]
    lines = [f"{lines[i % len(lines)]} {i}" for i in range(shards * ROWS)]
    (place / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    augment = Augment(split_share=0, shuffle_share=0)
    source = TextSource(text=str(place / "texts.txt"))
    settings = Texts(sources=[source], held_out=0, augment=augment, shard_rows=ROWS)
    build_text_store(settings, place / "texts", seed=0, progress=False)


def record_times(folder: Path) -> None:
    """Append when each shard was computed by this process, and its processor time by then."""
    compute = shard_maker.ShardMaker.compute

    def timed(self: shard_maker.ShardMaker, inputs: object) -> np.ndarray | None:
        start = time.perf_counter()
        made = compute(self, inputs)
        line = json.dumps([start, time.perf_counter(), time.process_time()])
        with (folder / f"times-{os.getpid()}.jsonl").open("a") as file:
            file.write(line + "\n")
        return made

    shard_maker.ShardMaker.compute = timed  # type: ignore[method-assign]


class TimedWorker(TeacherWorker):
    """A worker that records when it computes."""

    def _load(self) -> None:
        record_times(self._order.folder.parent)
        super()._load()


class IdleWorker:
    def nothing(self) -> int:
        return 0


def fill(place: Path, model: str, how: str) -> None:
    """Fill ``place/how`` by ``how``: one or ray."""
    teacher = TeacherModel(Teacher(name="teacher", model=model), progress=False)
    texts, folder = TextStore.open(place / "texts"), place / how / "teacher"
    folder.mkdir(parents=True)
    if how == "one":
        record_times(folder.parent)
        embed_teacher(folder, texts, teacher.spec, teacher.encoder(), progress=False)
        return
    ray_cluster.TeacherWorker = TimedWorker  # type: ignore[misc]
    with ray_connection.connected(ray_connection.LOCAL) as ray:
        actor = ray.remote(IdleWorker).options(num_cpus=1, max_concurrency=2).remote()
        ray.get(actor.nothing.remote())
        start = time.perf_counter()
        for _ in range(CALLS):
            ray.get(actor.nothing.remote())
        (place / how / "call.json").write_text(json.dumps((time.perf_counter() - start) / CALLS))
        ray.kill(actor)
        cluster = lambda orders: ray_cluster.RayCluster(ray, {"CPU": 1.0}, orders)  # noqa: E731
        embed_on_cluster([TeacherStore(teacher, folder)], texts, None, cluster, progress=False)


def figures(folder: Path) -> dict[str, float]:
    """Texts/s, the share of idle time, processor seconds a shard, and the workers, from the recorded times."""
    processes = [np.array([json.loads(line) for line in f.read_text().splitlines()]) for f in folder.glob("times-*")]
    spans = [(times[1:, 1] - times[1:, 0]).sum() / (times[-1, 1] - times[0, 1]) for times in processes]
    rates = [(len(times) - 1) * ROWS / (times[-1, 1] - times[0, 1]) for times in processes]
    busy = [(times[-1, 2] - times[0, 2]) / (len(times) - 1) for times in processes]
    return {
        "texts/s": round(float(np.sum(rates)), 1),
        "idle": round(1 - float(np.mean(spans)), 4),
        "processor s/shard": round(float(np.mean(busy)), 3),
        "workers": len(processes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--words", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--fill", nargs=2, metavar=("PLACE", "HOW"), help="for this script itself")
    options = parser.parse_args()
    if options.fill:
        fill(Path(options.fill[0]), options.model, options.fill[1])
        return
    found: dict[str, list[dict[str, float]]] = {"one": [], "ray": []}
    calls, same = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            build_texts(place, options.shards, options.words)
            for how, rounds in found.items():
                command = [sys.executable, __file__, "--model", options.model, "--fill", name, how]
                subprocess.run(command, check=True)
                rounds.append(figures(place / how))
            calls.append(json.loads((place / "ray" / "call.json").read_text()))
            stores = [{f.name: f.read_bytes() for f in (place / how / "teacher").iterdir()} for how in found]
            same.append(stores[0] == stores[1])
    ratio = [ray["texts/s"] / one["texts/s"] for one, ray in zip(found["one"], found["ray"])]
    middle = {
        how: {key: float(np.median([r[key] for r in rounds])) for key in rounds[0]} for how, rounds in found.items()
    }
    middle |= {
        "ratio of texts/s": round(float(np.median(ratio)), 3),
        "call ms": round(1e3 * float(np.median(calls)), 2),
        "same bytes": all(same),
    }
    print(json.dumps({"model": options.model, "shards": options.shards, "words": options.words, **middle}))
    print(json.dumps({"rounds": found, "ratios": [round(x, 3) for x in ratio]}))


if __name__ == "__main__":
    main()
