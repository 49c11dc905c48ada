// Every kernel of one architecture against the reference and, bit for bit, against the arithmetic that
// gemv.hpp and kernels.hpp document, over random shapes, between guard pages. kernels_isa.cpp holds the
// kernels.
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>

#include <gptq/isa.hpp>
#include <gptq/packed.hpp>
#include <gptq/reference.hpp>

#include "activation_model.hpp"
#include "catch.hpp"
#include "guard.hpp"
#include "kernel_cases.hpp"
#include "plain_layer.hpp"
#include "support.hpp"

using gptq::index_t;
using gptq::precision;
using test::at;
using test::place;
using test::plain_layer;
using test::x_type;

namespace {

auto const& under_test = test::architecture_under_test;

/// Ends the program before any test when the CPU cannot run the architecture: 77 is what ctest shows as
/// skipped.
struct cpu_check {
  template <class... Isas>
  static bool supported(gptq::isa::list<Isas...>) {
    return ((Isas::name == under_test.name && Isas::supported()) || ...);
  }
  cpu_check() {
    if (supported(gptq::isa::all{})) return;
    std::printf("skipped: this CPU has no %s\n", under_test.name.data());
    std::exit(77);
  }
} const checked_first;

/// What this file knows of a format; one for each of test::cases.
struct format_values {
  gptq::format_spec spec;
  gptq::code_levels levels;
  precision used_precision;
  void (*reference)(test::plain_view const&, float const* x, index_t tokens, double* y);
};

template <class Format>
void reference(test::plain_view const& w, float const* x, index_t tokens, double* y) {
  gptq::reference::gemm(test::typed<Format>(w), x, tokens, y);
}

template <class... Cases>
std::vector<format_values> values_of(test::case_list<Cases...>) {
  return {{gptq::to_spec<typename Cases::format>(), Cases::format::levels, Cases::precision,
           reference<typename Cases::format>}...};
}

std::vector<format_values> const& formats() {
  static auto const all = values_of(test::cases{});
  return all;
}

constexpr double unit = 0x1p-24;  // half of the distance from 1 to the next float: one rounding, relatively

/// W, x and what y has to be.
struct problem {
  format_values const& format;
  plain_layer layer;
  std::vector<float> x;  ///< [tokens, in]
  index_t tokens;

