// Epilogues: bit for bit the products of gemv and gemm, and then each step by itself.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include <gptq/epilogue.hpp>
#include <gptq/packed.hpp>

#include "catch.hpp"
#include "support.hpp"

using gptq::bfloat16;
using gptq::float16;
using gptq::index_t;
using gptq::row_range;

namespace {

using q4 = gptq::format<gptq::asymmetric, 4, 32>;
constexpr index_t out = 1100, in = 64, max_tokens = 131;

gptq::packed_matrix<q4> some_matrix(std::uint32_t seed) {
  gptq::packed_matrix<q4> matrix(out, in);
  test::random random(seed);
  for (index_t i = 0; i < matrix.layout().code_bytes(); ++i) {
    matrix.codes()[i] = static_cast<std::uint8_t>(random.below(256));
  }
  for (index_t i = 0; i < matrix.layout().zero_bytes(); ++i) {
    matrix.zeros()[i] = static_cast<std::uint8_t>(random.below(256));
  }
  for (index_t i = 0; i < matrix.layout().scale_count(); ++i) {
    matrix.scales()[i] = float16(0.1F * random.uniform());
  }
  return matrix;
}

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Everything that the tests share: built once.
struct setting {
  gptq::packed_matrix<q4> matrix = some_matrix(1), other = some_matrix(2);
  std::vector<float> x = test::random(3).normals(at(max_tokens * in));
  std::vector<float> bias = test::random(4).normals(at(out));
  std::vector<float> residual = test::random(5).normals(at(max_tokens * (out + 7)));
  std::vector<char> workspace = std::vector<char>(gptq::workspace_bytes(matrix.layout(), max_tokens));

  gptq::activations<gptq::precision::int8> prepared(index_t tokens) {
    return gptq::prepare(matrix.view(), x.data(), tokens, workspace.data());
  }
  std::vector<float> product(gptq::packed_matrix<q4> const& m, index_t tokens) {
    std::vector<float> y(at(tokens * out));
    gptq::gemm(m.view(), prepared(tokens), y.data());
    return y;
  }
};
setting s;

constexpr row_range ranges[] = {{0, out}, {0, 1}, {31, 33}, {40, 1090}, {64, 128}, {1099, 1100}, {5, 5}};
constexpr index_t token_counts[] = {1, 2, 5, 130};

/// Results where they belong, with a stride, and nothing anywhere else.
template <class T, class Run>
void check(index_t tokens, row_range rows, std::vector<float> const& expected, Run&& run) {
  constexpr index_t stride = out + 3;
  std::vector<T> y(at(tokens * stride), T(-7.0F));
  run(gptq::output{y.data(), stride});
  index_t wrong = 0;
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t r = 0; r < stride; ++r) {
      bool const inside = rows.first <= r && r < rows.last;
      T const want = inside ? T(expected[at(t * out + r)]) : T(-7.0F);
      wrong += std::memcmp(&want, &y[at(t * stride + r)], sizeof(T)) != 0;
    }
  }
  CAPTURE(tokens, rows.first, rows.last);
  CHECK(wrong == 0);
}

template <class Each>
void for_each_case(Each&& each) {
  for (index_t tokens : token_counts) {
    for (row_range rows : ranges) each(tokens, rows);
  }
}

template <class F>
std::vector<float> changed(std::vector<float> values, F&& f) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = f(values[i], static_cast<index_t>(i) / out, static_cast<index_t>(i) % out);
  }
  return values;
}

}  // namespace

TEST_CASE("results of every type, with a stride", "[epilogue]") {
  for_each_case([](index_t tokens, row_range rows) {
    auto const a = s.prepared(tokens);
    auto const w = s.matrix.view();
    auto const y = s.product(s.matrix, tokens);
    auto const run = [&](auto to) { gptq::gemm(w, a, to, rows); };
    check<float>(tokens, rows, y, run);
    check<float16>(tokens, rows, y, run);
    check<bfloat16>(tokens, rows, y, run);
    if (tokens == 1) check<float16>(1, rows, y, [&](auto to) { gptq::gemv(w, a, to, rows); });
  });
}

