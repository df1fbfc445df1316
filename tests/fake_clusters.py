"""Stand-ins for jasper, gcloud, xpk and SLURM: they record their arguments, and run what they are given on the spot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent

JASPER = r"""
echo "$*" >> "$RECORD/jasper"
env | grep -E '^(JASPER_|JAX_)' >> "$RECORD/environment"
call=$(wc -l < "$RECORD/jasper")
code=$(sed -n "${call}p" "$RECORD/codes")
echo "output of call $call"
case "$code" in
  preempted) echo SUSPENDED > "$RECORD/queued"; : > "$RECORD/node"; exit 134 ;;
  waits)
    trap 'echo TERM >> "$RECORD/signals"; saved=1' TERM
    trap 'echo INT >> "$RECORD/signals"' INT
    touch "$RECORD/waiting"
    while [ -z "${saved:-}" ]; do sleep 0.05; done
    sleep 0.3 # time for a second signal, if one comes
    exit 75 ;;
  talks) for i in 1 2 3 4 5 6 7 8 9 10; do echo "line $i" || exit 99; sleep 0.1; done; exit 0 ;;
esac
exit "${code:-0}"
"""

GCLOUD = r"""
echo "$*" >> "$RECORD/gcloud"
for last; do :; done
case "$*" in
  *"queued-resources list"*) cat "$RECORD/queued" 2> /dev/null || true ;;
  *"tpu-vm list"*) cat "$RECORD/node" 2> /dev/null || true ;;
  *"queued-resources create"*) echo ACTIVE > "$RECORD/queued"; echo "READY $RANDOM$RANDOM" > "$RECORD/node" ;;
  *"queued-resources delete"*) : > "$RECORD/queued"; : > "$RECORD/node" ;;
  *"tpu-vm scp"*) cp "$5" "$HOME/${6#*:}" ;;
  *"tpu-vm ssh"*) cd "$HOME" && exec sh -c "$last" ;;
  *) echo "not an option of gcloud: $*"; exit 64 ;;
esac
"""

XPK = r"""
echo "$*" >> "$RECORD/xpk"
if [ "$2 $3" = "create --help" ]; then echo "${XPK_HELP---restart-on-exit-codes}"; exit; fi
while [ $# -gt 0 ]; do
  case "$1" in
    --command) command="$2" ;;
    --max-restarts) left="$2" ;;
    --restart-on-exit-codes) again="$2" ;;
    --script-dir) folder="$2" ;;
  esac
  shift
done
cd "$folder" || exit 1
while :; do
  code=0
  (eval "$command") || code=$?
  if [ "$code" != "$again" ] || [ "$left" = 0 ]; then exit "$code"; fi
  left=$((left - 1))
done
"""

SBATCH = r"""
echo "$*" >> "$RECORD/sbatch"
export SLURM_JOB_ID=7
while :; do
  code=0
  bash "$1" || code=$?
  [ -e "$RECORD/requeued" ] || exit "$code"
  rm "$RECORD/requeued"
  export SLURM_RESTART_COUNT=$((${SLURM_RESTART_COUNT:-0} + 1))
done
"""

SRUN = r"""
echo "$*" >> "$RECORD/srun"
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""

SCONTROL = r"""
echo "$*" >> "$RECORD/scontrol"
touch "$RECORD/requeued"
"""


class FakeCluster:
    """A small checkout with a recipe, an environment whose jasper is a stand-in, and stand-ins first on the PATH."""

    def __init__(self, place: Path):
        self.checkout, self.record, self.home = place / "check out", place / "record", place / "home"
        binaries, environment = place / "bin", place / "environment"
        for folder in (self.checkout / "configs", self.record, self.home, binaries, environment / "bin"):
            folder.mkdir(parents=True)
        shutil.copytree(REPOSITORY / "scripts", self.checkout / "scripts", ignore=shutil.ignore_patterns("bench"))
        for name in ("pyproject.toml", ".gitignore"):
            shutil.copy(REPOSITORY / name, self.checkout / name)
        (self.checkout / "configs" / "mine.yaml").write_text("name: mine\n")
        for name, script in (
            ("gcloud", GCLOUD),
            ("xpk", XPK),
            ("sbatch", SBATCH),
            ("srun", SRUN),
            ("scontrol", SCONTROL),
        ):
            executable(binaries / name, script)
        executable(environment / "bin" / "jasper", JASPER)
        for link in (environment / "bin" / "python", binaries / "python3"):
            link.symlink_to(sys.executable)
        # What environment.sh leaves when the installation is up to date.
        stamp = subprocess.run("cksum < pyproject.toml", shell=True, cwd=self.checkout, capture_output=True, check=True)
        for extra in ("cuda", "tpu", "plot"):
            (environment / f".jasper-{extra}").write_bytes(stamp.stdout)
        self.environment = {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "RECORD": str(self.record),
            "HOME": str(self.home),
            "VENV": str(environment),
        }
        for command in (["init", "-q"], ["add", "-A"]):
            subprocess.run(["git", *command], cwd=self.checkout, env=self.environment, check=True)

    def will_end_with(self, *codes: object) -> None:
        """What the calls of jasper do, in order: exit codes, or the names in its script."""
        (self.record / "codes").write_text("".join(f"{code}\n" for code in codes))

    def start(self, script: str, *arguments: str, **options) -> subprocess.Popen[str]:
        # A job in the background ignores Ctrl-C, and its children inherit that; a shell cannot undo it.
        heeding = (
            "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
        )
        return subprocess.Popen(
            [sys.executable, "-c", heeding, str(self.checkout / "scripts" / script), *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, script: str, *arguments: str) -> tuple[int, str, str]:
        process = self.start(script, *arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def recorded(self, name: str) -> list[str]:
        path = self.record / name
        return path.read_text().splitlines() if path.exists() else []


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{script}")
    path.chmod(0o755)