  double level(index_t row, index_t p) const {
    auto const group = at(row * layer.groups() + p / layer.group_columns());
    gptq::grid const g{1.0F, layer.levels.has_zero_point ? int{layer.zeros[group]} : 0};
    return static_cast<double>(layer.levels.level(layer.codes[at(row * layer.in + p)], g));
  }
  float scale(index_t row, index_t group) const { return layer.scales[at(row * layer.groups() + group)]; }
};

/// What a kernel may give: y exactly, and how far from that, and how far from the reference.
struct expectation {
  std::vector<float> y;           ///< [tokens, out]; empty with float32
  std::vector<double> unfused;    ///< |y' - y| when multiply-add rounds twice
  std::vector<double> reference;  ///< [tokens, out]
  std::vector<double> bound;      ///< |y - reference|
};

/// The documented sums of one row of one token with integer activations, and how far they may be from exact.
void model_row(problem const& p, test::model_activations const& a, index_t row, index_t token,
               expectation& expected) {
  float y = 0.0F;
  double sum_of_chunks = 0.0, bound = 0.0, magnitude = 0.0;
  for (std::size_t c = 0; c < a.chunks.size(); ++c) {
    auto const& chunk = a.chunks[c];
    auto const& x = a.cell(c, token);
    float const scale = p.scale(row, chunk.group);
    double exact[3] = {}, levels = 0.0;
    for (index_t i = 0; i < chunk.columns; ++i) {
      double const level = p.level(row, chunk.first + i);
      levels += std::abs(level);
      for (int d = 0; d < a.planes; ++d) exact[d] += level * x.digits[d][at(i)];
    }
    // Halves of at most 2^24 are floats: the sums of a plane are exact, however they are arrived at.
    float d = 0.0F;
    for (int i = a.planes - 1; i >= 0; --i) {
      d = std::fma(d, 256.0F, static_cast<float>(exact[i]));
    }
    float const factor = scale * x.scale;
    y = std::fma(d, factor, y);

    // x' of the chunk is off by the stated error, or by 2^-100 where it counts as zeros.
    double amax = 0.0;
    for (float const v : test::stored_x(p.x.data() + token * p.layer.in, chunk, p.layer.order)) {
      amax = std::max(amax, static_cast<double>(std::abs(v)));
    }
    double const weights = std::abs(static_cast<double>(scale)) * levels;
    bound += weights * (amax * test::stated_error(p.format.used_precision) + 0x1p-100);
    // Roundings: `planes` - 1 in d, one in the factor, of at most weights * amax each (1.01 covers what d is
    // larger than that, and the products of roundings); below the normal floats the factor is off by 2^-150.
    bound += weights * amax * 1.01 * unit * a.planes + std::abs(static_cast<double>(d)) * 0x1p-150;
    magnitude += weights * amax * 1.01;
    sum_of_chunks += std::abs(static_cast<double>(d) * static_cast<double>(factor));
  }
  auto const chunks = static_cast<double>(a.chunks.size());
  expected.y.push_back(y);
  // Unfused, each chunk is rounded once before it is added; and both sums round once a chunk.
  expected.unfused.push_back((2.0 * chunks + 1.0) * 1.01 * unit * sum_of_chunks + 1e-44 * chunks);
  expected.bound.push_back(bound + chunks * unit * magnitude + 1e-44 * chunks);
}

/// The same for float32: a product or a sum a column, in two halves; one sum of these, one product, one sum.
double float_bound(problem const& p, index_t row, index_t token) {
  double bound = 0.0, magnitude = 0.0;
  auto const chunks = test::chunks_of(p.layer.in, p.layer.group_columns());
  for (auto const& chunk : chunks) {
    double sum = 0.0;
    auto const x = test::stored_x(p.x.data() + token * p.layer.in, chunk, p.layer.order);
    for (index_t i = 0; i < chunk.columns; ++i) {
      sum += std::abs(p.level(row, chunk.first + i) * static_cast<double>(x[at(i)]));
    }
    double const chunk_sum = sum * std::abs(static_cast<double>(p.scale(row, chunk.group)));
    // Each of a half's columns rounds twice where multiply-add is not fused.
    double const roundings = under_test.fused ? static_cast<double>(chunk.columns + 1) / 2
                                              : 0.5 + static_cast<double>(chunk.columns);
    bound += (roundings + 3.0) * 1.01 * unit * chunk_sum;
    magnitude += chunk_sum;
  }
  return bound + static_cast<double>(chunks.size()) * 1.01 * unit * magnitude + 1e-40;
}

/// The buffers of a problem: each in memory of its own between guard pages.
struct memory {
  std::array<test::guarded_memory, 7> parts{test::guarded_memory(1 << 22), test::guarded_memory(1 << 22),
                                            test::guarded_memory(1 << 20), test::guarded_memory(1 << 20),
                                            test::guarded_memory(1 << 22), test::guarded_memory(1 << 22),
                                            test::guarded_memory(1 << 24)};
};

memory& guarded() {
  static memory all;
  return all;
}

#if defined(__has_feature)
#if __has_feature(undefined_behavior_sanitizer)
#define GPTQ_TEST_SANITIZED 1
#endif
#endif
#if defined(GPTQ_TEST_SANITIZED)
// What is behind a float* or int32_t* is accessed as such in a few places; the sanitizer minds.
constexpr std::size_t odd_float = 4;
#else
constexpr std::size_t odd_float = 1;
#endif

struct packed_bytes {
  std::vector<std::uint8_t> codes, scales, zeros;
};

packed_bytes bytes_of(plain_layer const& layer) {
  auto const documented = test::bytes_as_documented(layer);
  packed_bytes bytes{documented.codes, {}, documented.zeros};
  for (float const scale : documented.scales) {
    std::uint8_t raw[4];
    std::size_t size = 4;
    if (layer.spec.scales == gptq::scale_type::float16) {
      gptq::float16 const half(scale);
      size = 2;
      std::memcpy(raw, &half, size);
    } else if (layer.spec.scales == gptq::scale_type::float32) {
      std::memcpy(raw, &scale, size);
    } else {
      size = 1;
      raw[0] = layer.spec.scales == gptq::scale_type::e8m0 ? gptq::e8m0(scale).bits
                                                           : gptq::e4m3(scale / layer.matrix_scale).bits;
    }
    bytes.scales.insert(bytes.scales.end(), raw, raw + size);
  }
  return bytes;
}

constexpr std::uint32_t untouched = 0x7fbeef01;

/// Calls a product of rows first..last-1 and returns y[tokens, out]; throws where it wrote outside of them.
template <class Call>
std::vector<float> rows_of(place where, index_t tokens, index_t out, index_t first, index_t last,
                           Call&& call) {
  std::size_t const count = at(tokens * out);
  std::vector<std::uint32_t> const before(count, untouched);
  std::uint32_t* const y = test::put(guarded().parts[5], where, before.data(), count, odd_float);
  call(reinterpret_cast<float*>(y));
  std::vector<float> values(count);
  if (count != 0) std::memcpy(values.data(), static_cast<void const*>(y), 4 * count);
  for (index_t i = 0; i < tokens * out; ++i) {
    bool const ours = first <= i % out && i % out < last;
    bool const same = std::bit_cast<std::uint32_t>(values[at(i)]) == untouched;
    if (!ours && !same) throw std::string("wrote row " + std::to_string(i % out) + ", not asked for");
    if (ours && same) throw std::string("left out row " + std::to_string(i % out));
  }
  return values;
}

bool same_float(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) ||
         std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

/// "" or how a value differs from what it must be.
std::string mistake_in(char const* what, problem const& p, expectation const& expected,
                       std::vector<float> const& y, index_t first_token, index_t tokens, index_t first,
                       index_t last) {
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t row = first; row < last; ++row) {
      float const value = y[at(t * p.layer.out + row)];
      auto const i = at((first_token + t) * p.layer.out + row);
      double const reference = expected.reference[i];
      bool right = true;
      if (std::isnan(reference) || (std::isinf(reference) && expected.y.empty())) {
        right = std::isnan(reference) ? std::isnan(value) : static_cast<double>(value) == reference;
      } else {
        right = std::abs(static_cast<double>(value) - reference) <= expected.bound[i];
        if (!expected.y.empty()) {
          right = right && (under_test.fused
                                ? same_float(value, expected.y[i])
                                : std::abs(static_cast<double>(value) - static_cast<double>(expected.y[i])) <=
                                      expected.unfused[i]);
        }
      }
      if (!right) {
        char text[200];
        std::snprintf(text, sizeof text, "%s, token %d, row %d: %.9g, not %.9g; reference %.12g +- %.3g",
                      what, static_cast<int>(first_token + t), static_cast<int>(row),
                      static_cast<double>(value),
                      expected.y.empty() ? reference : static_cast<double>(expected.y[i]), reference,
                      expected.bound[i]);
        return text;
      }
    }
  }
  return "";
}

