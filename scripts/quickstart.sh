#!/usr/bin/env bash
# Set up and run the quickstart: distil two teachers into three layers of MiniLM, on a CPU.
#
#   scripts/quickstart.sh [--vision] [--no-torch] [key=value ...]
#
# Creates a virtual environment in .venv (or $VENV), installs the package and runs configs/quickstart.yaml. After an
# interruption, the same command resumes. --no-torch skips PyTorch; the export is then verified without it.
# key=value changes the recipe, e.g. 'texts.sources=[{jsonl: my.jsonl}]' run_dir=runs/mine.
# --vision also trains the student on images (configs/quickstart_vision.yaml, which key=value then changes).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra=quickstart
overrides=()
vision=
for argument in "$@"; do
  case "$argument" in
    --no-torch) extra=plot,vision ;;
    --vision) vision=yes ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' scripts/quickstart.sh; exit 0 ;;
    *=*) overrides+=("$argument") ;;
    *) echo "quickstart.sh: unknown argument '$argument'; allowed: --vision, --no-torch, key=value" >&2; exit 2 ;;
  esac
done

# shellcheck source=scripts/environment.sh
source scripts/environment.sh
set_up "$extra"

if [[ -n $vision ]]; then
  [[ -e runs/quickstart/export/jasper.json ]] || "$VENV/bin/jasper" run configs/quickstart.yaml
  exec "$VENV/bin/jasper" run configs/quickstart_vision.yaml ${overrides[@]+"${overrides[@]}"}
fi
exec "$VENV/bin/jasper" run configs/quickstart.yaml ${overrides[@]+"${overrides[@]}"}
