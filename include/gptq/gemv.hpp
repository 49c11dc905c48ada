// y = W x for one vector x (a token), straight from packed codes. Kernels multiply integers: x is rounded to int8,
// unless you ask for more, in pieces of at most 128 columns, none of which crosses a border of the weights'
// groups. Each of these chunks of x has a scale of its own. activations.hpp says how large the error is.
//
//   gptq::gemv(w, x, y);                            // x[in]: float, float16 or bfloat16; y[out]
//   gptq::gemv(w, x, y, {first_row, last_row});     // a thread's share of the rows
//   gptq::gemv<gptq::precision::int23>(w, x, y);    // as exact as float32 arithmetic
//
//   auto a = gptq::prepare(w, x, 1, workspace);     // x rounded once for several matrices: prepare.hpp
//   gptq::gemv(w, a, y);
//   gptq::gemv(w2, a, y2);
//
// Raw pointers, no exceptions, no allocation, no threads; parallel.hpp splits the rows. Codes and zeros may lie at
// any address; scales, order, x and y at a multiple of the size of an element. y must not overlap anything else.
// Release builds take arguments as they are, debug builds stop the program at wrong ones (checks.hpp).
// check(view) of packed.hpp is for the moment a matrix is loaded.
//
// Results do not depend on how rows are shared out, nor on whether x was prepared before, and, with int8,
// int15 and int23, are the same bits on every ISA that has fused multiply-add, and the same as gemm's.
// isa::generic, where it is compiled without fused multiply-add, gives a slightly different y: by at most 2^-23
// times the sum, over the chunks, of the magnitude of what each adds to y.
//
// Template arguments, here and in gemm.hpp, prepare.hpp and parallel.hpp, are the precision, then the ISA.
#pragma once

#include <span>

#include <gptq/activations.hpp>
#include <gptq/checks.hpp>
#include <gptq/isa.hpp>
#include <gptq/kernels/prepare.hpp>
#include <gptq/kernels/rows.hpp>
#include <gptq/layout.hpp>
#include <gptq/prepare.hpp>

namespace gptq {

/// y[rows.first..rows.last-1] = W x for prepared activations of one token. Shares best start at multiples
/// of 32.
template <precision Precision, class Isa = isa::native, storage_format Format>
void gemv(packed_view<Format> const& w, activations<Precision> const& x, float* y, row_range rows) noexcept {
  detail::expect_none(detail::find_argument_fault(w, x, rows, true), "gptq::gemv");
  detail::gemv_rows<Isa>(w, x, y, rows);
}

/// All rows.
template <precision Precision, class Isa = isa::native, storage_format Format>
void gemv(packed_view<Format> const& w, activations<Precision> const& x, float* y) noexcept {
  gemv<Precision, Isa>(w, x, y, {0, w.out});
}

/// The same from x[in]: float, float16 or bfloat16. Prepares x on its stack, 16 KiB of it at a time.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T>
void gemv(packed_view<Format> const& w, T const* x, float* y, row_range rows) noexcept {
  detail::expect_none(rows.first < 0 || rows.last > w.out ? fault::rows : fault::none, "gptq::gemv");
  if (w.in == 0) return detail::zero_rows(y, rows);
  detail::gemv_raw_rows<detail::kernel_for<Isa, Format, Precision>>(detail::kernel_weights(w), w.order, x, y,
                                                                    rows);
}

/// All rows.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T>
void gemv(packed_view<Format> const& w, T const* x, float* y) noexcept {
  gemv<Precision, Isa>(w, x, y, {0, w.out});
}

/// gemv() for arguments that may be wrong: returns what is wrong, and then has written nothing. y[out].
template <precision Precision, class Isa = isa::native, storage_format Format>
fault checked_gemv(packed_view<Format> const& w, activations<Precision> const& x, std::span<float> y,
                   row_range rows) noexcept {
  fault what = detail::find_argument_fault(w, x, rows, true);
  if (y.size() < static_cast<std::size_t>(w.out)) what = fault::few_outputs;
  if (what == fault::none) gemv<Precision, Isa>(w, x, y.data(), rows);
  return what;
}

}  // namespace gptq