TEST_CASE("each step is done to all results by itself", "[epilogue]") {
  for_each_case([](index_t tokens, row_range rows) {
    auto const a = s.prepared(tokens);
    auto const w = s.matrix.view();
    auto const y = s.product(s.matrix, tokens);
    auto const residual = [](index_t t, index_t r) { return s.residual[at(t * (out + 7) + r)]; };
    auto const runs = [&](auto const&... steps) {
      return [&, steps...](auto to) { gptq::gemm(w, a, to, rows, steps...); };
    };
    gptq::add_bias const bias{s.bias.data()};
    gptq::add_residual const add{s.residual.data(), out + 7};
    auto const biased = [](float v, index_t, index_t r) { return v + s.bias[at(r)]; };
    auto const scaled = [](float v, index_t, index_t) { return v * 1.7F; };
    auto const added = [&](float v, index_t t, index_t r) { return v + residual(t, r); };
    check<float>(tokens, rows, changed(y, biased), runs(bias));
    check<float>(tokens, rows, changed(y, scaled), runs(gptq::scale_by{1.7F}));
    check<float>(tokens, rows, changed(y, added), runs(add));
    // In the order of the arguments, without a fused multiply-add of two.
    check<bfloat16>(tokens, rows, changed(changed(changed(y, scaled), biased), added),
                    runs(gptq::scale_by{1.7F}, bias, add));
    check<float>(tokens, rows, changed(changed(y, biased), scaled), runs(bias, gptq::scale_by{1.7F}));
  });
}

TEST_CASE("activations and limits", "[epilogue]") {
  auto const a = s.prepared(5);
  auto const w = s.matrix.view();
  auto const y = s.product(s.matrix, 5);
  row_range const rows{0, out};
  auto const runs = [&](auto const&... steps) {
    return [&, steps...](auto to) { gptq::gemm(w, a, to, rows, steps...); };
  };
  auto const of = [&](auto&& f) { return changed(y, [&](float v, index_t, index_t) { return f(v); }); };
  check<float>(5, rows, of([](float v) { return std::max(v, 0.0F); }), runs(gptq::relu{}));
  check<float>(5, rows, of([](float v) { return v / (1.0F + std::exp(-v)); }), runs(gptq::silu{}));
  check<float>(5, rows, of([](float v) { return std::min(std::max(v, -0.5F), 0.25F); }),
               runs(gptq::clamp_to{-0.5F, 0.25F}));
  // NaN and infinities, and the limits themselves.
  float const nan = std::numeric_limits<float>::quiet_NaN(),
              infinity = std::numeric_limits<float>::infinity();
  float v[] = {nan, infinity, -infinity, -0.5F, 0.25F, 0.0F};
  gptq::clamp_to{-0.5F, 0.25F}(v, 0, 0, 6);
  CHECK((std::isnan(v[0]) && v[1] == 0.25F && v[2] == -0.5F && v[3] == -0.5F && v[4] == 0.25F));
  float u[] = {nan, -1.0F, -0.0F, 2.0F};
  gptq::relu{}(u, 0, 0, 4);
  CHECK((std::isnan(u[0]) && u[1] == 0.0F && u[3] == 2.0F));
  float g[] = {0.0F, 1.0F, -1.0F, 30.0F, -30.0F};
  gptq::gelu{}(g, 0, 0, 5);
  CHECK((g[0] == 0.0F && std::abs(g[1] - 0.84134475F) < 1e-6F && std::abs(g[2] + 0.15865525F) < 1e-6F));
  CHECK((g[3] == 30.0F && g[4] == 0.0F));
}

TEST_CASE("y may be what a step reads", "[epilogue]") {
  for_each_case([](index_t tokens, row_range rows) {
    auto const a = s.prepared(tokens);
    auto y = std::vector<float>(s.residual.begin(), s.residual.begin() + tokens * out);
    auto const before = y;
    auto const product = s.product(s.matrix, tokens);
    gptq::gemm(s.matrix.view(), a, gptq::output{y.data()}, rows, gptq::add_residual{y.data(), out});
    index_t wrong = 0;
    for (index_t i = 0; i < tokens * out; ++i) {
      bool const inside = rows.first <= i % out && i % out < rows.last;
      wrong += y[at(i)] != (inside ? product[at(i)] + before[at(i)] : before[at(i)]);
    }
    CHECK(wrong == 0);
  });
}

