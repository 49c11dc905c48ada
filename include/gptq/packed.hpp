// Packed matrices: made from quantized layers, owned, and checked where they come from elsewhere.
//
//   auto packed = gptq::pack(layer);                 // layer.hpp -> aligned memory that `packed` owns
//   gptq::packed_view<q4> w = packed.view();         // pointers and a shape: what kernels take
//   auto same = gptq::unpack(w);                     // and back
//
// layout.hpp says where every code lies.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <span>
#include <string>
#include <vector>

#include <gptq/checks.hpp>
#include <gptq/error.hpp>
#include <gptq/layer.hpp>
#include <gptq/layout.hpp>
#include <gptq/layout/aligned.hpp>

namespace gptq {

/// Throws gptq::error, naming the first thing wrong, if find_fault(view) of checks.hpp finds something: kernels
/// cannot be given this view.
template <storage_format Format>
void check(packed_view<Format> const& view);

/// make_view() of checks.hpp and check(view): a view of memory that comes from elsewhere, or gptq::error.
template <storage_format Format>
packed_view<Format> checked_view(index_t out, index_t in, std::span<std::uint8_t const> codes,
                                 std::span<typename Format::scale const> scales,
                                 std::span<std::uint8_t const> zeros = {},
                                 std::span<std::int32_t const> order = {}) {
  packed_view<Format> view;
  fault const what = make_view(view, out, in, codes, scales, zeros, order);
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
            in_};
  }
  std::uint8_t* codes() { return codes_.data(); }
  typename Format::scale* scales() { return scales_.data(); }
  std::uint8_t* zeros() { return zeros_.data(); }
  /// Empty, or in() entries: a permutation of the columns.
  std::vector<std::int32_t>& order() { return order_; }

 private:
  index_t out_ = 0;
  index_t in_ = 0;
  detail::aligned_vector<std::uint8_t> codes_;
  detail::aligned_vector<typename Format::scale> scales_;
  detail::aligned_vector<std::uint8_t> zeros_;
  std::vector<std::int32_t> order_;
};

/// Packs a layer into memory of the caller's, of layout()'s sizes, padding included; nothing is written after an
/// error. Throws as check(layer) does, and for memory of another shape, or with a column order that the layer does
/// not have, or without one that it has.
template <storage_format Format>
void pack(quantized_layer<Format> const& layer, packed_memory<Format> const& to);

/// Packs a layer; check(layer) first, with its errors. unpack(pack(layer).view()) has the same codes, scales,
/// zeros and order.
template <storage_format Format>
packed_matrix<Format> pack(quantized_layer<Format> const& layer);

/// The codes, scales, zeros and order of a packed matrix; the report is empty.
template <storage_format Format>
quantized_layer<Format> unpack(packed_view<Format> const& view);

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
          in_};
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
void check(packed_view<Format> const& view) {
  located_fault const found = find_fault(view);
  auto const fail = [](std::string const& what) { throw error("packed matrix: " + what); };
  switch (found.what) {
    case fault::none:
      return;
    case fault::shape:
      return fail("a shape of " + std::to_string(view.out) + " x " + std::to_string(view.in));
    case fault::scale_alignment:
      return fail("scales at an address that is no multiple of " +
                  std::to_string(alignof(typename Format::scale)));
    case fault::order:
      return detail::check_permutation(view.order, view.in);
    case fault::scale_value:
      return fail("the scale of row " + std::to_string(found.row) + ", group " + std::to_string(found.group) +
                  " is " + std::to_string(view.grid(found.row, found.group).scale));
    case fault::no_memory:
      throw std::bad_alloc();
    default:
      return fail(message(found.what));
  }
}

template <storage_format Format>
void pack(quantized_layer<Format> const& layer, packed_memory<Format> const& to) {
  check(layer);
  if (to.out != layer.out || to.in != layer.in) {
    throw error("pack: memory for a matrix of " + std::to_string(to.out) + " x " + std::to_string(to.in) +
                ", not of " + std::to_string(layer.out) + " x " + std::to_string(layer.in));
  }
  if (layer.order.empty() != (to.order == nullptr)) {
    throw error(to.order == nullptr ? "pack: no memory for the layer's column order"
                                    : "pack: memory for a column order, which the layer does not have");
  }
  std::copy(layer.order.begin(), layer.order.end(), to.order);
  auto const shape = to.layout();
  // Padding is 0, and streams of zero points are written bit by bit.
  if (layer.out % packed_rows != 0) {
    index_t const last = layer.out / packed_rows;
    std::fill(to.codes + shape.code_offset(last, 0), to.codes + shape.code_bytes(), std::uint8_t{0});
    std::fill(to.scales + shape.scale_offset(last, 0), to.scales + shape.scale_count(),
              typename Format::scale(0.0F));
  }
  if constexpr (Format::has_zero_point) std::fill(to.zeros, to.zeros + shape.zero_bytes(), std::uint8_t{0});
  for (index_t row = 0; row < layer.out; ++row) {
    index_t const block = row / packed_rows;
    index_t const row_in_block = row % packed_rows;
    for (index_t group = 0; group < shape.groups(); ++group) {
      detail::pack_row<Format::bits>(layer.codes.data() + row * layer.in + group * shape.group_columns(),
                                     shape.group_columns(group), row_in_block,
                                     to.codes + shape.code_offset(block, group));
      gptq::grid const g = layer.grid(row, group);
      to.scales[shape.scale_offset(block, group) + row_in_block] = typename Format::scale(g.scale);
      if constexpr (Format::has_zero_point) {
        detail::set_stream_code<Format::bits>(to.zeros + shape.zero_offset(block, group), row_in_block,
                                              g.zero);
      }
    }
  }
}

template <storage_format Format>
packed_matrix<Format> pack(quantized_layer<Format> const& layer) {
  check(layer);
  packed_matrix<Format> packed(layer.out, layer.in);
  packed.order().resize(layer.order.size());
  pack(layer, packed.memory());
  return packed;
}

template <storage_format Format>
quantized_layer<Format> unpack(packed_view<Format> const& view) {
  auto const shape = view.layout();
  quantized_layer<Format> layer;
  layer.out = view.out;
  layer.in = view.in;
  layer.codes.resize(static_cast<std::size_t>(view.out * view.in));
  layer.scales.resize(static_cast<std::size_t>(view.out * shape.groups()));
  layer.zeros.resize(Format::has_zero_point ? layer.scales.size() : 0);
  if (view.order != nullptr) layer.order.assign(view.order, view.order + view.in);
  for (index_t row = 0; row < view.out; ++row) {
    for (index_t group = 0; group < shape.groups(); ++group) {
      detail::unpack_row<Format::bits>(view.codes + shape.code_offset(row / packed_rows, group),
                                       row % packed_rows, shape.group_columns(group),
                                       layer.codes.data() + row * view.in + group * shape.group_columns());
      gptq::grid const g = view.grid(row, group);
      auto const at = static_cast<std::size_t>(row * shape.groups() + group);
      layer.scales[at] = g.scale;
      if (Format::has_zero_point) layer.zeros[at] = static_cast<std::uint8_t>(g.zero);
    }
  }
  return layer;
}

}  // namespace gptq
