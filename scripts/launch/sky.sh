#!/usr/bin/env bash
# Run a jasper command on cloud machines with SkyPilot, by one of the tasks beside this script.
#
#   scripts/launch/sky.sh sky_gpus [sky options] -- run RECIPE mirror=s3://BUCKET/RUN [key=value ...]
#   scripts/launch/sky.sh sky_tpu [sky options] -- run RECIPE mirror=gs://BUCKET/RUN [key=value ...]
#
# Options before -- go to `sky jobs launch`: --num-nodes 2, --env NFS=ADDRESS:/EXPORT, --gpus A100:8 (see the tasks).
# The files of this checkout that git tracks are sent, as they are now; others are named and left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/launch/checkout.sh
. scripts/launch/checkout.sh

task="${1:-}"
if [[ "$task" != sky_gpus && "$task" != sky_tpu ]]; then
  echo "sky.sh: the task is '$task'; expected sky_gpus or sky_tpu" >&2
  exit 2
fi
read_arguments "${@:2}"
copy_checkout
cd "$checkout"
sky jobs launch "scripts/launch/$task.yaml" --env SENT_BY=sky.sh --env COMMAND="$(quoted "${command[@]}")" "${options[@]}"
