#!/usr/bin/env bash
# From a fresh Debian 12 to a quantized LLaMA: installs what is missing, builds, and quantizes the small model in
# examples/data with a zero point a group (the usual baseline) and without one. Takes no arguments.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=build/quickstart
model=examples/data/kjv-bytes

step() { printf '\n==> %s\n' "$1"; }

step "Install what is missing"
.ci/install g++ cmake ninja-build pkg-config libeigen3-dev libopenblas-dev nlohmann-json3-dev libcli11-dev \
  libfmt-dev libtomlplusplus-dev libsentencepiece-dev

step "Build quantize_model in $build"
mkdir -p build
flags=-march=native
# g++ 12 warns about its own AVX-512 headers; the large products are OpenBLAS's, which uses AVX-512 anyway.
[[ $(uname -m) != x86_64 ]] || flags+=" -mno-avx512f"
cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS="$flags" \
  -DCMAKE_CXX_FLAGS_RELEASE="-O2 -DNDEBUG" -DGPTQ_BUILD_TESTS=OFF -DGPTQ_BUILD_BENCHMARKS=OFF \
  >$build.log 2>&1 || { cat $build.log; exit 1; }
cmake --build $build --target quantize_model
program=$build/examples/models/quantize_model

# The first 64 of 413 evaluation windows are enough to see the difference, and keep this short.
quantize() {
  "$program" $model --calibration $model/calibration.txt --evaluation $model/evaluation.txt --eval-windows 64 \
    --bits 4 --group-size 128 --act-order --true-sequential --generate "And God said" "$@"
}

step "Quantize with a zero point a group (the asymmetric baseline)"
quantize --scheme asymmetric | tee $build/asymmetric.txt
step "Quantize without a zero point (symmetric, -7..7)"
quantize --scheme symmetric --no-float-baseline | tee $build/symmetric.txt

step "Perplexity a byte on 64 windows of held-out text"
value() { sed -n "s/^$2  *//p" "$build/$1.txt" | sed -n "s/ $3$//p"; }
printf '%-26s %s\n' \
  "float32" "$(value asymmetric perplexity float32)" \
  "4 bits, with zero point" "$(value asymmetric perplexity quantized)" \
  "4 bits, without" "$(value symmetric perplexity quantized)"
printf '\nAll of it, with other options:  %s --help\n' "$program"
