# Pieces that the scripts of deploy/local and tests share: messages, questions, places. To be sourced by bash.
# shellcheck shell=bash

# A heading, set apart by an empty line, so that the output reads well aloud.
heading() { printf '\n%s\n' "$*"; }
say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  warn "$*"
  exit 1
}
# Wrong flags end with status 2, as every Kvist command does.
usage_error() {
  warn "$* (--help lists the flags)"
  exit 2
}

# The value of flag $1, given as $2; $3 is the count of arguments left.
need_value() {
  [ "$2" -ge 2 ] || usage_error "$1 needs a value"
}

kvist_root() { (cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd); }
kvist_cache() { printf '%s/kvist\n' "${XDG_CACHE_HOME:-$HOME/.cache}"; }

# Asks a yes/no question; no answer (no terminal, end of input) means no.
ask() {
  local answer=
  printf '%s [y/N] ' "$1" >&2
  read -r answer || true
  case $answer in [yY] | [yY][eE][sS]) return 0 ;; *) return 1 ;; esac
}

# Runs a command with its output in log $1. Every few seconds its newest line is shown, so that a long step is seen to
# move; on failure the log's tail is printed and the command's status returned.
run_logged() {
  local log=$1 status=0 seconds=0 pid line shown=
  shift
  "$@" >"$log" 2>&1 &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    seconds=$((seconds + 1))
    [ $((seconds % 5)) -eq 0 ] || continue
    line=$(tail -n 1 "$log" | tr -d '\r' | cut -c 1-90)
    [ "$line" = "$shown" ] || printf '  %s\n' "$line" >&2
    shown=$line
  done
  wait "$pid" || status=$?
  if [ "$status" -ne 0 ]; then
    warn "this failed with status $status: $*"
    warn "the last lines of its log, $log:"
    tail -n 40 "$log" >&2
  fi
  return "$status"
}
