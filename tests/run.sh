#!/usr/bin/env bash
# Everything a change has to survive, from a fresh Debian 12 on:
#   tests/run.sh            all of it
#   tests/run.sh --quick    g++ only: no clang, no sanitizers, no linters, no AArch64
#   tests/run.sh --cuda     what needs a GPU, and nothing else: tests, compute-sanitizer, measurements
# Installs what is missing with apt; builds under build/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(g++ cmake ninja-build ccache libeigen3-dev libopenblas-dev nlohmann-json3-dev catch2 libbenchmark-dev
  libxsimd-dev libcli11-dev libfmt-dev libtomlplusplus-dev libsentencepiece-dev libpcre2-dev libutf8proc-dev pkg-config gnuplot-nox
  libopenmpi-dev openmpi-bin iproute2)
quick=false cuda=false
case "${1-}" in
  --quick) quick=true ;;
  --cuda) cuda=true ;;
  "") packages+=(clang libclang-rt-dev clang-format clang-tidy g++-aarch64-linux-gnu qemu-user) ;;
  *) sed -n '2,6s/^# \{0,1\}//p' tests/run.sh; exit 2 ;;
esac

# ---- reporting: a line for each phase, a summary however it ends ----
passed=()
current="" started=0
phase() {  # phase <name>: the one before it has passed
  [[ -z $current ]] || passed+=("$(printf 'ok %6d s  %s' $((SECONDS - started)) "$current")")
  current=$1 started=$SECONDS
  [[ -z $current ]] || printf '\n==> %s\n' "$current"
}
summary() {
  local status=$?
  printf '\n---- tests/run.sh ----\n'
  ((${#passed[@]} == 0)) || printf '%s\n' "${passed[@]}"
  if ((status == 0)); then
    printf 'All passed, in %d s.\n' "$SECONDS"
  else
    printf 'FAILED %2d s  %s\nStopped there; the reason is above.\n' $((SECONDS - started)) "$current"
  fi
}
trap summary EXIT

build_and_test() {  # build_and_test <preset>
  cmake --preset "$1"
  cmake --build --preset "$1"
  ctest --preset "$1" -j "$(nproc)"
}

# ---- phases ----
phase "install what is missing"
.ci/install "${packages[@]}"
if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache
  export CCACHE_SLOPPINESS=pch_defines,time_macros  # or it leaves precompiled headers, and all that use them, alone
fi

if $cuda; then
  phase "nvcc: build with warnings as errors"
  PATH=$PATH:/usr/local/cuda/bin
  nvidia-smi -L
  cmake --preset cuda -DCMAKE_CUDA_FLAGS=-Xptxas=-v
  report=build/cuda/compiler.txt
  cmake --build --preset cuda --target cuda_tests bench_cuda_products bench_cuda_quantize >$report 2>&1 ||
    { grep -v 'ptxas info' $report; exit 1; }
  # What the compiler says of registers and spills of what it has just compiled.
  awk -F"'" '/Compiling entry function/ { kernel = $2; ++kernels }
       /Potential Performance Loss/ { print; ++slow }
       /bytes spill/ && !/ 0 bytes spill stores/ { print kernel "\n" $0; ++spill }
       match($0, /Used [0-9]+/) { used = substr($0, RSTART + 5, RLENGTH - 5) + 0; if (used > most) most = used }
       END { printf "%d kernels, at most %d registers; %d spill, %d are slowed down\n", kernels, most, spill, slow }' \
    $report | c++filt | sed 's/>(gptq::.*/>/'
  cmake --build --preset cuda --target cuda_racechecks >build/cuda/racechecks.txt 2>&1 ||
    { grep -v 'ptxas info' build/cuda/racechecks.txt; exit 1; }

  phase "test on the GPU"
  ctest --preset cuda
  for tool in memcheck racecheck initcheck; do
    phase "compute-sanitizer: $tool"
    for test in build/cuda/tests/cuda/cuda_*_test; do
      for_race=${test%_test}_racecheck
      [[ $tool != racecheck || ! -e $for_race ]] || test=$for_race
      compute-sanitizer --tool $tool --error-exitcode 1 "$test" "~[slow]~[refused]"
    done
  done

  phase "measure: build/cuda/*.json"
  for bench in products quantize; do
    build/cuda/bench/bench_cuda_$bench --json build/cuda/$bench.json
  done
  phase ""
  exit
fi

phase "g++: build with warnings as errors, test"
build_and_test dev

phase "every header by itself"
cmake --build --preset dev --target all_verify_interface_header_sets

if ! $quick; then
  phase "clang-format"
  find include src tests bench examples -regex '.*\.\(hpp\|cpp\|cuh\|cu\|h\|c\)' -print0 |
    xargs -0 clang-format --dry-run -Werror

  phase "clang++: build the kernels with warnings as errors, test"
  build_and_test clang

  phase "clang-tidy"
  # These include every public header, and use it as its example does.
  printf 'build/dev/tests/house/examples_%s.cpp\n' kernels quantizer checkpoint |
    xargs -P "$(nproc)" -n 1 clang-tidy --quiet -p build/dev

  phase "clang++, address and undefined-behaviour sanitizers: build with warnings as errors, test"
  build_and_test sanitize

  phase "AArch64 under qemu: build the kernels, test"
  build_and_test aarch64
fi
phase ""
