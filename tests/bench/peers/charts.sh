#!/usr/bin/env bash
# Installs matplotlib, by which plot.py draws, in a cache folder outside the tree and prints that
# environment's Python. A second call only prints it.
#   charts.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../../../deploy/local/common.sh
. "$here/../../../deploy/local/common.sh"
# shellcheck source=venv.sh
. "$here/venv.sh"

case ${1:-} in
  "") ;;
  --help | -h) print_head_comment; exit 0 ;;
  *) usage_error "unknown argument: $1" ;;
esac
make_venv charts matplotlib==3.11.2
