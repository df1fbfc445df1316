"""Does training run right and fast on this accelerator? One command, at most ten minutes, one JSON line per check.

    pip install -e '.[cuda]'          # jax[cuda13]; on a TPU: '.[tpu]', jax[tpu]
    python scripts/bench/accelerator.py | tee accelerator.jsonl

Needs the checkout and nothing from the network: models have random weights. The torch check also needs the extra
``export``, and is skipped without it. Each check runs in a process of its own, so that one that crashes, hangs or runs
out of memory does not end the others. The checks share ``--minutes``: one that does not fit into what is left is not
started, or stopped, and its line says ``skipped`` with the reason. ``--size tiny`` runs the same code on a CPU.

Exit code: 0 if all checks passed or do not apply here; 1 otherwise, also if one was skipped for lack of time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerator_checks.check import CHECKS, REPOSITORY, SIZES, Check, cache_programs

RESULT = "ACCELERATOR_RESULT "
"""Before the JSON line in a child's output."""
LEAST = 10.0
"""Seconds below which no check is started."""
CLOSING = 15.0
"""Seconds of the script's time that no check gets: it kills what runs and deletes the scratch folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--only", action="append", metavar="NAME", help="run only this check; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the checks and their marks")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="the time of all checks together; those that do not fit are skipped"
    )
    parser.add_argument("--in-process", action="store_true", help="no process per check: for a debugger, or a test")
    options = parser.parse_args(arguments)
    if options.list:
        for check in CHECKS:
            print(f"{check.name:20} {check.mark}")
        return 0
    names = [check.name for check in CHECKS]
    if unknown := [name for name in options.only or () if name not in names]:
        parser.error(f"--only {unknown[0]}: checks are {', '.join(names)}")
    chosen = [check for check in CHECKS if not options.only or check.name in options.only]
    deadline = time.monotonic() + 60 * options.minutes - CLOSING
    with tempfile.TemporaryDirectory(prefix="jasper-accelerator-", ignore_cleanup_errors=True) as scratch:
        if "ACCELERATOR_SCRATCH" not in os.environ:
            os.environ["ACCELERATOR_SCRATCH"] = scratch
        try:
            good = [report(check, options.size, deadline, options.in_process) for check in chosen]
        finally:
            if os.environ["ACCELERATOR_SCRATCH"] == scratch:
                del os.environ["ACCELERATOR_SCRATCH"]
    return 0 if all(good) else 1


def report(check: Check, size: str, deadline: float, in_process: bool) -> bool:
    """Run a check before ``deadline`` and print its line; whether it passed or does not apply here."""
    began = time.monotonic()
    left = deadline - began
    if left < LEAST:
        line = skipped_for_time(check, size, f"not started: {max(left, 0):.0f} s were left of --minutes")
    elif in_process:
        line = run_here(check, size)
    else:
        line = run_apart(check, size, left)
    line["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(line), flush=True)
    return line["status"] in ("passed", "skipped") and not line.get("out_of_time")


def skipped_for_time(check: Check, size: str, reason: str) -> dict[str, Any]:
    """The line of a check that the script's time does not allow."""
    line = {"check": check.name, "mark": check.mark, "size": size, "status": "skipped"}
    return {**line, "reason": f"{reason}; run it alone: --only {check.name}", "out_of_time": True}


def run_here(check: Check, size: str) -> dict[str, Any]:
    """The check's line, in this process."""
    cache_programs(Path(os.environ["ACCELERATOR_SCRATCH"]))
    return check.run(size)


def run_apart(check: Check, size: str, left: float) -> dict[str, Any]:
    """The check's line, from a process of its own that is killed, with all it started, after the check's own limit or
    after the ``left`` seconds of the script."""
    line = {"check": check.name, "mark": check.mark, "size": size, "status": "error"}
    command = [sys.executable, __file__, "--child", check.name, "--size", size]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    limit, ended = min(left, check.seconds), True
    with tempfile.TemporaryFile() as log:  # not a pipe, which a process that outlives the check would keep open
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            ended = False
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        output = log.read().decode(errors="replace")
    results = [one.removeprefix(RESULT) for one in output.splitlines() if one.startswith(RESULT)]
    if results:
        return json.loads(results[-1])
    if ended:
        return {**line, "error": f"ended with code {process.returncode}", "output": output[-3000:]}
    if limit < check.seconds:
        return skipped_for_time(check, size, f"stopped after the {limit:.0f} s that were left of --minutes")
    return {**line, "error": f"no result after {limit:.0f} s", "output": output[-2000:]}


def child(name: str, size: str) -> int:
    """One check, in the process that :func:`run_apart` started."""
    check = next(one for one in CHECKS if one.name == name)
    print("\n" + RESULT + json.dumps(run_here(check, size)), flush=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2], sys.argv[4]))
    sys.exit(main())
