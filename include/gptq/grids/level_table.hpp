// The levels of a code book, arranged for rounding and decoding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include <gptq/config.hpp>

namespace gptq::detail {

/// The levels of a code book (scheme.hpp). Levels of which there are two have the lower code.
struct level_table {
  static constexpr int most = 16;

  int codes = 0;                ///< there are codes 0..codes-1
  int ranks = 0;                ///< different levels
  std::int8_t of_code[most]{};  ///< 0 beyond `codes`
  float ascending[most]{};      ///< the different levels
  /// What is above bounds[k] is nearer to ascending[k + 1]: halfway, itself to the level nearer to zero.
  float bounds[most - 1]{};
  float rises[most - 1]{};      ///< ascending[k + 1] - ascending[k]
  std::uint8_t code_at[256]{};  ///< the code of level l at l + 128

  /// The level nearest to `steps`. Without a branch, so that loops over it vectorize.
  GPTQ_HOST_DEVICE constexpr float nearest(float steps) const {
    float level = ascending[0];
    for (int k = 0; k < most - 1; ++k) level += steps > bounds[k] ? rises[k] : 0.0F;
    return level;
  }
  GPTQ_HOST_DEVICE constexpr std::uint8_t code(float level) const {
    return code_at[static_cast<int>(level) + 128];
  }
  /// The next level above or below one, or the one on its other side where there is none.
  constexpr float beside(float level, bool above) const {
    int rank = 0;
    while (ascending[rank] < level) ++rank;
    if (rank == (above ? ranks - 1 : 0)) above = !above;
    return ascending[rank + (above ? 1 : -1)];
  }
  GPTQ_HOST_DEVICE constexpr float highest() const { return ascending[ranks - 1]; }
  /// The least magnitude of a level.
  GPTQ_HOST_DEVICE constexpr float least() const {
    float magnitude = 256.0F;
    for (int k = 0; k < ranks; ++k) {
      float const of_level = ascending[k] < 0.0F ? -ascending[k] : ascending[k];
      magnitude = of_level < magnitude ? of_level : magnitude;
    }
    return magnitude;
  }
  /// Whether a level has no negative.
  GPTQ_HOST_DEVICE constexpr bool is_lopsided() const {
    for (int k = 0; k < ranks; ++k) {
      if (ascending[k] != -ascending[ranks - 1 - k]) return true;
    }
    return false;
  }
};

/// @param levels  an array of int8. Of more than 16 there is no table: only `codes` is set, for whoever asserts.
template <class Levels>
constexpr level_table make_level_table(Levels const& levels) {
  level_table t;
  t.codes = static_cast<int>(levels.size());
  if (t.codes > level_table::most) return t;
  bool seen[256]{};
  for (int code = t.codes - 1; code >= 0; --code) {
    std::int8_t const level = levels[static_cast<std::size_t>(code)];
    t.of_code[code] = level;
    t.code_at[level + 128] = static_cast<std::uint8_t>(code);
    seen[level + 128] = true;
  }
  for (int level = -128; level < 128; ++level) {
    if (seen[level + 128]) t.ascending[t.ranks++] = static_cast<float>(level);
  }
  for (int k = 0; k < level_table::most - 1; ++k) {
    t.bounds[k] = std::numeric_limits<float>::infinity();
    if (k + 1 >= t.ranks) continue;
    float const half = 0.5F * (t.ascending[k] + t.ascending[k + 1]);
    // The next float below a negative one: the tie itself goes up, to zero.
    t.bounds[k] = half < 0.0F ? __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, half) + 1) : half;
    t.rises[k] = t.ascending[k + 1] - t.ascending[k];
  }
  return t;
}

}  // namespace gptq::detail
