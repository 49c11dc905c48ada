// Packed matrices: made from quantized layers, owned, and checked where they come from elsewhere.
//
//   auto packed = gptq::pack(layer);                 // layer.hpp -> aligned memory that `packed` owns
//   gptq::packed_view<q4> w = packed.view();         // pointers and a shape: what kernels take
//   auto same = gptq::unpack(w);                     // and back
//
// layout.hpp says where every code lies.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <gptq/error.hpp>
#include <gptq/layer.hpp>
#include <gptq/layout.hpp>
#include <gptq/layout/aligned.hpp>

namespace gptq {

/// Throws gptq::error, naming the first thing wrong, unless kernels can be given this view of memory that
/// comes from elsewhere: pointers where there have to be, scales aligned to their type and finite, order null
/// or a permutation. That the memory is as large as layout() says is the caller's to know.
template <storage_format Format>
void check(packed_view<Format> const& view);

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
  auto const fail = [](std::string const& what) { throw error("packed matrix: " + what); };
  if (view.out < 0 || view.in < 0) {
    fail("a shape of " + std::to_string(view.out) + " x " + std::to_string(view.in));
  }
  if (view.out == 0 || view.in == 0) return;
  if (view.codes == nullptr) fail("no codes");
  if (view.scales == nullptr) fail("no scales");
  if (Format::has_zero_point && view.zeros == nullptr) fail("no zero points");
  if (reinterpret_cast<std::uintptr_t>(view.scales) % alignof(typename Format::scale) != 0) {
    fail("scales at an address that is no multiple of " + std::to_string(alignof(typename Format::scale)));
  }
  if (view.order != nullptr) {
    if (reinterpret_cast<std::uintptr_t>(view.order) % alignof(std::int32_t) != 0) {
      fail("a column order at an address that is no multiple of 4");
    }
    detail::check_permutation(view.order, view.in);
  }
  for (index_t row = 0; row < view.out; ++row) {
    for (index_t group = 0; group < view.layout().groups(); ++group) {
      float const scale = view.grid(row, group).scale;
      if (!std::isfinite(scale)) {
        fail("the scale of row " + std::to_string(row) + ", group " + std::to_string(group) + " is " +
             std::to_string(scale));
      }
    }
  }
}

template <storage_format Format>
packed_matrix<Format> pack(quantized_layer<Format> const& layer) {
  check(layer);
  packed_matrix<Format> packed(layer.out, layer.in);
  packed.order() = layer.order;
  auto const shape = packed.layout();
  for (index_t row = 0; row < layer.out; ++row) {
    index_t const block = row / packed_rows;
    index_t const row_in_block = row % packed_rows;
    for (index_t group = 0; group < shape.groups(); ++group) {
      detail::pack_row<Format::bits>(layer.codes.data() + row * layer.in + group * shape.group_columns(),
                                     shape.group_columns(group), row_in_block,
                                     packed.codes() + shape.code_offset(block, group));
      gptq::grid const g = layer.grid(row, group);
      packed.scales()[shape.scale_offset(block, group) + row_in_block] = typename Format::scale(g.scale);
      if constexpr (Format::has_zero_point) {
        detail::set_stream_code<Format::bits>(packed.zeros() + shape.zero_offset(block, group), row_in_block,
                                              g.zero);
      }
    }
  }
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
