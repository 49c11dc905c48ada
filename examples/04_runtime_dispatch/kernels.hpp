// What this program wants computed fast, as a table of functions. There is one table for each architecture,
// and kernels.cpp is all of them.
#pragma once

#include <gptq/activations.hpp>
#include <gptq/packed.hpp>

using q4 = gptq::format<gptq::symmetric, 4, 128>;
using weights = gptq::packed_view<q4>;
using inputs = gptq::activations<gptq::precision::int8>;

struct kernels {
  /// x[tokens, in] -> inputs, in workspace[gptq::workspace_bytes(w.layout(), tokens)]
  inputs (*prepare)(weights const& w, float const* x, gptq::index_t tokens, void* workspace) noexcept;
  /// y[out] = W x, rows first_row..last_row-1
  void (*gemv)(weights const& w, inputs const& x, float* y, gptq::index_t first_row,
               gptq::index_t last_row) noexcept;
  /// y[tokens, out] = X W', rows first_row..last_row-1 of W
  void (*gemm)(weights const& w, inputs const& x, float* y, gptq::index_t first_row,
               gptq::index_t last_row) noexcept;
};

/// The table for one architecture of gptq::isa.
template <class Isa>
kernels kernels_for();
