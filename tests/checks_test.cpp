// What is wrong with memory and arguments: found in the first, a middle and the last place, at exact limits, and told
// by functions that neither throw nor need C++'s library; and what stops a debug build.
#include <csignal>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <string>
#include <unistd.h>
#include <vector>

#include <sys/wait.h>

#include <gptq/checks.hpp>
#include <gptq/gemm.hpp>
#include <gptq/packed.hpp>

#include "catch.hpp"
#include "support.hpp"

using gptq::fault;
using gptq::index_t;
using gptq::precision;

namespace {

using a3 = gptq::format<gptq::asymmetric, 3, 32>;
constexpr index_t out = 70, in = 100;

/// A matrix of `Format` with a column order, some codes, and scales of 0.5.
template <class Format>
gptq::packed_matrix<Format> some_matrix(bool ordered = true) {
  gptq::packed_matrix<Format> matrix(out, in);
  test::random random(5);
  for (index_t i = 0; i < matrix.layout().code_bytes(); ++i) {
    matrix.codes()[i] = static_cast<std::uint8_t>(random.below(256));
  }
  for (index_t i = 0; i < matrix.layout().scale_count(); ++i) {
    matrix.scales()[i] = typename Format::scale(0.5F);
  }
  if (ordered) {
    matrix.order().resize(in);
    std::iota(matrix.order().rbegin(), matrix.order().rend(), 0);
  }
  return matrix;
}

}  // namespace

TEST_CASE("a view of memory of known size", "[checks]") {
  auto const matrix = some_matrix<a3>();
  auto const view = matrix.view();
  auto const layout = view.layout();
  auto const size = [](index_t n) { return static_cast<std::size_t>(n); };
  std::span<std::uint8_t const> const codes(view.codes, size(layout.code_bytes()));
  std::span<gptq::float16 const> const scales(view.scales, size(layout.scale_count()));
  std::span<std::uint8_t const> const zeros(view.zeros, size(layout.zero_bytes()));
  std::span<std::int32_t const> const order(view.order, size(in));

  gptq::packed_view<a3> made;
  auto const make = [&](auto c, auto s, auto z, auto o, index_t rows = out, index_t columns = in) {
    made = {};
    return gptq::make_view(made, rows, columns, c, s, z, o);
  };
  CHECK(make(codes, scales, zeros, order) == fault::none);  // exactly as large as needed
  CHECK((made.codes == view.codes && made.scales == view.scales && made.zeros == view.zeros));
  CHECK((made.order == view.order && made.out == out && made.in == in));
  CHECK(gptq::find_fault(made).what == fault::none);
  CHECK(make(codes, scales, zeros, std::span<std::int32_t const>{}) == fault::none);
  CHECK(made.order == nullptr);

  CHECK(make(codes.first(codes.size() - 1), scales, zeros, order) == fault::few_codes);
  CHECK(made.codes == nullptr);  // left alone
  CHECK(make(codes, scales.first(scales.size() - 1), zeros, order) == fault::few_scales);
  CHECK(make(codes, scales, zeros.first(zeros.size() - 1), order) == fault::few_zeros);
  CHECK(make(codes, scales, std::span<std::uint8_t const>{}, order) == fault::few_zeros);
  CHECK(make(codes, scales, zeros, order.first(order.size() - 1)) == fault::order_size);
  CHECK(make(codes, scales, zeros, order, -1, in) == fault::shape);
  CHECK(make(codes, scales, zeros, order, out, -1) == fault::shape);
  // A file's numbers may be anything: nothing overflows.
  constexpr index_t limit = std::numeric_limits<std::int32_t>::max();
  CHECK(make(codes, scales, zeros, order, limit, limit) == fault::few_codes);
  CHECK(make(codes, scales, zeros, order, limit + 1, in) == fault::shape);
  CHECK(make(codes, scales, zeros, order, out, limit + 1) == fault::shape);
  CHECK(make(codes, scales, zeros, order, std::numeric_limits<index_t>::max(), in) == fault::shape);

  CHECK(make(codes.first(0), scales.first(0), zeros.first(0), order.first(0), 0, 0) == fault::none);
  CHECK(gptq::find_fault(made).what == fault::none);

  CHECK(gptq::checked_view<a3>(out, in, codes, scales, zeros, order).codes == view.codes);
  CHECK(test::error_of([&] { gptq::checked_view<a3>(out + 32, in, codes, scales, zeros, order); }) ==
        "packed matrix of 102 x 100: fewer codes than the shape needs");
}

