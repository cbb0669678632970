#!/usr/bin/env bash
# Measures Kvist beside its peers, K1 to K8 of tests/bench/README.md, and writes results, a table
# (REPORT.md) and charts into tests/bench/results. Sets up all it needs: the build, the models, and
# the peers in Kvist's cache folder. Nothing else should run on the machine meanwhile.
#   report.sh [--rounds N] [--only K2,K3] [--match TEXT] [--model smollm2|gemma3] [--threads T]
#     --rounds N        alternating rounds after a warm-up (default 5)
#     --only IDS        only these of K1 to K8
#     --match TEXT      only work whose name holds TEXT, as "prefill 128"
#     --model MODEL     only this model; may be repeated
#     --threads T       of both sides (default: one per core)
#     --runs N          of each cell of K1 (default 10)
#     --budget-seconds  a cell of K1 whose first run takes longer is run once (default 300)
#     --results DIR     where the results go (default tests/bench/results)
#     --build-dir DIR   where Kvist is built, or will be (default build/release in the project)
#     --no-peers        measure Kvist alone
# The first call builds llama.cpp (about half an hour) and installs transformers (8 GB).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../../deploy/local/common.sh
. "$here/../../deploy/local/common.sh"

root=$(kvist_root)
build=$root/build/release
only=K1,K2,K3,K4,K5,K6,K7,K8
models=()
peers=1
pass=()
while [ $# -gt 0 ]; do
  case $1 in
    --rounds | --match | --threads | --runs | --budget-seconds | --results)
      need_value "$1" $#
      pass+=("$1" "$2")
      shift 2
      ;;
    --only) need_value "$1" $#; only=$2; shift 2 ;;
    --model) need_value "$1" $#; models+=("$2"); pass+=("$1" "$2"); shift 2 ;;
    --build-dir) need_value "$1" $#; build=$2; shift 2 ;;
    --no-peers) peers=; shift ;;
    --help | -h) print_head_comment; exit 0 ;;
    *) usage_error "unknown argument: $1" ;;
  esac
done
[ ${#models[@]} -gt 0 ] || models=(smollm2 gemma3)

"$root/deploy/local/packages.sh" --bench >&2
for model in "${models[@]}"; do model_file=$("$root/deploy/local/model.sh" "$model"); done

mkdir -p "$build"
run_logged "$build/bench-configure.log" cmake -S "$root" -B "$build" -G Ninja \
  -DCMAKE_BUILD_TYPE=Release -DKVIST_BUILD_SERVICES=ON -DKVIST_BUILD_TESTS=OFF \
  -DKVIST_BUILD_BENCHMARKS=ON
run_logged "$build/bench-build.log" ninja -C "$build" -j "$(build_jobs)" kvist chat_load

# wants ID...: whether one of these is to be measured.
wants() {
  local id
  for id in "$@"; do case ,$only, in *,"$id",*) return 0 ;; esac; done
  return 1
}
if [ -n "$peers" ]; then
  if wants K2 K3 K4 K5 K6 K7 K8; then
    llama=$("$here/peers/llama_cpp.sh" --jobs "$(build_jobs)")
    pass+=(--llama "$llama")
  fi
  if wants K1; then
    transformers=$("$here/peers/transformers.sh")
    pass+=(--transformers "$transformers")
  fi
fi
charts=$("$here/peers/charts.sh")

exec python3 -B "$here/report.py" --kvist "$build/kvist" \
  --chat-load "$build/tests/bench/chat_load" --charts "$charts" \
  --models "$(dirname "$model_file")" --only "$only" "${pass[@]}"
