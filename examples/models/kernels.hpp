// The library's kernels, for a format known only at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <gptq/activations.hpp>
#include <gptq/format_spec.hpp>
#include <gptq/packed.hpp>

namespace lm {

/// A packed matrix without its type: the pieces of a gptq::packed_view, as bytes.
struct packed_parts {
  gptq::index_t out = 0;
  gptq::index_t in = 0;
  std::span<std::byte const> codes;
  std::span<std::byte const> scales;    ///< in the format's type, aligned to it
  std::span<std::byte const> zeros;     ///< empty without a stored zero point
  std::span<std::int32_t const> order;  ///< empty: columns in their original order

  std::size_t bytes() const { return codes.size() + scales.size() + zeros.size() + order.size_bytes(); }
};

template <gptq::storage_format Format>
gptq::packed_view<Format> view_of(packed_parts const& w) {
  return {reinterpret_cast<std::uint8_t const*>(w.codes.data()),
          reinterpret_cast<typename Format::scale const*>(w.scales.data()),
          Format::has_zero_point ? reinterpret_cast<std::uint8_t const*>(w.zeros.data()) : nullptr,
          w.order.empty() ? nullptr : w.order.data(),
          w.out,
          w.in};
}

template <gptq::storage_format Format>
packed_parts parts_of(gptq::packed_view<Format> const& view) {
  auto const layout = view.layout();
  auto const bytes = [](auto const* data, gptq::index_t count) {
    return std::as_bytes(std::span(data, data == nullptr ? 0 : static_cast<std::size_t>(count)));
  };
  return {view.out,
          view.in,
          bytes(view.codes, layout.code_bytes()),
          bytes(view.scales, layout.scale_count()),
          bytes(view.zeros, layout.zero_bytes()),
          {view.order, view.order == nullptr ? 0 : static_cast<std::size_t>(view.in)}};
}

/// y[first_row..last_row-1] = W x for x[in]; shares best start at multiples of 32.
using gemv_kernel = void (*)(packed_parts const& w, float const* x, float* y, gptq::index_t first_row,
                             gptq::index_t last_row) noexcept;

/// gptq::gemv for a format with activations in int8 or int15; null where this program has none: float32
/// scales, and group sizes beyond 32, 64, 128 and whole rows.
gemv_kernel find_gemv(gptq::format_spec const& format, gptq::precision precision);

/// Replaces x[in] by what the int8 kernels compute with, for groups of group_columns columns of `order`.
/// `workspace` is the caller's, to be used again.
void round_to_int8(std::span<float> x, gptq::index_t group_columns, std::span<std::int32_t const> order);

}  // namespace lm
