"""Inside the process that is to suffer: names the moments of a run, and strikes at one of them.

Nothing in the package knows of this. Python's audit hook reports every file of the run folder that Python code opens,
renames or removes; wrappers around a few functions of the package say which phase that is and report the optimizer
steps. Orbax and ArrayRecord write from C++, which no hook sees: a strike may come some milliseconds after its event.

A moment is (phase, stage, step, n): the n-th event of that phase there. Moments are the same in every process. The log
also has lines that are no moments: ``save`` and ``sealed``, when a checkpoint is begun and when it counts.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

PHASES = ("text store", "embedding", "optimizer step", "checkpoint", "stage change", "evaluation", "export")
_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"}
_TIMED = {"texts": "text store", "embedding": "embedding", "evaluation": "evaluation", "export": "export"}
_CHECKPOINT = re.compile(r"checkpoints/(?:\.?start|(\d\d)-[^/]*/\.?(?:step-(\d+)|(final)))")


@dataclasses.dataclass(frozen=True)
class Moment:
    """The ``n``-th event of a phase; ``what`` describes it to people and does not identify it."""

    phase: str
    stage: int
    step: int
    n: int
    what: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        where = f", stage {self.stage + 1}, step {self.step}" if self.phase in PHASES[2:5] else ""
        return f"{self.phase}{where}: {self.what}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens to a process: ``action`` at ``moment``, ``delay`` seconds late. Without a moment it only reports.

    Actions: ``kill``, ``fill`` (the file system of the run folder), ``lock`` (the run folder's folders become
    read-only), ``interrupt`` (Ctrl-C), ``interrupt twice``.
    """

    run: Path
    log: Path
    moment: Moment | None = None
    action: str = "kill"
    delay: float = 0.0
    hide: tuple[str, ...] = ("torch", "matplotlib")
    """Packages that the process does not find: they are slow to import."""
    clock: bool = False
    """Whether the clock jumps by days, back and forth, at every look."""
    step_seconds: float = 0.0
    """How much longer a step takes: with real models a save is over before the next one."""
    plain_user: bool = False
    """Whether root gives up its right to write where permissions forbid it."""


class Injector:
    """Counts the events of each phase, writes them to the log, strikes when the planned one comes."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.phase, self.stage, self.step = "start", 0, 0
        self._root = str(plan.run.absolute())
        self._counts: Counter[tuple[str, int, int]] = Counter()
        self._log = os.open(plan.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._lock = threading.RLock()
        self._struck = False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The audit hook: an event whose first argument is a path in the run folder."""
        if event not in _EVENTS or self._struck or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.fsdecode(os.path.abspath(os.fsdecode(arguments[0])))
        if not path.startswith(self._root):
            return
        relative = path[len(self._root) :].lstrip("/")
        phase, stage, step = self.phase, self.stage, self.step
        if relative.startswith("checkpoints/") and phase == "optimizer step":
            phase = "checkpoint"
        found = _CHECKPOINT.search(relative)
        if not found and threading.current_thread() is not threading.main_thread():
            return  # which step that is beside depends on how fast the thread is
        if found:
            if "sha256" not in relative and event == "open" and phase in ("evaluation", "export", "start"):
                return  # read, not written
            if phase not in ("evaluation", "export"):
                phase = "stage change" if found[3] else "checkpoint"
                stage, step = int(found[1] or 0), self.step if found[3] else int(found[2] or 0)
        self.event(phase, stage, step, f"{event} {re.sub(r'[0-9a-f]{8,}', '*', relative)}")

    def event(self, phase: str, stage: int, step: int, what: str) -> None:
        """Count one event; strike if it is the planned one."""
        if phase not in PHASES:
            return
        with self._lock:
            key = (phase, stage, step)
            self._counts[key] += 1
            moment = Moment(*key, self._counts[key], what)
            self._write("event", moment)
            if moment == self.plan.moment and not self._struck:
                self._struck = True
                if self.plan.delay and self.plan.action == "kill":
                    threading.Timer(self.plan.delay, self._strike, [moment]).start()
                else:
                    self._strike(moment)

    def _write(self, kind: str, moment: Moment) -> None:
        fields = (kind, moment.phase, moment.stage, moment.step, moment.n, moment.what, f"{time.monotonic():.4f}")
        os.write(self._log, ("\t".join(map(str, fields)) + "\n").encode())

    def note(self, kind: str, checkpoint: Path) -> None:
        """Log what happened to a checkpoint."""
        if found := _CHECKPOINT.search(str(checkpoint)):
            stage, step = int(found[1] or 0), -1 if found[3] else int(found[2] or 0)
            self._write(kind, Moment("checkpoint", stage, step, 0, kind))

    def _strike(self, moment: Moment) -> None:
        self._write("strike", dataclasses.replace(moment, what=f"{moment.what}; now {self.phase} {self.step}"))
        match self.plan.action:
            case "kill":
                os.killpg(0, signal.SIGKILL)
            case "fill":
                fill(self.plan.run)
            case "lock":
                set_writable(self.plan.run, False)
            case "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            case "interrupt twice":
                os.kill(os.getpid(), signal.SIGINT)
                threading.Timer(self.plan.delay, self._again, [moment]).start()

    def _again(self, moment: Moment) -> None:
        self._write("again", moment)
        os.kill(os.getpid(), signal.SIGINT)


