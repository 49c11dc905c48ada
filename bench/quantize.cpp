// How fast a layer is quantized, against the machine's own SGEMM rate measured in the same run.
//
//   bench_quantize --benchmark_repetitions=5 --benchmark_report_aggregates_only=true
//
// Counters: gflops by the operations that the mathematics needs (K^3 / 3 + N K^2 for factorization and column
// sweep, T K^2 for a Hessian), sgemm_gflops the best product of the run, of_sgemm their ratio. The time is
// the factorization and the sweep as the layer's report gives them; the measurement of the output error is
// left out.
//
// quality/...: what a quality takes altogether, in CPU time of all threads, so that other programs do not
// count, and as a multiple of what quality reference takes for the same layer in the same run (of_reference).
#include <cmath>
#include <cstdint>
#include <ctime>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <gptq/gptq.hpp>

#include "sgemm.hpp"

namespace {

using q4 = gptq::format<gptq::fixed_zero, 4, 128>;
using q4_32 = gptq::format<gptq::fixed_zero, 4, 32>;
using q4_asymmetric = gptq::format<gptq::asymmetric, 4, 128>;

roofline::sgemm& limit() {
  static roofline::sgemm measured;
  return measured;
}

void report(benchmark::State& state, double operations, double seconds) {
  double const rate = operations * static_cast<double>(state.iterations()) / seconds;
  state.counters["gflops"] = rate * 1e-9;
  state.counters["sgemm_gflops"] = limit().best() * 1e-9;
  state.counters["of_sgemm"] = rate / limit().best();
}

/// Activations with a decaying spectrum, as those of real layers; enough of them for a positive definite
/// Hessian. `which` tells several apart.
gptq::hessian const& hessian_of(gptq::index_t in, int which = 0) {
  static std::map<std::pair<gptq::index_t, int>, gptq::hessian> known;
  auto found = known.find({in, which});
  if (found == known.end()) {
    found = known.emplace(std::pair(in, which), gptq::hessian(in)).first;
    gptq::matrix x = gptq::matrix::Random(in + in / 2, in);
    for (gptq::index_t i = 0; i < in; ++i) x.col(i) *= 1.0F / std::sqrt(1.0F + static_cast<float>(i % 97));
    found->second.add(x);
  }
  return found->second;
}

template <class Format>
void quantize(benchmark::State& state, gptq::quantize_options options) {
  auto const out = static_cast<gptq::index_t>(state.range(0));
  auto const in = static_cast<gptq::index_t>(state.range(1));
  gptq::hessian const& h = hessian_of(in);
  gptq::matrix const weight = gptq::matrix::Random(out, in);
  options.measure_output_error = false;
  double seconds = 0.0;
  double factorization = 0.0;
  limit().measure();
  for (auto _ : state) {
    auto const layer = gptq::quantize<Format>(weight, h, options);
    state.SetIterationTime(layer.report.seconds_factorization + layer.report.seconds_columns);
    seconds += layer.report.seconds_factorization + layer.report.seconds_columns;
    factorization += layer.report.seconds_factorization;
  }
  limit().measure();
  auto const n = static_cast<double>(out);
  auto const k = static_cast<double>(in);
  report(state, k * k * k / 3.0 + n * k * k, seconds);
  state.counters["factorization_share"] = factorization / seconds;
}

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

template <class Format>
void quality_cost(benchmark::State& state, gptq::quantize_options options, bool held_out) {
  static std::map<std::pair<gptq::index_t, gptq::index_t>, double> of_reference;
  auto const out = static_cast<gptq::index_t>(state.range(0));
  auto const in = static_cast<gptq::index_t>(state.range(1));
  gptq::hessian const& h = hessian_of(in);
  gptq::hessian const* const other = held_out ? &hessian_of(in, 1) : nullptr;
  gptq::matrix const weight = gptq::matrix::Random(out, in);
  options.measure_output_error = false;
  double seconds = 0.0;
  for (auto _ : state) {
    double const before = cpu_seconds();
    benchmark::DoNotOptimize(gptq::quantize<Format>(weight, h, options, other).codes.data());
    double const once = cpu_seconds() - before;
    state.SetIterationTime(once);
    seconds += once;
  }
  seconds /= static_cast<double>(state.iterations());
  if (options.quality == gptq::quality::reference) of_reference[{out, in}] = seconds;
  if (auto const its = of_reference.find({out, in}); its != of_reference.end()) {
    state.counters["of_reference"] = seconds / its->second;
  }
}

void hessian(benchmark::State& state) {
  auto const tokens = static_cast<gptq::index_t>(state.range(0));
  auto const in = static_cast<gptq::index_t>(state.range(1));
  gptq::matrix const x = gptq::matrix::Random(tokens, in);
  gptq::hessian h(in);
  double seconds = 0.0;
  limit().measure();
  for (auto _ : state) {
    double const once = roofline::seconds_of([&] { h.add(x); });
    state.SetIterationTime(once);
    seconds += once;
  }
  limit().measure();
  report(state, static_cast<double>(tokens) * static_cast<double>(in) * static_cast<double>(in), seconds);
}

void pack(benchmark::State& state) {
  auto const out = static_cast<gptq::index_t>(state.range(0));
  auto const in = static_cast<gptq::index_t>(state.range(1));
  gptq::matrix const weight = gptq::matrix::Random(out, in);
  auto const layer = gptq::quantize<q4>(weight, hessian_of(in),
                                        {.quality = gptq::quality::plain, .measure_output_error = false});
  double seconds = 0.0;
  for (auto _ : state) {
    seconds += roofline::seconds_of([&] { benchmark::DoNotOptimize(gptq::pack(layer).codes()); });
  }
  state.counters["of_quantizing"] = seconds / static_cast<double>(state.iterations()) /
                                    (layer.report.seconds_factorization + layer.report.seconds_columns);
}

template <class Format>
void add(char const* name, gptq::quantize_options const& options,
         std::vector<std::vector<std::int64_t>> const& shapes) {
  auto* const added =
      benchmark::RegisterBenchmark((std::string("quantize/") + name).c_str(),
                                   [options](benchmark::State& state) { quantize<Format>(state, options); });
  for (auto const& shape : shapes) added->Args(shape);
  added->ArgNames({"out", "in"})->UseManualTime()->Unit(benchmark::kMillisecond);
}

/// Every quality of one shape, one after the other.
template <class Format>
void add_qualities(char const* format, std::int64_t out, std::int64_t in) {
  using enum gptq::quality;
  struct what {
    char const* name;
    gptq::quantize_options options;
    bool held_out;
  };
  for (what const& q :
       {what{"reference", {.quality = reference, .act_order = true}, false},
        what{"plain", {.quality = plain, .act_order = true}, false}, what{"fast", {.quality = fast}, false},
        what{"fast_held_out", {.quality = fast}, true}, what{"best", {.quality = best}, false},
        what{"best_held_out", {.quality = best}, true}}) {
    std::string const name = std::string("quality/") + format + "/" + q.name;
    benchmark::RegisterBenchmark(
        name.c_str(), [q](benchmark::State& state) { quality_cost<Format>(state, q.options, q.held_out); })
        ->Args({out, in})
        ->ArgNames({"out", "in"})
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  using enum gptq::quality;
  std::vector<std::vector<std::int64_t>> const sizes{{1024, 1024}, {4096, 4096}, {4096, 11008}};
  add<q4>("fixed_zero_4_128", {.quality = plain}, {{4096, 4096}});
  add<q4>("fixed_zero_4_128_act_order", {.quality = plain, .act_order = true}, sizes);
  add<q4_asymmetric>("asymmetric_4_128_act_order", {.quality = plain, .act_order = true}, {{4096, 4096}});
  add<q4>("fixed_zero_4_128_mse_act_order", {.quality = plain, .mse = true, .act_order = true},
          {{4096, 4096}});
  add<q4>("fixed_zero_4_128_reference", {.quality = reference, .act_order = true},
          {{1024, 1024}, {4096, 4096}});
  add<q4>("fixed_zero_4_128_fast", {.quality = fast}, sizes);
  add<q4>("fixed_zero_4_128_best", {.quality = best}, {{1024, 1024}, {4096, 4096}});
  for (std::int64_t const size : {1024, 2048}) add_qualities<q4>("fixed_zero_4_128", size, size);
  // The layers of kjv-bytes and of stories15M.
  for (auto const& [out, in] : {std::pair(256, 256), std::pair(768, 256), std::pair(256, 768)}) {
    add_qualities<q4>("fixed_zero_4_128", out, in);
  }
  for (auto const& [out, in] : {std::pair(288, 288), std::pair(768, 288), std::pair(288, 768)}) {
    add_qualities<q4_32>("fixed_zero_4_32", out, in);
  }
  benchmark::RegisterBenchmark("hessian", hessian)
      ->ArgNames({"tokens", "in"})
      ->Args({2048, 4096})
      ->Args({16384, 4096})
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark("pack", pack)
      ->ArgNames({"out", "in"})
      ->Args({4096, 4096})
      ->Unit(benchmark::kMillisecond);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
