#!/usr/bin/env bash
# Set up and run the quickstart: distil two teachers into the six layers of MiniLM, on a CPU.
#
#   scripts/quickstart.sh [--vision] [--no-torch] [FILE] [key=value ...]
#
# Creates a virtual environment in .venv (or $VENV), installs the package and runs configs/quickstart.yaml. After an
# interruption, the same command resumes. --no-torch skips PyTorch; the export is then verified without it.
# FILE has your own texts: .jsonl with "text", .parquet with a column text, or .txt with one a line; the run is then
# in runs/NAME-OF-FILE here, where you stand. key=value changes the recipe, e.g. run_dir=runs/mine.
# --vision also trains the student on images (configs/quickstart_vision.yaml, which key=value then changes).
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

extra=quickstart
overrides=()
vision=
run_dir=
# What a file is called is text, in YAML as in the shell.
quote="'"
quoted() { printf "'%s'" "${1//$quote/$quote$quote}"; }

for argument in "$@"; do
  if [[ -f $argument ]]; then
    name="$(basename -- "$argument")"
    content="$name"
    case "$name" in *.gz | *.zst | *.bz2 | *.xz) content="${name%.*}" ;; esac
    case "$content" in
      *.jsonl) key=jsonl ;;
      *.parquet) key=parquet ;;
      *.txt) key=text ;;
      *)
        echo "quickstart.sh: '$argument': expected .jsonl, .parquet or .txt, also compressed" >&2
        exit 2
        ;;
    esac
    file="$(cd -- "$(dirname -- "$argument")" && pwd)/$name"
    own="$PWD/runs/${content%.*}"
    for path in "$file" "$own"; do
      if [[ $path == *$'\n'* || $path == *"\${"* ]]; then
        echo "quickstart.sh: '$argument': a path with a line end or \${ cannot stand in a recipe; rename it" >&2
        exit 2
      fi
    done
    overrides+=("texts.sources=[{$key: $(quoted "$file")}]" "texts.count=null")
    continue
  fi
  case "$argument" in
    --no-torch) extra=plot,vision ;;
    --vision) vision=yes ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$repository/scripts/quickstart.sh"; exit 0 ;;
    run_dir=*) run_dir=given; overrides+=("$argument") ;;
    *=*) overrides+=("$argument") ;;
    *)
      echo "quickstart.sh: '$argument': no such file in $PWD; allowed: a file of texts, --vision, --no-torch, key=value" >&2
      exit 2
      ;;
  esac
done
if [[ -n ${own:-} && -z $run_dir ]]; then overrides+=("run_dir=$(quoted "$own")"); fi

here="$PWD"
cd "$repository"
# shellcheck source=scripts/environment.sh
source scripts/environment.sh
set_up "$extra"
jasper="$(cd "$(dirname "$VENV/bin/jasper")" && pwd)/jasper"
cd "$here"

if [[ -n $vision ]]; then
  [[ -e runs/quickstart/export/jasper.json ]] || "$jasper" run "$repository/configs/quickstart.yaml"
  exec "$jasper" run "$repository/configs/quickstart_vision.yaml" ${overrides[@]+"${overrides[@]}"}
fi
exec "$jasper" run "$repository/configs/quickstart.yaml" ${overrides[@]+"${overrides[@]}"}
