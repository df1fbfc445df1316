#!/usr/bin/env bash
# Run a jasper command as a workload of a GKE cluster with TPUs, through xpk; slices may be several.
#
#   scripts/launch_gke_xpk.sh --workload NAME --cluster NAME --type TYPE [options] run RECIPE [key=value ...]
#
# xpk puts this checkout (what git knows and what it does not ignore) on top of the base image and creates the
# workload; each machine installs the package with the tpu extra and runs the same command; the machines find each
# other (JASPER_DISTRIBUTED=auto). The cluster itself starts again what was preempted or ended with exit code 75.
# The pods share no disk: give run_dir on storage that all of them mount, or a mirror (see docs/design.md).
#
#   --workload NAME    of the workload, new
#   --cluster NAME     made with xpk cluster create
#   --type TYPE        TPU type of the cluster's slices, e.g. v6e-16, v5p-32, v5litepod-16
#   --slices N         how many slices (default 1)
#   --project NAME     Google Cloud project (default: that of gcloud)
#   --zone ZONE        of the cluster (default: that of gcloud)
#   --base-image NAME  image with Python 3.11 or newer and bash (default python:3.12)
#   --image NAME       a whole image, with this checkout as its working folder, used as it is
#   --priority NAME    very-low, low, medium, high or very-high (default medium)
#   --max-restarts N   starts again at most so often (default 100)
#   --grace SECONDS    between the signal of a preemption and the end of a pod, to save in (default 120)
#   --wait             waits until the workload has ended, and ends with xpk's exit code
#   --dry-run          prints what would be done, and does nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/launching.sh
source scripts/launching.sh

options=([workload]='' [cluster]='' [type]='' [slices]=1 [project]='' [zone]='' [base-image]=python:3.12 [image]=''
  [priority]=medium [max-restarts]=100 [grace]=120 [wait]=false [dry-run]=false)
parse "$@"
# The names of pods and their addresses are made from it, and must stay under 64 characters.
need workload '[a-z]([-a-z0-9]{0,36}[a-z0-9])?' \
  "a name of lower-case letters, digits and hyphens is needed, e.g. jasper-1"
need cluster '[a-z]([-a-z0-9]*[a-z0-9])?' "the name of a cluster is needed; xpk cluster list shows them"
need type '(tpu)?v?[0-9]+[a-z]*-[0-9a-z]+' "a TPU type is needed, e.g. v6e-16, v5p-32, v5litepod-16"
need slices '[1-9][0-9]{0,3}' "a whole number of slices is needed, 1 or more"
need project '([a-z0-9.:-]+)?' "a project's id is needed, e.g. my-project"
need zone '([a-z]+-[a-z]+[0-9]+-[a-z])?' "a zone is needed, e.g. us-east5-b"
need priority 'very-low|low|medium|high|very-high' "allowed: very-low, low, medium, high, very-high"
need_restarts
need_number grace "seconds to save in"
need_command
need_copied
need_tool xpk "install it with: pip install xpk"
"${options[dry-run]}" || [[ "$(xpk workload create --help 2>&1)" == *--restart-on-exit-codes* ]] ||
  refuse "this xpk cannot restart on an exit code (no --restart-on-exit-codes); pip install --upgrade xpk"

place=(--cluster "${options[cluster]}")
if [ -n "${options[project]}" ]; then place+=(--project "${options[project]}"); fi
if [ -n "${options[zone]}" ]; then place+=(--zone "${options[zone]}"); fi
if [ -n "${options[image]}" ]; then
  image=(--docker-image "${options[image]}")
else
  copy=COPY_OF_CHECKOUT # without what git ignores: environments, runs
  if ! "${options[dry-run]}"; then
    copy="$(mktemp -d)"
    trap 'rm -rf "$copy"' EXIT
    pack "$copy/checkout.tar.gz"
    tar -xzf "$copy/checkout.tar.gz" -C "$copy"
    rm "$copy/checkout.tar.gz"
  fi
  image=(--base-docker-image "${options[base-image]}" --script-dir "$copy")
fi

# exec: the pod's signal has to reach the script, which hands it to jasper.
do_or_show xpk workload create --workload "${options[workload]}" "${place[@]}" \
  --tpu-type "${options[type]}" --num-slices "${options[slices]}" "${image[@]}" --priority "${options[priority]}" \
  --max-restarts "${options[max-restarts]}" --restart-on-exit-codes "$STOPPED_AND_SAVED" \
  --termination-grace-period-seconds "${options[grace]}" \
  --command "exec env JASPER_DISTRIBUTED=auto bash scripts/launch_worker.sh tpu $(quote "${jasper[@]}")"
if "${options[wait]}"; then
  do_or_show xpk workload list "${place[@]}" --wait-for-job-completion "${options[workload]}"
fi
