// What several tests need: random numbers, the text of an error, lists of formats, the schemes of a stranger.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gptq/error.hpp>
#include <gptq/format_spec.hpp>

#include "catch.hpp"

namespace test {

using gptq::index_t;

/// The error that `action` throws, or "" when it throws none.
template <class Action>
std::string error_of(Action&& action) {
  try {
    action();
    return "";
  } catch (gptq::error const& e) {
    return e.what();
  }
}

inline bool contains(std::string const& text, std::string const& part) {
  return text.find(part) != std::string::npos;
}

/// Random numbers that are the same on every platform, which those of the standard distributions are not.
class random {
 public:
  explicit random(std::uint32_t seed) : engine_(seed) {}
  /// 0..n-1
  int below(int n) { return static_cast<int>(engine_() % static_cast<std::uint32_t>(n)); }
  /// [0, 1)
  float unit() { return static_cast<float>(engine_() >> 8) * 0x1p-24F; }
  /// [-1, 1)
  float uniform() { return 2.0F * unit() - 1.0F; }
  /// Close to a normal distribution of variance 1.
  float normal() {
    float sum = -6.0F;
    for (int i = 0; i < 12; ++i) sum += unit();
    return sum;
  }
  std::vector<float> normals(std::size_t n) {
    std::vector<float> values(n);
    for (float& v : values) v = normal();
    return values;
  }

 private:
  std::mt19937 engine_;
};

/// Calls f.template operator()<Format>() for every format of a list.
template <class... Formats, class F>
void for_each_format(gptq::format_list<Formats...>, F&& f) {
  (f.template operator()<Formats>(), ...);
}

using own_schemes = gptq::schemes<gptq::asymmetric, gptq::symmetric, gptq::fixed_zero, gptq::half_step>;
using all_widths = gptq::bit_widths<2, 3, 4, 8>;

/// -2..2 in codes 0..4: a scheme that is no power of two wide.
struct five_levels {
  static constexpr std::string_view name = "five_levels";
  static constexpr bool has_zero_point = false;
  static constexpr int min_code(int /*bits*/) { return 0; }
  static constexpr int max_code(int /*bits*/) { return 4; }
  static constexpr float zero_point(int /*bits*/) { return 2.0F; }
};

/// -1..1 in codes 1..3, on a scale of its own: the mean magnitude.
struct mean_ternary {
  static constexpr char const* name = "mean_ternary";
  static constexpr bool has_zero_point = false;
  static constexpr int min_code(int /*bits*/) { return 1; }
  static constexpr int max_code(int /*bits*/) { return 3; }
  static constexpr float zero_point(int /*bits*/) { return 2.0F; }
  static gptq::grid find_grid(std::span<float const> weights, int /*bits*/) {
    float sum = 0.0F;
    for (float const w : weights) sum += std::abs(w);
    return {sum / static_cast<float>(weights.size()), 0};
  }
};

/// Stored zero points and a range of its own: only even zeros.
struct even_zero {
  static constexpr std::string_view name = "even_zero";
  static constexpr bool has_zero_point = true;
  static constexpr int min_code(int /*bits*/) { return 0; }
  static constexpr int max_code(int bits) { return (1 << bits) - 1; }
  static gptq::grid find_grid(std::span<float const> weights, int bits) {
    float amax = 0.0F;
    for (float const w : weights) amax = std::max(amax, std::abs(w));
    return {amax / static_cast<float>(1 << (bits - 1)), 1 << (bits - 1)};
  }
};

/// Code books: one of three bits whose levels are anywhere, one of two bits without a zero.
struct seven_levels {
  static constexpr std::string_view name = "seven_levels";
  static constexpr std::array<std::int8_t, 7> levels(int /*bits*/) { return {5, -127, 0, 127, -8, -5, 64}; }
};
struct four_levels {
  static constexpr std::string_view name = "four_levels";
  static constexpr std::array<std::int8_t, 4> levels(int /*bits*/) { return {-15, -3, 4, 15}; }
};

using stranger_formats =
    gptq::format_list<gptq::format<five_levels, 3, 32>, gptq::format<five_levels, 8, 24, float>,
                      gptq::format<mean_ternary, 2, 64>,
                      gptq::format<mean_ternary, 3, gptq::whole_row, float>, gptq::format<even_zero, 4, 32>,
                      gptq::format<even_zero, 3, gptq::whole_row>>;

}  // namespace test
