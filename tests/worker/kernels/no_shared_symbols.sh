#!/bin/sh
# no_shared_symbols.sh OBJECT: fails if the object file, compiled for a wide instruction set, holds weak symbols (inline
# functions whose copy the linker could keep for everybody) or code that runs before main.
set -eu
symbols=$(nm "$1")
if echo "$symbols" | grep -E ' [WwVvu] '; then
  echo "weak symbols in $1" >&2
  exit 1
fi
if echo "$symbols" | grep -E '_GLOBAL__sub_I|ios_base'; then
  echo "static initialisation in $1" >&2
  exit 1
fi
echo "$symbols" | grep -q 'kAvx2Kernels'
