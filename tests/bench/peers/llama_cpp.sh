#!/usr/bin/env bash
# Builds the peer llama.cpp (from PyPI's source package of llama-cpp-python) natively in a cache
# folder outside the tree and prints the folder of its programs: llama-bench, llama-batched-bench,
# llama-server, llama-cli and llama-completion where that version has it. A second call only prints
# the folder.
#   llama_cpp.sh [--jobs N]     N compilers at once (default 1, at low priority: about half an hour)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../../../deploy/local/common.sh
. "$here/../../../deploy/local/common.sh"

readonly version=0.3.36
jobs=1
while [ $# -gt 0 ]; do
  case $1 in
    --jobs) need_value "$1" $#; jobs=$2; shift 2 ;;
    --help | -h) print_head_comment; exit 0 ;;
    *) usage_error "unknown argument: $1" ;;
  esac
done

peer=$(kvist_cache)/peers/llama_cpp-$version
bin=$peer/bin
mkdir -p "$peer"
exec 9>"$peer/lock"
flock 9
if [ -f "$peer/complete" ]; then
  printf '%s\n' "$bin"
  exit 0
fi

log=$peer/build.log
: >"$log"
say "building llama.cpp of llama-cpp-python $version; log in $log" >&2

fetch() {
  local archive
  [ -x "$peer/venv/bin/pip" ] || python3 -m venv "$peer/venv"
  # The source package's metadata is made by scikit-build-core; without build isolation it comes
  # from this venv.
  "$peer/venv/bin/pip" install -q scikit-build-core
  "$peer/venv/bin/pip" download --no-deps --no-binary :all: --no-build-isolation \
    -d "$peer/download" "llama-cpp-python==$version"
  archive=$(find "$peer/download" -name '*.tar.gz' | head -n 1)
  rm -rf "$peer/source.new" "$peer/source"
  mkdir "$peer/source.new"
  tar -xzf "$archive" -C "$peer/source.new" --strip-components=1
  mv "$peer/source.new" "$peer/source"
  rm -rf "$peer/download"
}

build() {
  local target targets=(llama-bench llama-batched-bench llama-server llama-cli)
  cmake -S "$peer/source/vendor/llama.cpp" -B "$peer/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_NUMBER=0 -DLLAMA_BUILD_COMMIT=sdist
  if ninja -C "$peer/build" -t query llama-completion >/dev/null 2>&1; then
    targets+=(llama-completion)
  fi
  nice -n 15 ninja -C "$peer/build" -j "$jobs" "${targets[@]}"
  mkdir -p "$bin"
  for target in "${targets[@]}"; do
    cp "$peer/build/bin/$target" "$bin/$target"
  done
}

{
  [ -d "$peer/source" ] || fetch
  build
} >>"$log" 2>&1 || {
  warn "the build of llama.cpp failed; the last lines of $log:"
  tail -n 20 "$log" >&2
  exit 1
}
"$bin/llama-bench" --help >/dev/null 2>&1 || die "$bin/llama-bench does not start"
touch "$peer/complete"
printf '%s\n' "$bin"
