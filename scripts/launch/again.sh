#!/usr/bin/env bash
# Run a command, and run it again each time it ends with exit code 75: stopped with everything saved.
#
#   scripts/launch/again.sh jasper run RECIPE [key=value ...]
#
# For one machine. One process uses all of its GPUs; CUDA_VISIBLE_DEVICES selects some of them. Install the package
# first: pip install -e '.[cuda]'. AGAIN_DELAY is the number of seconds to wait before each restart (default 10).
# SIGTERM, SIGHUP and Ctrl-C ask the command to save and stop; it is then not run again. The exit code is the command's.
set -u
delay="${AGAIN_DELAY:-10}"
stopped=''

# attend COMMAND...: run it and leave its exit code in $code. In a process group of its own it does not receive the
# terminal's Ctrl-C as well, which would be its second signal: the second one ends jasper without saving.
attend() {
  local child signalled=yes
  set -m
  "$@" < /dev/null &
  child=$!
  set +m
  # shellcheck disable=SC2064
  trap "stopped=yes signalled=yes; kill -TERM $child 2> /dev/null" TERM INT HUP
  while [ "$signalled" ]; do # a signal ends the wait, not the command
    signalled=''
    wait "$child"
    code=$?
  done
}

while :; do
  attend "$@"
  if [ "$code" -ne 75 ] || [ "$stopped" ]; then exit "$code"; fi
  echo "again.sh: stopped with everything saved; running it again in $delay s" >&2
  attend sleep "$delay"
  if [ "$stopped" ]; then exit 75; fi
done
