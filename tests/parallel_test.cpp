// Shares of the work, and that results do not depend on them.
#include <atomic>
#include <chrono>
#include <ctime>
#include <thread>
#include <vector>

#include <gptq/packed.hpp>
#include <gptq/parallel.hpp>
#include <gptq/thread_pool.hpp>

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
  y.resize(out);
  y_of_parts.resize(out);
  CHECK(y == y_of_parts);
  y_of_parts.assign(out, 0.0F);
  gptq::parallel_gemv(w, x.data(), y_of_parts.data(), executor, parts);  // x as it is
  CHECK(y == y_of_parts);
}

/// The same with as many parts as an executor has threads.
template <class Executor>
void check_same(Executor&& executor) {
  auto const matrix = random_matrix();
  auto const w = matrix.view();
  auto const x = test::random(4).normals(tokens * in);
  std::vector<char> workspace(gptq::workspace_bytes(w.layout(), tokens));
  std::vector<float> y(tokens * out), y_of_parts(y.size());
  auto const a = gptq::parallel_prepare(w, x.data(), tokens, workspace.data(), executor);
  gptq::gemm(w, a, y.data());
  gptq::parallel_gemm(w, a, y_of_parts.data(), executor);
  CHECK(y == y_of_parts);
  y_of_parts.assign(y.size(), 0.0F);
  for (index_t t = 0; t < tokens; ++t) {
    gptq::parallel_gemv(w, x.data() + t * in, y_of_parts.data() + t * out, executor);
  }
  CHECK(y == y_of_parts);
  auto const one = gptq::prepare(w, x.data(), 1, workspace.data());
  y.resize(out);
  y_of_parts.assign(out, 0.0F);
  gptq::parallel_gemv(w, one, y_of_parts.data(), executor);
  CHECK(y == y_of_parts);
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
    CHECK(executor.calls == 4 * parts);
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

TEST_CASE("a pool calls every part once, in order on each thread", "[parallel]") {
  for (int threads : {1, 2, 3, 7}) {
    gptq::thread_pool pool(threads);
    CHECK(pool.threads() == threads);
    for (int parts : {0, 1, 2, 3, 20}) {
      for (int round = 0; round < 50; ++round) {
        std::vector<std::atomic<int>> calls(static_cast<std::size_t>(parts));
        std::vector<std::thread::id> ids(static_cast<std::size_t>(parts));
        pool(parts, [&](int part) {
          ids[static_cast<std::size_t>(part)] = std::this_thread::get_id();
          ++calls[static_cast<std::size_t>(part)];
        });
        for (int part = 0; part < parts; ++part) {
          REQUIRE(calls[static_cast<std::size_t>(part)] == 1);
          if (part >= threads) {
            REQUIRE(ids[static_cast<std::size_t>(part)] == ids[static_cast<std::size_t>(part - threads)]);
          }
        }
        if (parts > 0) REQUIRE(ids[0] == std::this_thread::get_id());
      }
    }
  }
}

TEST_CASE("a pool gives the results of one thread", "[parallel]") {
  gptq::thread_pool pool(3);
  check_same(pool, 4);
  check_same(pool);
  static_assert(noexcept(
      gptq::parallel_gemv(gptq::packed_view<q4>{}, static_cast<float const*>(nullptr), nullptr, pool)));
}

TEST_CASE("a pool without work sleeps", "[parallel]") {
  gptq::thread_pool pool(3, std::chrono::microseconds(100));
  pool(3, [](int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  std::clock_t const before = std::clock();  // CPU time of all threads
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  double const busy = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  CHECK(busy < 0.05);
  std::atomic<int> calls = 0;
  pool(3, [&](int) { ++calls; });  // and wakes up
  CHECK(calls == 3);
}

#if defined(_OPENMP)
TEST_CASE("OpenMP's threads", "[parallel]") {
  check_same(gptq::openmp(2), 4);
  check_same(gptq::openmp(2));
}
#endif