/// What there is to run.
struct run_options {
  place where = place::end;
  index_t first = 0;
  index_t last = 0;
  bool in_shares = false;  ///< the rest of the rows as well, in calls of their own
};

expectation expected_of(problem const& p, test::model_activations const& a, test::plain_view const& view) {
  expectation expected;
  expected.reference.resize(at(p.tokens * p.layer.out));
  p.format.reference(view, p.x.data(), p.tokens, expected.reference.data());
  bool const integers = p.format.used_precision != precision::float32;
  for (index_t token = 0; token < p.tokens; ++token) {
    bool finite = true;
    for (index_t i = 0; i < p.layer.in; ++i)
      finite = finite && std::isfinite(p.x[at(token * p.layer.in + i)]);
    for (index_t row = 0; row < p.layer.out; ++row) {
      if (integers) {
        model_row(p, a, row, token, expected);
        // Promised with integers: NaN in every y.
        if (!finite)
          expected.reference[at(token * p.layer.out + row)] = std::numeric_limits<double>::quiet_NaN();
      } else {
        expected.bound.push_back(float_bound(p, row, token));
      }
    }
  }
  return expected;
}

/// The first promise that a kernel breaks on a problem, or "".
std::string broken_promise(test::kernel const& kernel, problem const& p, run_options const& options) {
  auto& parts = guarded().parts;
  auto const bytes = bytes_of(p.layer);
  index_t const in = p.layer.in, out = p.layer.out;
  auto const a = test::prepared_model(kernel.precision, p.x, in, p.layer.group_columns(), p.layer.order);
  place const where = options.where;
  bool const floats = p.layer.spec.scales == gptq::scale_type::float32;
  test::plain_view const view{
      test::put(parts[0], where, bytes.codes.data(), bytes.codes.size(), 1),
      test::put(parts[1], where, bytes.scales.data(), bytes.scales.size(), floats ? 2 : 1),
      bytes.zeros.empty() ? nullptr : test::put(parts[2], where, bytes.zeros.data(), bytes.zeros.size(), 1),
      p.layer.order.empty()
          ? nullptr
          : test::put(parts[3], where, p.layer.order.data(), p.layer.order.size(), odd_float),
      out,
      in,
      p.layer.matrix_scale};
  // The reference reads through plain pointers.
  packed_bytes const aligned = bytes;
  test::plain_view const for_reference{aligned.codes.data(),
                                       aligned.scales.data(),
                                       aligned.zeros.data(),
                                       p.layer.order.empty() ? nullptr : p.layer.order.data(),
                                       out,
                                       in,
                                       p.layer.matrix_scale};
  auto const expected = expected_of(p, a, for_reference);
  index_t const first = options.first, last = options.last;

  try {
    // gemm: all tokens.
    void const* const workspace = test::put(parts[6], where, a.bytes.data(), a.bytes.size(), 4);
    if (kernel.gemm != nullptr) {
      auto const y = rows_of(where, p.tokens, out, first, last,
                             [&](float* rows) { kernel.gemm(view, workspace, p.tokens, rows, first, last); });
      auto const mistake = mistake_in("gemm", p, expected, y, 0, p.tokens, first, last);
      if (!mistake.empty()) return mistake;
      // Whoever's bits gemm has, gemv has them too.
      for (index_t t = 0; t < std::min<index_t>(p.tokens, 3); ++t) {
        index_t const token = (t * 7) % p.tokens;
        std::vector<float> const x(p.x.begin() + token * in, p.x.begin() + (token + 1) * in);
        auto const one =
            test::prepared_model(kernel.precision, x, in, p.layer.group_columns(), p.layer.order);
        void const* const prepared = test::put(parts[6], where, one.bytes.data(), one.bytes.size(), 4);
        auto const y1 = rows_of(where, 1, out, first, last,
                                [&](float* rows) { kernel.gemv(view, prepared, 1, rows, first, last); });
        for (index_t row = first; row < last; ++row) {
          if (!same_float(y1[at(row)], y[at(token * out + row)])) return "gemm and gemv differ";
        }
      }
    }
    // gemv: the last token.
    index_t const token = p.tokens - 1;
    std::vector<float> const x(p.x.begin() + token * in, p.x.end());
    auto const one = test::prepared_model(kernel.precision, x, in, p.layer.group_columns(), p.layer.order);
    void const* const prepared = test::put(parts[6], where, one.bytes.data(), one.bytes.size(), 4);
    auto const gemv = [&](index_t from, index_t to) {
      return rows_of(where, 1, out, from, to,
                     [&](float* rows) { kernel.gemv(view, prepared, 1, rows, from, to); });
    };
    auto const y = gemv(first, last);
    auto const mistake = mistake_in("gemv", p, expected, y, token, 1, first, last);
    if (!mistake.empty()) return mistake;
    if (options.in_shares) {
      auto const before = gemv(0, first), after = gemv(last, out), all = gemv(0, out);
      for (index_t row = 0; row < out; ++row) {
        float const share = row < first ? before[at(row)] : row < last ? y[at(row)] : after[at(row)];
        if (!same_float(share, all[at(row)])) return "shares differ from the whole";
      }
    }
    if (kernel.raw_gemv != nullptr) {
      float const* const raw_x = test::put(parts[4], where, x.data(), x.size(), odd_float);
      auto const raw = rows_of(where, 1, out, first, last, [&](float* rows) {
        kernel.raw_gemv(view, x_type::float32, raw_x, rows, first, last);
      });
      auto const in_raw = mistake_in("gemv from x", p, expected, raw, token, 1, first, last);
      if (!in_raw.empty()) return in_raw;
      for (index_t row = first; row < last; ++row) {
        if (!same_float(raw[at(row)], y[at(row)])) return "gemv from x and from prepared x differ";
      }
    }
  } catch (std::string const& mistake) {
    return mistake;
  }
  return "";
}

