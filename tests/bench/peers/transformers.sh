#!/usr/bin/env bash
# Installs the peer transformers, with PyTorch and its reader of GGUF files, in a cache folder
# outside the tree and prints that environment's Python. A second call only prints it. PyPI's
# PyTorch brings CUDA's libraries along, which nothing here uses: some 8 GB in all.
#   transformers.sh
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
make_venv transformers torch==2.15.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
