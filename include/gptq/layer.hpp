// A quantized layer with one byte a code: what the solver returns and what pack() takes.
//
//   gptq::quantized_layer<gptq::format<gptq::symmetric, 4, 128>> layer;
//   layer.out = 2, layer.in = 4;                  // weight(row, column) = levels.decode(code, grid(row, group))
//   layer.codes = {8, 9, 10, 11, 8, 7, 6, 5};     // 0 1 2 3, 0 -1 -2 -3
//   layer.scales = {1.0F, 0.5F};
//   gptq::check(layer);                           // throws, and says what is wrong
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include <gptq/error.hpp>
#include <gptq/format.hpp>
#include <gptq/layout/permutation.hpp>

namespace gptq {

/// What quantizing a layer cost. W: weight, Q: its decoded codes, dW = W - Q, H: Hessian (2 / sequences) X'X.
/// A value that was not measured is NaN.
struct quantize_report {
  static constexpr double not_measured = std::numeric_limits<double>::quiet_NaN();

  double loss = not_measured;             ///< 1/2 tr(dW (H + damping) dW'), the published "error"
  double loss_per_token = not_measured;   ///< mean squared output error a token: loss * sequences / tokens
  double output_error = not_measured;     ///< tr(dW H dW') / tr(W H W'): relative, squared, undamped
  double snr_db = not_measured;           ///< -10 log10(output_error)
  double held_out_error = not_measured;   ///< output_error under the held-out Hessian
  double held_out_snr_db = not_measured;  ///< -10 log10(held_out_error)
  double damping = 0.0;    ///< fraction of mean(diag H) added to the diagonal, as used in the end
  int damping_raised = 0;  ///< how often the damping had to be raised to make H positive definite
  /// Quality fast and best: the layer is plain GPTQ's, which was better on held-out tokens.
  bool fell_back = false;
  index_t dead_columns = 0;  ///< inputs that were zero on every token
  double seconds_factorization = 0.0;
  double seconds_columns = 0.0;  ///< grids, column sweep and updates
  double seconds = 0.0;          ///< all of it, measurements included
};

/// Codes and grids of a layer of `out` rows and `in` columns. Stored column p is the original column
/// order[p]; an empty order means p itself. Groups are runs of Format::group_columns(in) stored columns.
template <storage_format Format>
struct quantized_layer {
  index_t out = 0;
  index_t in = 0;
  std::vector<std::uint8_t> codes;  ///< [out, in], stored column order
  std::vector<float> scales;        ///< [out, groups], each representable in Format::scale
  std::vector<std::uint8_t> zeros;  ///< [out, groups]; empty without a stored zero point
  std::vector<std::int32_t> order;  ///< [in] or empty
  quantize_report report;
  /// What scales of type e4m3 are multiples of: scales holds the products. Positive; 1 of other types.
  float matrix_scale = 1.0F;

  index_t groups() const { return Format::groups(in); }
  /// The group of a stored column.
  index_t group(index_t stored_column) const { return stored_column / Format::group_columns(in); }
  gptq::grid grid(index_t row, index_t group) const {
    auto const at = static_cast<std::size_t>(row * groups() + group);
    return {scales[at], zeros.empty() ? 0 : int{zeros[at]}};
  }
  int code(index_t row, index_t stored_column) const {
    return codes[static_cast<std::size_t>(row * in + stored_column)];
  }
};

/// Throws gptq::error, naming the first thing wrong, unless the sizes agree, every code and zero is one of
/// the format's, every scale is finite and representable, and order is empty or a permutation.
template <storage_format Format>
void check(quantized_layer<Format> const& layer);

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

inline void check_size(char const* what, std::size_t have, index_t want) {
  if (have != static_cast<std::size_t>(want)) {
    throw error(std::string("quantized layer: ") + what + " has " + std::to_string(have) + " entries, not " +
                std::to_string(want));
  }
}

/// Throws unless order[0..in) holds each of 0..in-1 once.
inline void check_permutation(std::int32_t const* order, index_t in) {
  index_t const p = permutation_fault(order, in);
  if (p == is_permutation) return;
  if (p == no_memory_for_it) throw std::bad_alloc();
  throw error("column order is not a permutation of 0.." + std::to_string(in - 1) + ": entry " +
              std::to_string(p) + " is " + std::to_string(order[p]));
}

}  // namespace detail

namespace detail {

/// Whether `scale` can be stored: e4m3 as a multiple of `matrix_scale`, as packed matrices have it.
template <class Scale>
bool is_stored_scale(float scale, float matrix_scale) {
  if (!(std::abs(scale) <= std::numeric_limits<float>::max())) return false;
  if constexpr (std::is_same_v<Scale, e4m3>) {
    return static_cast<float>(e4m3(scale / matrix_scale)) * matrix_scale == scale;
  } else {
    return static_cast<float>(Scale(scale)) == scale;
  }
}

inline bool is_matrix_scale(float scale) {
  return scale > 0.0F && scale <= std::numeric_limits<float>::max();
}

}  // namespace detail

template <storage_format Format>
void check(quantized_layer<Format> const& layer) {
  constexpr code_levels levels = Format::levels;
  if (layer.out < 0 || layer.in < 0) throw error("quantized layer: negative shape");
  index_t const groups = layer.groups();
  detail::check_size("codes", layer.codes.size(), layer.out * layer.in);
  detail::check_size("scales", layer.scales.size(), layer.out * groups);
  detail::check_size("zeros", layer.zeros.size(), Format::has_zero_point ? layer.out * groups : 0);
  if (!layer.order.empty()) {
    detail::check_size("order", layer.order.size(), layer.in);
    detail::check_permutation(layer.order.data(), layer.in);
  }
  auto const at = [](std::size_t i, index_t columns) {
    auto const n = static_cast<std::size_t>(columns);
    return "row " + std::to_string(i / n) + ", position " + std::to_string(i % n);
  };
  for (std::size_t i = 0; i < layer.codes.size(); ++i) {
    if (int const code = layer.codes[i]; code < levels.min_code || code > levels.max_code) {
      throw error("quantized layer: code " + std::to_string(code) + " at " + at(i, layer.in) +
                  " is not between " + std::to_string(levels.min_code) + " and " +
                  std::to_string(levels.max_code));
    }
  }
  for (std::size_t i = 0; i < layer.zeros.size(); ++i) {
    if (int const zero = layer.zeros[i]; zero >= 1 << Format::bits) {
      throw error("quantized layer: zero point " + std::to_string(zero) + " at " + at(i, groups) +
                  " does not fit into " + std::to_string(Format::bits) + " bits");
    }
  }
  if (Format::has_matrix_scale ? !detail::is_matrix_scale(layer.matrix_scale) : layer.matrix_scale != 1.0F) {
    throw error("quantized layer: a matrix scale of " + std::to_string(layer.matrix_scale));
  }
  for (std::size_t i = 0; i < layer.scales.size(); ++i) {
    float const scale = layer.scales[i];
    if (!detail::is_stored_scale<typename Format::scale>(scale, layer.matrix_scale)) {
      throw error("quantized layer: scale " + std::to_string(scale) + " at " + at(i, groups) +
                  " is not a finite " + std::string(to_string(Format::scales)) +
                  (Format::has_matrix_scale ? " times " + std::to_string(layer.matrix_scale) : ""));
    }
  }
}

}  // namespace gptq
