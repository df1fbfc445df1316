# Sourced by the launchers: their options, what they print, and the loop that starts a command again.
# shellcheck shell=bash
#
# A launcher fills the table `options` (name -> default; a default of true or false makes a switch of it) and calls
# `parse "$@"`. What follows the options is the jasper command, in the array `jasper`.

STOPPED_AND_SAVED=75   # jasper's exit code for "stopped with everything saved, run the same command again"
COMMANDS="run train embed evaluate export check"

declare -A options
jasper=()

say() {
  echo "${0##*/}: $*" >&2
}

refuse() {
  say "$@"
  exit 2
}

# The comment at the head of the launcher is its help. (Launchers go to the checkout first.)
help() {
  sed -n '2,/^[^#]/{ /^#/!d; s/^# \{0,1\}//; p; }' "scripts/${0##*/}"
  exit 0
}

parse() {
  local name allowed
  allowed="$(printf -- '--%s\n' "${!options[@]}" help | sort | paste -sd ' ' -)"
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help) help ;;
      --) shift; break ;;
      --*)
        name="${1#--}"
        name="${name%%=*}"
        [ -n "${options[$name]+there}" ] || refuse "unknown option '--$name'; allowed: $allowed"
        if [[ "${options[$name]}" =~ ^(true|false)$ ]]; then
          [ "$1" = "--$name" ] || refuse "--$name takes no value; write --$name alone"
          options[$name]=true
        elif [ "$1" != "--$name" ]; then
          options[$name]="${1#*=}"
        else
          [ $# -gt 1 ] || refuse "--$name needs a value; see --help"
          options[$name]="$2"
          shift
        fi
        shift
        ;;
      -*) refuse "unknown option '$1'; allowed: $allowed" ;;
      *) break ;;
    esac
  done
  jasper=("$@")
}

# need NAME PATTERN WHAT: the option's value is all of the extended regular expression, or one line says what is wanted.
need() {
  [[ "${options[$1]}" =~ ^($2)$ ]] || refuse "--$1 '${options[$1]}': $3"
}

need_number() {
  need "$1" '0|[1-9][0-9]{0,5}' "a whole number from 0 to 999999 is needed${2:+ ($2)}"
}

need_restarts() {
  need_number max-restarts "how often to start again"
  [ -z "${options[delay]+there}" ] || need_number delay "seconds before starting again"
}

# The jasper command: one that can be run again, and a recipe that is there (here, or in object storage).
need_command() {
  [ ${#jasper[@]} -gt 0 ] || refuse "no jasper command; end with one, e.g. run configs/quickstart.yaml"
  [[ " $COMMANDS " == *" ${jasper[0]} "* ]] ||
    refuse "'${jasper[0]}' is no jasper command to launch; allowed: $COMMANDS"
  [ ${#jasper[@]} -gt 1 ] || refuse "${jasper[0]} needs a recipe, e.g. ${jasper[0]} configs/quickstart.yaml"
  [[ "${jasper[1]}" == *://* ]] || [ -f "${jasper[1]}" ] ||
    refuse "${jasper[1]}: no such recipe in $PWD; recipes are YAML files, configs/ has examples"
  [[ "${jasper[*]}" != *$'\n'* ]] || refuse "an argument of jasper has a line break in it; put it into the recipe"
}

# need_copied: a recipe of this checkout has to be among the files that `pack` takes.
need_copied() {
  [[ "${jasper[1]}" == *://* ]] ||
    [ -n "$(git ls-files --cached --others --exclude-standard -- "${jasper[1]}" 2> /dev/null)" ] ||
    refuse "${jasper[1]}: would not be copied (outside this git checkout, or ignored by it); put it into configs/"
}

# pack ARCHIVE: this checkout, what git knows and what it does not ignore, as a .tar.gz.
pack() {
  local file
  git ls-files --cached --others --exclude-standard -z |
    while IFS= read -r -d '' file; do # a deleted file is still in the list
      if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\0' "$file"; fi
    done | tar --null --files-from - --create --gzip --file "$1"
}

need_tool() {
  "${options[dry-run]}" || command -v "$1" > /dev/null || refuse "$1 is not on the PATH; $2"
}

# quote WORD...: the words as a shell would have to read them, also a shell that is not bash.
quote() {
  local word line=''
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+="${line:+ }$word"
  done
  echo "$line"
}

# do_or_show COMMAND...: run it, or under --dry-run print it.
do_or_show() {
  if "${options[dry-run]}"; then quote "$@"; else "$@"; fi
}

# --------------------------------------------------------------------------------- starting, and starting again

FORWARDED=(TERM INT HUP)
stopped=false
code=0

# attend COMMAND...: run it and leave its exit code in $code. A signal to this script reaches the command once, as
# SIGTERM: in a process group of its own the command does not also get the terminal's Ctrl-C, which would be its
# second, and the second ends jasper without saving.
attend() {
  local child signalled
  set -m
  "$@" < /dev/null &
  child=$!
  set +m
  # shellcheck disable=SC2064
  trap "stopped=true; signalled=true; kill -TERM $child 2> /dev/null" "${FORWARDED[@]}"
  while :; do
    signalled=false
    code=0
    wait "$child" || code=$?
    "$signalled" || break # else only the waiting ended
  done
  trap - "${FORWARDED[@]}"
}

# What a launcher may replace: what happens before each start (a failure counts as a lost connection), and which exit
# codes are worth another.
LOST_CONNECTION=255
before_start() { :; }
worth_restarting() { [ "$1" -eq "$STOPPED_AND_SAVED" ]; }

# restarting COMMAND...: run it, again while it is worth it, and return its last exit code.
restarting() {
  local restarts=0 last
  while :; do
    if before_start; then attend "$@"; else code=$LOST_CONNECTION; fi
    last=$code
    if [ "$last" -eq 0 ] || "$stopped" || ! worth_restarting "$last"; then
      return "$last"
    fi
    if [ "$restarts" -ge "${options[max-restarts]}" ]; then
      say "exit code $last after $restarts restarts, all that --max-restarts allows; the same command continues"
      return "$last"
    fi
    restarts=$((restarts + 1))
    say "exit code $last; restart $restarts of ${options[max-restarts]} in ${options[delay]} s"
    attend sleep "${options[delay]}"
    if "$stopped"; then return "$last"; fi
  done
}
