#!/usr/bin/env bash
# A few tests of kernels, quantizer and files with every compiler that is there:
#   tests/compilers.sh                        g++ 12 and newer; clang 14 and newer, with libc++ where it has one; MinGW-w64, under wine
#   tests/compilers.sh --install              the same, after installing what Debian has of these
#   tests/compilers.sh g++-13 clang++-19      these
#   tests/compilers.sh clang++-19:libc++      and with libc++
# A compiler for a big-endian machine, if there is one, has to be refused.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

targets=(isa_test packed_file_test safetensors_test example_01_quantize_layer example_02_gemv_raw_pointers
  example_04_runtime_dispatch)
tests='^(isa|packed_file|safetensors|example_0[124].*)$'

if [[ ${1-} == --install ]]; then
  shift
  mapfile -t all < <(apt-cache search --names-only '^(g\+\+-1[2-9]|clang-(1[4-9]|2[0-9]))$' | cut -d' ' -f1)
  libcxx=$(apt-cache search --names-only '^libc\+\+-[0-9]*-dev$' | cut -d' ' -f1 | sort -V | tail -n 1)  # one at a time can be there
  .ci/install cmake ninja-build ccache libeigen3-dev nlohmann-json3-dev libxsimd-dev catch2 pkg-config g++-mingw-w64-x86-64-posix wine64 \
    g++-s390x-linux-gnu "${all[@]}" "$libcxx" "${libcxx/libc++/libc++abi}"
fi
if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=ccache; fi

compilers=("$@")
if ((${#compilers[@]} == 0)); then
  for n in {12..29}; do
    if command -v "g++-$n" >/dev/null; then compilers+=("g++-$n"); fi
  done
  for n in {14..29}; do
    command -v "clang++-$n" >/dev/null || continue
    compilers+=("clang++-$n")
    if [[ -d /usr/lib/llvm-$n/include/c++ ]]; then compilers+=("clang++-$n:libc++"); fi
  done
  if command -v x86_64-w64-mingw32-g++-posix >/dev/null && [[ -x /usr/lib/wine/wine64 ]]; then compilers+=(windows); fi
fi

failed=()
try() {  # try <compiler> <build folder> <option of cmake>...
  local started=$SECONDS log=build/compilers/${1/:/-}.log
  if { cmake "${@:3}" && cmake --build "$2" --target "${targets[@]}" &&
       ctest --test-dir "$2" -R "$tests" --output-on-failure --no-tests=error; } >"$log" 2>&1; then
    printf 'ok %6d s  %s\n' $((SECONDS - started)) "$1"
  else
    printf 'FAILED %2d s  %s: %s\n' $((SECONDS - started)) "$1" "$log"
    tail -n 40 "$log"
    failed+=("$1")
  fi
}
mkdir -p build/compilers
for compiler in "${compilers[@]}"; do
  if [[ $compiler == windows ]]; then
    # safetensors_test compares messages, which have a system's own words and its way to write paths: built, not run.
    tests='^(isa|packed_file|example_0[124].*)$' WINEPREFIX=$PWD/build/compilers/wine WINEDEBUG=-all \
      try windows build/windows --preset windows
    continue
  fi
  name=${compiler%%:*} flags=""
  if [[ $compiler == *:libc++ ]]; then flags+=" -stdlib=libc++"; fi
  # Newer clangs report what libstdc++ 12 does inside of its own headers.
  if [[ $name == clang* ]]; then flags+=" -Wno-deprecated-declarations"; fi
  build=build/compilers/${compiler/:/-}
  try "$compiler" "$build" --preset dev -B "$build" -D CMAKE_CXX_COMPILER="$name" -D CMAKE_CXX_FLAGS="$flags" \
    -D GPTQ_COMPONENTS="gptq;checkpoint" -D GPTQ_BUILD_BENCHMARKS=OFF
done

if command -v s390x-linux-gnu-g++ >/dev/null; then
  said=$(echo '#include <gptq/gemm.hpp>' | s390x-linux-gnu-g++ -std=c++20 -Iinclude -fsyntax-only -x c++ - 2>&1 || true)
  if [[ $said == *"gptq is for little-endian machines"* ]]; then
    echo "ok           s390x-linux-gnu-g++: refused"
  else
    failed+=(s390x-linux-gnu-g++)
  fi
fi
((${#failed[@]} == 0)) || { echo "FAILED: ${failed[*]}"; exit 1; }