TEST_CASE("what a view holds", "[checks]") {
  auto const matrix = some_matrix<a3>();
  auto const damage = [&](auto&& change) {
    auto copy = matrix;
    auto view = copy.view();
    change(view, copy);
    return gptq::find_fault(view);
  };
  CHECK(damage([](auto&, auto&) {}).what == fault::none);
  CHECK(damage([](auto& view, auto&) { view = {}; }).what == fault::none);
  CHECK(damage([](auto& view, auto&) { view.out = -1; }).what == fault::shape);
  CHECK(damage([](auto& view, auto&) { view.codes = nullptr; }).what == fault::no_codes);
  CHECK(damage([](auto& view, auto&) { view.scales = nullptr; }).what == fault::no_scales);
  CHECK(damage([](auto& view, auto&) { view.zeros = nullptr; }).what == fault::no_zeros);
  auto const moved = [](auto* p) {
    return reinterpret_cast<decltype(p)>(reinterpret_cast<std::uintptr_t>(p) + 1);
  };
  CHECK(damage([&](auto& view, auto&) { view.scales = moved(view.scales); }).what == fault::scale_alignment);
  CHECK(damage([&](auto& view, auto&) { view.order = moved(view.order); }).what == fault::order_alignment);
  for (index_t position : {index_t{0}, in / 2, in - 1}) {
    for (std::int32_t column : {-1, static_cast<std::int32_t>(in), 1, 3}) {
      auto const found =
          damage([&](auto&, auto& copy) { copy.order()[static_cast<std::size_t>(position)] = column; });
      CHECK(found.what == fault::order);
      // The entry itself, or the later one of two.
      bool const twice = column >= 0 && column < in;
      CHECK(found.position == (twice ? std::max(position, in - 1 - column) : position));
    }
  }
  for (index_t row : {index_t{0}, out / 2, out - 1}) {
    for (index_t group : {0, 2, 3}) {
      for (int bits : {0x7c00, 0xfc00, 0x7e00}) {
        auto const found = damage([&](auto&, auto& copy) {
          copy.scales()[copy.layout().scale_offset(row / 32, group) + row % 32] =
              gptq::float16::from_bits(static_cast<std::uint16_t>(bits));
        });
        CHECK((found.what == fault::scale_value && found.row == row && found.group == group));
      }
    }
  }
}

TEST_CASE("every fault has a message of its own", "[checks]") {
  std::vector<std::string> seen;
  for (int i = 0; i <= static_cast<int>(fault::checksum); ++i) {
    std::string const text = gptq::message(static_cast<fault>(i));
    CHECK(!text.empty());
    CHECK(std::find(seen.begin(), seen.end(), text) == seen.end());
    seen.push_back(text);
  }
}

