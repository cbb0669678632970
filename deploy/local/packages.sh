#!/usr/bin/env bash
# Installs the Debian packages that Kvist is built from: lists those that are missing, asks unless
# run by root or with --yes, and does nothing where all are there.
#   packages.sh [--yes] [--tests] [--bench] [--clang]
#     --yes     do not ask
#     --tests   also what the tests need
#     --bench   also what the benchmarks of tests/bench need
#     --clang   also clang 14 with its sanitizers and libFuzzer
#     --list    only print the names, one per line
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

packages=(
  g++ cmake ninja-build ccache pkg-config      # compiler and build
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev
  prometheus-cpp-dev libspdlog-dev libcli11-dev nlohmann-json3-dev
  libutf8proc-dev libssl-dev libsqlite3-dev libedit-dev
  libboost-dev                                 # Beast and Asio, headers only
  python3 python3-pip ca-certificates          # model download
)
assume_yes=
list=
while [ $# -gt 0 ]; do
  case $1 in
    --yes) assume_yes=1 ;;
    # SIMD Everywhere emulates AVX-512, so that its kernels are compared on every CPU.
    --tests) packages+=(libgtest-dev libgmock-dev libsimde-dev) ;;
    --bench) packages+=(libbenchmark-dev python3-venv) ;;
    --clang) packages+=(clang-14 libclang-rt-14-dev) ;;
    --list) list=1 ;;
    --help | -h) print_head_comment; exit 0 ;;
    *) usage_error "unknown argument: $1" ;;
  esac
  shift
done
if [ -n "$list" ]; then
  printf '%s\n' "${packages[@]}"
  exit 0
fi

# Those of the arguments that are not installed, one per line.
missing_packages() {
  local name
  for name in "$@"; do
    case $(dpkg-query -W -f '${Status}' "$name" 2>/dev/null) in
      "install ok installed") ;;
      *) printf '%s\n' "$name" ;;
    esac
  done
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  warn "this is no Debian: install what matches these packages by hand: ${packages[*]}"
  exit 0
fi
mapfile -t missing < <(missing_packages "${packages[@]}")
if [ ${#missing[@]} -eq 0 ]; then
  say "All ${#packages[@]} Debian packages are installed."
  exit 0
fi

say "These ${#missing[@]} Debian packages are missing and will be installed:"
printf '%s\n' "${missing[@]}" | paste -sd ' ' | fold -s -w 96 | sed 's/^/  /'
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null ||
    die "not root and no sudo; as root run: apt-get install --no-install-recommends ${missing[*]}"
  as_root=(sudo)
  [ -n "$assume_yes" ] || ask "Install them with sudo?" || die "nothing was installed"
  sudo -v
fi
log=$(kvist_cache)/logs/packages.log
mkdir -p "$(dirname "$log")"
apt() {
  # Locks of another package run are waited for rather than failed on.
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"
}
install_missing() {
  apt update
  apt install -y --no-install-recommends "${missing[@]}"
}
run_logged "$log" install_missing ||
  die "the packages could not be installed; is the network reachable?"
mapfile -t missing < <(missing_packages "${missing[@]}")
[ ${#missing[@]} -eq 0 ] || die "still missing after the installation: ${missing[*]} (log: $log)"
say "Installed; log in $log"