TEST_CASE("one token as it is", "[epilogue]") {
  // More columns than are prepared at once, and more rows than a slab has.
  constexpr index_t many = 40000, high = 2100;
  gptq::packed_matrix<q4> wide(33, many);
  test::random random(6);
  for (index_t i = 0; i < wide.layout().code_bytes(); ++i) {
    wide.codes()[i] = static_cast<std::uint8_t>(random.below(256));
  }
  for (index_t i = 0; i < wide.layout().scale_count(); ++i) wide.scales()[i] = float16(random.uniform());
  auto const x = random.normals(at(many));
  std::vector<float> y(33), expected(33);
  gptq::gemv(wide.view(), x.data(), expected.data());
  gptq::gemv(wide.view(), x.data(), gptq::output{y.data()}, {0, 33}, gptq::scale_by{2.0F}, gptq::relu{});
  for (index_t i = 0; i < 33; ++i) REQUIRE(y[at(i)] == std::max(2.0F * expected[at(i)], 0.0F));

  for (row_range rows : ranges) {
    auto const product = s.product(s.matrix, 1);
    auto const biased = changed(product, [](float v, index_t, index_t r) { return v + s.bias[at(r)]; });
    check<bfloat16>(1, rows, biased, [&](auto to) {
      gptq::gemv(s.matrix.view(), s.x.data(), to, rows, gptq::add_bias{s.bias.data()});
    });
    check<float>(1, rows, product, [&](auto to) { gptq::gemv(s.matrix.view(), s.x.data(), to, rows); });
  }
  gptq::packed_matrix<q4> tall(high, in);
  std::fill_n(tall.codes(), tall.layout().code_bytes(), std::uint8_t{0x55});
  std::fill_n(tall.scales(), tall.layout().scale_count(), float16(1.0F));
  std::vector<float> plain(at(high)), twice(at(high));
  gptq::gemv(tall.view(), s.x.data(), plain.data());
  gptq::gemv(tall.view(), s.x.data(), gptq::output{twice.data()}, {0, high}, gptq::scale_by{2.0F});
  for (index_t i = 0; i < high; ++i) REQUIRE(twice[at(i)] == 2.0F * plain[at(i)]);
}

TEST_CASE("a gate and what it lets through", "[epilogue]") {
  for_each_case([](index_t tokens, row_range rows) {
    auto const a = s.prepared(tokens);
    auto const gate = s.product(s.matrix, tokens), up = s.product(s.other, tokens);
    auto const expected = changed(
        gate, [&](float v, index_t t, index_t r) { return v / (1.0F + std::exp(-v)) * up[at(t * out + r)]; });
    check<float>(tokens, rows, expected, [&](auto to) {
      gptq::gated_gemm(s.matrix.view(), s.other.view(), a, to, rows, gptq::silu{});
    });
    auto const halved = changed(expected, [](float v, index_t, index_t) { return v * 0.5F; });
    check<float16>(tokens, rows, halved, [&](auto to) {
      gptq::gated_gemm(s.matrix.view(), s.other.view(), a, to, rows, gptq::silu{}, gptq::scale_by{0.5F});
    });
  });
}

TEST_CASE("a step of one's own sees every result once, at its place", "[epilogue]") {
  for_each_case([](index_t tokens, row_range rows) {
    auto const a = s.prepared(tokens);
    std::vector<int> seen(at(tokens * out));
    auto const count = [&](float* v, index_t token, index_t row, index_t n) noexcept {
      for (index_t i = 0; i < n; ++i) {
        ++seen[at(token * out + row + i)];
        v[i] = static_cast<float>(token * out + row + i);
      }
    };
    std::vector<float> y(at(tokens * out));
    gptq::gemm(s.matrix.view(), a, gptq::output{y.data()}, rows, count);
    index_t wrong = 0;
    for (index_t i = 0; i < tokens * out; ++i) {
      bool const inside = rows.first <= i % out && i % out < rows.last;
      wrong += seen[at(i)] != (inside ? 1 : 0) || y[at(i)] != (inside ? static_cast<float>(i) : 0.0F);
    }
    CHECK(wrong == 0);
  });
}

