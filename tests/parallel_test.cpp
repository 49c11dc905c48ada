// Shares of the work, and that results do not depend on them.
#include <vector>

#include <gptq/packed.hpp>
#include <gptq/parallel.hpp>

#include "catch.hpp"
#include "support.hpp"

using gptq::index_t;

namespace {

using q4 = gptq::format<gptq::fixed_zero, 4, 32>;
constexpr index_t out = 200, in = 352, tokens = 5;

/// Calls in an order of its own, and counts.
struct backwards {
  int calls = 0;
  template <class F>
  void operator()(int parts, F const& f) noexcept {
    for (int part = parts; part-- > 0; ++calls) f(part);
  }
};

gptq::packed_matrix<q4> random_matrix() {
  test::random random(3);
  gptq::packed_matrix<q4> matrix(out, in);
  for (index_t i = 0; i < matrix.layout().code_bytes(); ++i) {
    matrix.codes()[i] = static_cast<std::uint8_t>(random.below(256));
  }
  for (index_t i = 0; i < matrix.layout().scale_count(); ++i) {
    matrix.scales()[i] = gptq::float16(random.uniform());
  }
  return matrix;
}

/// Everything in shares against everything at once.
template <class Executor>
void check_same(Executor&& executor, int parts) {
  auto const matrix = random_matrix();
  auto const w = matrix.view();
  auto const x = test::random(4).normals(tokens * in);
  std::vector<char> workspace(gptq::workspace_bytes(w.layout(), tokens)), of_parts(workspace.size());
  std::vector<float> y(tokens * out), y_of_parts(y.size());

  auto const a = gptq::prepare(w, x.data(), tokens, workspace.data());
  auto const a_of_parts = gptq::parallel_prepare(w, x.data(), tokens, of_parts.data(), executor, parts);
  CHECK(workspace == of_parts);
  gptq::gemm(w, a, y.data());
  gptq::parallel_gemm(w, a_of_parts, y_of_parts.data(), executor, parts);
  CHECK(y == y_of_parts);

  auto const one = gptq::prepare(w, x.data(), 1, workspace.data());
  gptq::gemv(w, one, y.data());
  y_of_parts.assign(y.size(), 0.0F);
  gptq::parallel_gemv(w, one, y_of_parts.data(), executor, parts);
  CHECK(std::vector<float>(y.begin(), y.begin() + out) ==
        std::vector<float>(y_of_parts.begin(), y_of_parts.begin() + out));
}

}  // namespace

TEST_CASE("shares cover everything once, in order", "[parallel]") {
  for (index_t count : {0, 1, 31, 32, 33, 200, 4096}) {
    for (int parts = 1; parts < 40; ++parts) {
      index_t row = 0, token = 0;
      for (int part = 0; part < parts; ++part) {
        gptq::row_range const rows = gptq::row_share(count, part, parts);
        REQUIRE((rows.first == row && rows.first <= rows.last));
        REQUIRE((rows.last % 32 == 0 || rows.last == count));
        row = rows.last;
        gptq::token_range const some = gptq::token_share(count, part, parts);
        REQUIRE((some.first == token && some.first <= some.last));
        token = some.last;
      }
      REQUIRE((row == count && token == count));
    }
  }
  CHECK(gptq::row_share(4096, 1, 3).first == 1344);  // as even as 32 rows allow
}

TEST_CASE("results do not depend on the number of parts or their order", "[parallel]") {
  for (int parts : {1, 2, 3, 9}) {
    backwards executor;
    check_same(executor, parts);
    CHECK(executor.calls == 3 * parts);
  }
}

TEST_CASE("noexcept is the executor's", "[parallel]") {
  gptq::packed_view<q4> const w;
  gptq::activations<gptq::precision::int8> const a;
  auto const may_throw = [](int parts, auto const& f) {
    for (int part = 0; part < parts; ++part) f(part);
  };
  static_assert(noexcept(gptq::parallel_gemv(w, a, nullptr, backwards{}, 1)));
  static_assert(!noexcept(gptq::parallel_gemv(w, a, nullptr, may_throw, 1)));
  check_same(may_throw, 2);
}

#if defined(_OPENMP)
TEST_CASE("OpenMP's threads", "[parallel]") { check_same(gptq::openmp{2}, 4); }
#endif
