"""Commands as processes of their own. Nothing here starts JAX's backend: the accelerator is the children's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from accelerator_checks.check import REPOSITORY, Outcome, cache_programs, scratch_folder
from accelerator_checks.world import recipe_file

MOST_SECONDS = 60.0
EXIT_CODE = 75


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "scripts" / "bench")])
    return {**os.environ, "PYTHONPATH": path, "JASPER_CACHE": str(scratch_folder() / "cache")}


def sigterm(size: str) -> Outcome:
    """``jasper run``, stopped in the middle of a stage."""
    run = scratch_folder() / f"world-{size}" / "stopped"
    stage = {"stage": 3, "steps": 2000, "batch_size": 16, "learning_rate": 1e-5}
    recipe = recipe_file(size, run_dir=str(run), stages=[stage])
    log, metrics = scratch_folder() / "sigterm.log", run / "metrics.jsonl"
    code = "import sys; from jasper_jax.cli import main; sys.exit(main())"
    with log.open("w") as output:
        command = [sys.executable, "-c", code, "run", str(recipe)]
        process = subprocess.Popen(command, env=_environment(), stdout=output, stderr=subprocess.STDOUT)
        try:
            while '"event": "step"' not in (metrics.read_text() if metrics.is_file() else ""):
                if process.poll() is not None:
                    raise RuntimeError(f"ended with {process.returncode} before a step: {log.read_text()[-1500:]}")
                time.sleep(0.2)
            began = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            ended = process.wait(timeout=2 * MOST_SECONDS)
        finally:
            process.kill()
    seconds = time.perf_counter() - began
    saved = sorted(str(path.relative_to(run)) for path in (run / "checkpoints").glob("*"))
    good = ended == EXIT_CODE and seconds <= MOST_SECONDS
    values: dict[str, Any] = {"code": ended, "seconds_to_exit": seconds, "checkpoints": saved}
    return Outcome(good, values if good else {**values, "output": log.read_text()[-1500:]})


def compile_cache(size: str) -> Outcome:
    """The same step compiled by two processes, one after the other, with one cache folder."""
    folder = scratch_folder() / "cache-check"
    code = f"from accelerator_checks.processes import compile_once; compile_once({str(folder)!r}, {size!r})"
    found = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=_environment(), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"compiling ended with {done.returncode}: {done.stderr[-1500:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = found
    good = first["hits"] == 0 and second["hits"] >= 1 and second["misses"] == 0
    return Outcome(good, {"first": first, "second": second})


def compile_once(folder: str, size: str) -> None:
    """Compile the last text stage's step with the cache in ``folder``; print seconds, cache hits and misses."""
    cache_programs(Path(folder))
    import jax

    from accelerator_checks.steps import lowered_stages

    counts = {"hits": 0, "misses": 0}

    def count(event: str, **_: Any) -> None:
        for name in counts:
            counts[name] += event == f"/jax/compilation_cache/cache_{name}"

    lowered = list(lowered_stages("stella_400m" if size == "full" else "small").values())[-1]
    jax.monitoring.register_event_listener(count)
    began = time.perf_counter()
    lowered.compile()
    print(json.dumps({"seconds": time.perf_counter() - began, **counts}))
