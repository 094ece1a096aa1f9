#!/usr/bin/env bash
# Builds tests/kernels/portable_check.cpp and all native code but the bindings, with the portable path alone, by every compiler that
# is here, and runs it; the aarch64 build runs under qemu. Debian: apt-get install g++-aarch64-linux-gnu qemu-user clang
#
#   tests/kernels/cross_aarch64.sh            fails if the cross compiler or qemu is missing
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
sources=(tests/kernels/portable_check.cpp $(ls etude/kernels/*.cpp | grep -v bindings))
flags=(-std=c++17 -O2 -ffp-contract=off -fno-math-errno -Wall -Wextra -Wno-unused-function -DETUDE_ISA=portable -pthread)

check() {  # name, how to run, compiler and more flags ...
  local name=$1 run=$2
  shift 2
  echo "== $name: $("$1" --version | head -1)"
  "$@" "${flags[@]}" "${sources[@]}" -o "$out/$name"
  $run "$out/$name"
}

for compiler in g++ clang++; do
  if command -v "$compiler" >/dev/null; then check "$compiler" "" "$compiler"; else echo "== $compiler is not here: NOT TESTED"; fi
done
check aarch64 qemu-aarch64 aarch64-linux-gnu-g++ -static