def fill(run: Path) -> None:
    """Take every free block of the file system that holds the run folder."""
    with open(run.parent / "filler", "wb") as file:
        size = 0
        while free := os.statvfs(run).f_bavail:
            size += free * os.statvfs(run).f_frsize
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError:  # a thread of the run took a block in the meantime
                size = os.fstat(file.fileno()).st_size


def set_writable(run: Path, writable: bool) -> None:
    """Allow or forbid every change of the folders of a run."""
    for folder in [run, *(p for p in run.rglob("*") if p.is_dir())]:
        folder.chmod(0o755 if writable else 0o555)


def install(plan: Plan) -> None:
    """Put everything in place; called once, in the process that will run a command."""
    import importlib.util

    found = importlib.util.find_spec
    importlib.util.find_spec = lambda name, package=None: None if name in plan.hide else found(name, package)
    if plan.plain_user:
        _give_up_rights()
    if plan.clock:
        _jumping_clock()
    injector = Injector(plan)
    _wrap(injector)
    sys.addaudithook(injector.audit)


def _wrap(injector: Injector) -> None:
    """Wrap the functions of the package that begin and end the phases."""
    import contextlib

    from jasper_jax.checkpoints import checkpoint
    from jasper_jax.checkpoints.checkpoint import Checkpoints
    from jasper_jax.runtime.timings import Timings
    from jasper_jax.training.loop import StageTrainer
    from jasper_jax.training.step import CompiledPrograms

    timed, step, final, stage_of = Timings.phase, CompiledPrograms.step, Checkpoints.save_final, StageTrainer.train
    save, seal = Checkpoints.save, checkpoint.seal

    @contextlib.contextmanager
    def phase(self: Timings, name: str) -> Any:
        injector.phase, injector.stage, injector.step = _TIMED[name.partition(":")[0]], 0, 0
        with timed(self, name):
            injector.event(injector.phase, 0, 0, f"begin {name}")
            yield
        injector.phase = "start"

    def one_step(self: CompiledPrograms, *arguments: Any) -> Any:
        injector.phase, injector.step = "optimizer step", int(arguments[-1]) + 1
        injector.event("optimizer step", injector.stage, injector.step, "before the step")
        result = step(self, *arguments)
        injector.event("optimizer step", injector.stage, injector.step, "step dispatched")
        time.sleep(injector.plan.step_seconds)
        return result

    def one_save(self: Checkpoints, path: Path, *arguments: Any, **named: Any) -> None:
        injector.note("save", path)
        save(self, path, *arguments, **named)

    def one_seal(path: Path) -> None:
        seal(path)
        injector.note("sealed", path)

    def save_final(self: Checkpoints, stage: int, *arguments: Any) -> None:
        injector.phase = "stage change"
        injector.event("stage change", stage, injector.step, "before the stage's final parameters are saved")
        final(self, stage, *arguments)
        injector.event("stage change", stage, injector.step, "final parameters saved")

    def train_stage(self: StageTrainer, *arguments: Any) -> Any:
        injector.stage, injector.step = self.stage.index, 0
        return stage_of(self, *arguments)

    Timings.phase, CompiledPrograms.step, Checkpoints.save_final = phase, one_step, save_final
    Checkpoints.save, checkpoint.seal = one_save, one_seal
    StageTrainer.train = train_stage


def _jumping_clock() -> None:
    """Every look at the clock shows a time up to 30 days before or after the true one."""
    import random

    rng, seconds, nanoseconds = random.Random(0), time.time, time.time_ns
    time.time = lambda: seconds() + rng.uniform(-30, 30) * 86400
    time.time_ns = lambda: nanoseconds() + int(rng.uniform(-30, 30) * 86400e9)


def _give_up_rights() -> None:
    """Root without CAP_DAC_OVERRIDE obeys the permissions of files, as everybody does."""
    if os.geteuid():
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, out of the effective set
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")
