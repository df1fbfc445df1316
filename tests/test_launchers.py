"""The launchers: each gives jasper its arguments and its place among the processes, and runs it again after exit 75.

jasper is a stub here, and so are the few commands of SLURM and xpk that the launchers call. What the schedulers do with
an exit code is written out where it is used. SkyPilot reads its tasks itself where it is installed.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent
LAUNCH = REPOSITORY / "scripts" / "launch"
TASKS = {name: yaml.safe_load((LAUNCH / f"{name}.yaml").read_text()) for name in ("sky_gpus", "sky_tpu")}
COMMAND = ["run", "configs/mine.yaml", "run_dir=runs/it's mine", "texts.sources=[{jsonl: $(touch injected).jsonl}]"]
STOPPED_AND_SAVED = 75
SHARED = "checkout.sh"
"""Sourced by those that send the checkout."""

JASPER = """
import json, os, signal, sys, time
record = os.environ["RECORD"]
kept = {k: v for k, v in os.environ.items() if k.startswith(("JASPER_", "JAX_", "SRUN_"))}
with open(record + "/calls", "a") as file:
    file.write(json.dumps([sys.argv[1:], kept]) + "\\n")
with open(record + "/calls") as file:
    number = len(file.readlines())
with open(record + "/codes") as file:
    code = file.read().split()[number - 1]
if code != "waits":
    sys.exit(int(code))

def save(number, frame):
    with open(record + "/signals", "a") as file:
        file.write(signal.Signals(number).name + "\\n")

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, save)
open(record + "/waiting", "w").close()
while not os.path.exists(record + "/signals"):
    time.sleep(0.02)
time.sleep(0.3)  # for a second signal, if one comes
sys.exit(75)
"""


class Place:
    """A checkout with the launchers, a recipe, and stubs of jasper and of other commands first on the PATH."""

    def __init__(self, folder: Path):
        self.checkout, self.record, self.binaries = folder / "check out", folder / "record", folder / "bin"
        for needed in (self.checkout / ".venv" / "bin", self.checkout / "configs", self.record, self.binaries):
            needed.mkdir(parents=True)
        shutil.copytree(LAUNCH, self.checkout / "scripts" / "launch")
        (self.checkout / "configs" / "mine.yaml").write_text("name: mine\n")
        (self.checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
        self.stub("jasper", JASPER, interpreter=sys.executable, folder=self.checkout / ".venv" / "bin")
        others = [part for part in os.environ["PATH"].split(os.pathsep) if not (Path(part) / "jasper").exists()]
        self.environment = {"PATH": os.pathsep.join([str(self.binaries), *others]), "RECORD": str(self.record)}

    def stub(self, name: str, script: str, *, interpreter: str = "/bin/bash", folder: Path | None = None) -> None:
        path = (folder or self.binaries) / name
        path.write_text(f"#!{interpreter}\n{script}\n")
        path.chmod(0o755)

    def will_end_with(self, *codes: object) -> None:
        """What the calls of jasper do, in order: an exit code, or ``waits`` for a signal."""
        (self.record / "codes").write_text(" ".join(map(str, codes)))

    def bash(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", *arguments],
            cwd=self.checkout,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def recorded(self, name: str) -> list[str]:
        path = self.record / name
        return path.read_text().splitlines() if path.exists() else []

    def calls(self) -> list[tuple[list[str], dict[str, str]]]:
        """Arguments and environment of each call of jasper."""
        return [json.loads(line) for line in self.recorded("calls")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# ------------------------------------------------------------------ each launcher, as its scheduler runs it


def locally(place: Place) -> int:
    return place.bash("scripts/launch/again.sh", ".venv/bin/jasper", *COMMAND, AGAIN_DELAY="0").returncode


def on_slurm(place: Place, **environment: str) -> int:
    place.stub("srun", 'while [[ "$1" == --* ]]; do shift; done; exec "$@"')
    place.stub("scontrol", 'echo "$*" >> "$RECORD/scontrol"')
    for restarts in range(3):
        slurm = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)} | environment
        code = place.bash("scripts/launch/slurm.sbatch", *COMMAND, **slurm).returncode
        if len(place.recorded("scontrol")) == restarts:
            return code
    raise AssertionError("requeued too often")


def on_sky(name: str, place: Place, node: str = "1", command: str = shlex.join(COMMAND)) -> int:
    task = TASKS[name]
    given = {"SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": node}
    while True:
        code = place.bash("-c", task["run"], COMMAND=command, **given).returncode
        if code not in task["resources"]["job_recovery"]["recover_on_exit_codes"]:
            return code


XPK = """
while [ $# -gt 0 ]; do
  case "$1" in
    --script-dir) cp -r "$2" "$RECORD/image" ;;
    *) [[ "$1" != --* ]] || printf '%s' "$2" > "$RECORD/xpk$1" ;;
  esac
  shift
