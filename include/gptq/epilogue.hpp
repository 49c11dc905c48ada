// What an engine does to the results of a product next, done to them while they are in the cache: in steps, and into
// float, float16 or bfloat16, with a stride of yours between tokens.
//
//   gptq::gemv(w, a, gptq::output{y}, {0, w.out}, gptq::add_bias{bias});                  // y = W x + bias
//   gptq::gemm(w, a, gptq::output{y}, {0, w.out}, gptq::add_residual{y, w.out});          // Y += X W'
//   gptq::gemm(w, a, gptq::output{y16, stride}, {0, w.out}, gptq::scale_by{0.5F}, gptq::clamp_to{-9.0F, 9.0F});
//   gptq::gemv(w, x, gptq::output{y}, {0, w.out}, gptq::relu{});                          // x as it is, of one token
//   gptq::gated_gemm(gate, up, a, gptq::output{y}, {0, gate.out}, gptq::silu{});          // silu(gate x) * (up x)
//
// Results are, bit for bit, those of gemv() and gemm(), each step done to all of them in float32, in the order of the
// arguments, and at last rounded to the type of y. The steps: steps.hpp, which says how to write one. What is not asked
// for costs nothing: gemv() and gemm() without steps are other functions. y may be what a step reads (add_residual{y}),
// row by row.
#pragma once

#include <gptq/gemm.hpp>
#include <gptq/kernels/slabs.hpp>
#include <gptq/steps.hpp>

namespace gptq {

/// Y = X W' and then `steps`, for `rows`; other rows of y are left alone.
template <precision Precision, class Isa = isa::native, storage_format Format, class T, class... Steps>
void gemm(packed_view<Format> const& w, activations<Precision> const& x, output<T> y, row_range rows,
          Steps const&... steps) noexcept {
  detail::expect_none(detail::find_argument_fault(w, x, rows, false), "gptq::gemm");
  detail::slab_rows<Isa>(w, x, {0, x.tokens}, y, rows, steps...);
}

/// The same for one token.
template <precision Precision, class Isa = isa::native, storage_format Format, class T, class... Steps>
void gemv(packed_view<Format> const& w, activations<Precision> const& x, output<T> y, row_range rows,
          Steps const&... steps) noexcept {
  detail::expect_none(detail::find_argument_fault(w, x, rows, true), "gptq::gemv");
  detail::slab_rows<Isa>(w, x, {0, 1}, y, rows, steps...);
}

/// The same from x[in] as it is, float, float16 or bfloat16: prepared on the stack, some of it at a time, which is
/// repeated for every 1024 rows.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class X,
          class T, class... Steps>
void gemv(packed_view<Format> const& w, X const* x, output<T> y, row_range rows,
          Steps const&... steps) noexcept {
  detail::expect_none(rows.first < 0 || rows.last > w.out ? fault::rows : fault::none, "gptq::gemv");
  detail::raw_slab_rows<Isa, Precision>(w, x, y, rows, steps...);
}

/// Y = activation(X gate') * (X up') for matrices of the same shape: what the two first layers of a gated MLP do.
/// @param activation  a step: silu{}, gelu{}, ...
/// @param steps       done to the products of the two
template <precision Precision, class Isa = isa::native, storage_format Format, class T, class Activation,
          class... Steps>
void gated_gemm(packed_view<Format> const& gate, packed_view<Format> const& up,
                activations<Precision> const& x, output<T> y, row_range rows, Activation const& activation,
                Steps const&... steps) noexcept {
  detail::expect_none(detail::find_argument_fault(gate, x, rows, false), "gptq::gated_gemm, gate");
  detail::expect_none(detail::find_argument_fault(up, x, rows, false), "gptq::gated_gemm, up");
  detail::gated_slab_rows<Isa>(gate, up, x, {0, x.tokens}, y, rows, activation, steps...);
}

}  // namespace gptq
