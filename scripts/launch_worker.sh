#!/usr/bin/env bash
# Run a jasper command on one machine of several; launch_tpu_pod.sh and launch_gke_xpk.sh call it on each.
#
#   scripts/launch_worker.sh EXTRA run RECIPE [key=value ...]
#   scripts/launch_worker.sh stop
#
# Installs the package with EXTRA and runs the command, whose output goes to .launch/log and, as long as somebody
# listens, to this script's: it outlives the connection that started it. A jasper that an earlier call left running is
# first asked to save and stop. `stop` does only that. The exit code is jasper's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/launching.sh
source scripts/launching.sh

case "${1:-}" in
  -h | --help) help ;;
  stop | tpu | cuda | plot) ;;
  *) refuse "'${1:-}': the first argument is an extra (tpu, cuda, plot) or stop" ;;
esac

# running PID: whether it is a jasper, and not another program that got its number later.
running() {
  [ -r "/proc/$1/cmdline" ] && tr '\0' ' ' < "/proc/$1/cmdline" 2> /dev/null | grep -q jasper
}

# The first signal asks to save; a process that waits for a machine that is gone cannot, and gets another and the last.
stop_earlier() {
  local pid second
  pid="$(cat .launch/pid 2> /dev/null || true)"
  [[ "$pid" =~ ^[0-9]+$ ]] && running "$pid" || return 0
  say "asking jasper (process $pid) to save and stop"
  kill -TERM "$pid" 2> /dev/null || true
  for ((second = 0; second < 150; second++)); do
    running "$pid" || return 0
    if [ "$second" -eq 120 ]; then kill -TERM "$pid" 2> /dev/null || true; fi
    sleep 1
  done
  kill -KILL "$pid" 2> /dev/null || true
}

stop_earlier
if [ "$1" = stop ]; then exit 0; fi
extra="$1"
shift
jasper=("$@")
need_command

# shellcheck source=scripts/environment.sh
source scripts/environment.sh
if ! find_python > /dev/null 2>&1; then # images of TPU VMs come with an older one
  say "no Python 3.11 or newer here, fetching one with uv"
  python3 -m pip install --quiet --user uv
  python3 -m uv python install --quiet 3.12
  PYTHON="$(python3 -m uv python find 3.12)"
fi
set_up "$extra"

mkdir -p .launch
: > .launch/log
# A reader of its own: when the connection is gone it dies of the broken pipe, and jasper does not notice.
tail -n +1 -f .launch/log &
reader=$!
# shellcheck disable=SC2329 # attend calls it
start() {
  echo "$BASHPID" > .launch/pid
  exec "$VENV/bin/jasper" "${jasper[@]}" >> .launch/log 2>&1
}
trap '' HUP
FORWARDED=(TERM INT)
attend start
sleep 1 # for the reader to print the end
kill "$reader" 2> /dev/null || true
exit "$code"
