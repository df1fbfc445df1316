"""Cycles of code that the TPU compiler schedules without an estimate: sorts and Pallas kernels.

The compiler can write the schedule of every instruction of a program, one line per cycle ("bundle") and loop body. A
schedule's cycles are its lines, each as often as the loops around it run; waiting for memory is not in it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_LINE = re.compile(r"\s*0x[0-9a-f]+\s+(?:(\w\w):)?")
_COUNTER = re.compile(r"%(p\w+) = scmp\.ge\.s32\.totalorder[^/;}]*?, (\d+)\s")
_BRANCH = re.compile(r"sbr\.rel \(!%(p\w+)\)")


def write_schedules(folder: Path) -> None:
    """Make the compiler write its schedules into ``folder``. Must run before JAX finds its devices."""
    flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    flags += " --xla_jf_dump_llo_pass_label_regex=final_bundles|deduplication"
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}".strip()


def schedule_cycles(folder: Path, instruction: str) -> int:
    """Cycles of one execution of the named instruction, of the one program whose schedules are in ``folder``.

    Raises:
      ValueError: no schedule, or a loop of unknown length.
    """
    (same,) = folder.glob("*-deduplication-map.txt")  # instructions of equal code have one schedule
    groups = re.findall(r"key:(\S+)\n[^\n]*\n[^\n]*\n((?:  \S+\n)*)", same.read_text() + "\n")
    names = [key for key, members in groups if instruction in members.split()] or [instruction]
    files = [path for path in folder.glob(f"*-{names[0]}-*-final_bundles.txt") if "analysis" not in path.name]
    if not files:
        raise ValueError(f"{instruction}: no schedule in {folder}")
    return cycles(files[0].read_text(errors="replace"))


def cycles(schedule: str) -> int:
    """Cycles of one schedule."""
    lines = [line for line in schedule.splitlines() if _LINE.match(line)]
    times, begun, ends = [1] * len(lines), [], {}
    for number, line in enumerate(lines):
        if _LINE.match(line)[1] == "LB":
            begun.append(number)
        ends.update((name, int(limit)) for name, limit in _COUNTER.findall(line))
        branch = _BRANCH.search(line)
        if branch and begun:
            if branch[1] not in ends:
                raise ValueError(f"a loop of unknown length: {line[:120]}")
            first = begun.pop()
            for inside in range(first, number + 1):
                times[inside] *= ends[branch[1]]
    if begun:
        raise ValueError(f"{len(begun)} loops without an end")
    return sum(times)
