#!/usr/bin/env bash
# Run a jasper command on all machines of a Cloud TPU slice, and again after preemption or a saved stop.
#
#   scripts/launch_tpu_pod.sh --name NAME --zone ZONE --type TYPE [options] run RECIPE [key=value ...]
#   scripts/launch_tpu_pod.sh --name NAME --zone ZONE --stop
#
# Asks for the TPU as a queued resource NAME (with one node, NAME too) and waits for it; a queued resource or TPU VM of
# that name that is ready is used as it is. Copies this checkout (what git knows and what it does not ignore) to every
# machine, installs the package with the tpu extra, and runs the same command on all; their output is shown here.
# The machines find each other (JASPER_DISTRIBUTED=auto). They share no disk: give run_dir on storage that all of them
# mount, or a mirror (see docs/design.md); the recipe may be a gs:// file.
#
#   --name NAME        of the queued resource and its node
#   --zone ZONE        e.g. us-east5-b
#   --type TYPE        accelerator type, e.g. v6e-16, v5p-32, v5litepod-16, v4-32
#   --version NAME     runtime version (default: the one for the type)
#   --project NAME     Google Cloud project (default: that of gcloud)
#   --spot             cheaper, and may be preempted: it is then deleted, asked for again, and the command continued
#   --max-restarts N   starts again at most so often (default 100)
#   --delay SECONDS    waits so long before it, and between looks at the TPU's state (default 30)
#   --delete           deletes the TPU when the command has succeeded; without it, it stays, and costs
#   --stop             asks the jasper on all machines to save and stop, and does no more
#   --dry-run          prints what would be done to a TPU that is not there yet, and does nothing
#
# Started again is what ended with exit code 75, lost its connection (255), or lost its TPU; any other code is passed
# on. When this script is ended, jasper goes on; the same command takes over from it, --stop ends it.
# gcloud is called with --quiet: the first time it makes an SSH key without a passphrase.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/launching.sh
source scripts/launching.sh

FOLDER=jasper_jax # in the home folder of each machine

options=([name]='' [zone]='' [type]='' [version]='' [project]='' [spot]=false [max-restarts]=100 [delay]=30
  [delete]=false [stop]=false [dry-run]=false)
parse "$@"
need name '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' \
  "a name of lower-case letters, digits and hyphens is needed, e.g. jasper-pod"
need zone '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone is needed, e.g. us-east5-b"
need project '([a-z0-9.:-]+)?' "a project's id is needed, e.g. my-project"
need_restarts
place=(--zone "${options[zone]}" --quiet)
if [ -n "${options[project]}" ]; then place+=(--project "${options[project]}"); fi
need_tool gcloud "install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"

# on_all COMMAND: what all machines of the slice are told to run, in a shell.
on_all() {
  do_or_show gcloud compute tpus tpu-vm ssh "${options[name]}" "${place[@]}" --worker all --command "$1"
}

if "${options[stop]}"; then
  [ ${#jasper[@]} -eq 0 ] || refuse "--stop takes no jasper command; leave '${jasper[*]}' out"
  on_all "exec bash $FOLDER/scripts/launch_worker.sh stop"
  exit
fi

need type 'v[0-9]+[a-z]*-[0-9]+' "an accelerator type is needed, e.g. v6e-16, v5p-32, v5litepod-16, v4-32"
if [ -z "${options[version]}" ]; then
  case "${options[type]}" in
    v6e-*) options[version]=v2-alpha-tpuv6e ;;
    v5p-*) options[version]=v2-alpha-tpuv5 ;;
    v5litepod-*) options[version]=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) options[version]=tpu-ubuntu2204-base ;;
    *) refuse "--type ${options[type]}: no runtime version is known for it here; give one with --version" ;;
  esac
fi
need version '[a-z0-9.-]+' "a runtime version is needed, e.g. v2-alpha-tpuv6e"
need_command
need_copied

create=(gcloud compute tpus queued-resources create "${options[name]}" --node-id "${options[name]}"
  --accelerator-type "${options[type]}" --runtime-version "${options[version]}" "${place[@]}")
