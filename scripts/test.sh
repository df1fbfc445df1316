#!/usr/bin/env bash
# Set up and run the tests: format, lint, types, then pytest.
#
#   scripts/test.sh [--full] [pytest arguments]
#
# --full runs the long campaigns too: more moments at which a run is killed or stopped. Before a release.
# Makes a virtual environment in .venv (or uses $VENV) and installs the package with its dev extra.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=scripts/environment.sh
source scripts/environment.sh
set_up dev

"$VENV/bin/ruff" format --check .
"$VENV/bin/ruff" check .
"$VENV/bin/basedpyright" --pythonpath "$VENV/bin/python"
exec "$VENV/bin/python" -m pytest "$@"