done
"""


def track(place: Place) -> None:
    """Make the checkout a repository of git, which tracks its files, and none of those made later."""
    (place.checkout / ".gitignore").write_text(".venv/\nruns/\n")
    for command in (["init", "-q"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=place.checkout, check=True)
    (place.checkout / ".env").write_text("TOKEN=secret\n")
    (place.checkout / "configs" / "notes.txt").write_text("untracked\n")


SKY = """
cp -r . "$RECORD/image"
printf '%s\\0' "$@" > "$RECORD/sky"
"""


def send_by_sky(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    place.stub("sky", SKY)
    track(place)
    return place.bash("scripts/launch/sky.sh", "sky_gpus", "--num-nodes", "2", "--", *arguments)


def by_sky(place: Place) -> int:
    """What sky.sh gives to sky, and then the task."""
    assert send_by_sky(place, *COMMAND).returncode == 0
    given = (place.record / "sky").read_text().split("\0")
    assert given[:3] == ["jobs", "launch", "scripts/launch/sky_gpus.yaml"]
    assert given[-3:] == ["--num-nodes", "2", ""]
    environment = dict(value.split("=", 1) for name, value in pairwise(given) if name == "--env")
    needed = {name for name, value in TASKS["sky_gpus"]["envs"].items() if value is None}
    assert set(environment) == needed == {"COMMAND", "SENT_BY"}
    return on_sky("sky_gpus", place, command=environment["COMMAND"])


def submit(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    place.stub("xpk", XPK)
    track(place)
    options = ("--workload", "one", "--cluster", "tpus", "--tpu-type", "v6e-16", "--max-restarts", "7")
    return place.bash("scripts/launch/xpk.sh", *options, "--", *arguments)


def on_xpk(place: Place) -> int:
    assert submit(place, *COMMAND).returncode == 0
    option = {path.name.removeprefix("xpk--"): path.read_text() for path in place.record.glob("xpk--*")}
    assert option["workload"] == "one"
    assert option["max-restarts"] == "7", "the user's options win"
    place.stub("pip", 'echo "$*" > "$RECORD/pip"')
    (place.binaries / "jasper").symlink_to(place.checkout / ".venv" / "bin" / "jasper")
    script = f"cd {shlex.quote(str(place.record / 'image'))}\n({option['command']}) & PID=$!\nwait $PID"
    while True:
        code = place.bash("-c", script).returncode
        if str(code) != option["restart-on-exit-codes"]:
            return code


LAUNCHERS: dict[str, Callable[[Place], int]] = {
    "again.sh": locally,
    "slurm.sbatch": on_slurm,
    "sky_gpus.yaml": partial(on_sky, "sky_gpus"),
    "sky_tpu.yaml": partial(on_sky, "sky_tpu"),
    "sky.sh": by_sky,
    "xpk.sh": on_xpk,
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_stopped_twice_then_done(name: str, place: Place) -> None:
    place.will_end_with(STOPPED_AND_SAVED, STOPPED_AND_SAVED, 0)
    assert LAUNCHERS[name](place) == 0
    assert [arguments for arguments, _ in place.calls()] == [COMMAND] * 3
    assert not [*place.checkout.rglob("injected"), *place.record.rglob("injected")]


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("code", [1, 2])
def test_other_codes_are_passed_on(name: str, code: int, place: Place) -> None:
    place.will_end_with(code, 0)
    assert LAUNCHERS[name](place) == code
    assert len(place.calls()) == 1


def test_every_launcher_is_tested() -> None:
    assert {path.name for path in LAUNCH.iterdir()} == {*LAUNCHERS, SHARED}


# ------------------------------------------------------------------ the place among the processes


@pytest.mark.parametrize("node", ["0", "1"])
def test_nodes_of_sky_know_the_first(node: str, place: Place) -> None:
    place.will_end_with(0)
    on_sky("sky_gpus", place, node)
    ((_, environment),) = place.calls()
    expected = {"JASPER_COORDINATOR": "10.0.0.5:8476", "JASPER_PROCESSES": "2", "JASPER_PROCESS": node}
    assert environment == expected


@pytest.mark.parametrize("name", ["sky_tpu.yaml", "xpk.sh"])
def test_hosts_of_tpus_find_each_other(name: str, place: Place) -> None:
    place.will_end_with(0)
    LAUNCHERS[name](place)
    ((_, environment),) = place.calls()
    assert environment == {"JASPER_DISTRIBUTED": "auto"}


@pytest.mark.parametrize(("tasks", "devices"), [("1", "0,1,2,3"), ("4", None)])
def test_a_process_of_slurm_has_all_gpus_of_its_node_or_one(tasks: str, devices: str | None, place: Place) -> None:
    place.will_end_with(0)
    on_slurm(place, SLURM_GPUS_ON_NODE="4", SLURM_NTASKS_PER_NODE=tasks, SLURM_CPUS_PER_TASK="16")
    ((_, environment),) = place.calls()
    assert environment.get("JAX_LOCAL_DEVICE_IDS") == devices
    assert environment["SRUN_CPUS_PER_TASK"] == "16"


def test_slurm_takes_no_program_from_a_folder_of_data(place: Place) -> None:
    """A folder from elsewhere may have a .venv, and the job may be submitted from there."""
    data = place.checkout / ".venv" / "bin"
    (data / "jasper").rename(place.binaries / "jasper")
    for name in ("jasper", "srun", "seq"):
        place.stub(name, 'touch "$RECORD/attacked"', folder=data)
    place.will_end_with(0)
    on_slurm(place, SLURM_GPUS_ON_NODE="4")
    assert (len(place.calls()), (place.record / "attacked").exists()) == (1, False)


def test_slurm_does_not_requeue_for_ever(place: Place) -> None:
    place.will_end_with(STOPPED_AND_SAVED)
    assert on_slurm(place, SLURM_RESTART_COUNT="100") == STOPPED_AND_SAVED
    assert place.recorded("scontrol") == []


# ------------------------------------------------------------------ signals


@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_reaches_jasper_once_and_ends_the_loop(
    number: signal.Signals, whole_group: bool, place: Place
) -> None:
    place.will_end_with("waits", 0)
    process = start(place)
    wait_for(place.record / "waiting")
    (os.killpg if whole_group else os.kill)(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode == STOPPED_AND_SAVED
    assert place.recorded("signals") == ["SIGTERM"]
    assert len(place.calls()) == 1


def test_a_signal_between_two_calls_ends_the_loop(place: Place) -> None:
    place.will_end_with(STOPPED_AND_SAVED, 0)
    process = start(place)
    assert process.stderr
    assert "running it again in 30 s" in process.stderr.readline()
    time.sleep(0.3)  # for the delay to begin
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == STOPPED_AND_SAVED
    assert len(place.calls()) == 1


def start(place: Place) -> subprocess.Popen[str]:
    # A job in the background ignores Ctrl-C, and its children inherit that; a shell cannot undo it.
    heeding = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp('bash', sys.argv[1:])"
    again = ("bash", "scripts/launch/again.sh", ".venv/bin/jasper", *COMMAND)
    return subprocess.Popen(
        [sys.executable, "-c", heeding, *again],
        cwd=place.checkout,
        env=place.environment | {"AGAIN_DELAY": "30"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.02)


# ------------------------------------------------------------------ what is sent

WORDS = ["it's; touch injected #\n", "für", "", "a  b", "$(touch injected)", "`touch injected`", "\\", '"', "*", "&"]
"""bash's ``${x@Q}`` of the first runs ``touch`` in other shells."""


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_any_words_are_the_same_words_in_any_shell(shell: str, tmp_path: Path) -> None:
    script = f'. {shlex.quote(str(LAUNCH / SHARED))}; quoted "$@"'
    environment = {**os.environ, "LC_ALL": "C"}
    made = subprocess.run(["bash", "-c", script, "x", *WORDS], capture_output=True, env=environment, check=True)
    line = made.stdout.decode()
    assert shlex.split(line) == WORDS
    again = subprocess.run([shell, "-c", f"printf '%s\\0' {line}"], capture_output=True, cwd=tmp_path, check=True)
    assert again.stdout.decode().split("\0")[:-1] == WORDS
    assert not list(tmp_path.iterdir())


