#!/usr/bin/env bash
# Run a jasper command on the TPU slices of a GKE cluster, with xpk (pip install xpk).
#
#   scripts/launch/xpk.sh --workload NAME --cluster NAME --tpu-type v6e-16 [xpk options] -- run RECIPE [key=value ...]
#
# Options before -- go to `xpk workload create`, and override those below: --num-slices N, --project, --zone,
# --priority, --dry-run. The files of this checkout that git tracks are added, as they are now, to the image
# python:3.12; others are named and left out. Each pod installs the package and runs the command; the pods find each
# other. Several pods need a run_dir on a disk that all of them mount, with or without a mirror, and are refused at the
# start without it: --storage NAME (made by `xpk storage create --type=gcpfilestore`), run_dir=/ITS/MOUNT/POINT/my-run.
# A single pod can keep its run in a bucket instead: mirror=gs://BUCKET/RUN.
#
# A preempted pod has 120 s to save. The cluster restarts the workload after a preemption, a crash by a signal, or exit
# code 75 (stopped with everything saved), at most 100 times; any other exit code ends it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/launch/checkout.sh
. scripts/launch/checkout.sh

read_arguments "$@"
if [[ "${command[*]}" == *$'\n'* ]]; then
  echo "xpk.sh: an argument has a line end, which xpk's YAML does not keep; write the value into the recipe" >&2
  exit 2
fi
copy_checkout

# exec: a signal to the pod has to reach jasper.
xpk workload create --base-docker-image python:3.12 --script-dir "$checkout" --max-restarts 100 \
  --restart-on-exit-codes 75 --termination-grace-period-seconds 120 "${options[@]}" \
  --command "pip install --quiet --editable '.[tpu,plot,vision,gcs]' && JASPER_DISTRIBUTED=auto exec jasper $(quoted "${command[@]}")"