if "${options[spot]}"; then create+=(--spot); fi
delete=(gcloud compute tpus queued-resources delete "${options[name]}" --force "${place[@]}")

# listed KIND FIELDS: of the queued resource or the TPU VM; empty when there is none. (A describe would not tell that
# from a call that failed.)
listed() {
  gcloud compute tpus "$1" list --filter "name ~ /${options[name]}\$" --format "value($2)" "${place[@]}"
}

# look: sets $queued and $node to their states, and $machine to a number that a new TPU has anew.
look() {
  local line
  queued="$(listed queued-resources state.state)" || refuse "gcloud failed, see above"
  line="$(listed tpu-vm 'state,id')" || refuse "gcloud failed, see above"
  read -r node machine <<< "$line" || true
}

is_ready() {
  [ "$node" = READY ] && [[ "$queued" =~ ^(ACTIVE)?$ ]]
}

wait_for_tpu() {
  local seen='' now
  while :; do
    look
    now="${queued:-none}, TPU VM ${node:-none}"
    if [ "$now" != "$seen" ]; then say "queued resource $now"; fi
    seen="$now"
    if is_ready; then return; fi
    case "$queued/$node" in
      /) "${create[@]}" || refuse "the TPU could not be asked for, see above" ;;
      /PREEMPTED | /STOPPED | /TERMINATED)
        refuse "the TPU VM ${options[name]} is $node and no queued resource's; start or delete it, or give another" \
          "--name"
        ;;
      FAILED/* | SUSPENDED/*) "${delete[@]}" || refuse "the queued resource could not be deleted, see above" ;;
    esac
    sleep "${options[delay]}"
  done
}

# The environment of an earlier copy stays; a file that is gone from the checkout goes there too.
unpack="mkdir -p $FOLDER && cd $FOLDER && find . -mindepth 1 -maxdepth 1 ! -name .venv ! -name .launch ! -name runs"
unpack+=" -exec rm -rf {} + && tar -xzf ../$FOLDER.tar.gz"
prepare() {
  do_or_show gcloud compute tpus tpu-vm scp "$archive" "${options[name]}:$FOLDER.tar.gz" "${place[@]}" --worker all &&
    on_all "$unpack"
}

prepared=''
before_start() {
  wait_for_tpu
  if [ "$machine" != "$prepared" ]; then
    if ! prepare; then
      [ -n "$prepared" ] || refuse "the checkout could not be copied to ${options[name]}, see above"
      return 1
    fi
    prepared="$machine"
  fi
}

# When one machine goes, jasper fails on the others in ways of its own, and the TPU's state may follow later.
worth_restarting() {
  case "$1" in
    "$STOPPED_AND_SAVED" | "$LOST_CONNECTION") return 0 ;;
    2 | 130) return 1 ;;
  esac
  sleep "${options[delay]}"
  look
  ! is_ready
}

command="cd $FOLDER && exec env JASPER_DISTRIBUTED=auto bash scripts/launch_worker.sh tpu $(quote "${jasper[@]}")"
if "${options[dry-run]}"; then
  archive=CHECKOUT.tar.gz
  echo "# the queued resource, and a wait until it is ready:"
  quote "${create[@]}"
  echo "# the checkout, to every machine:"
  prepare
  echo "# the command; again after exit code $STOPPED_AND_SAVED, a lost connection or a lost TPU, at most" \
    "${options[max-restarts]} times, ${options[delay]} s later:"
  on_all "$command"
  if "${options[delete]}"; then
    echo "# after success:"
    quote "${delete[@]}"
  fi
  exit 0
fi

archive="$(mktemp)"
trap 'rm -f "$archive"' EXIT
pack "$archive"
result=0
restarting on_all "$command" || result=$?
if "$stopped"; then say "jasper goes on on the machines; the same command takes over from it, --stop ends it"; fi
if [ "$result" -eq 0 ] && "${options[delete]}"; then "${delete[@]}"; fi
exit "$result"
