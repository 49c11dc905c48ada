// Y = X W' for several tokens, with the time that it takes to prepare X: every thread prepares some of the
// tokens, and then multiplies all of them by its rows.
//
//   bench_gemm --benchmark_filter=gemm/fixed_zero/4/128/int8/.*/hot/out:4096/in:4096/tokens:128
//   bench_gemm --model llama3-8b --benchmark_filter=gemm/fixed_zero/4/128/int8        # shapes.hpp
//
// README.md has the names of benchmarks and counters.
#include "product.hpp"

int main(int argc, char** argv) {
  auto const subjects =
      bench::all_subjects({4, 16, 128, 512}, bench::take_models(argc, argv, bench::usual_shapes));
  for (bench::subject const& s : subjects) {
    bench::add("gemm/" + s.name(), [&s](benchmark::State& state) { bench::time(state, s); });
  }
  return bench::run(argc, argv);
}