/// A random problem of a shape: what seed and shape make of it is the same in every program.
problem random_problem(format_values const& format, index_t out, index_t in, index_t tokens,
                       std::uint32_t seed) {
  test::random random(seed);
  problem p{
      format, test::random_layer(format.spec, format.levels, out, in, seed % 2 == 1, random), {}, tokens};
  p.x = random.normals(at(tokens * in));
  // Groups of chunks of other magnitudes, and a few zeros.
  for (index_t i = 0; i < tokens * in; ++i) {
    if (i % 97 < 31 && seed % 3 == 0) p.x[at(i)] *= 0x1p-9F;
    if (random.below(16) == 0) p.x[at(i)] = 0.0F;
  }
  return p;
}

/// Where a random share starts and ends.
run_options random_options(index_t out, std::uint32_t seed) {
  test::random random(seed ^ 0x5eedu);
  run_options options;
  options.where = static_cast<place>(seed % 3);
  options.last = out;
  options.in_shares = seed % 4 == 0;
  if (seed % 2 == 0) {
    options.first = random.below(static_cast<int>(out) + 1);
    options.last = options.first + random.below(static_cast<int>(out - options.first) + 1);
  }
  return options;
}

std::string text_of(test::kernel const& kernel, format_values const& format) {
  char const* const names[] = {"int8", "int15", "int23", "float32"};
  return std::string(under_test.name) + ", " + gptq::to_string(format.spec) + ", " +
         names[static_cast<int>(kernel.precision)];
}

