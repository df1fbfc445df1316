#!/usr/bin/env bash
# Set up and run the tests: format, lint, types, then pytest.
#
#   scripts/test.sh [--full] [pytest arguments]
#
# --full also runs the long campaigns, which kill and stop runs at more moments; use it before a release.
# Creates a virtual environment in .venv (or $VENV) and installs the package with its dev extra.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=scripts/environment.sh
source scripts/environment.sh
set_up dev

"$VENV/bin/ruff" format --check .
"$VENV/bin/ruff" check .
"$VENV/bin/basedpyright" --pythonpath "$VENV/bin/python"
exec "$VENV/bin/python" -m pytest "$@"
