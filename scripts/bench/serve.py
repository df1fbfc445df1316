"""An exported folder in a real embedding server: are its vectors the student's, and how fast are they there?

    pip install infinity-emb fastapi 'uvicorn[standard]' posthog prometheus-fastapi-instrumentator diskcache
    python scripts/bench/serve.py runs/quickstart/export all-mpnet-base-v2 --server PATH/infinity_emb

Each model (a folder, or the name of an asset) is served by infinity-emb, https://github.com/michaelfeil/infinity, and
asked over HTTP for vectors of odd, long and ordinary texts, alone and together, at its default dimension and at every
dimension that its config.json promises (`dimensions` of a request), then for single questions by 1, 4 and 16 clients at
once, and for 32 texts a request. The tables are Markdown, for docs/results/serving.md. Latencies are of the whole
request, on this machine; the processor time of the server for a text depends less on what else runs there; memory is
the peak of the server's process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax import Embedder
from jasper_jax.assets.corpora import retrieval_test
from jasper_jax.assets.models import resolve_model
from jasper_jax.export.check import SAMPLE
from jasper_jax.runtime.progress import say

OFF = dict.fromkeys(("INFINITY_BETTERTRANSFORMER", "INFINITY_COMPILE", "INFINITY_MODEL_WARMUP"), "false")
"""What the server would do for GPUs; the words of its command line for this differ between its versions."""
QUIET = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
START = 300  # seconds


class Client:
    """A connection that is kept open."""

    def __init__(self, port: int, model: str):
        self.model = model
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def embed(self, texts: Sequence[str], dim: int = 0) -> np.ndarray:
        """``[n, E]`` as the server gives them; 0: the default dimension."""
        body = {"model": self.model, "input": list(texts), **({"dimensions": dim} if dim else {})}
        self._connection.request("POST", "/embeddings", json.dumps(body), {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise SystemExit(f"the server answered {response.status}: {answer[:300].decode(errors='replace')}")
        rows = sorted(json.loads(answer)["data"], key=lambda row: row["index"])
        return np.array([row["embedding"] for row in rows], np.float32)


@contextmanager
def served(command: str, folder: Path) -> Iterator[tuple[int, str, subprocess.Popen]]:
    """The port, the model's name and the process of a server of ``folder``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    name, log = "served", Path(tempfile.mkstemp(prefix="serve-", suffix=".log")[1])
    arguments = ["--model-id", str(folder), "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [command, "v2", *arguments, "--device", "cpu", "--engine", "torch"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **OFF, **QUIET},
        )
    try:
        deadline = time.monotonic() + START
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command} did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield port, name, process
    finally:
        process.terminate()
        process.wait()
        log.unlink()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def parity(port: int, name: str, model: Embedder, texts: Sequence[str], dims: Sequence[int]) -> list[dict[str, Any]]:
    """For each dimension the worst cosine between what the server gives, normalised again, and the student's vectors;
    texts in one request and each in its own. The first dimension is the default."""
    prompt, rows = model.prompt("query"), []
    asked = [prompt + text for text in texts]
    for dim in dims:
        expected = model.encode(list(texts), "query", dim=dim)
        client = Client(port, name)  # the server closes connections that are idle for some seconds
        together = client.embed(asked, dim if dim != dims[0] else 0)
        alone = np.concatenate([client.embed([text], dim if dim != dims[0] else 0) for text in asked])
        worst = [float((unit(found) * expected).sum(axis=1).min()) for found in (together, alone)]
        lengths = np.linalg.norm(together, axis=1)
        rows.append({"dim": dim, "together": worst[0], "alone": worst[1], "length": (lengths.min(), lengths.max())})
    return rows


def load(port: int, name: str, texts: Sequence[str], clients: int, size: int, seconds: float) -> dict[str, float]:
    """``clients`` ask for ``size`` texts at a time, each its next request when it has its answer."""
    taken: list[float] = []
    start, lock = time.perf_counter(), threading.Lock()

    def ask(number: int) -> None:
        client, position = Client(port, name), number * 37
        while time.perf_counter() - start < seconds:
            request = [texts[(position + i) % len(texts)] for i in range(size)]
            begun = time.perf_counter()
            client.embed(request)
            with lock:
                taken.append(time.perf_counter() - begun)
            position += size

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - start
    median, late = np.quantile(taken, [0.5, 0.95])
    return {"median": float(median), "late": float(late), "rate": len(taken) * size / wall, "requests": len(taken)}


def processor_seconds(process: subprocess.Popen) -> float:
    """Of all threads of the process, so far (Linux)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def peak_memory(process: subprocess.Popen) -> int:
    """Bytes: the largest resident size so far (Linux)."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def dimensions(folder: Path, model: Embedder) -> list[int]:
    """The default dimension, then those that config.json promises to servers."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    promised = config.get("matryoshka_dimensions", []) if config.get("is_matryoshka") else []
    return list(dict.fromkeys([model.default_dim, *promised]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders, assets or hub ids")
    parser.add_argument("--server", default=shutil.which("infinity_emb") or "infinity_emb", help="the server's command")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    if shutil.which(options.server) is None:
        parser.error(f"{options.server}: no such command; pip install infinity-emb, then --server PATH/infinity_emb")

    questions = list(retrieval_test("squad-shifts", "amazon").queries.values())[:400]
    passages = list(retrieval_test("squad-shifts", "amazon").passages.values())[:16]
    checked: list[str] = []
    loads: list[str] = []
    for given in options.models:
        folder = resolve_model(given)
        model = Embedder.load(folder)
        with served(options.server, folder) as (port, name, process):
            for row in parity(port, name, model, [*SAMPLE, *questions[:16], *passages], dimensions(folder, model)):
                low, high = row["length"]
                checked.append(
                    f"| {given} | {row['dim']} | {row['together']:.7f} | {row['alone']:.7f} | {low:.3f} to {high:.3f} |"
                )
                say(checked[-1])
            for clients, size in [*((n, 1) for n in options.clients), (1, 32)]:
                load(port, name, questions, clients, size, 2.0)  # the first requests of a kind are slower
                before = processor_seconds(process)
                found = load(port, name, questions, clients, size, options.seconds)
                spent = 1e3 * (processor_seconds(process) - before) / (found["requests"] * size)
                loads.append(
                    f"| {given} | {clients} | {size} | {1e3 * found['median']:.1f} | {1e3 * found['late']:.1f} |"
                    f" {found['rate']:.1f} | {spent:.1f} | {peak_memory(process) / 2**20:,.0f} |"
                )
                say(loads[-1])
    print("| model | dimensions | worst cosine, one request | worst cosine, alone | length as served |")
    print("| --- | ---: | ---: | ---: | --- |", *checked, sep="\n")
    print("\n| model | clients | texts a request | median ms | 95% ms | texts/s | processor ms a text | peak MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", *loads, sep="\n")


if __name__ == "__main__":
    main()