namespace {

constexpr index_t tokens = 3;

template <class Format>
gptq::activations<precision::int8> some_activations(gptq::packed_view<Format> const& w, index_t count,
                                                    std::vector<char>& workspace) {
  static std::vector<float> const x = test::random(9).normals(1024 * tokens);
  workspace.resize(gptq::workspace_bytes(w.layout(), count));
  return gptq::prepare(w, x.data(), count, workspace.data());
}

/// Whether `action` stops the program, and the line that it says; an emulator may add one of its own.
template <class Action>
std::string last_words(Action&& action) {
  int words[2];
  REQUIRE(pipe(words) == 0);
  pid_t const child = fork();
  if (child == 0) {
    std::signal(SIGABRT, SIG_DFL);  // not the test framework's
    dup2(words[1], STDERR_FILENO);
    close(words[0]);
    action();
    _exit(0);
  }
  close(words[1]);
  std::string said;
  char part[256];
  for (ssize_t n; (n = read(words[0], part, sizeof part)) > 0;)
    said.append(part, static_cast<std::size_t>(n));
  close(words[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) return "(it went on)";
  return said.substr(0, said.find('\n') + 1);
}

}  // namespace

TEST_CASE("activations of another matrix are told from those of this one", "[checks]") {
  auto const matrix = some_matrix<a3>();
  auto const w = matrix.view();
  std::vector<char> workspace;
  auto const a = some_activations(w, 1, workspace);
  CHECK(gptq::find_fault(w, a) == fault::none);

  auto const same_order =
      some_matrix<gptq::format<gptq::symmetric, 8, 32>>();  // of other codes, and elsewhere
  CHECK(gptq::find_fault(same_order.view(), a) == fault::none);
  CHECK(gptq::find_fault(some_matrix<gptq::format<gptq::asymmetric, 3, 64>>().view(), a) ==
        fault::other_groups);
  CHECK(gptq::find_fault(some_matrix<a3>(false).view(), a) == fault::other_order);
  for (std::size_t place : {std::size_t{0}, std::size_t{50}, std::size_t{98}}) {
    auto other = matrix;
    std::swap(other.order()[place], other.order()[place + 1]);
    CHECK(gptq::find_fault(other.view(), a) == fault::other_order);
  }
  auto wider = w;
  wider.in = in + 1;
  CHECK(gptq::find_fault(wider, a) == fault::other_columns);
  std::vector<char> other_workspace;
  auto const in_order = some_matrix<a3>(false);
  CHECK(gptq::find_fault(w, some_activations(in_order.view(), 1, other_workspace)) == fault::other_order);
}

TEST_CASE("checked products return what is wrong and write nothing", "[checks]") {
  auto const matrix = some_matrix<a3>();
  auto const w = matrix.view();
  std::vector<char> one_workspace, workspace;
  auto const one = some_activations(w, 1, one_workspace);
  auto const several = some_activations(w, tokens, workspace);
  std::vector<float> y(out * tokens, -1.0F), expected(out * tokens);
  std::vector<float> const untouched = y;

  auto const other = some_matrix<gptq::format<gptq::asymmetric, 3, 64>>();
  CHECK(gptq::checked_gemv(w, several, y, {0, out}) == fault::number_of_tokens);
  CHECK(gptq::checked_gemv(other.view(), one, y, {0, out}) == fault::other_groups);
  CHECK(gptq::checked_gemv(w, one, y, {-1, out}) == fault::rows);
  CHECK(gptq::checked_gemv(w, one, y, {0, out + 1}) == fault::rows);
  CHECK(gptq::checked_gemv(w, one, std::span(y).first(out - 1), {0, out}) == fault::few_outputs);
  CHECK(gptq::checked_gemm(other.view(), several, y, {0, out}) == fault::other_groups);
  CHECK(gptq::checked_gemm(w, several, std::span(y).first(out * tokens - 1), {0, out}) == fault::few_outputs);
  CHECK(gptq::checked_gemm(w, several, y, {0, out + 1}) == fault::rows);
  CHECK(y == untouched);

  CHECK(gptq::checked_gemv(w, one, std::span(y).first(out), {0, out}) == fault::none);
  gptq::gemv(w, one, expected.data());
  CHECK(std::equal(y.begin(), y.begin() + out, expected.begin()));
  CHECK(gptq::checked_gemm(w, several, y, {0, out}) == fault::none);
  gptq::gemm(w, several, expected.data());
  CHECK(y == expected);
}

#if !defined(NDEBUG)
TEST_CASE("a debug build stops at wrong arguments", "[checks]") {
  auto const matrix = some_matrix<a3>();
  auto const w = matrix.view();
  std::vector<char> one_workspace, workspace;
  auto const one = some_activations(w, 1, one_workspace);
  auto const several = some_activations(w, tokens, workspace);
  std::vector<float> y(out * tokens);
  auto const other = some_matrix<gptq::format<gptq::asymmetric, 3, 64>>();
  float const x[in] = {};

  CHECK(last_words([&] { gptq::gemv(w, one, y.data()); }) == "(it went on)");
  CHECK(last_words([&] { gptq::gemm(w, several, y.data()); }) == "(it went on)");
  CHECK(last_words([&] { gptq::gemv(w, several, y.data()); }) ==
        "gptq::gemv: activations of more or fewer tokens than one\n");
  CHECK(last_words([&] { gptq::gemv(other.view(), one, y.data()); }) ==
        "gptq::gemv: activations of a matrix with another group size\n");
  CHECK(last_words([&] { gptq::gemm(other.view(), several, y.data()); }) ==
        "gptq::gemm: activations of a matrix with another group size\n");
  CHECK(last_words([&] {
          gptq::gemm(w, several, y.data(), {32, out + 1});
        }) == "gptq::gemm: rows that the matrix does not have\n");
  CHECK(last_words([&] {
          gptq::gemv(w, x, y.data(), {0, out + 1});
        }) == "gptq::gemv: rows that the matrix does not have\n");
}
#endif
