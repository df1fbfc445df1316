#!/usr/bin/env bash
# Run a jasper command on all GPUs of this machine, and again when it stopped with everything saved.
#
#   scripts/launch_gpus.sh [options] run RECIPE [key=value ...]
#
# One process uses all GPUs: JAX then moves data between them without leaving the program, there is one data loader
# and one compiler, and nothing to find each other. Processes per GPU bring nothing on one machine.
# The package is installed into .venv (or $VENV) with the cuda extra. CUDA_VISIBLE_DEVICES chooses among the GPUs.
#
#   --max-restarts N   starts again at most so often after exit code 75 (default 100)
#   --delay SECONDS    waits so long before it (default 10)
#   --extra NAME       the extra to install: cuda, or plot for a CPU alone (default cuda)
#   --dry-run          prints what would be done, and does nothing
#
# SIGTERM or Ctrl-C ask jasper to save and stop; it is then not started again, and the exit code is its own.
# Any other exit code than 75 is passed on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/launching.sh
source scripts/launching.sh

options=([max-restarts]=100 [delay]=10 [extra]=cuda [dry-run]=false)
parse "$@"
need_restarts
need extra 'cuda|plot' "allowed: cuda, plot"
need_command

# shellcheck source=scripts/environment.sh
source scripts/environment.sh
if "${options[dry-run]}"; then
  echo "# installs jasper_jax[${options[extra]}] into $VENV unless it is there, then runs, and again after exit code" \
    "$STOPPED_AND_SAVED, at most ${options[max-restarts]} times, ${options[delay]} s later:"
  quote "$VENV/bin/jasper" "${jasper[@]}"
  exit 0
fi
set_up "${options[extra]}"
result=0
restarting "$VENV/bin/jasper" "${jasper[@]}" || result=$?
exit "$result"
