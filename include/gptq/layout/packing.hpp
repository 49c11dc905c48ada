// Layers into packed memory and back, and the errors of both.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <string>

#include <gptq/checks.hpp>
#include <gptq/error.hpp>
#include <gptq/layer.hpp>
#include <gptq/layout.hpp>
#include <gptq/layout/pack_arrays.hpp>

namespace gptq::detail {

/// Throws what find_fault() finds.
template <storage_format Format>
void throw_fault(packed_view<Format> const& view) {
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
      return check_permutation(view.order, view.in);
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
void pack_layer(quantized_layer<Format> const& layer, packed_memory<Format> const& to) {
  check(layer);
  if (to.out != layer.out || to.in != layer.in) {
    throw error("pack: memory for a matrix of " + std::to_string(to.out) + " x " + std::to_string(to.in) +
                ", not of " + std::to_string(layer.out) + " x " + std::to_string(layer.in));
  }
  if (layer.order.empty() != (to.order == nullptr)) {
    throw error(to.order == nullptr ? "pack: no memory for the layer's column order"
                                    : "pack: memory for a column order, which the layer does not have");
  }
  if constexpr (Format::has_matrix_scale) {
    if (to.matrix_scale != layer.matrix_scale) {
      throw error("pack: memory with a matrix scale of " + std::to_string(to.matrix_scale) +
                  ", the layer's is " + std::to_string(layer.matrix_scale));
    }
  }
  std::copy(layer.order.begin(), layer.order.end(), to.order);
  pack_arrays(layer.codes.data(), layer.scales.data(), layer.zeros.data(), to);
}

template <storage_format Format>
quantized_layer<Format> unpack_layer(packed_view<Format> const& view) {
  auto const shape = view.layout();
  quantized_layer<Format> layer;
  layer.out = view.out;
  layer.in = view.in;
  if constexpr (Format::has_matrix_scale) layer.matrix_scale = view.matrix_scale;
  layer.codes.resize(static_cast<std::size_t>(view.out * view.in));
  layer.scales.resize(static_cast<std::size_t>(view.out * shape.groups()));
  layer.zeros.resize(Format::has_zero_point ? layer.scales.size() : 0);
  if (view.order != nullptr) layer.order.assign(view.order, view.order + view.in);
  for (index_t row = 0; row < view.out; ++row) {
    for (index_t group = 0; group < shape.groups(); ++group) {
      unpack_row<Format::bits>(view.codes + shape.code_offset(row / packed_rows, group), row % packed_rows,
                               shape.group_columns(group),
                               layer.codes.data() + row * view.in + group * shape.group_columns());
      gptq::grid const g = view.grid(row, group);
      auto const at = static_cast<std::size_t>(row * shape.groups() + group);
      layer.scales[at] = g.scale;
      if (Format::has_zero_point) layer.zeros[at] = static_cast<std::uint8_t>(g.zero);
    }
  }
  return layer;
}

}  // namespace gptq::detail
