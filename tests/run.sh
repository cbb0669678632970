#!/usr/bin/env bash
# Builds and runs the tests, setting up all they need by itself.
set -euo pipefail
# shellcheck source=../deploy/local/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../deploy/local/common.sh"

usage() {
  cat <<'END'
tests/run.sh: installs packages, fetches the models, builds, and runs the tests

  (no flag)         Release build and all its tests; then the pure folders
                    (common, cache_manager, worker) under AddressSanitizer and
                    UndefinedBehaviorSanitizer, and the tests labelled tsan under ThreadSanitizer.
                    At most 25 minutes on two cores from nothing.
  --quick           only the Release build, without the tests that need model files
  --long            the soak takes 20 minutes instead of 2, random tests try ten times as many
                    seeds, the scalar kernels get all prompts, and clang 14 builds everything once
                    more, each source by itself, services and fuzzers included, under
                    AddressSanitizer and UndefinedBehaviorSanitizer; takes hours
  --sanitize KIND   only the build with this sanitizer: address or thread
  --build-dir DIR   where the folders release, asan and tsan are made (default: build)
  --yes             install missing Debian packages without asking
  --help            this text

Examples:
  ./tests/run.sh --yes
  ./tests/run.sh --quick
  ./tests/run.sh --sanitize thread --build-dir /tmp/kvist-tests

The last line of the output is "N passed, N failed", counted over all runs of ctest (a build that
fails counts as one failure). Exit status: 0 if nothing failed, 1 otherwise, 2 for wrong flags.
END
}

root=$(kvist_root)
build=$root/build
mode=default
long=
yes=()
while [ $# -gt 0 ]; do
  case $1 in
    --quick) mode=quick; shift ;;
    --long) long=1; shift ;;
    --sanitize)
      need_value "$1" $#
      case $2 in
        address | thread) mode=$2 ;;
        *) usage_error "--sanitize takes address or thread, not $2" ;;
      esac
      shift 2
      ;;
    --build-dir) need_value "$1" $#; build=$2; shift 2 ;;
    --yes) yes=(--yes); shift ;;
    --help | -h) usage; exit 0 ;;
    *) usage_error "unknown argument: $1" ;;
  esac
done
[ -z "$long" ] || [ "$mode" != quick ] || usage_error "--quick and --long exclude each other"
[ -z "$long" ] || export KVIST_LONG=1
mkdir -p "$build"
build=$(cd "$build" && pwd)

passed=0
failed=0
started=$SECONDS
finish() {
  local status=$?
  # A step that ended the script before any test failed is a failure too.
  [ "$status" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
  heading "Took $(((SECONDS - started) / 60)) minutes and $(((SECONDS - started) % 60)) seconds."
  say "$passed passed, $failed failed"
}
trap finish EXIT

# Labels of tests that are left out, as a regular expression; empty for none.
left_out() {
  local labels=()
  [ "$mode" != quick ] || labels+=(model)
  # Real models under a sanitizer take minutes and go through no code that the tiny ones do not.
  [ "$1" = release ] || labels+=(model)
  (IFS='|'; printf '%s' "${labels[*]}")
}

# test_build NAME TARGET_LABEL [CMAKE_FLAG...]: builds in folder NAME and runs the tests, with
# TARGET_LABEL only those that carry it.
test_build() {
  local name=$1 label=$2 folder=$build/$1 log excluded select=() targets=() line
  shift 2
  heading "Building the tests: $name"
  log=$folder/build.log
  mkdir -p "$folder"
  run_logged "$folder/configure.log" \
    cmake -S "$root" -B "$folder" -G Ninja -DKVIST_BUILD_TESTS=ON "$@" || return 1
  [ -z "$label" ] || select+=(-L "^$label\$")
  excluded=$(left_out "$name")
  [ -z "$excluded" ] || select+=(-LE "^($excluded)\$")
  [ -z "$label" ] || targets=("kvist_tests_$label")
  run_logged "$log" ninja -C "$folder" -j "$(build_jobs)" "${targets[@]}" || return 1

  heading "Running the tests: $name"
  log=$folder/ctest.log
  ctest --test-dir "$folder" --output-on-failure -j "$(nproc)" "${select[@]}" 2>&1 |
    tee "$log" || true
  line=$(grep -E '[0-9]+ tests? failed out of [0-9]+' "$log") || {
    warn "ctest ran no test in $folder"
    return 1
  }
  [[ $line =~ ([0-9]+)\ tests?\ failed\ out\ of\ ([0-9]+) ]]
  failed=$((failed + BASH_REMATCH[1]))
  passed=$((passed + BASH_REMATCH[2] - BASH_REMATCH[1]))
}

# Runs a build whatever became of those before it.
step() { test_build "$@" || failed=$((failed + 1)); }

# Checks inside the code (DCHECK, assert) are on under the sanitizers, hence no Release there.
sanitized=(-DCMAKE_BUILD_TYPE=Debug "-DCMAKE_CXX_FLAGS_DEBUG=-O1")
release() { step release "" -DCMAKE_BUILD_TYPE=Release -DKVIST_BUILD_SERVICES=ON; }
pure=("${sanitized[@]}" -DKVIST_BUILD_SERVICES=OFF)
address() { step asan "" "${pure[@]}" -DKVIST_SANITIZE=address; }
# Debian's gRPC is not built for ThreadSanitizer: its threads would give false reports.
thread() { step tsan tsan "${pure[@]}" -DKVIST_SANITIZE=thread; }
# Each source by itself, so that all are seen to include what they use.
clang() {
  step clang "" "${sanitized[@]}" -DKVIST_UNITY=OFF -DKVIST_SANITIZE=address \
    -DKVIST_BUILD_SERVICES=ON -DKVIST_BUILD_FUZZERS=ON \
    -DCMAKE_C_COMPILER=clang-14 -DCMAKE_CXX_COMPILER=clang++-14
}

heading "Debian packages"
"$root/deploy/local/packages.sh" --tests ${long:+--clang} "${yes[@]}"
if [ "$mode" = default ]; then
  heading "Models"
  for model in smollm2 gemma3; do "$root/deploy/local/model.sh" "$model"; done
fi
case $mode in
  quick) release ;;
  address | thread) "$mode" ;;
  default)
    release
    address
    thread
    [ -z "$long" ] || clang
    ;;
esac
[ "$failed" -eq 0 ]
