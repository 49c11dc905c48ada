// Rounding to the levels of any scheme, for loops that are written once: over codes as floats, from which the zero
// point is taken off. A code book's codes are its levels there, and its zero point is 0.
#pragma once

#include <algorithm>
#include <cstdint>

#include <gptq/grids/rounding.hpp>
#include <gptq/scheme.hpp>

namespace gptq::detail {

/// A uniform scheme's codes: themselves.
template <bool HalfStep>
struct code_rounding {
  static constexpr bool by_table = false;
  float lowest;
  float highest;

  explicit code_rounding(code_levels const& levels)
      : lowest(static_cast<float>(levels.min_code)), highest(static_cast<float>(levels.max_code)) {}
  /// @param divisor  safe_divisor() of the scale
  float nearest(float weight, float divisor, float zero) const {
    return nearest_code<HalfStep>(weight, divisor, zero, lowest, highest);
  }
  static std::uint8_t stored(float code) { return static_cast<std::uint8_t>(static_cast<int>(code)); }
  static float loaded(std::uint8_t code) { return static_cast<float>(code); }
};

/// A code book's. Loops that round do not vectorize if they store codes, too.
struct level_rounding {
  static constexpr bool by_table = true;
  level_table const& table;
  float lowest;
  float bounds[level_table::most - 1];
  float rises[level_table::most - 1];

  explicit level_rounding(code_levels const& levels) : table(*levels.table), lowest(table.ascending[0]) {
    std::copy(std::begin(table.bounds), std::end(table.bounds), bounds);
    std::copy(std::begin(table.rises), std::end(table.rises), rises);
  }
  float nearest(float weight, float divisor, float /*zero*/) const {
    float const steps = weight / divisor;
    float level = lowest;
    for (int k = 0; k < level_table::most - 1; ++k) level += steps > bounds[k] ? rises[k] : 0.0F;
    return level;
  }
  std::uint8_t stored(float level) const { return table.code(level); }
  float loaded(std::uint8_t code) const { return static_cast<float>(table.of_code[code]); }
};

/// f of what rounds to these levels.
template <class F>
decltype(auto) with_rounding(code_levels const& levels, F&& f) {
  if (levels.is_code_book()) return f(level_rounding(levels));
  if (levels.is_half_step()) return f(code_rounding<true>(levels));
  return f(code_rounding<false>(levels));
}

}  // namespace gptq::detail
