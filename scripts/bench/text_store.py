"""How fast a text store is built, with how much memory: by one process and by one for each core.

    python scripts/bench/text_store.py --texts 200000 [--than OTHER_CHECKOUT] [--near-duplicates 0.8]

Texts are generated: 2 to 12 sentences of 5 to 20 words, every twentieth one a copy of an earlier one, as JSONL. Every
build is a fresh process, with the default recipe's division and shuffling; all ways take turns, each in every round.
``--than`` names another version of this repository, which builds the same store. The stores must be equal to the byte.
``--near-duplicates`` leaves out near-duplicates too, beside a build that does not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def generate(path: Path, texts: int) -> None:
    """Write ``texts`` texts, the same for the same number."""
    rng = random.Random(1)
    words = ["".join(rng.choices("aeioubdfglmnprst", k=rng.randint(2, 9))) for _ in range(20_000)]
    earlier = ""
    with path.open("w") as file:
        for number in range(texts):
            sentences = (rng.choices(words, k=rng.randint(5, 20)) for _ in range(rng.randint(2, 12)))
            line = json.dumps({"text": " ".join(" ".join(some).capitalize() + "." for some in sentences)}) + "\n"
            file.write(earlier if number % 20 == 19 else line)
            earlier = line if number % 7 == 0 else earlier


def build(source: Path, folder: Path, processes: int | None, near: float | None) -> dict[str, Any]:
    """Build a store; seconds and peak memory of all its processes. ``processes``: None for the version's only way."""
    from jasper_jax.data.texts import build_text_store
    from jasper_jax.recipe.config_sources import Texts, TextSource

    more: dict[str, Any] = {}
    if processes is not None:
        from jasper_jax.runtime.workers import Workers

        more["workers"] = Workers(processes)
    began = time.perf_counter()
    texts = Texts(sources=[TextSource(jsonl=str(source))], **({} if near is None else {"near_duplicates": near}))
    store = build_text_store(texts, folder, 0, progress=False, **more)
    seconds = time.perf_counter() - began
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return {
        "texts": store.size("train") + store.size("held_out"),
        "seconds": seconds,
        "cpu": sum(usage.ru_utime + usage.ru_stime for usage in (own, others)),
        "main_mib": own.ru_maxrss / 1024,
        "worker_mib": others.ru_maxrss / 1024,
        "sha256": digest.hexdigest(),
    }


def measure(source: Path, package: Path, processes: int | None, near: float | None) -> dict[str, Any]:
    """:func:`build` in a process of its own, by the version in ``package``."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        asked = json.dumps([str(source), f"{folder}/texts", processes, near])
        command = [sys.executable, __file__, "--build", asked]
        environment = {**os.environ, "PYTHONPATH": str(package)}
        return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--than", type=Path)
    parser.add_argument("--near-duplicates", type=float)
    parser.add_argument("--build", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.build:
        source, folder, processes, near = json.loads(given.build)
        print(json.dumps(build(Path(source), Path(folder), processes, near)))
        return
    ways: dict[str, tuple[Path, int | None, float | None]] = {}
    if given.than:
        ways["the version to compare with"] = given.than.resolve(), None, None
    ways |= {f"{count} process{'es' * (count > 1)}": (ROOT, count, None) for count in (1, given.processes)}
    if given.near_duplicates:
        ways["near-duplicates too"] = ROOT, given.processes, given.near_duplicates
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.jsonl"
        generate(source, given.texts)
        for _ in range(given.rounds):
            for way, (package, processes, near) in ways.items():
                found[way].append(measure(source, package, processes, near))
    exact = [result["sha256"] for way, results in found.items() if ways[way][2] is None for result in results]
    assert len(set(exact)) == 1
    print("| | texts/s, median and all | processor's seconds | peak memory of this process, and of the largest other |")
    print("| --- | ---: | ---: | ---: |")
    for way, results in found.items():
        rates = [result["texts"] / result["seconds"] for result in results]
        cpu = statistics.median(result["cpu"] for result in results)
        memory = [max(result[key] for result in results) for key in ("main_mib", "worker_mib")]
        every = ", ".join(f"{rate:,.0f}" for rate in rates)
        print(f"| {way} | {statistics.median(rates):,.0f} ({every}) | {cpu:.1f} | {memory[0]:,.0f}, {memory[1]:,.0f} |")


if __name__ == "__main__":
    main()
