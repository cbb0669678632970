# Python environments of the benchmarks, each in a folder of its own in Kvist's cache. To be sourced
# by bash, after deploy/local/common.sh.
# shellcheck shell=bash

# make_venv NAME PACKAGE==VERSION...: makes the environment unless it is there with exactly these
# packages, and prints its Python. Its log is build.log in the folder.
make_venv() {
  local name=$1 folder log
  shift
  folder=$(kvist_cache)/peers/$name
  log=$folder/build.log
  mkdir -p "$folder"
  exec 9>"$folder/lock"
  flock 9
  if [ "$(cat "$folder/complete" 2>/dev/null)" != "$*" ]; then
    say "installing $*; log in $log" >&2
    rm -rf "$folder/venv" "$folder/complete"
    {
      python3 -m venv "$folder/venv" &&
        nice -n 15 "$folder/venv/bin/pip" install --disable-pip-version-check --no-cache-dir "$@"
    } >"$log" 2>&1 || {
      warn "the installation failed; the last lines of $log:"
      tail -n 20 "$log" >&2
      return 1
    }
    printf '%s\n' "$*" >"$folder/complete"
  fi
  flock -u 9
  printf '%s\n' "$folder/venv/bin/python"
}
