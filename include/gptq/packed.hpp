// Packed matrices: made from quantized layers, owned, and checked where they come from elsewhere.
//
//   auto packed = gptq::pack(layer);                 // layer.hpp -> aligned memory that `packed` owns
//   gptq::packed_view<q4> w = packed.view();         // pointers and a shape: what kernels take
//   auto same = gptq::unpack(w);                     // and back
//
// layout.hpp says where every code lies.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <gptq/checks.hpp>
#include <gptq/error.hpp>
#include <gptq/layer.hpp>
#include <gptq/layout.hpp>
#include <gptq/layout/aligned.hpp>
#include <gptq/layout/packing.hpp>

namespace gptq {

/// Throws gptq::error, naming the first thing wrong, if find_fault(view) of checks.hpp finds something: kernels
/// cannot be given this view.
template <storage_format Format>
void check(packed_view<Format> const& view) {
  detail::throw_fault(view);
}

/// make_view() of checks.hpp and check(view): a view of memory that comes from elsewhere, or gptq::error.
template <storage_format Format>
packed_view<Format> checked_view(index_t out, index_t in, std::span<std::uint8_t const> codes,
                                 std::span<typename Format::scale const> scales,
                                 std::span<std::uint8_t const> zeros = {},
                                 std::span<std::int32_t const> order = {},
                                 detail::matrix_scale_of<Format> matrix_scale = {}) {
  packed_view<Format> view;
  fault const what = make_view(view, out, in, codes, scales, zeros, order, matrix_scale);
  if (what != fault::none) {
    throw error("packed matrix of " + std::to_string(out) + " x " + std::to_string(in) + ": " +
                message(what));
  }
  check(view);
  return view;
}

/// A packed matrix that owns its memory, aligned to 64 bytes.
template <storage_format Format>
class packed_matrix {
 public:
  packed_matrix() = default;
  /// All codes, scales and zeros 0, columns in their original order. Throws gptq::error on a negative shape.
  packed_matrix(index_t out, index_t in);

  index_t out() const { return out_; }
  index_t in() const { return in_; }
  packed_layout<Format> layout() const { return {out_, in_}; }
  packed_view<Format> view() const;
  /// Bytes of codes, scales, zeros and column order, padding included.
  index_t bytes() const;
  /// Bits a weight, padding included: 8 * bytes() / (out * in).
  double bits_per_weight() const;

  /// All of it, to be written.
  packed_memory<Format> memory() {
    return {codes_.data(),
            scales_.data(),
            Format::has_zero_point ? zeros_.data() : nullptr,
            order_.empty() ? nullptr : order_.data(),
            out_,
            in_,
            matrix_scale_};
  }
  std::uint8_t* codes() { return codes_.data(); }
  typename Format::scale* scales() { return scales_.data(); }
  std::uint8_t* zeros() { return zeros_.data(); }
  /// Empty, or in() entries: a permutation of the columns.
  std::vector<std::int32_t>& order() { return order_; }
  /// The float that all scales are multiples of, where Format::has_matrix_scale.
  detail::matrix_scale_of<Format>& matrix_scale() { return matrix_scale_; }

 private:
  index_t out_ = 0;
  index_t in_ = 0;
  detail::aligned_vector<std::uint8_t> codes_;
  detail::aligned_vector<typename Format::scale> scales_;
  detail::aligned_vector<std::uint8_t> zeros_;
  std::vector<std::int32_t> order_;
  [[no_unique_address]] detail::matrix_scale_of<Format> matrix_scale_{};
};

/// Packs a layer into memory of the caller's, of layout()'s sizes, padding included; nothing is written after an
/// error. Throws as check(layer) does, and for memory of another shape, or with a column order that the layer does
/// not have, or without one that it has.
template <storage_format Format>
void pack(quantized_layer<Format> const& layer, packed_memory<Format> const& to) {
  detail::pack_layer(layer, to);
}

/// Packs a layer; check(layer) first, with its errors. unpack(pack(layer).view()) has the same codes, scales,
/// zeros and order.
template <storage_format Format>
packed_matrix<Format> pack(quantized_layer<Format> const& layer);

/// The codes, scales, zeros and order of a packed matrix; the report is empty.
template <storage_format Format>
quantized_layer<Format> unpack(packed_view<Format> const& view) {
  return detail::unpack_layer(view);
}

// ---- implementation -------------------------------------------------------------------------------------

template <storage_format Format>
packed_matrix<Format>::packed_matrix(index_t out, index_t in) : out_(out), in_(in) {
  if (out < 0 || in < 0) {
    throw error("packed matrix: shape " + std::to_string(out) + " x " + std::to_string(in) + " is negative");
  }
  codes_.resize(static_cast<std::size_t>(layout().code_bytes()));
  scales_.resize(static_cast<std::size_t>(layout().scale_count()), typename Format::scale(0.0F));
  zeros_.resize(static_cast<std::size_t>(layout().zero_bytes()));
}

template <storage_format Format>
packed_view<Format> packed_matrix<Format>::view() const {
  return {codes_.data(),
          scales_.data(),
          Format::has_zero_point ? zeros_.data() : nullptr,
          order_.empty() ? nullptr : order_.data(),
          out_,
          in_,
          matrix_scale_};
}

template <storage_format Format>
index_t packed_matrix<Format>::bytes() const {
  return static_cast<index_t>(codes_.size() + scales_.size() * sizeof(typename Format::scale) +
                              zeros_.size() + order_.size() * sizeof(std::int32_t));
}

template <storage_format Format>
double packed_matrix<Format>::bits_per_weight() const {
  return out_ * in_ == 0 ? 0.0 : 8.0 * static_cast<double>(bytes()) / static_cast<double>(out_ * in_);
}

template <storage_format Format>
packed_matrix<Format> pack(quantized_layer<Format> const& layer) {
  check(layer);
  packed_matrix<Format> packed(layer.out, layer.in);
  packed.order().resize(layer.order.size());
  if constexpr (Format::has_matrix_scale) packed.matrix_scale() = layer.matrix_scale;
  pack(layer, packed.memory());
  return packed;
}

}  // namespace gptq
