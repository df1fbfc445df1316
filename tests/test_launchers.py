"""The launchers: what they would do, what they refuse, and that they start again what stopped with all saved."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fake_clusters import REPOSITORY, FakeCluster

RUN = ("run", "configs/mine.yaml", "run_dir=runs/it's mine")
LAUNCHERS = {
    "launch_gpus.sh": (),
    "launch_slurm.sh": ("--nodes=2", "--gpus", "8", "--time", "1-00:00:00", "--account", "lab"),
    "launch_tpu_pod.sh": ("--name", "pod", "--zone", "us-east5-b", "--type", "v6e-16", "--spot", "--project", "mine"),
    "launch_gke_xpk.sh": ("--workload", "one", "--cluster", "tpus", "--type", "v6e-16", "--slices", "2"),
}
QUICKLY = ("--delay", "0")


@pytest.fixture
def cluster(tmp_path: Path) -> FakeCluster:
    return FakeCluster(tmp_path)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if ".git" not in path.parts}


def test_shellcheck() -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    program = shutil.which("shellcheck") or (str(beside) if beside.exists() else None)
    if program is None:
        pytest.skip("shellcheck is not installed: pip install 'jasper-jax[dev]'")
    scripts = [*sorted((REPOSITORY / "scripts").glob("*.sh")), REPOSITORY / ".ci" / "run"]
    found = subprocess.run([program, "-x", *scripts], cwd=REPOSITORY, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("script", [*LAUNCHERS, "launch_worker.sh"])
def test_help_is_the_header(script: str, cluster: FakeCluster) -> None:
    code, out, err = cluster.run(script, "--help")
    assert (code, err) == (0, "")
    assert f"scripts/{script}" in out
    assert "#" not in out
    assert "set -euo" not in out
    source = (REPOSITORY / "scripts" / script).read_text()
    for option in source.partition("options=(")[2].partition(")\n")[0].split():
        assert f"--{option.strip('[').partition(']')[0]} " in out, "every option is explained"


@pytest.mark.parametrize("script", LAUNCHERS)
def test_a_dry_run_does_nothing(script: str, cluster: FakeCluster) -> None:
    before = files(cluster.checkout)
    code, out, err = cluster.run(script, "--dry-run", *LAUNCHERS[script], *RUN)
    assert (code, err) == (0, "")
    assert "configs/mine.yaml" in out
    assert list(cluster.record.iterdir()) == []
    assert files(cluster.checkout) == before


def commands(out: str) -> list[list[str]]:
    return [shlex.split(line) for line in out.splitlines() if line and not line.startswith("#")]


def test_dry_run_on_gpus(cluster: FakeCluster) -> None:
    _, out, _ = cluster.run("launch_gpus.sh", "--dry-run", *RUN)
    assert commands(out) == [[f"{cluster.environment['VENV']}/bin/jasper", *RUN]]


def test_dry_run_on_a_pod(cluster: FakeCluster) -> None:
    _, out, _ = cluster.run("launch_tpu_pod.sh", "--dry-run", *LAUNCHERS["launch_tpu_pod.sh"], "--delete", *RUN)
    create, copy, unpack, run, delete = commands(out)
    place = "--zone us-east5-b --quiet --project mine".split()
    tpus = "gcloud compute tpus".split()
    kind = "--node-id pod --accelerator-type v6e-16 --runtime-version v2-alpha-tpuv6e".split()
    assert create == [*tpus, "queued-resources", "create", "pod", *kind, *place, "--spot"]
    assert copy[:5] == [*tpus, "tpu-vm", "scp"]
    assert unpack[:-1] == run[:-1] == [*tpus, "tpu-vm", "ssh", "pod", *place, "--worker", "all", "--command"]
    assert shlex.split(run[-1].partition(" && ")[2]) == [
        *"exec env JASPER_DISTRIBUTED=auto bash scripts/launch_worker.sh tpu".split(),
        *RUN,
    ]
    assert delete == [*tpus, "queued-resources", "delete", "pod", "--force", *place]


def test_dry_run_on_gke(cluster: FakeCluster) -> None:
    _, out, _ = cluster.run("launch_gke_xpk.sh", "--dry-run", *LAUNCHERS["launch_gke_xpk.sh"], "--wait", *RUN)
    create, wait = commands(out)
    options = dict(zip(create[3::2], create[4::2]))
    assert create[:3] == ["xpk", "workload", "create"]
    assert options["--tpu-type"] == "v6e-16"
    assert options["--num-slices"] == "2"
    assert options["--restart-on-exit-codes"] == "75"
    assert options["--max-restarts"] == "100"
    assert shlex.split(options["--command"])[-4:] == ["tpu", *RUN]
    assert wait == "xpk workload list --cluster tpus --wait-for-job-completion one".split()


@pytest.mark.parametrize(("per", "tasks", "devices"), [("node", 1, "0,1,2,3,4,5,6,7"), ("gpu", 8, None)])
def test_dry_run_on_slurm(per: str, tasks: int, devices: str | None, cluster: FakeCluster) -> None:
    _, out, _ = cluster.run("launch_slurm.sh", "--dry-run", *LAUNCHERS["launch_slurm.sh"], "--per", per, *RUN)
    asked = [line.removeprefix("#SBATCH ") for line in out.splitlines() if line.startswith("#SBATCH")]
    expected = {"--nodes=2", f"--ntasks-per-node={tasks}", "--gpus-per-node=8", "--requeue", "--signal=TERM@300"}
    assert expected <= {*asked}
    assert {"--time=1-00:00:00", "--account=lab"} <= {*asked}
    assert not [one for one in asked if one.startswith(("--partition", "--cpus"))], (
        "what was not given is not asked for"
    )
    assert (f"export JAX_LOCAL_DEVICE_IDS={devices}" in out) == (devices is not None)


WRONG = [
    ("launch_gpus.sh", ("--gpu", "4", *RUN), "unknown option '--gpu'; allowed: --delay --dry-run --extra --help"),
    ("launch_gpus.sh", (), "no jasper command; end with one, e.g. run configs/quickstart.yaml"),
    ("launch_gpus.sh", ("quickstart",), "'quickstart' is no jasper command to launch; allowed: run train"),
    ("launch_gpus.sh", ("train",), "train needs a recipe, e.g. train configs/quickstart.yaml"),
    ("launch_gpus.sh", ("train", "configs/none.yaml"), "configs/none.yaml: no such recipe in "),
    ("launch_gpus.sh", ("--delay", "soon", *RUN), "--delay 'soon': a whole number from 0 to 999999 is needed"),
    ("launch_gpus.sh", ("--max-restarts",), "--max-restarts needs a value"),
    ("launch_gpus.sh", ("--dry-run=yes", *RUN), "--dry-run takes no value"),
    ("launch_gpus.sh", ("--extra", "rocm", *RUN), "--extra 'rocm': allowed: cuda, plot"),
    ("launch_gpus.sh", ("run", "configs/mine.yaml", "a=b\nc=d"), "line break"),
    ("launch_slurm.sh", ("--nodes", "0", *RUN), "--nodes '0': a whole number of nodes is needed, 1 or more"),
    ("launch_slurm.sh", ("--per", "gpu", *RUN), "--per gpu needs --gpus"),
    ("launch_slurm.sh", ("--time", "a day", *RUN), "--time 'a day': a time as SLURM writes it is needed"),
    ("launch_slurm.sh", ("--name", "a\n#SBATCH --nodes=9", *RUN), "a name of letters"),
    ("launch_tpu_pod.sh", RUN, "--name '': a name of lower-case letters, digits and hyphens is needed"),
    ("launch_tpu_pod.sh", ("--name", "a", "--zone", "us-east5", *RUN), "--zone 'us-east5': a zone is needed"),
    ("launch_tpu_pod.sh", ("--name", "a", "--zone", "us-east5-b", *RUN), "--type '': an accelerator type is needed"),
    ("launch_tpu_pod.sh", ("--name", "a", "--zone", "us-east5-b", "--type", "v9x-4", *RUN), "give one with --version"),
    ("launch_tpu_pod.sh", ("--name", "a", "--zone", "us-east5-b", "--stop", *RUN), "--stop takes no jasper command"),
    ("launch_gke_xpk.sh", ("--workload", "One", *RUN), "--workload 'One': a name of lower-case letters"),
    ("launch_gke_xpk.sh", (*LAUNCHERS["launch_gke_xpk.sh"], "--priority", "1", *RUN), "allowed: very-low, low"),
    ("launch_worker.sh", ("rocm", *RUN), "'rocm': the first argument is an extra"),
]


@pytest.mark.parametrize(("script", "arguments", "message"), WRONG)
def test_wrong_arguments(script: str, arguments: tuple[str, ...], message: str, cluster: FakeCluster) -> None:
    code, out, err = cluster.run(script, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"{script}: ")
    assert message in err
    assert list(cluster.record.iterdir()) == []


@pytest.mark.parametrize("script", ["launch_tpu_pod.sh", "launch_gke_xpk.sh"])
def test_a_recipe_that_would_not_be_copied(script: str, cluster: FakeCluster) -> None:
    (cluster.checkout / "runs").mkdir()
    (cluster.checkout / "runs" / "mine.yaml").write_text("name: mine\n")
    code, _, err = cluster.run(script, *LAUNCHERS[script], "run", "runs/mine.yaml")
    assert code == 2
    assert "runs/mine.yaml: would not be copied" in err


@pytest.mark.parametrize("tool", ["gcloud", "xpk", "sbatch"])
def test_a_missing_tool(tool: str, cluster: FakeCluster) -> None:
    script = {"gcloud": "launch_tpu_pod.sh", "xpk": "launch_gke_xpk.sh", "sbatch": "launch_slurm.sh"}[tool]
    # Of the machine's own programs only the folders without that one.
    (Path(cluster.environment["PATH"].partition(":")[0]) / tool).unlink()
    needed = Path(cluster.environment["HOME"]) / "programs"
    needed.mkdir()
    for name in ("bash", "git", "sed", "sort", "paste", "env", "dirname", "cksum", "cat"):
        (needed / name).symlink_to(shutil.which(name) or "missing")
    cluster.environment["PATH"] = f"{cluster.environment['PATH'].partition(':')[0]}:{needed}"
    code, _, err = cluster.run(script, *LAUNCHERS[script], *RUN)
    assert code == 2
    assert f"{tool} is not on the PATH" in err


# ------------------------------------------------------------------ starting again


def arguments(script: str) -> tuple[str, ...]:
    return (*LAUNCHERS[script], *(QUICKLY if script in ("launch_gpus.sh", "launch_tpu_pod.sh") else ()))


@pytest.mark.parametrize("script", LAUNCHERS)
def test_stopped_twice_then_done(script: str, cluster: FakeCluster) -> None:
    cluster.will_end_with(75, 75, 0)
    code, out, err = cluster.run(script, *arguments(script), *RUN)
    assert code == 0, err
    assert cluster.recorded("jasper") == [" ".join(RUN)] * 3
    assert "output of call 3" in out


@pytest.mark.parametrize("script", LAUNCHERS)
def test_no_more_restarts_than_allowed(script: str, cluster: FakeCluster) -> None:
    cluster.will_end_with(75, 75, 75, 75)
    code, _, _ = cluster.run(script, *arguments(script), "--max-restarts", "2", *RUN)
    assert code == 75
    assert len(cluster.recorded("jasper")) == 3


@pytest.mark.parametrize("script", LAUNCHERS)
@pytest.mark.parametrize("ended", [1, 2])
def test_other_codes_are_passed_on(script: str, ended: int, cluster: FakeCluster) -> None:
    cluster.will_end_with(ended, 0)
    code, _, _ = cluster.run(script, *arguments(script), *RUN)
    assert code == ended
    assert len(cluster.recorded("jasper")) == 1


@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_reaches_jasper_once_and_ends_the_loop(
    number: signal.Signals, whole_group: bool, cluster: FakeCluster
) -> None:
    cluster.will_end_with("waits", 0)
    process = cluster.start("launch_gpus.sh", *QUICKLY, *RUN, start_new_session=True)
    wait_for(cluster.record / "waiting")
    (os.killpg if whole_group else os.kill)(process.pid, number)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert cluster.recorded("signals") == ["TERM"]
    assert len(cluster.recorded("jasper")) == 1


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


# ------------------------------------------------------------------ TPU VMs


def calls(cluster: FakeCluster) -> list[str]:
    """What gcloud was asked to do, without looking."""
    words = [line.split() for line in cluster.recorded("gcloud")]
    return [one[3] for one in words if one[3] != "list"]


def test_a_preempted_tpu_is_asked_for_again(cluster: FakeCluster) -> None:
    cluster.will_end_with("preempted", 0)
    code, _, err = cluster.run("launch_tpu_pod.sh", *arguments("launch_tpu_pod.sh"), *RUN)
    assert code == 0, err
    assert calls(cluster) == "create scp ssh ssh delete create scp ssh ssh".split()
    assert "JASPER_DISTRIBUTED=auto" in cluster.recorded("environment")


def test_a_tpu_that_is_there_is_used_and_a_restart_copies_nothing(cluster: FakeCluster) -> None:
    (cluster.record / "node").write_text("READY 12345\n")
    cluster.will_end_with(75, 0)
    (cluster.checkout / "configs" / "new.yaml").write_text("name: new\n")  # git does not know it yet
    (cluster.checkout / "secret").write_text("ignored")
    with (cluster.checkout / ".gitignore").open("a") as file:
        file.write("secret\n")
    code, _, err = cluster.run("launch_tpu_pod.sh", *arguments("launch_tpu_pod.sh"), "train", "configs/new.yaml")
    assert code == 0, err
    assert calls(cluster) == "scp ssh ssh ssh".split()
    copied = {str(p.relative_to(cluster.home / "jasper_jax")) for p in files(cluster.home / "jasper_jax")}
    assert {"configs/new.yaml", "pyproject.toml", "scripts/launching.sh"} <= copied
    assert "secret" not in copied


def test_a_tpu_that_stopped_by_hand_is_refused(cluster: FakeCluster) -> None:
    (cluster.record / "node").write_text("STOPPED 12345\n")
    code, _, err = cluster.run("launch_tpu_pod.sh", *arguments("launch_tpu_pod.sh"), *RUN)
    assert code == 2
    assert "is STOPPED and no queued resource's; start or delete it" in err


def test_deleted_only_after_success(cluster: FakeCluster) -> None:
    for ended in (3, 0):
        cluster.will_end_with(ended)
        (cluster.record / "jasper").unlink(missing_ok=True)
        cluster.run("launch_tpu_pod.sh", *arguments("launch_tpu_pod.sh"), "--delete", *RUN)
        assert ("delete" in calls(cluster)) == (ended == 0)


def test_a_worker_takes_over_from_an_earlier_one(cluster: FakeCluster) -> None:
    cluster.will_end_with("waits", 0)
    first = cluster.start("launch_worker.sh", "tpu", *RUN)
    wait_for(cluster.record / "waiting")
    code, out, err = cluster.run("launch_worker.sh", "tpu", *RUN)
    assert code == 0, err
    assert "to save and stop" in err
    assert "output of call 2" in out
    first.communicate(timeout=30)
    assert first.returncode == 75
    assert cluster.recorded("signals") == ["TERM"]


def test_stop_on_all_workers(cluster: FakeCluster) -> None:
    cluster.will_end_with("waits")
    running = cluster.start("launch_tpu_pod.sh", *arguments("launch_tpu_pod.sh"), "--max-restarts", "0", *RUN)
    wait_for(cluster.record / "waiting")
    code, _, err = cluster.run("launch_tpu_pod.sh", "--name", "pod", "--zone", "us-east5-b", "--stop")
    assert code == 0, err
    running.communicate(timeout=30)
    assert running.returncode == 75


def test_jasper_outlives_the_connection(cluster: FakeCluster) -> None:
    cluster.will_end_with("talks")
    with cluster.start("launch_worker.sh", "tpu", *RUN) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=30) == 0
    assert (cluster.checkout / ".launch" / "log").read_text().endswith("line 10\n")


def test_an_xpk_that_cannot_restart_on_a_code(cluster: FakeCluster) -> None:
    cluster.environment["XPK_HELP"] = "--max-restarts"
    code, _, err = cluster.run("launch_gke_xpk.sh", *LAUNCHERS["launch_gke_xpk.sh"], *RUN)
    assert code == 2
    assert "pip install --upgrade xpk" in err
