// What this program wants computed fast, as a table of functions. There is one table for each ISA, and
// kernels.cpp is all of them.
#pragma once

#include <gptq/activations.hpp>
#include <gptq/layout.hpp>

using q4 = gptq::format<gptq::symmetric, 4, 128>;
using weights = gptq::packed_view<q4>;
using inputs = gptq::activations<gptq::precision::int8>;

struct kernels {
  /// x[tokens, in] -> inputs, in workspace[gptq::workspace_bytes(w.layout(), tokens)]
  inputs (*prepare)(weights const& w, float const* x, gptq::index_t tokens, void* workspace) noexcept;
  /// y[out] = W x, a thread's share of the rows
  void (*gemv)(weights const& w, inputs const& x, float* y, gptq::row_range rows) noexcept;
  /// y[tokens, out] = X W', a thread's share of the rows of W
  void (*gemm)(weights const& w, inputs const& x, float* y, gptq::row_range rows) noexcept;
};

/// The table for one ISA.
template <class Isa>
kernels kernels_for();