def test_line_ends_go_to_sky_and_not_into_xpk_s_yaml(place: Place) -> None:
    prompt = "teachers.0.prompts.query=Instruct: find what's asked\nQuery: "
    assert send_by_sky(place, *COMMAND, prompt).returncode == 0
    given = (place.record / "sky").read_text().split("\0")
    [command] = [value.removeprefix("COMMAND=") for value in given if value.startswith("COMMAND=")]
    assert shlex.split(command) == [*COMMAND, prompt]
    done = submit(place, *COMMAND, prompt)
    assert done.returncode == 2
    assert "an argument has a line end, which xpk's YAML does not keep; write the value into the recipe" in done.stderr
    assert not [*place.record.glob("xpk*")]


SENDERS = {"sky.sh": send_by_sky, "xpk.sh": submit}


@pytest.mark.parametrize("name", SENDERS)
def test_what_git_tracks_is_sent_and_the_rest_is_named(name: str, place: Place) -> None:
    (place.checkout / "runs").mkdir()
    (place.checkout / "runs" / "large").write_text("large")
    sent = SENDERS[name](place, *COMMAND)
    assert sent.returncode == 0
    image = place.record / "image"
    files = {str(path.relative_to(image)) for path in image.rglob("*") if path.is_file()}
    assert files == {".gitignore", "configs/mine.yaml", *(f"scripts/launch/{name}" for name in (*LAUNCHERS, SHARED))}
    said = [f"{name}: not sent, because git does not track them (git add what the run needs):", "  .env"]
    assert sent.stderr.splitlines() == [*said, "  configs/notes.txt"]
    status = subprocess.run(["git", "status", "--short"], cwd=place.checkout, capture_output=True, text=True)
    assert "?? .env" in status.stdout, "the user's index is as it was"


