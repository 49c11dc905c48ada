// y = W x for one token as users call it: every thread gives gptq::gemv its rows and x as it is.
//
//   bench_gemv --benchmark_filter=gemv/fixed_zero/4/128/int8/.*/hot/out:4096
//
// README.md has the names of benchmarks and counters.
#include <algorithm>
#include <string>
#include <vector>

#include "product.hpp"

namespace {

using bench::subject;

/// Median seconds of every subject, hot, in turns, in the same memory. Empty, and an error noted, if one
/// computes nonsense.
std::vector<double> side_by_side(benchmark::State& state, std::vector<subject> const& subjects) {
  spin_pool pool(subjects.front().threads);
  std::vector<bench::product> products;
  products.reserve(subjects.size());
  std::vector<std::function<void()>> calls;
  for (subject const& s : subjects) {
    auto& p = products.emplace_back(s, pool);
    if (auto const error = p.check(); !error.empty()) {
      state.SkipWithError(error.c_str());
      return {};
    }
    calls.emplace_back([&p] { p.multiply(); });
  }
  return bench::medians(calls);
}

/// What a stored zero point costs: the time with one over the time without.
void zero_point_cost(benchmark::State& state, subject const& fixed_zero, subject const& asymmetric) {
  for (auto _ : state) {
    auto const seconds = side_by_side(state, {fixed_zero, asymmetric});
    if (seconds.empty()) return;
    state.SetIterationTime(seconds[1]);
    state.counters["asymmetric_over_fixed_zero"] = seconds[1] / seconds[0];
  }
}

/// What fewer bits bring: weights a second over those with 4 bits.
void width(benchmark::State& state, subject const& two, subject const& three, subject const& four) {
  for (auto _ : state) {
    auto const seconds = side_by_side(state, {two, three, four});
    if (seconds.empty()) return;
    state.SetIterationTime(seconds[2]);
    state.counters["2_bits_over_4"] = seconds[2] / seconds[0];
    state.counters["3_bits_over_4"] = seconds[2] / seconds[1];
  }
}

}  // namespace

int main(int argc, char** argv) {
  auto const subjects = bench::all_subjects({1}, bench::take_models(argc, argv, bench::usual_shapes));
  for (subject const& s : subjects) {
    bench::add("gemv/" + s.name(), [&s](benchmark::State& state) { bench::time(state, s); });
  }
  for (subject const& s : subjects) {
    if (s.cold) continue;
    auto const like_it = [&](std::string_view scheme, int bits) {
      return std::find_if(subjects.begin(), subjects.end(), [&](subject const& other) {
        return other.run.scheme == scheme && other.run.bits == bits &&
               other.run.group_size == s.run.group_size && other.situation() == s.situation();
      });
    };
    auto const group = std::to_string(s.run.group_size);
    auto const fixed_zero = like_it("fixed_zero", s.run.bits);
    if (s.run.scheme == "asymmetric" && fixed_zero != subjects.end()) {
      bench::add("gemv/zero_point_cost/" + std::to_string(s.run.bits) + '/' + group + '/' + s.situation(),
                 [=, &s](benchmark::State& state) { zero_point_cost(state, *fixed_zero, s); });
    }
    auto const two = like_it(s.run.scheme, 2);
    auto const three = like_it(s.run.scheme, 3);
    if (s.run.bits == 4 && two != subjects.end() && three != subjects.end()) {
      bench::add("gemv/width/" + std::string(s.run.scheme) + '/' + group + '/' + s.situation(),
                 [=, &s](benchmark::State& state) { width(state, *two, *three, s); });
    }
  }
  return bench::run(argc, argv);
}
