# Sourced by the other scripts: create a virtual environment with the package and one of its extras.
# shellcheck shell=bash

VENV="${VENV:-.venv}"

# XLA allocates and frees hundreds of MB every train step; with huge pages a step takes a tenth less time.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

# Print the first interpreter that is new enough.
find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if command -v "$candidate" > /dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "jasper_jax needs Python 3.11 or newer; install it, or set PYTHON=/path/to/python" >&2
  return 2
}

# set_up EXTRA: create $VENV if necessary and install the package with that extra, unless both are up to date.
set_up() {
  local extra="$1" python stamp wanted
  if [ ! -x "$VENV/bin/python" ]; then
    python="$(find_python)" || exit 2
    echo "Creating the virtual environment $VENV" >&2
    if ! "$python" -m venv "$VENV"; then
      rm -rf "$VENV"
      echo "Python's venv module does not work here; on Debian: apt install python3-venv" >&2
      exit 2
    fi
  fi
  stamp="$VENV/.jasper-$extra"
  wanted="$(cksum < pyproject.toml)"
  if [ "$(cat "$stamp" 2> /dev/null)" != "$wanted" ]; then
    echo "Installing jasper_jax[$extra] into $VENV (a few minutes the first time)" >&2
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extra]" || {
      echo "The installation failed, see above; run the same command to try again" >&2
      exit 1
    }
    echo "$wanted" > "$stamp"
  fi
}
