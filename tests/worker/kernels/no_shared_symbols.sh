#!/usr/bin/env bash
# no_shared_symbols.sh OBJECT TABLE: fails if an object file compiled for a wide instruction set
# holds weak symbols (inline functions whose copy the linker could keep for everybody) or code that
# runs before main, or does not hold the table.
set -euo pipefail

symbols=$(nm "$1")
if grep -E ' [WwVvu] ' <<<"$symbols"; then
  echo "weak symbols in $1" >&2
  exit 1
fi
if grep -E '_GLOBAL__sub_I|ios_base' <<<"$symbols"; then
  echo "static initialisation in $1" >&2
  exit 1
fi
grep -q "$2" <<<"$symbols"
