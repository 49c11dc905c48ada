// Experts in one call, beside what an engine has otherwise: 128 of them, of 768 rows and 2048 columns, 8 for each token.
//
//   bench_experts [THREADS]                 of a Release build; without an argument 1 and all cores
//
// One token reads 8 matrices from memory (there are more than the caches hold): beside one gemv of as many bytes.
// 16 tokens and more: beside a gemm for each expert that has tokens, its rows shared out over the threads, which wait
// for each other after each. Ratios are medians of turns in one run.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include <gptq/grouped_gemm.hpp>
#include <gptq/layout/aligned.hpp>
#include <gptq/parallel.hpp>

#include "spin_pool.hpp"

namespace {

using gptq::index_t;
using q4 = gptq::format<gptq::fixed_zero, 4, 128>;
constexpr index_t out = 768, in = 2048, top_k = 8;
constexpr int experts = 128;

double seconds(auto&& f) {
  auto const start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

/// Codes and scales of all experts of `layers` layers, one after another: a matrix of many rows is some of them.
struct memory {
  gptq::packed_layout<q4> one{out, in};
  gptq::detail::aligned_vector<std::uint8_t> codes;
  gptq::detail::aligned_vector<gptq::float16> scales;

  explicit memory(index_t layers)
      : codes(static_cast<std::size_t>(layers * experts * one.code_bytes())),
        scales(static_cast<std::size_t>(layers * experts * one.scale_count()), gptq::float16(0.01F)) {
    std::minstd_rand random;
    for (auto& c : codes) c = static_cast<std::uint8_t>(random() >> 8);
  }
  /// `count` experts from number `first` on as one matrix.
  gptq::packed_view<q4> view(index_t first, index_t count = 1) const {
    return {codes.data() + first * one.code_bytes(),
            scales.data() + first * one.scale_count(),
            nullptr,
            nullptr,
            out * count,
            in};
  }
};

void run(int threads) {
  constexpr index_t layers = 8;  // 800 MB
  static memory const all(layers);
  spin_pool pool(threads);
  auto const executor = [&](int /*parts*/, auto const& f) noexcept { pool.run(f); };
  std::mt19937 random(1);
  auto const most = static_cast<index_t>(512);
  std::vector<float> x(static_cast<std::size_t>(most * in));
  for (float& v : x) v = static_cast<float>(random() % 2000) / 1000.0F - 1.0F;
  std::vector<float> y(static_cast<std::size_t>(most * top_k * out)), z(y.size());
  gptq::detail::aligned_vector<char> workspace(gptq::workspace_bytes(all.one, most * top_k));

  // One token.
  {
    auto const a = gptq::prepare(all.view(0), x.data(), 1, workspace.data());
    std::vector<double> grouped, single;
    for (int turn = 0; turn < 200; ++turn) {
      index_t const layer = turn % layers * experts;
      gptq::grouped_product<q4> list[top_k];
      for (index_t k = 0; k < top_k; ++k) {  // no two of them neighbours
        list[k] = {
            all.view(layer + k * 16 + static_cast<index_t>(random() % 15)), {0, 1}, {y.data() + k * out}};
      }
      index_t const work = gptq::grouped_work(list, top_k);
      grouped.push_back(seconds([&] {
        pool.run([&](int t) { gptq::grouped_gemm(list, top_k, a, gptq::work_share(work, t, threads)); });
      }));
      auto const whole =
          all.view((turn + layers / 2) % layers * experts + static_cast<index_t>(random() % 120), top_k);
      single.push_back(seconds([&] { gptq::parallel_gemv(whole, a, y.data(), executor, threads); }));
    }
    double const bytes = static_cast<double>(top_k * (all.one.code_bytes() + 2 * all.one.scale_count()));
    std::printf("%7d %7d %12.1f %12.1f %8.2f   %.1f GB/s\n", threads, 1, 1e6 * median(grouped),
                1e6 * median(single), median(single) / median(grouped), bytes / median(grouped) * 1e-9);
  }
  for (index_t const tokens : {16, 32, 64, 128, 256, 512}) {
    std::vector<std::int32_t> ids, entries(static_cast<std::size_t>(tokens * top_k)),
        token_ids(entries.size());
    std::vector<std::int32_t> first(experts + 1);
    for (index_t t = 0; t < tokens; ++t) {
      std::vector<int> order(experts);
      for (int e = 0; e < experts; ++e) order[static_cast<std::size_t>(e)] = e;
      std::shuffle(order.begin(), order.end(), random);
      ids.insert(ids.end(), order.begin(), order.begin() + top_k);
    }
    if (gptq::sort_by_expert(ids.data(), tokens * top_k, experts, entries.data(), first.data()) !=
        gptq::fault::none) {
      std::abort();
    }
    for (std::size_t i = 0; i < entries.size(); ++i) token_ids[i] = entries[i] / top_k;
    gptq::gathered_input<float> const from{x.data(), in, token_ids.data()};
    std::vector<double> grouped, single;
    for (int turn = 0; turn < 31; ++turn) {
      index_t const layer = turn % layers * experts;
      std::vector<gptq::grouped_product<q4>> list;
      for (int e = 0; e < experts; ++e) {
        auto const at = static_cast<std::size_t>(e);
        list.push_back({all.view(layer + e), {first[at], first[at + 1]}, {y.data() + first[at] * out}});
      }
      index_t const work = gptq::grouped_work(list.data(), experts);
      grouped.push_back(seconds([&] {
        gptq::activations<gptq::precision::int8> a;
        pool.run([&](int t) {
          auto const mine = gptq::token_share(tokens * top_k, t, threads);
          auto const shared = gptq::prepare(all.view(0), from, tokens * top_k, workspace.data(), mine);
          if (t == 0) a = shared;
        });
        pool.run(
            [&](int t) { gptq::grouped_gemm(list.data(), experts, a, gptq::work_share(work, t, threads)); });
      }));
      single.push_back(seconds([&] {
        for (int e = 0; e < experts; ++e) {
          auto const at = static_cast<std::size_t>(e);
          index_t const mine = first[at + 1] - first[at];
          if (mine == 0) continue;
          auto const w = all.view(layer + e);
          gptq::gathered_input<float> const some{x.data(), in, token_ids.data() + first[at]};
          auto const a = gptq::prepare(w, some, mine, workspace.data(), {0, mine});
          gptq::parallel_gemm(w, a, z.data() + first[at] * out, executor, threads);
        }
      }));
    }
    if (!std::equal(y.begin(), y.begin() + tokens * top_k * out, z.begin())) {
      std::printf("results differ\n");
      std::exit(1);
    }
    std::printf("%7d %7td %12.1f %12.1f %8.2f   %.0f Gop/s\n", threads, tokens, 1e6 * median(grouped),
                1e6 * median(single), median(single) / median(grouped),
                2e-9 * static_cast<double>(tokens * top_k * out * in) / median(grouped));
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::printf("%s\n%7s %7s %12s %12s %8s\n", gptq::isa::native::name.data(), "threads", "tokens",
              "grouped us", "others us", "ratio");
  if (argc > 1) {
    run(std::atoi(argv[1]));
    return 0;
  }
  run(1);
  if (spin_pool::cores() > 1) run(spin_pool::cores());
}
