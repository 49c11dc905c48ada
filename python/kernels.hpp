// The formats that the module has, and products with each of them as tables of functions: gptq/dispatch.hpp.
#pragma once

#include <gptq/activations.hpp>
#include <gptq/format_spec.hpp>
#include <gptq/layout.hpp>

namespace python {

using formats = gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::fixed_zero>, gptq::bit_widths<2, 4>,
                                   gptq::group_sizes<32, 128>>;

template <class Format>
struct products {
  void (*gemv)(gptq::packed_view<Format> const& w, float const* x, float* y) noexcept;
  gptq::activations<gptq::precision::int8> (*prepare)(gptq::packed_view<Format> const& w, float const* x,
                                                      gptq::index_t tokens, void* workspace) noexcept;
  void (*gemm)(gptq::packed_view<Format> const& w, gptq::activations<gptq::precision::int8> const& x,
               float* y) noexcept;
};

template <class List>
struct table;
template <class... Formats>
struct table<gptq::format_list<Formats...>> : products<Formats>... {};

/// The table for one ISA.
template <class Isa>
table<formats> kernels_for();

}  // namespace python
