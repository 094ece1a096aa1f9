#!/usr/bin/env bash
# The kernel tests on a build with the address and undefined-behaviour sanitizers (gcc or clang), on every instruction-set path.
#
#   tests/kernels/sanitize.sh [folder for the build, kept; default build/sanitize] [more arguments for pytest]
#
# Any finding aborts the process that has it. Leaks are not looked for: Python keeps much until its end.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$PWD/.venv/bin/python
build=${1:-build/sanitize}
shift || true
mkdir -p "$build"
build=$(cd "$build" && pwd)
"$python" -m cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DETUDE_SANITIZE=ON \
  -DPython_EXECUTABLE="$python" -Dnanobind_DIR="$("$python" -m nanobind --cmake_dir)" >"$build/configure.log" ||
  { cat "$build/configure.log"; exit 1; }
"$python" -m cmake --build "$build"

export NATIVE_MODULE=$(ls "$build"/_native*.so)
export PYTEST_ADDOPTS="-p tests.kernels.other_build -p no:cacheprovider"
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=0
compiler=$(grep -m1 '^CMAKE_CXX_COMPILER:' "$build/CMakeCache.txt" | cut -d= -f2)
# Python itself is not built with the sanitizer, so the sanitizer must be there before it.
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so) $("$compiler" -print-file-name=libstdc++.so.6)"
exec "$python" -m pytest -q -x --capture=no tests/kernels "$@"  # the process that has a finding ends at once