/// Checks a shape; a failure is reported for the smallest shape found to fail.
void check_shape(test::kernel const& kernel, format_values const& format, index_t out, index_t in,
                 index_t tokens, std::uint32_t seed) {
  auto const broken = [&](index_t rows, index_t columns, index_t of_tokens) -> std::string {
    if (rows < 1 || columns < 1 || of_tokens < 1) return "";
    return broken_promise(kernel, random_problem(format, rows, columns, of_tokens, seed),
                          random_options(rows, seed));
  };
  std::string promise = broken(out, in, tokens);
  if (promise.empty()) return;
  for (bool smaller = true; smaller;) {
    smaller = false;
    std::array<index_t, 3> const shapes[] = {{out / 2, in, tokens}, {out, in / 2, tokens},
                                             {out, in, tokens / 2}, {out - 1, in, tokens},
                                             {out, in - 1, tokens}, {out, in, tokens - 1}};
    for (auto const& shape : shapes) {
      std::string const still = broken(shape[0], shape[1], shape[2]);
      if (still.empty()) continue;
      promise = still;
      out = shape[0];
      in = shape[1];
      tokens = shape[2];
      smaller = true;
      break;
    }
  }
  FAIL_CHECK(text_of(kernel, format) << ", " << out << " x " << in << ", " << tokens << " tokens, seed "
                                     << seed << ": " << promise);
}

/// Calls check(kernel, format) for every kernel.
void for_each_kernel(std::function<void(test::kernel const&, format_values const&)> const& check) {
  REQUIRE(under_test.kernels.size() == formats().size());
  for (std::size_t i = 0; i < formats().size(); ++i) {
    REQUIRE(under_test.kernels[i].precision == formats()[i].used_precision);
    check(under_test.kernels[i], formats()[i]);
  }
}

/// A problem all of whose codes, scales and x are given by functions.
problem made_problem(format_values const& format, index_t out, index_t in, index_t tokens,
                     std::function<int(index_t, index_t)> const& code,
                     std::function<float(index_t, index_t)> const& x,
                     std::function<int(index_t)> const& zero) {
  plain_layer layer{format.spec, format.levels, out, in, {}, {}, {}, {}, 1.0F};
  for (index_t row = 0; row < out; ++row) {
    for (index_t i = 0; i < in; ++i) layer.codes.push_back(static_cast<std::uint8_t>(code(row, i)));
  }
  layer.scales.assign(at(out * layer.groups()), 1.0F);
  if (format.levels.has_zero_point) {
    for (index_t row = 0; row < out; ++row) {
      for (index_t g = 0; g < layer.groups(); ++g)
        layer.zeros.push_back(static_cast<std::uint8_t>(zero(row)));
    }
  }
  std::vector<float> values;
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t i = 0; i < in; ++i) values.push_back(x(t, i));
  }
  return {format, layer, values, tokens};
}

}  // namespace

TEST_CASE("the flags choose the architecture", "[kernels]") {
  // More than its own flags may be on the command line (-march=native), never fewer.
#if !defined(GPTQ_TEST_MORE_FLAGS)
#if defined(__aarch64__)
  if (under_test.name == "generic") return;  // no flags leave AArch64 without its own kernels
#endif
  CHECK(under_test.native == under_test.name);
#endif
}

TEST_CASE("random products", "[kernels]") {
  for_each_kernel([](test::kernel const& kernel, format_values const& format) {
    bool const gemm = kernel.gemm != nullptr;
    for (auto const& [out, in] :
         {std::pair<index_t, index_t>{1, 1}, {1, 200}, {35, 1}, {16, 128}, {33, 290}, {64, 256}}) {
      check_shape(kernel, format, out, in, 1, 0);
      check_shape(kernel, format, out, in, gemm ? 3 : 1, 1);
    }
    for (std::uint32_t seed = 2; seed < 14; ++seed) {
      test::random random(seed);
      index_t const out = 1 + random.below(70);
      index_t const in = 1 + random.below(400);
      check_shape(kernel, format, out, in, gemm ? 1 + random.below(20) : 1, seed);
    }
  });
}

// Not run unless asked for: kernels_<isa>_test "[random]", for GPTQ_TEST_SECONDS (60), from GPTQ_TEST_SEED on (1).
TEST_CASE("random products without end", "[.][random]") {
  auto const number = [](char const* name, std::uint32_t otherwise) {
    char const* const text = std::getenv(name);
    return text == nullptr ? otherwise : static_cast<std::uint32_t>(std::strtoul(text, nullptr, 10));
  };
  std::uint32_t const begin = number("GPTQ_TEST_SEED", 1);
  std::uint32_t seed = begin;
  auto const end = std::chrono::steady_clock::now() + std::chrono::seconds(number("GPTQ_TEST_SECONDS", 60));
  for (; std::chrono::steady_clock::now() < end; ++seed) {
    test::random random(seed);
    auto const i = static_cast<std::size_t>(random.below(static_cast<int>(formats().size())));
    test::kernel const& kernel = under_test.kernels[i];
    // Mostly small, where every remainder is met; now and then as long as what is prepared in several rounds.
    bool const is_long = random.below(50) == 0, is_wide = !is_long && random.below(50) == 0;
    index_t const out = 1 + random.below(is_wide ? 300 : 70);
    index_t const in = 1 + random.below(is_long ? 16000 : 500);
    bool const many = random.below(20) == 0 && !is_long;
    index_t const tokens = kernel.gemm == nullptr ? 1 : 1 + random.below(many ? 300 : is_long ? 4 : 20);
    check_shape(kernel, formats()[i], out, in, tokens, seed);
  }
  std::printf("%s: %u random products, seeds %u to %u\n", under_test.name.data(), seed - begin, begin,
              seed - 1);
}

