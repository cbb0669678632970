# Pieces that the scripts of deploy/local and tests share: messages, questions, places. To be
# sourced by bash.
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

# The comment at the head of the script that runs: its help.
print_head_comment() { awk 'NR == 1 {next} !/^#/ {exit} {sub(/^# ?/, ""); print}' "$0"; }

# Ends the script unless flag $1 has a value after it; $2 is the count of arguments left.
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

# Whether the process lives: one that ended and that nobody asked about yet does not.
is_alive() {
  local stat=
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  # The state follows the name, which stands in parentheses and may hold any character.
  stat=${stat##*) }
  [ "${stat%% *}" != Z ]
}

# Runs a command with its output in log $1. Every few seconds its newest line is shown, so that a
# long step is seen to move; on failure the log's tail is printed and the command's status returned.
run_logged() {
  local log=$1 status=0 polls=0 pid line shown=
  shift
  "$@" >"$log" 2>&1 &
  pid=$!
  while is_alive "$pid"; do
    sleep 0.2
    polls=$((polls + 1))
    [ $((polls % 25)) -eq 0 ] || continue
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

# How many compilers at once: one per core, but each may take 1.5 GB (gRPC's headers are large).
build_jobs() {
  local cores memory_kb by_memory
  cores=$(nproc)
  memory_kb=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
  by_memory=$((memory_kb / 1500000))
  [ "$by_memory" -ge 1 ] || by_memory=1
  printf '%s\n' $((cores < by_memory ? cores : by_memory))
}

# Configures in folder $1 and builds the program kvist there, with logs $2 and $2.configure.
build_kvist() {
  local build=$1 log=$2
  mkdir -p "$build" "$(dirname "$log")"
  run_logged "$log.configure" cmake -S "$(kvist_root)" -B "$build" -G Ninja \
    -DCMAKE_BUILD_TYPE=Release -DKVIST_BUILD_SERVICES=ON -DKVIST_BUILD_TESTS=OFF || return 1
  run_logged "$log" ninja -C "$build" -j "$(build_jobs)" kvist
}

# Waits until the server of process $1 has written its line "kvist ready ..." to log $2 and prints
# that line. Status 1 with the log's tail if it ends before, or is not ready within $3 seconds.
wait_ready() {
  local pid=$1 log=$2 tenths_left=$(($3 * 10))
  while [ "$tenths_left" -gt 0 ]; do
    # A whole line only: the end of the file may be half a line yet.
    if grep -qzP '(?m)^kvist ready .*\n' "$log" 2>/dev/null; then
      grep -m 1 '^kvist ready ' "$log"
      return 0
    fi
    is_alive "$pid" || break
    sleep 0.1
    tenths_left=$((tenths_left - 1))
  done
  if is_alive "$pid"; then
    warn "the server was not ready after $3 seconds; the last lines of $log:"
  else
    warn "the server ended before it was ready; the last lines of $log:"
  fi
  tail -n 20 "$log" >&2
  return 1
}

# The value of NAME=value in a ready line: ready_address NAME LINE
ready_address() {
  local word
  for word in $2; do
    case $word in "$1="*) printf '%s\n' "${word#*=}"; return 0 ;; esac
  done
  return 1
}

# Asks the processes to end and waits for them; what is left after 10 seconds is killed.
stop_processes() {
  local pid tenths_left=100
  for pid in "$@"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "$@"; do
    while is_alive "$pid" && [ "$tenths_left" -gt 0 ]; do
      sleep 0.1
      tenths_left=$((tenths_left - 1))
    done
    if kill -KILL "$pid" 2>/dev/null; then
      warn "process $pid did not end in time and was killed"
    fi
    wait "$pid" 2>/dev/null || true
  done
}

# Whether GET of URL answers 200 within two seconds.
http_ok() {
  python3 -c '
import sys, urllib.request
try:
    sys.exit(urllib.request.urlopen(sys.argv[1], timeout=2).status != 200)
except OSError:
    sys.exit(1)' "$1"
}
