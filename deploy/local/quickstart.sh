#!/usr/bin/env bash
# From a fresh Debian machine to a language model that answers, in one command: packages, model,
# build, server, a story, what the KV cache is worth, and what it holds.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END'
quickstart.sh: sets up Kvist, starts it on loopback, and shows it at work

  --model MODEL     smollm2 (default, 98 MB download), gemma3 (253 MB), or the path of a GGUF file
  --build-dir DIR   where to build (default: build/release in the project)
  --keep            leave the server running at the end, and say how to go on
  --yes             install missing Debian packages without asking
  --help            this text

Examples:
  ./deploy/local/quickstart.sh
  ./deploy/local/quickstart.sh --yes --keep
  ./deploy/local/quickstart.sh --model gemma3
  ./deploy/local/quickstart.sh --model "$HOME/models/some-model.gguf" --build-dir /tmp/kvist

Exit status: 0 when all went well, 1 when a step failed (it says which and what to do), 2 for
wrong flags.
END
}

root=$(kvist_root)
model=smollm2
build=$root/build/release
keep=
yes=()
while [ $# -gt 0 ]; do
  case $1 in
    --model) need_value "$1" $#; model=$2; shift 2 ;;
    --build-dir) need_value "$1" $#; build=$2; shift 2 ;;
    --keep) keep=1; shift ;;
    --yes) yes=(--yes); shift ;;
    --help | -h) usage; exit 0 ;;
    *) usage_error "unknown argument: $1" ;;
  esac
done

server_pid=
run_dir=
finish() {
  [ -z "$server_pid" ] || stop_processes "$server_pid"
  [ -z "$run_dir" ] || rm -rf "$run_dir"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

heading "1. Debian packages"
"$root/deploy/local/packages.sh" "${yes[@]}"

heading "2. Model"
model_file=$("$root/deploy/local/model.sh" "$model")
say "The model is $model_file"

heading "3. Build"
build_log=$build/quickstart-build.log
say "Building in $build (the first time takes some minutes; log in $build_log)."
build_kvist "$build" "$build_log" || die "the build failed; the log is $build_log"
kvist=$build/kvist
[ -x "$kvist" ] || die "the build made no $kvist"
say "Built $kvist"

heading "4. Server"
if [ -n "$keep" ]; then
  # A folder of its own: the server of an earlier --keep may be running on its.
  run_dir=
  mkdir -p "$(kvist_cache)/quickstart"
  state_dir=$(mktemp -d "$(kvist_cache)/quickstart/XXXXXX")
else
  run_dir=$(mktemp -d)
  state_dir=$run_dir
fi
server_log=$state_dir/server.log
# Port 0: the system picks free ports, the server says which. A session of its own under --keep, so
# that closing the terminal does not end it.
server=("$kvist" serve --model "$model_file" --data-dir "$state_dir/data"
  --grpc 127.0.0.1:0 --metrics 127.0.0.1:0)
if [ -n "$keep" ]; then
  setsid "${server[@]}" >"$server_log" 2>&1 </dev/null &
else
  "${server[@]}" >"$server_log" 2>&1 </dev/null &
fi
server_pid=$!
ready=$(wait_ready "$server_pid" "$server_log" 180) || die "the server did not start"
grpc=$(ready_address grpc "$ready")
metrics=$(ready_address metrics "$ready" || say "no address")
say "Ready. gRPC on $grpc, metrics on $metrics."

# field NAME...: the member NAME (or NAME.NAME) of the JSON object on stdin; numbers with two
# decimals.
field() {
  python3 -c '
import json, sys
value = json.load(sys.stdin)
for name in sys.argv[1].split("."):
    value = value[name]
print(f"{value:.2f}" if isinstance(value, float) else value)' "$1"
}

# The text streams to stderr as it comes, the result is one object on stdout.
generate() { "$kvist" generate "$@" --endpoint "$grpc" --output json; }

heading "5. A story"
if [ "$model" = gemma3 ]; then
  opening="Once upon a time there was a red cat"
  say "This model was not trained to chat, so it continues a text: $opening"
  say ""
  story=$(generate "$opening" --temperature 0.7 --seed 1 --max-new-tokens 200)
else
  say "Question: Write a short story about a red cat."
  say ""
  # A small model repeats itself without a penalty.
  story=$(generate "Write a short story about a red cat." --chat --seed 1 --max-new-tokens 400 \
    --temperature 0.2 --repetition-penalty 1.1)
fi
say ""

heading "6. What the KV cache is worth"
say "The completion of \"The red cat was\" by 100 tokens, with the cache and without it"
say "(every step then computes the whole text again)."

# timed_completion CACHE_KIND: leaves the answer in `completion` and the seconds that it took in
# `seconds`.
timed_completion() {
  local start
  start=$(date +%s.%N)
  completion=$(generate "The red cat was" --max-new-tokens 100 --ignore-eos --cache "$1" \
    2>/dev/null) ||
    die "the completion failed; the server's log: $(tail -n 5 "$server_log")"
  seconds=$(awk -v start="$start" -v end="$(date +%s.%N)" 'BEGIN {printf "%.2f", end - start}')
}
timed_completion paged
with_cache=$seconds
ids_with_cache=$(field token_ids <<<"$completion")
timed_completion none
without_cache=$seconds
[ "$(field token_ids <<<"$completion")" = "$ids_with_cache" ] ||
  die "the outputs with and without the cache differ, which must never be: please report it"
say "With the cache:     $with_cache seconds"
say "Without the cache:  $without_cache seconds"
ratio=$(awk -v a="$without_cache" -v b="$with_cache" 'BEGIN {printf "%.1f", a / b}')
say "Ratio:              $ratio"
say "Both gave the same $(grep -o ',' <<<"$ids_with_cache," | wc -l) tokens."

heading "7. What was measured for the story"
say "Prompt tokens:        $(field prompt_tokens <<<"$story")"
say "Of these cached:      $(field cached_tokens <<<"$story")"
say "Time to first token:  $(field timings.time_to_first_token_ms <<<"$story") ms"
say "Prompt:               $(field timings.prefill_tokens_per_second <<<"$story") tokens per second"
say "Answer:               $(field timings.decode_tokens_per_second <<<"$story") tokens per second"

heading "8. What the cache manager says that the story's session holds"
"$kvist" sessions "$(field session <<<"$story")" --endpoint "$grpc"

if [ -n "$keep" ]; then
  heading "The server goes on (process $server_pid, log $server_log). To go on:"
  say "  $kvist chat --endpoint $grpc"
  say "  $kvist sessions --endpoint $grpc"
  say "  kill $server_pid      ends it; its sessions stay in $state_dir"
  server_pid=
else
  heading "Done. The server is stopped; --keep would leave it running."
fi
