// Some of many values: enough to see what they look like.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <vector>

namespace lm {

/// Values that these shares of a sample are below or at: what a distribution looks like.
inline constexpr std::array<double, 9> quantile_shares{0.0, 0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.999, 1.0};
using quantiles = std::array<float, quantile_shares.size()>;

/// Values of a matrix, and tokens of a text, that are looked at, at most.
inline constexpr std::ptrdiff_t sampled_values = 65536;
inline constexpr std::ptrdiff_t sampled_tokens = 1024;

/// At most `most` of `count` things, spread evenly and yet at no fixed distance: windows have a rhythm.
inline std::vector<std::ptrdiff_t> spread(std::ptrdiff_t count, std::ptrdiff_t most) {
  std::ptrdiff_t const taken = std::min(count, most);
  std::vector<std::ptrdiff_t> chosen;
  for (std::ptrdiff_t i = 0; i < taken; ++i) {
    double const within = std::fmod(static_cast<double>(i) * 0.6180339887498949, 1.0);  // the golden ratio's
    chosen.push_back(static_cast<std::ptrdiff_t>((static_cast<double>(i) + within) *
                                                 static_cast<double>(count) / static_cast<double>(taken)));
  }
  return chosen;
}

/// All zeros where there are no values.
inline quantiles find_quantiles(std::vector<float> values) {
  std::sort(values.begin(), values.end());
  quantiles result{};
  for (std::size_t i = 0; i < result.size() && !values.empty(); ++i) {
    result[i] = values[static_cast<std::size_t>(quantile_shares[i] * static_cast<double>(values.size() - 1))];
  }
  return result;
}

}  // namespace lm
