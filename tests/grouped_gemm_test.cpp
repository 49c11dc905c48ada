// Grouped products: bit for bit those of gemm, one matrix after another, however the work is shared out.
#include <algorithm>
#include <cstring>
#include <vector>

#include <gptq/grouped_gemm.hpp>
#include <gptq/packed.hpp>

#include "catch.hpp"
#include "support.hpp"

using gptq::float16;
using gptq::index_t;
using gptq::token_range;

namespace {

using q4 = gptq::format<gptq::asymmetric, 4, 32>;
using product = gptq::grouped_product<q4>;
constexpr index_t in = 64, experts = 9, max_tokens = 140;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Matrices of different heights: q, k and v have them.
constexpr index_t heights[experts] = {96, 96, 33, 1, 0, 96, 1100, 64, 95};

gptq::packed_matrix<q4> some_matrix(index_t out, std::uint32_t seed) {
  gptq::packed_matrix<q4> matrix(out, in);
  test::random random(seed);
  auto const fill = [&](std::uint8_t* p, index_t n) {
    for (index_t i = 0; i < n; ++i) p[i] = static_cast<std::uint8_t>(random.below(256));
  };
  fill(matrix.codes(), matrix.layout().code_bytes());
  fill(matrix.zeros(), matrix.layout().zero_bytes());
  for (index_t i = 0; i < matrix.layout().scale_count(); ++i) {
    matrix.scales()[i] = float16(0.1F * random.uniform());
  }
  return matrix;
}

struct setting {
  std::vector<gptq::packed_matrix<q4>> matrices;
  std::vector<float> x = test::random(1).normals(at(max_tokens * in));
  std::vector<char> workspace;
  gptq::activations<gptq::precision::int8> a;

  setting() {
    for (index_t e = 0; e < experts; ++e) {
      matrices.push_back(some_matrix(heights[e], 10 + static_cast<unsigned>(e)));
    }
    workspace.resize(gptq::workspace_bytes(matrices[0].layout(), max_tokens));
    a = gptq::prepare(view(0), x.data(), max_tokens, workspace.data());
  }
  gptq::packed_view<q4> view(index_t e) const { return matrices[at(e)].view(); }
};
setting const s;

/// Room for the results of products, with marks between them.
template <class T>
struct results {
  std::vector<gptq::grouped_product<q4, T>> products;
  std::vector<T> y;

  explicit results(std::vector<std::pair<index_t, token_range>> const& parts) {
    index_t size = 0;
    for (auto const& [e, tokens] : parts) size += (tokens.last - tokens.first) * (heights[e] + 2);
    y.assign(at(size), T(-7.0F));
    T* next = y.data();
    for (auto const& [e, tokens] : parts) {
      products.push_back({s.view(e), tokens, {next, heights[e] + 2}});
      next += (tokens.last - tokens.first) * (heights[e] + 2);
    }
  }
  index_t count() const { return static_cast<index_t>(products.size()); }
  bool operator==(results const& other) const {
    return y.empty() || std::memcmp(y.data(), other.y.data(), y.size() * sizeof(T)) == 0;
  }
};

using parts = std::vector<std::pair<index_t, token_range>>;
parts const cases[] = {
    {},
    {{0, {0, 1}}},
    {{0, {5, 5}}},
    {{0, {0, 1}}, {1, {0, 1}}, {0, {0, 1}}, {8, {139, 140}}},  // one token each; an expert twice
    {{0, {3, 3}}, {2, {0, 140}}, {3, {140, 140}}},             // all tokens to one, none to others
    {{0, {0, 0}}, {1, {0, 2}}, {4, {2, 7}}, {3, {7, 12}}, {8, {12, 140}}},  // the last has most
    {{6, {0, 140}}, {2, {0, 140}}, {7, {0, 140}}},                          // q, k and v
    {{6, {17, 18}}, {6, {18, 20}}, {5, {20, 23}}, {5, {23, 27}}, {7, {27, 32}}, {8, {32, 33}}, {0, {50, 50}}},
};

/// Each product by itself, all tokens from its own activations.
template <class T, class... Steps>
void one_by_one(results<T>& r, Steps const&... steps) {
  for (auto const& p : r.products) {
    index_t const tokens = p.tokens.last - p.tokens.first;
    if (tokens == 0) continue;
    std::vector<char> workspace(gptq::workspace_bytes(p.w.layout(), tokens));
    auto const a = gptq::prepare(p.w, s.x.data() + p.tokens.first * in, tokens, workspace.data());
    gptq::gemm(p.w, a, p.y, {0, p.w.out}, steps...);
  }
}

}  // namespace

