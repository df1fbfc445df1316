"""Where a compiled program's time goes, from a trace of XLA's CPU backend: self time of every operation, by kind.

An operation's kind is read from the program: what its fused computation holds, and the name JAX gave it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

KINDS = (
    ("matmul", r" dot\("),
    ("relative loss: sorts, searches, partitions", r"_value_and_push|_pair_order"),
    ("optimizer", r'\A\S+\n.*op_name="jit\(step\)/(?!jvp|transpose)'),
    ("gradient of the embedding rows", r" scatter\("),
    ("zeros: gradients and stacks begin as them", r"\A(wrapped_broadcast|copy\S*\n.*copy\(%wrapped_broadcast)"),
    ("GELU and its gradient", r"/(erf|erfc|gelu)"),
    ("softmax: exponentials", r" exponential\("),
    ("into and out of the stacks that loops over layers and rows keep", r" dynamic-(update-)?slice\("),
    ("transposes and copies", r" transpose\(| copy\("),
    ("sums: norms, softmax, biases", r" reduce\("),
)
"""(kind, pattern over the name and text of an operation and what it calls); the first row that matches counts."""
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(.*\{\s*$")
_CALLS = re.compile(r"(?:calls|to_apply)=%([\w.-]+)")
_CONTROL = re.compile(r"\b(while|conditional|call)\(")


def operations(program: str) -> dict[str, str]:
    """Instruction name -> its text, with that of the computation it calls; loops only by themselves."""
    bodies: dict[str, list[str]] = {}
    instructions: dict[str, str] = {}
    current: list[str] = []
    for line in program.splitlines():
        if found := _COMPUTATION.match(line):
            current = bodies.setdefault(found[1], [])
        elif found := _INSTRUCTION.match(line):
            current.append(line)
            instructions[found[1]] = found[2]
    whole = {}
    for name, text in instructions.items():
        called = _CALLS.search(text)
        inside = bodies.get(called[1], []) if called and not _CONTROL.search(text) else []
        whole[name] = "\n".join([name, text, *inside])
    return whole


def self_times(folder: Path) -> Counter[str]:
    """Nanoseconds of each traced event without those of the events inside it, over all of XLA's threads."""
    found: Counter[str] = Counter()
    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                if line.name.startswith("tf_XLA"):
                    _add(found, line.events)
    return found


def _add(found: Counter[str], events: Iterable[Any]) -> None:
    open_until: list[tuple[float, str]] = []
    for event in sorted(events, key=lambda e: (e.start_ns, -e.duration_ns)):
        while open_until and open_until[-1][0] <= event.start_ns:
            open_until.pop()
        if open_until:
            found[open_until[-1][1]] -= event.duration_ns
        found[event.name] += event.duration_ns
        open_until.append((event.start_ns + event.duration_ns, event.name))


def by_kind(program: str, work: Callable[[], Any], folder: Path) -> tuple[dict[str, float], float]:
    """Shares of the cores' time in ``work``, which runs the compiled ``program``, by kind; and that time in seconds."""
    jax.profiler.start_trace(str(folder))
    work()
    jax.profiler.stop_trace()
    texts = operations(program)
    kinds: Counter[str] = Counter()
    for name, nanoseconds in self_times(folder).items():
        if name in texts:
            kinds[_kind(texts[name])] += nanoseconds
    total = sum(kinds.values())
    return {kind: nanoseconds / total for kind, nanoseconds in kinds.most_common()}, total / 1e9


def _kind(text: str) -> str:
    return next((kind for kind, pattern in KINDS if re.search(pattern, text)), "other elementwise")
