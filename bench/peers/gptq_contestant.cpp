// This library as a contestant of compare.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <gptq/gemm.hpp>

#include "../spin_pool.hpp"
#include "contestant.hpp"

namespace {

using q4 = gptq::format<gptq::fixed_zero, 4, 128>;
constexpr auto precision = gptq::precision::int8;

gptq::packed_matrix<q4> quantize(std::vector<float> const& weights, gptq::index_t out, gptq::index_t in) {
  gptq::quantized_layer<q4> layer;
  layer.out = out;
  layer.in = in;
  for (gptq::index_t row = 0; row < out; ++row) {
    for (gptq::index_t first = 0; first < in; first += 128) {
      float const* const group = weights.data() + row * in + first;
      auto const columns = std::min<gptq::index_t>(128, in - first);
      float amax = 0.0F;
      for (gptq::index_t c = 0; c < columns; ++c) amax = std::max(amax, std::abs(group[c]));
      float const scale = gptq::float16(amax / 7.0F);
      layer.scales.push_back(scale);
      for (gptq::index_t c = 0; c < columns; ++c) {
        float const code = std::round(group[c] / scale) + 8.0F;
        layer.codes.push_back(static_cast<std::uint8_t>(std::clamp(code, 0.0F, 15.0F)));
      }
    }
  }
  return gptq::pack(layer);
}

/// Where the share of a thread of `count` things begins, in multiples of `step`.
gptq::index_t share(gptq::index_t count, gptq::index_t step, int index, int threads) {
  return std::min(count, (count + step - 1) / step * index / threads * step);
}

}  // namespace

int main(int argc, char** argv) {
  auto const c = contestant::parse(argc, argv);
  auto const weights = contestant::random(c.out * c.in, 1);
  auto const x = contestant::random(c.tokens * c.in, 2);
  std::vector<float> y(static_cast<std::size_t>(c.tokens * c.out));
  auto const one = quantize(weights, c.out, c.in);
  auto const bytes = static_cast<std::size_t>(one.bytes());
  std::vector<gptq::packed_matrix<q4>> const matrices(c.copies(bytes), one);
  gptq::detail::aligned_vector<char> workspace(gptq::workspace_bytes<precision>(one.layout(), c.tokens));

  auto const call = [&](spin_pool& pool, std::size_t index) {
    auto const w = matrices[index % matrices.size()].view();
    auto const rows = [&](int thread) { return share(c.out, 32, thread, c.threads); };
    if (c.tokens == 1) {
      auto const a = gptq::prepare<precision>(w, x.data(), 1, workspace.data());
      pool.run([&](int thread) { gptq::gemv(w, a, y.data(), {rows(thread), rows(thread + 1)}); });
      return;
    }
    gptq::activations<precision> a;
    pool.run([&](int thread) {
      auto const prepared = gptq::prepare<precision>(
          w, x.data(), c.tokens, workspace.data(),
          {share(c.tokens, 1, thread, c.threads), share(c.tokens, 1, thread + 1, c.threads)});
      if (thread == 0) a = prepared;
    });
    pool.run([&](int thread) { gptq::gemm(w, a, y.data(), {rows(thread), rows(thread + 1)}); });
  };

  auto const turn = [&] {
    spin_pool pool(c.threads);  // spins as long as it lives
    return contestant::measure([&](std::size_t index) { call(pool, index); });
  };
  {
    spin_pool pool(c.threads);
    call(pool, 0);
  }
  contestant::check(c, weights.data(), x.data(), y.data());
  return contestant::serve("gptq " + std::string(gptq::isa::native::name) + " int8", bytes, turn);
}