// Not run unless asked for: epilogue_test "[random]", for GPTQ_TEST_SECONDS (60), from GPTQ_TEST_SEED on (1).
TEST_CASE("random products with steps, without end", "[.][random]") {
  auto const number = [](char const* name, std::uint32_t otherwise) {
    char const* const text = std::getenv(name);
    return text == nullptr ? otherwise : static_cast<std::uint32_t>(std::strtoul(text, nullptr, 10));
  };
  std::uint32_t const begin = number("GPTQ_TEST_SEED", 1);
  std::uint32_t seed = begin;
  auto const end = std::chrono::steady_clock::now() + std::chrono::seconds(number("GPTQ_TEST_SECONDS", 60));
  for (; std::chrono::steady_clock::now() < end; ++seed) {
    test::random random(seed);
    index_t const rows = 1 + random.below(random.below(4) == 0 ? 2500 : 200);
    index_t const columns = random.below(300);
    index_t const tokens = 1 + random.below(random.below(4) == 0 ? 140 : 8);
    index_t const first = random.below(static_cast<int>(rows) + 1);
    index_t const last = first + random.below(static_cast<int>(rows - first) + 1);
    index_t const stride = rows + random.below(9);
    gptq::packed_matrix<q4> w(rows, columns);
    for (index_t i = 0; i < w.layout().code_bytes(); ++i)
      w.codes()[i] = static_cast<std::uint8_t>(random.below(256));
    for (index_t i = 0; i < w.layout().zero_bytes(); ++i)
      w.zeros()[i] = static_cast<std::uint8_t>(random.below(256));
    for (index_t i = 0; i < w.layout().scale_count(); ++i) w.scales()[i] = float16(0.1F * random.uniform());
    auto const x = random.normals(at(tokens * columns + 1)), bias = random.normals(at(rows)),
               residual = random.normals(at(tokens * stride));
    float const factor = random.uniform(), low = -random.uniform();
    std::vector<char> memory(gptq::workspace_bytes(w.layout(), tokens) + 1);
    auto const a = gptq::prepare(w.view(), x.data(), tokens, memory.data());
    std::vector<float> product(at(tokens * rows));
    gptq::gemm(w.view(), a, product.data());

    index_t wrong = 0;
    auto const run = [&]<class T>(T, auto const& expected, auto const&... steps) {
      std::vector<T> y(at(tokens * stride), T(-7.0F));
      if (tokens == 1 && seed % 3 == 0) {
        gptq::gemv(w.view(), x.data(), gptq::output{y.data(), stride}, {first, last}, steps...);
      } else {
        gptq::gemm(w.view(), a, gptq::output{y.data(), stride}, {first, last}, steps...);
      }
      for (index_t t = 0; t < tokens; ++t) {
        for (index_t r = 0; r < stride; ++r) {
          bool const inside = first <= r && r < last;
          T const want = inside ? T(expected(product[at(t * rows + r)], t, r)) : T(-7.0F);
          wrong += std::memcmp(&want, &y[at(t * stride + r)], sizeof(T)) != 0;
        }
      }
    };
    auto const biased = [&](float v, index_t, index_t r) { return v + bias[at(r)]; };
    auto const limited = [&](float v, index_t, index_t) { return std::min(std::max(v, low), factor); };
    auto const all = [&](float v, index_t t, index_t r) {
      float const scaled = v * factor;
      float const added = scaled + residual[at(t * stride + r)];
      return limited(biased(added, t, r), t, r);
    };
    gptq::add_bias const bias_step{bias.data()};
    gptq::clamp_to const limits{low, factor};
    gptq::add_residual const residual_step{residual.data(), stride};
    if (seed % 4 == 0) run(0.0F, biased, bias_step);
    if (seed % 4 == 1) run(float16(), limited, limits);
    if (seed % 4 == 2) run(bfloat16(), all, gptq::scale_by{factor}, residual_step, bias_step, limits);
    if (seed % 4 == 3) run(0.0F, all, gptq::scale_by{factor}, residual_step, bias_step, limits);
    CAPTURE(seed, rows, columns, tokens, first, last, stride);
    REQUIRE(wrong == 0);
  }
  std::printf("epilogue: %u random products, seeds %u to %u\n", seed - begin, begin, seed - 1);
}

TEST_CASE("tokens that lie apart", "[epilogue]") {
  constexpr index_t stride = in + 5;
  std::vector<float> apart(at(5 * stride), 1e9F);
  for (index_t t = 0; t < 5; ++t) {
    std::copy_n(s.x.begin() + t * in, in, apart.begin() + t * stride);
  }
  std::vector<char> memory(gptq::workspace_bytes(s.matrix.layout(), 5)), expected(memory.size());
  gptq::prepare(s.matrix.view(), s.x.data(), 5, expected.data());
  gptq::prepare(s.matrix.view(), gptq::input<float>{apart.data(), stride}, 5, memory.data(), {0, 5});
  CHECK(memory == expected);
}

TEST_CASE("a matrix without columns gives zeros, and then its steps", "[epilogue]") {
  gptq::packed_view<q4> w;
  w.out = 70;
  gptq::activations<gptq::precision::int8> a;
  a.chunks = {0, 32};
  a.tokens = 3;
  std::vector<float> y(210, -1.0F);
  gptq::gemm(w, a, gptq::output{y.data()}, {0, 70}, gptq::add_bias{s.bias.data()});
  for (index_t i = 0; i < 210; ++i) REQUIRE(y[at(i)] == s.bias[at(i % 70)]);
  std::fill(y.begin(), y.end(), -1.0F);
  gptq::gemv(w, s.x.data(), gptq::output{y.data()}, {0, 70}, gptq::add_bias{s.bias.data()});
  for (index_t i = 0; i < 70; ++i) REQUIRE(y[at(i)] == s.bias[at(i)]);
}