def test_tracked_files_are_sent_as_they_are_now(place: Place) -> None:
    track(place)
    (place.checkout / "configs" / "mine.yaml").write_text("name: changed\n")
    place.stub("sky", SKY)
    assert place.bash("scripts/launch/sky.sh", "sky_tpu", "--", *COMMAND).returncode == 0
    assert (place.record / "image" / "configs" / "mine.yaml").read_text() == "name: changed\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "runs/mine.yaml"), "runs/mine.yaml would not be sent (outside this checkout, or not tracked: git add"),
        (("run", "configs/notes.txt"), "configs/notes.txt would not be sent (outside"),
        (("run",), "a jasper command is needed after --"),
    ],
)
@pytest.mark.parametrize("name", SENDERS)
def test_what_cannot_be_sent_is_refused(name: str, arguments: tuple[str, ...], message: str, place: Place) -> None:
    (place.checkout / "runs").mkdir()
    (place.checkout / "runs" / "mine.yaml").write_text("name: mine\n")
    refused = SENDERS[name](place, *arguments)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith(f"{name}: {message}")
    assert not [*place.record.glob("xpk*"), *place.record.glob("sky*")]


# ------------------------------------------------------------------ the files themselves


def test_shellcheck(tmp_path: Path) -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    program = shutil.which("shellcheck") or (str(beside) if beside.exists() else None)
    if program is None:
        pytest.skip("shellcheck is not installed: pip install 'jasper-jax[dev]'")
    scripts = [*sorted((REPOSITORY / "scripts").rglob("*.sh")), LAUNCH / "slurm.sbatch", REPOSITORY / ".ci" / "run"]
    for name, task in TASKS.items():
        for part in ("setup", "run"):
            script = tmp_path / f"{name}-{part}.sh"
            script.write_text(f"#!/bin/bash\n{task[part]}")
            scripts.append(script)
    found = subprocess.run([program, "-x", *scripts], cwd=REPOSITORY, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_sky_reads_its_tasks(tmp_path: Path) -> None:
    """SkyPilot's requirements conflict with this package's, so it is found by its command, in its own environment."""
    sky = shutil.which("sky")
    if sky is None:
        pytest.skip("SkyPilot is not installed: uv tool install skypilot")
    read = """
import pathlib, sys, sky, yaml
for path in map(pathlib.Path, sys.argv[1:]):
    task = sky.Task.from_yaml_config(yaml.safe_load(path.read_text()), [("COMMAND", "run"), ("SENT_BY", "sky.sh")])
    (resources,) = task.resources
    print(resources.use_spot, resources.job_recovery["recover_on_exit_codes"])
"""
    python = Path(sky).resolve().with_name("python")
    paths = [LAUNCH / f"{name}.yaml" for name in TASKS]
    done = subprocess.run([python, "-c", read, *paths], env={"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("True [75]") == len(TASKS)
