#!/usr/bin/env bash
# From a fresh Debian 12 or 13 or Ubuntu 24.04 to a quantized LLaMA: installs what is missing, builds, and quantizes the
# small model in examples/data to 2 bits: by rounding, by GPTQ, and by GPTQ with zero points. No network is needed for it.
#   examples/quickstart.sh --model DIR_OR_GGUF [--text FILE]   a model of yours instead, to 4 bits, with FILE as calibration
set -euo pipefail
given_model="" text=""
while (($# > 0)); do
  case "$1" in
    --model) given_model=$(realpath -- "${2:?--model needs a directory or GGUF file}") && shift 2 ;;
    --text) text=$(realpath -- "${2:?--text needs a file}") && shift 2 ;;
    *) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=build/quickstart
model=examples/data/kjv-bytes

step() { printf '\n==> %s\n' "$1"; }

step "Install what is missing"
.ci/install g++ cmake ninja-build pkg-config libeigen3-dev libopenblas-dev nlohmann-json3-dev libcli11-dev \
  libfmt-dev libtomlplusplus-dev libsentencepiece-dev libpcre2-dev libutf8proc-dev

step "Build quantize_model in $build"
mkdir -p build
flags=-march=native
# g++ 12 warns about its own AVX-512 headers; the large products are OpenBLAS's, which uses AVX-512 anyway.
[[ $(uname -m) != x86_64 ]] || flags+=" -mno-avx512f"
cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS="$flags" \
  -DCMAKE_CXX_FLAGS_RELEASE="-O2 -DNDEBUG" -DGPTQ_MODELS_FEW_FORMATS=ON -DGPTQ_COMPONENTS="gptq;checkpoint" \
  -DGPTQ_BUILD_TESTS=OFF -DGPTQ_BUILD_BENCHMARKS=OFF \
  >$build.log 2>&1 || { cat $build.log; exit 1; }
cmake --build $build --target quantize_model ${given_model:+generate}
program=$build/examples/models/quantize_model

if [[ -n $given_model ]]; then
  step "Quantize $given_model to 4 bits, groups of 32"
  rm -rf $build/packed
  "$program" "$given_model" --calibration "${text:-$model/calibration.txt}" --evaluation "${text:-$model/evaluation.txt}" \
    --window 512 --samples 32 --eval-windows 4 --scheme fixed_zero --bits 4 --group-size 32 --output $build/packed
  step "Generate with it, through the packed kernels"
  $build/examples/models/generate $build/packed "In the beginning" --tokens 40
  printf '\nMore text, or --chat:  %s\n' "$build/examples/models/generate --help"
  exit
fi

# 2 bits show what a method is worth, on 64 of 413 windows of text that the quantizer has not seen.
quantize() {
  "$program" $model --calibration $model/calibration.txt --evaluation $model/evaluation.txt --eval-windows 64 \
    --samples 32 --bits 2 --group-size 32 --true-sequential --generate "And God said" "$@"
}

step "Round to the nearest of four levels"
quantize --rtn --scheme fixed_zero | tee $build/rounded.txt
step "GPTQ on the same levels"
quantize --scheme fixed_zero --no-float-baseline | tee $build/fixed_zero.txt
step "GPTQ with a zero point for every 32 weights"
quantize --scheme asymmetric --no-float-baseline | tee $build/asymmetric.txt

value() { sed -n "s/^$2  *//p" "$build/$1.txt" | sed -n "s/ $3$//p"; }
text() { sed -n "s/^$2  *//p" "$build/$1.txt" | tail -n 1; }
bits() { sed -n "s/^size  *\([0-9.]*\) bits.*/\1/p" "$build/$1.txt"; }
row() { printf '%-34s %6s %11s   %s\n' "$@"; }
step "What came of it"
row "" "bits" "perplexity" "the likeliest text"
row "float32" 32 "$(value rounded perplexity float32)" "$(text rounded float32)"
row "2 bits, rounded" "$(bits rounded)" "$(value rounded perplexity quantized)" "$(text rounded quantized)"
row "2 bits, GPTQ" "$(bits fixed_zero)" "$(value fixed_zero perplexity quantized)" "$(text fixed_zero quantized)"
row "2 bits, GPTQ with zero points" "$(bits asymmetric)" "$(value asymmetric perplexity quantized)" \
  "$(text asymmetric quantized)"
cat <<TEXT

Perplexity is how many bytes the model hesitates between, on average, before it reads the next one of a text that it has
not seen: lower is better. Rounding every weight for itself costs much of what the model knows. GPTQ, in as many bits,
lets the weights that are not yet rounded make up for those that are. Zero points, which take more bits and more work
in kernels, buy a little more. With 4 bits there is hardly a difference to float32 left to see.

Other widths, schemes and models:  $program --help
TEXT