TEST_CASE("every number of tokens", "[kernels]") {
  for_each_kernel([](test::kernel const& kernel, format_values const& format) {
    if (kernel.gemm == nullptr) return;
    for (index_t tokens = 1; tokens <= 20; ++tokens) {
      check_shape(kernel, format, 18, 136, tokens, static_cast<std::uint32_t>(100 + tokens));
    }
    // More than share a panel.
    for (index_t const tokens : {127, 128, 129, 143}) {
      check_shape(kernel, format, 34, 72, tokens, static_cast<std::uint32_t>(tokens));
    }
    check_shape(kernel, format, 17, 40, 261, 262);
  });
}

TEST_CASE("x on the stack in several rounds", "[kernels]") {
  // gemv from x prepares 16 KiB at a time: 120 to 341 chunks of 8 columns, 32 to 113 of 128. The second round
  // starts inside of a group where groups have several chunks.
  for_each_kernel([](test::kernel const& kernel, format_values const& format) {
    if (kernel.raw_gemv == nullptr) return;
    for (index_t const in : {1030, 4100, 15000}) {
      check_shape(kernel, format, 3, in, 1, 5);
      check_shape(kernel, format, 18, in, 1, 6);
    }
  });
}

TEST_CASE("integer products are exact", "[kernels]") {
  // Codes and x at their extremes, every sum as large as it can be. With x an integer and amax 127 * 256^k (k
  // of the top plane), scale is 1, digits are those of x, and y is an integer.
  for_each_kernel([](test::kernel const& kernel, format_values const& format) {
    if (kernel.precision == precision::float32) return;
    int const planes = 1 + static_cast<int>(kernel.precision);
    float const amax = std::ldexp(127.0F, 8 * (planes - 1));
    bool const in_table = format.levels.is_code_book();
    int const low = in_table ? format.levels.encode(-1000.0F, {}) : format.levels.min_code;
    int const high = in_table ? format.levels.encode(1000.0F, {}) : format.levels.max_code;
    int const top_zero = (1 << format.spec.bits) - 1;
    // -128, -128, ... in all planes but the top one: the lowest sums of a plane.
    float const lowest = planes == 1   ? -127.0F
                         : planes == 2 ? -128.0F - 126 * 256.0F
                                       : -128.0F - 128 * 256.0F - 126 * 65536.0F;
    float const highest = planes == 1   ? 127.0F
                          : planes == 2 ? 127.0F + 126 * 256.0F
                                        : 127.0F + 127 * 256.0F + 126 * 65536.0F;
    using code_of = std::function<int(index_t, index_t)>;
    using x_of = std::function<float(index_t, index_t)>;
    code_of const codes[] = {[=](index_t, index_t) { return low; }, [=](index_t, index_t) { return high; },
                             [=](index_t r, index_t i) { return (r + i) % 2 == 0 ? low : high; },
                             [=](index_t r, index_t i) { return (r + i / 2) % 2 == 0 ? low : high; }};
    x_of const xs[] = {[=](index_t, index_t) { return amax; },
                       [=](index_t, index_t) { return -amax; },
                       [=](index_t, index_t i) { return i % 2 == 0 ? amax : -amax; },
                       [=](index_t, index_t i) { return i / 2 % 2 == 0 ? -amax : amax; },
                       [=](index_t t, index_t i) { return i % 128 == t ? amax : lowest; },
                       [=](index_t t, index_t i) { return i % 128 == 2 * t ? amax : highest; },
                       [=](index_t t, index_t i) {
                         return i % 64 == 3 * t ? amax : i % 2 == 0 ? lowest : highest;
                       }};
    for (index_t const in : {24, 64, 128, 131, 256}) {
      for (auto const& code : codes) {
        for (auto const& x : xs) {
          auto const p = made_problem(format, 16, in, 9, code, x,
                                      [=](index_t row) { return row % 2 == 0 ? 0 : top_zero; });
          run_options options;
          options.last = 16;
          auto const promise = broken_promise(kernel, p, options);
          if (promise.empty()) continue;
          FAIL_CHECK(text_of(kernel, format)
                     << ", in " << in << ", codes " << &code - codes << ", x " << &x - xs << ": " << promise);
          return;
        }
      }
    }
  });
}

