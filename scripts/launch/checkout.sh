# What launchers that send this checkout to other machines share; they source it. Files that git does not track (a .env,
# notes, results) are named and left out: nobody has said that they may leave this machine.
# shellcheck shell=bash disable=SC2034

# read_arguments OPTION... -- COMMAND...: leave them in ${options[@]} and ${command[@]}.
read_arguments() {
  options=()
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  if [ $# -lt 3 ]; then
    echo "${0##*/}: a jasper command is needed after --, e.g. -- run configs/quickstart.yaml" >&2
    exit 2
  fi
  shift
  command=("$@")
}

# quoted WORD...: the words as one line that any POSIX shell, and Python's shlex, split into them again. bash's own @Q
# writes $'...' for a line end, or for an umlaut in the locale C, in which others see the end of the word elsewhere.
quoted() {
  local line='' word quote="'" escaped="'\\''"
  for word in "$@"; do
    line+=" '${word//$quote/$escaped}'"
  done
  printf '%s' "${line# }"
}

# copy_checkout: copy the tracked files as they are now, committed or not, to $checkout, which is deleted at the end.
copy_checkout() {
  local copy untracked
  copy="$(mktemp -d)"
  # shellcheck disable=SC2064
  trap "rm -rf $(quoted "$copy")" EXIT
  checkout="$copy/checkout"
  mkdir "$checkout"
  export GIT_INDEX_FILE="$copy/index" # of its own: the user's stays as it is
  cp "$(env -u GIT_INDEX_FILE git rev-parse --git-path index)" "$GIT_INDEX_FILE"
  git add --update
  git checkout-index --all --prefix="$checkout/"
  untracked="$(git ls-files --others --exclude-standard)"
  unset GIT_INDEX_FILE
  if [ "$untracked" ]; then
    echo "${0##*/}: not sent, because git does not track them (git add what the run needs):" >&2
    echo "$untracked" | head -n 20 | sed 's/^/  /' >&2
  fi
  if [[ "${command[1]}" != *://* && ! -f "$checkout/${command[1]}" ]]; then
    echo "${0##*/}: ${command[1]} would not be sent (outside this checkout, or not tracked: git add it)" >&2
    exit 2
  fi
}
