#!/usr/bin/env bash
# What is too long for every change, and runs every night, each on a machine of its own:
#   tests/nightly.sh faults           a run of the quantizer stopped at every call on a file, and by 200 kills
#   tests/nightly.sh threads          tests with threads under the thread sanitizer
#   tests/nightly.sh products [SEC]   products of random shapes against the reference, for an hour
#   tests/nightly.sh fuzz READER [RUNS]  50 million damaged inputs for one of tests/fuzz
#   tests/nightly.sh mutants [SEED]   planted bugs, and which of them no test sees (tests/mutate)
# Installs what is missing with apt; builds under build/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(g++ cmake ninja-build ccache python3 libeigen3-dev libopenblas-dev nlohmann-json3-dev catch2 libxsimd-dev
  libcli11-dev libfmt-dev libtomlplusplus-dev libsentencepiece-dev libpcre2-dev libutf8proc-dev pkg-config)
components="gptq;checkpoint"
install() { .ci/install "${packages[@]}" "$@"; }

case "${1-}" in
  faults)
    install
    cmake --preset dev -DGPTQ_COMPONENTS="$components" -DGPTQ_BUILD_BENCHMARKS=OFF
    cmake --build --preset dev --target quantize_model gptq_faults
    python3 tests/faults/resume.py --build build/dev --calls 0 --kills 200
    ;;
  threads)
    install clang libclang-rt-dev
    cmake --workflow --preset tsan
    ;;
  products)
    install clang
    seconds=${2-3600}
    cmake --preset dev -DGPTQ_COMPONENTS="$components" -DGPTQ_BUILD_BENCHMARKS=OFF
    isas=()
    for isa in generic avx2 avxvnni avx512bw avx512vnni amx_int8; do
      isas+=("kernels_${isa}_test")
    done
    cmake --build --preset dev --target epilogue_test "${isas[@]}"
    export GPTQ_TEST_SECONDS=$((seconds / (${#isas[@]} + 1))) GPTQ_TEST_SEED=$((10#$(date +%j) * 100000000 % 4000000000 + 1))
    for program in epilogue_test "${isas[@]}"; do
      "build/dev/tests/$program" "[random]" || (($? == 77))  # a CPU without it
    done
    ;;
  fuzz)
    install clang libclang-rt-dev
    reader=$2 runs=${3-50000000}
    cmake -S . -B build/fuzz -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=Release -DGPTQ_COMPONENTS=checkpoint \
      -DGPTQ_BUILD_FUZZERS=ON -DGPTQ_BUILD_TESTS=OFF -DGPTQ_BUILD_BENCHMARKS=OFF -DGPTQ_BUILD_EXAMPLES=OFF
    cmake --build build/fuzz --target "fuzz_$reader"
    options=(-max_len=2200 -malloc_limit_mb=16)
    [[ $reader != gguf && $reader != safetensors ]] || options=(-max_len=1024 -malloc_limit_mb=16)
    [[ $reader != tokenizer ]] || options=(-max_len=2048 -malloc_limit_mb=64)
    [[ ! -e tests/fuzz/$reader.dict ]] || options+=("-dict=tests/fuzz/$reader.dict")
    mkdir -p "build/fuzz/corpus/$reader"
    # Ends after five hours, however many that makes: what the last line says.
    ASAN_OPTIONS=malloc_context_size=0:quarantine_size_mb=1 "build/fuzz/tests/fuzz/fuzz_$reader" "${options[@]}" -entropic=0 \
      -runs="$runs" -max_total_time=18000 -print_final_stats=1 -artifact_prefix="build/fuzz/finding-$reader-" \
      "build/fuzz/corpus/$reader" "tests/fuzz/$reader"
    ;;
  mutants)
    install
    mkdir -p build/mutate
    python3 tests/mutate/mutate.py draw --seed "${2-$(date +%G%V)}" --list build/mutate/mutants.json
    python3 tests/mutate/mutate.py run --list build/mutate/mutants.json --work build/mutate
    python3 tests/mutate/mutate.py report build/mutate/results.json --survivors
    ;;
  *)
    sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//'
    exit 2
    ;;
esac