TEST_CASE("x at the limits of float", "[kernels]") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr float max = std::numeric_limits<float>::max();
  for_each_kernel([&](test::kernel const& kernel, format_values const& format) {
    // One such value in an otherwise ordinary chunk; whole tokens of them.
    for (float const value :
         {inf, -inf, nan, 0.0F, -0.0F, 1e-45F, -1e-39F, 0x1p-101F, 0x1p-100F, -0x1.8p-100F, 1e30F}) {
      for (index_t const in : {1, 20, 300}) {
        for (bool const alone : {true, false}) {
          auto p = random_problem(format, 19, in, 7, 11);
          for (index_t i = 0; i < 7 * in; ++i) {
            if (!alone || i % in == in / 2) p.x[at(i)] = value;
          }
          // The first token stays as it was: nothing leaks from one to the next.
          run_options options;
          options.last = 19;
          auto const promise = broken_promise(kernel, p, options);
          if (!promise.empty()) {
            FAIL_CHECK(text_of(kernel, format) << ", in " << in << ", x " << value
                                               << (alone ? " once: " : " everywhere: ") << promise);
          }
        }
      }
    }
    // x as large as a float can be, with scales that bring y back: 40 levels of at most 255 are below 2^14.
    // The float32 kernels, which sum before they scale, have no such headroom.
    auto p = random_problem(format, 16, 40, 3, 12);
    bool const has_sign = format.spec.scales != gptq::scale_type::e8m0;
    for (float& scale : p.layer.scales) scale = scale < 0.0F && has_sign ? -0x1p-15F : 0x1p-15F;
    if (format.spec.scales == gptq::scale_type::e4m3) p.layer.matrix_scale = 0x1p-15F;
    float const largest = kernel.precision == precision::float32 ? 0x1p110F : max;
    for (float& v : p.x) v = v < 0.0F ? -largest : largest;
    run_options options;
    options.last = 16;
    auto const promise = broken_promise(kernel, p, options);
    if (!promise.empty()) FAIL_CHECK(text_of(kernel, format) << ", huge x: " << promise);
  });
}

TEST_CASE("nothing to multiply", "[kernels]") {
  for_each_kernel([](test::kernel const& kernel, format_values const& format) {
    run_options options;
    plain_layer empty{format.spec, format.levels, 3, 0, {}, {}, {}, {}};
    test::plain_view const view{nullptr, nullptr, nullptr, nullptr, 3, 0};
    float y[3] = {1.0F, 1.0F, 1.0F};
    kernel.gemv(view, nullptr, 1, y, 0, 3);
    CHECK((y[0] == 0.0F && y[1] == 0.0F && y[2] == 0.0F));
    if (kernel.raw_gemv != nullptr) {
      y[0] = y[1] = y[2] = 1.0F;
      kernel.raw_gemv(view, x_type::float32, nullptr, y, 1, 3);
      CHECK((y[0] == 1.0F && y[1] == 0.0F && y[2] == 0.0F));
    }
    if (kernel.gemm != nullptr) {
      std::vector<float> many(3 * 12, 1.0F);
      kernel.gemm(view, nullptr, 12, many.data(), 0, 3);
      CHECK(many == std::vector<float>(3 * 12, 0.0F));
      kernel.gemm(view, nullptr, 0, nullptr, 0, 3);
    }
    auto const p = random_problem(format, 20, 40, 2, 3);
    for (index_t const row : {0, 7, 16, 20}) {
      options.first = options.last = row;
      CHECK(broken_promise(kernel, p, options).empty());
    }
  });
}

TEST_CASE("16-bit x is the float of the same value", "[kernels]") {
  for_each_kernel([](test::kernel const& kernel, format_values const& format) {
    if (kernel.raw_gemv == nullptr || format.spec.group_size != 128) return;
    auto p = random_problem(format, 21, 300, 1, 9);
    auto const bytes = bytes_of(p.layer);
    test::plain_view const view{
        bytes.codes.data(), bytes.scales.data(), bytes.zeros.data(), p.layer.order.data(), 21, 300};
    auto const check = [&]<class T>(x_type type, T) {
      std::vector<T> narrow;
      for (float const v : p.x) narrow.push_back(static_cast<T>(v));
      std::vector<float> wide;
      for (T const v : narrow) wide.push_back(static_cast<float>(v));
      std::vector<float> expected(21), y(21);
      kernel.raw_gemv(view, x_type::float32, wide.data(), expected.data(), 0, 21);
      for (place const where : {place::end, place::start, place::unaligned}) {
        kernel.raw_gemv(
            view, type,
            test::put(guarded().parts[4], where, narrow.data(), narrow.size(), odd_float == 1 ? 1 : 2),
            y.data(), 0, 21);
        CHECK(y == expected);
      }
    };
    check(x_type::float16, gptq::float16());
    check(x_type::bfloat16, gptq::bfloat16());
  });
}