TEST_CASE("grouped products are those of gemm, however they are shared out", "[grouped_gemm]") {
  for (auto const& c : cases) {
    results<float> expected(c);
    one_by_one(expected);
    index_t const work = gptq::grouped_work(expected.products.data(), expected.count());
    for (int const threads : {1, 2, 3, 7, 64}) {
      results<float> y(c);
      CAPTURE(&c - cases, threads, work);
      for (int t = 0; t < threads; ++t) {
        gptq::grouped_gemm(y.products.data(), y.count(), s.a, gptq::work_share(work, t, threads));
      }
      CHECK(y == expected);
    }
    results<float> y(c);  // unit by unit, from the last
    for (index_t unit = work; unit-- > 0;) {
      gptq::grouped_gemm(y.products.data(), y.count(), s.a, {unit, unit + 1});
    }
    CHECK(y == expected);
    gptq::grouped_gemm(y.products.data(), y.count(), s.a, {work, work + 100});
    gptq::grouped_gemm(y.products.data(), y.count(), s.a, {-5, 0});
    CHECK(y == expected);
  }
}

TEST_CASE("work is row blocks and tokens, and a share of it has no more than its part", "[grouped_gemm]") {
  results<float> r(cases[6]);  // 35 + 2 + 2 row blocks of 140 tokens
  CHECK(gptq::grouped_work(r.products.data(), 3) == 39 * 140);
  results<float> few(cases[3]);  // 3 + 3 + 3 + 3 of one token, which count as four
  CHECK(gptq::grouped_work(few.products.data(), 4) == 12 * 4);
  // Of two threads each has half of the rows.
  gptq::grouped_gemm(few.products.data(), 4, s.a, gptq::work_share(48, 0, 2));
  auto const untouched = [&](index_t p) {
    float const* const y = few.products[at(p)].y.data;
    return std::all_of(y, y + 95, [](float v) { return v == -7.0F; });
  };
  CHECK((!untouched(0) && !untouched(1) && untouched(2) && untouched(3)));
}

TEST_CASE("steps of grouped products, with and without their number", "[grouped_gemm]") {
  auto const bias = test::random(3).normals(1100);
  std::vector<float> const router = test::random(4).normals(at(max_tokens));
  for (auto const& c : cases) {
    results<float16> expected(c), y(c);
    index_t number = 0;
    for (auto const& p : expected.products) {
      index_t const tokens = p.tokens.last - p.tokens.first;
      if (tokens > 0) {
        std::vector<char> workspace(gptq::workspace_bytes(p.w.layout(), tokens));
        auto const a = gptq::prepare(p.w, s.x.data() + p.tokens.first * in, tokens, workspace.data());
        auto const weigh = [&](float* v, index_t token, index_t, index_t count) noexcept {
          for (index_t i = 0; i < count; ++i) v[i] *= router[at(p.tokens.first + token)];
        };
        auto const shift = [&](float* v, index_t, index_t row, index_t count) noexcept {
          for (index_t i = 0; i < count; ++i) v[i] += static_cast<float>(number) + bias[at(row + i)];
        };
        gptq::gemm(p.w, a, p.y, {0, p.w.out}, weigh, shift);
      }
      ++number;
    }
    auto const weigh = [&](float* v, index_t token, index_t, index_t count) noexcept {
      for (index_t i = 0; i < count; ++i) v[i] *= router[at(token)];
    };
    auto const shift = [&](index_t product, float* v, index_t, index_t row, index_t count) noexcept {
      for (index_t i = 0; i < count; ++i) v[i] += static_cast<float>(product) + bias[at(row + i)];
    };
    index_t const work = gptq::grouped_work(y.products.data(), y.count());
    for (int t = 0; t < 3; ++t) {
      gptq::grouped_gemm(y.products.data(), y.count(), s.a, gptq::work_share(work, t, 3), weigh, shift);
    }
    CAPTURE(&c - cases);
    CHECK(y == expected);
  }
}

