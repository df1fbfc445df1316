"""Hostile model folders, archives, images, recipes, data sets and records: each is read, or refused in one line.

    python scripts/bench/fuzz.py [KIND|all] [--minutes 30] [--first 0]

No network; cost: the minutes, one core. A case is a number (``tests/security/fuzz_cases.py``), so a finding can be
repeated, and is kept in ``tests/security/test_fuzz_seeds.py``. The exit code is 1 when there is one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("models", "tokenizers", "archives", "images", "recipes", "data_sets")  # tests/security/fuzz_cases.py
RECORDS = ("overrides", "pairs", "weights", "adapters", "records", "vectors")  # tests/security/fuzz_records.py
BATCH = 50
"""Cases of a process."""
MEMORY = 16 << 30
"""Bytes of address space of a process; JAX alone reserves several."""


def limited() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def batch(kind: str, first: int, place: Path) -> tuple[int, str | None]:
    """Run cases from ``first`` on: the next one to run, and what is wrong with the last one, if anything."""
    command = [sys.executable, "-m", "tests.security.fuzz_cases", kind, str(first), str(BATCH), str(place)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "RUST_BACKTRACE": "0"}
    done = subprocess.run(
        command, cwd=place, env=environment, preexec_fn=limited, capture_output=True, text=True, errors="replace"
    )
    if done.returncode == 0:
        return first + BATCH, None
    numbers = re.findall(r"^case (\d+)$", done.stdout, re.MULTILINE)
    last = int(numbers[-1]) if numbers else first
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return last + 1, f"{kind} {last}: exit code {done.returncode}: {' '.join(lines[-1:])[:300]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", nargs="?", default="all", choices=[*KINDS, *RECORDS, "all"])
    parser.add_argument("--minutes", type=float, default=30, help="altogether; each kind has the same share")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    options = parser.parse_args()
    kinds = (*KINDS, *RECORDS) if options.kind == "all" else (options.kind,)
    findings: list[str] = []
    cases: Counter[str] = Counter()
    for kind in kinds:
        until, number = time.monotonic() + 60 * options.minutes / len(kinds), options.first
        with tempfile.TemporaryDirectory(prefix="jasper-fuzz-") as place:
            while time.monotonic() < until:
                after, finding = batch(kind, number, Path(place))
                cases[kind] += after - number
                number = after
                if finding:
                    print(finding, flush=True)
                    findings.append(finding)
    print(f"{', '.join(f'{n:,} {kind}' for kind, n in cases.items())}; {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