TEST_CASE("three planes are as exact as float32", "[kernels]") {
  for_each_kernel([](test::kernel const& kernel, format_values const& format) {
    if (kernel.precision != precision::int23 || kernel.raw_gemv == nullptr) return;
    auto const p = random_problem(format, 64, 4096, 1, 14);
    auto const bytes = bytes_of(p.layer);
    test::plain_view const view{bytes.codes.data(),
                                bytes.scales.data(),
                                bytes.zeros.data(),
                                p.layer.order.empty() ? nullptr : p.layer.order.data(),
                                64,
                                4096};
    std::vector<double> expected(64);
    format.reference(view, p.x.data(), 1, expected.data());
    std::vector<float> y(64);
    kernel.raw_gemv(view, x_type::float32, p.x.data(), y.data(), 0, 64);
    double error = 0.0, norm = 0.0;
    for (std::size_t i = 0; i < 64; ++i) {
      error += std::pow(static_cast<double>(y[i]) - expected[i], 2);
      norm += std::pow(expected[i], 2);
    }
    CHECK(std::sqrt(error / norm) < 1e-6);
  });
}

TEST_CASE("prepared activations are the same bytes on every architecture", "[kernels]") {
  for (auto const& preparation : under_test.preparations) {
    for (std::uint32_t seed = 0; seed < 24; ++seed) {
      test::random random(seed);
      index_t const in = seed == 0 ? 1 : 1 + random.below(600);
      index_t const tokens = 1 + random.below(6);
      index_t const group = preparation.group_size == gptq::whole_row ? in : preparation.group_size;
      auto const type = static_cast<x_type>(seed % 3);
      auto const where = static_cast<place>(seed / 3 % 3);
      std::vector<float> x = random.normals(at(tokens * in));
      float const specials[] = {std::numeric_limits<float>::infinity(),
                                std::numeric_limits<float>::quiet_NaN(),
                                std::numeric_limits<float>::max(),
                                0x1p-100F,
                                0x1p-101F,
                                1e-42F,
                                -0.0F};
      for (float& v : x) {
        if (seed % 4 == 3 && random.below(100) == 0) v = specials[random.below(7)];
        if (seed % 4 == 2) v = std::ldexp(v, 40 * (random.below(5) - 3));
        if (type == x_type::float16) v = gptq::float16(v);
        if (type == x_type::bfloat16) v = gptq::bfloat16(v);
      }
      std::vector<std::uint8_t> raw;
      for (float const v : x) {
        std::uint8_t bytes[4];
        gptq::float16 const half(v);
        gptq::bfloat16 const brain(v);
        std::memcpy(bytes,
                    type == x_type::float32   ? static_cast<void const*>(&v)
                    : type == x_type::float16 ? static_cast<void const*>(&half)
                                              : &brain,
                    type == x_type::float32 ? 4 : 2);
        raw.insert(raw.end(), bytes, bytes + (type == x_type::float32 ? 4 : 2));
      }
      std::vector<std::int32_t> order;
      if (seed % 2 == 1) {
        order.resize(at(in));
        std::iota(order.begin(), order.end(), 0);
        for (index_t i = in - 1; i > 0; --i)
          std::swap(order[at(i)], order[at(random.below(static_cast<int>(i) + 1))]);
      }
      CAPTURE(under_test.name, static_cast<int>(preparation.precision), seed, in, tokens);
      auto const model = test::prepared_model(preparation.precision, x, in, group, order);
      REQUIRE(preparation.bytes(in, tokens) == model.bytes.size());
      std::vector<std::uint8_t> const garbage(model.bytes.size(), 0xa5);
      auto& parts = guarded().parts;
      std::uint8_t* const workspace = test::put(parts[6], where, garbage.data(), garbage.size(), 4);
      test::plain_view const view{
          nullptr,
          nullptr,
          nullptr,
          order.empty() ? nullptr : test::put(parts[3], where, order.data(), order.size(), odd_float),
          16,
          in};
      void const* const placed = test::put(parts[4], where, raw.data(), raw.size(), odd_float);
      // In three shares, the last one first; a part outside of a share stays as it is.
      index_t const split = random.below(static_cast<int>(tokens) + 1);
      preparation.run(view, type, placed, tokens, workspace, split, tokens);
      preparation.run(view, type, placed, tokens, workspace, split, split);
      preparation.run(view, type, placed, tokens, workspace, 0, split);
      bool const same = std::memcmp(workspace, model.bytes.data(), model.bytes.size()) == 0;
      if (preparation.precision == precision::float32) {
        // NaN may have any payload.
        bool alike = true;
        for (std::size_t i = 0; i < model.bytes.size() / 4; ++i) {
          float a = 0.0F, b = 0.0F;
          std::memcpy(&a, workspace + 4 * i, 4);
          std::memcpy(&b, model.bytes.data() + 4 * i, 4);
          alike = alike && same_float(a, b);
        }
        CHECK(alike);
      } else {
        CHECK(same);
      }
    }
  }
}