TEST_CASE("entries sorted by expert", "[grouped_gemm]") {
  std::vector<std::int32_t> const ids{3, 0, 3, 1, 4, 4, 0, 3};
  std::vector<std::int32_t> entries(8, -1), first(6, -1);
  REQUIRE(gptq::sort_by_expert(ids.data(), 8, 5, entries.data(), first.data()) == gptq::fault::none);
  CHECK(entries == std::vector<std::int32_t>{1, 6, 3, 0, 2, 7, 4, 5});
  CHECK(first == std::vector<std::int32_t>{0, 2, 3, 3, 6, 8});
  // All to the last; none at all.
  std::vector<std::int32_t> const last(8, 4);
  REQUIRE(gptq::sort_by_expert(last.data(), 8, 5, entries.data(), first.data()) == gptq::fault::none);
  CHECK(entries == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(first == std::vector<std::int32_t>{0, 0, 0, 0, 0, 8});
  REQUIRE(gptq::sort_by_expert(nullptr, 0, 5, nullptr, first.data()) == gptq::fault::none);
  CHECK(first == std::vector<std::int32_t>(6, 0));
  // Experts that are not there: first, middle, last; nothing is written.
  auto const before = first;
  for (auto const place : {std::size_t{0}, std::size_t{3}, std::size_t{7}}) {
    for (int const wrong : {-1, 5}) {
      auto bad = ids;
      bad[place] = wrong;
      CHECK(gptq::sort_by_expert(bad.data(), 8, 5, entries.data(), first.data()) == gptq::fault::expert);
    }
  }
  CHECK(first == before);
}

TEST_CASE("tokens from a list", "[grouped_gemm]") {
  std::int32_t const list[] = {7, 7, 0, 139, 3};
  std::vector<float> gathered;
  for (auto const id : list)
    gathered.insert(gathered.end(), s.x.begin() + id * in, s.x.begin() + (id + 1) * in);
  auto const w = s.view(0);
  std::vector<char> expected(gptq::workspace_bytes(w.layout(), 5)), memory(expected.size());
  gptq::prepare(w, gathered.data(), 5, expected.data());
  gptq::gathered_input<float> const x{s.x.data(), in, list};
  gptq::prepare(w, x, 5, memory.data(), {2, 5});
  CHECK(memory != expected);
  auto const a = gptq::prepare(w, x, 5, memory.data(), {0, 2});
  CHECK(memory == expected);
  CHECK((a.tokens == 5 && a.digits == reinterpret_cast<std::int8_t const*>(memory.data())));
}

TEST_CASE("what is wrong with grouped products", "[grouped_gemm]") {
  gptq::packed_matrix<q4> const other(32, 96);
  results<float> r(cases[7]);
  CHECK(gptq::find_fault(r.products.data(), r.count(), s.a) == gptq::fault::none);
  for (std::size_t const place : {std::size_t{0}, std::size_t{3}, at(r.count() - 2)}) {
    auto bad = r.products;
    bad[place].tokens.last = max_tokens + 1;
    CHECK(gptq::find_fault(bad.data(), r.count(), s.a) == gptq::fault::tokens);
    bad[place].tokens = {-1, 2};
    CHECK(gptq::find_fault(bad.data(), r.count(), s.a) == gptq::fault::tokens);
    bad = r.products;
    bad[place].w = other.view();
    CHECK(gptq::find_fault(bad.data(), r.count(), s.a) == gptq::fault::other_columns);
    bad[place].tokens = {4, 4};  // of no consequence without tokens
    CHECK(gptq::find_fault(bad.data(), r.count(), s.a) == gptq::fault::none);
  }
}
