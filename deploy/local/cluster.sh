#!/usr/bin/env bash
# A Kvist cluster of processes on this machine: one cache manager, N workers, one frontend, all on
# loopback.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END'
cluster.sh [start]  starts one cache manager, N workers and one frontend as processes on loopback;
                    Ctrl-C stops them all
cluster.sh stop     stops a cluster that was started elsewhere with the same --dir

  --workers N       how many workers (default 2, at most 64)
  --model MODEL     smollm2 (default), gemma3, or the path of a GGUF file
  --dir DIR         logs, state and process ids (default: "cluster" in Kvist's cache folder)
  --base-port P     ports from P on, two per process (default: free ports that the system picks)
  --build-dir DIR   where kvist is built, or will be (default: build/release in the project)
  --help            this text

Examples:
  ./deploy/local/cluster.sh --workers 3
  ./deploy/local/cluster.sh --model gemma3 --base-port 7000 --dir /tmp/cluster
  ./deploy/local/cluster.sh stop

DIR holds, for each process NAME, NAME.log and NAME.command: a process that was killed is started
again on its old ports by `bash DIR/NAME.command`.

Exit status: 0 when stopped by Ctrl-C or stop, 1 when something could not start, 2 for wrong flags.
END
}

root=$(kvist_root)
action=start
workers=2
model=smollm2
dir=$(kvist_cache)/cluster
base_port=0
build=$root/build/release
while [ $# -gt 0 ]; do
  case $1 in
    start | stop) action=$1; shift ;;
    --workers) need_value "$1" $#; workers=$2; shift 2 ;;
    --model) need_value "$1" $#; model=$2; shift 2 ;;
    --dir) need_value "$1" $#; dir=$2; shift 2 ;;
    --base-port) need_value "$1" $#; base_port=$2; shift 2 ;;
    --build-dir) need_value "$1" $#; build=$2; shift 2 ;;
    --help | -h) usage; exit 0 ;;
    *) usage_error "unknown argument: $1" ;;
  esac
done
if ! [[ $workers =~ ^[0-9]{1,2}$ ]] || ((10#$workers < 1 || 10#$workers > 64)); then
  usage_error "--workers must be 1 to 64, not $workers"
fi
# Two ports for each of the N + 2 processes.
if ! [[ $base_port =~ ^[0-9]{1,5}$ ]] || ((10#$base_port + 2 * (10#$workers + 2) > 65536)); then
  usage_error "--base-port must be a port with room for two per process above it, not $base_port"
fi

# The process of cluster.sh that runs in DIR, if any.
owner() {
  local pid
  pid=$(cat "$dir/owner" 2>/dev/null) || return 1
  grep -qz 'cluster\.sh' "/proc/$pid/cmdline" 2>/dev/null || return 1
  printf '%s\n' "$pid"
}

# Ends processes of DIR that outlived their cluster.sh, or were started again by hand.
stop_leftovers() {
  local file pid
  for file in "$dir"/*.pid; do
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    # The number may belong to another program by now.
    if tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q '/kvist .*--metrics'; then
      stop_processes "$pid"
    fi
    rm -f "$file"
  done
}

if [ "$action" = stop ]; then
  if pid=$(owner); then
    kill -TERM "$pid"
    while is_alive "$pid"; do sleep 0.1; done
    say "The cluster in $dir is stopped."
  else
    say "No cluster runs in $dir."
  fi
  stop_leftovers
  exit 0
fi

if pid=$(owner); then
  die "a cluster already runs in $dir (process $pid); stop it or choose another --dir"
fi
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
model_file=$("$root/deploy/local/model.sh" "$model")
if [ ! -x "$build/kvist" ]; then
  say "Building kvist in $build"
  build_kvist "$build" "$dir/build.log" ||
    die "the build failed; deploy/local/packages.sh installs what it needs"
fi
build=$(cd "$build" && pwd)

trap stop_leftovers EXIT
trap 'exit 0' INT TERM
rm -f "$dir"/*.pid
printf '%s\n' $$ >"$dir/owner"

next_port=$base_port
# The next address to listen on, in `address`.
next_address() {
  address=127.0.0.1:$next_port
  [ "$next_port" -eq 0 ] || next_port=$((next_port + 1))
}

# start NAME ROLE [FLAG...]: starts a process in the background.
start() {
  local name=$1 role=$2 grpc metrics
  shift 2
  next_address; grpc=$address
  next_address; metrics=$address
  rm -f "$dir/$name.log"
  # In a session of its own: a Ctrl-C at the terminal reaches cluster.sh alone, which stops all in
  # order.
  setsid "$build/kvist" "$role" --grpc "$grpc" --metrics "$metrics" "$@" \
    >"$dir/$name.log" 2>&1 </dev/null &
  printf '%s\n' $! >"$dir/$name.pid"
  disown  # how it ends is told below, and not by bash
}

# await NAME ROLE [FLAG...]: waits until the process is ready, leaves its address in `grpc`, and
# writes the command that starts it again.
await() {
  local name=$1 role=$2 ready metrics tries=300
  shift 2
  ready=$(wait_ready "$(cat "$dir/$name.pid")" "$dir/$name.log" 180) || die "$name did not start"
  grpc=$(ready_address grpc "$ready") || die "$name names no gRPC address"
  metrics=$(ready_address metrics "$ready") || die "$name names no metrics address"
  until http_ok "http://$metrics/readyz"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || die "$name is not ready (http://$metrics/readyz); its log: $dir/$name.log"
    sleep 0.1
  done
  {
    printf 'echo $$ >%q\n' "$dir/$name.pid"
    printf 'exec'
    printf ' %q' "$build/kvist" "$role" --grpc "$grpc" --metrics "$metrics" "$@"
    printf ' >>%q 2>&1\n' "$dir/$name.log"
  } >"$dir/$name.command"
  printf '  %-14s gRPC %-22s metrics http://%s/metrics\n' "$name" "$grpc" "$metrics"
}

say "Starting one cache manager, $workers workers and one frontend; logs in $dir"
manager_flags=(--data-dir "$dir/data")
start cache-manager cache-manager "${manager_flags[@]}"
await cache-manager cache-manager "${manager_flags[@]}"
manager=$grpc

# All workers load the model at once.
worker_flags=(--model "$model_file" --cache-manager "$manager")
for ((i = 1; i <= workers; i++)); do start "worker-$i" worker "${worker_flags[@]}"; done
for ((i = 1; i <= workers; i++)); do await "worker-$i" worker "${worker_flags[@]}"; done

start frontend frontend --cache-manager "$manager"
await frontend frontend --cache-manager "$manager"

say "Ready. To talk to it: $build/kvist chat --endpoint $grpc"
say "Ctrl-C stops all of it, and so does: $0 stop --dir $dir"

# A process that dies is named, and the rest goes on: that is what a cluster is for. Only wait takes
# time here: bash may lose a Ctrl-C that meets another command.
declare -A reported
while true; do
  for file in "$dir"/*.pid; do
    name=${file##*/}
    name=${name%.pid}
    # The file is empty for a moment while a process is started again.
    if ! read -r pid <"$file" || is_alive "$pid"; then
      continue
    fi
    [ "${reported[$name]:-}" = "$pid" ] ||
      warn "$name (process $pid) ended; to start it again: bash $dir/$name.command"
    reported[$name]=$pid
  done
  sleep 1 &
  wait $! || true
done
