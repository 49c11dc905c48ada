// y = W x for one token, straight from packed codes.
//
//   gptq::gemv(w, x, y);                            // all rows; x[in] float, float16 or bfloat16; y[out]
//   float gptq::gemv(w, x, y, first_row, last_row);       // a thread's share
//   gptq::gemv<gptq::precision::int23>(w, x, y);    // how exactly x takes part: activations.hpp
//
//   auto a = gptq::prepare(w, x, 1, workspace);     // x once for several matrices
//   gptq::gemv(w, a, y);   gptq::gemv(w2, a, y2);
//
// Raw pointers at any alignment, no exceptions, no allocation, no threads; parallel.hpp splits the rows.
// Arguments are taken as they are: check(view) is for the moment a matrix is loaded. y must not overlap
// anything else.
//
// Results do not depend on how rows are shared out, nor on whether x was prepared before, and, with int8,
// int15 and int23, are the same bits on every architecture that has fused multiply-add, and the same as
// gemm's. The generic one without it rounds twice per chunk more: at most 2^-23 of the sum of the magnitudes
// of the chunks' results.
#pragma once

#include <gptq/isa/all.hpp>
#include <gptq/kernels/kernels.hpp>

namespace gptq {

/// y[first_row..last_row-1] = W x for prepared activations of one token. Shares best start at multiples
/// of 32.
template <class Isa = isa::native, storage_format Format, precision Precision>
void gemv(packed_view<Format> const& w, activations<Precision> const& x, float* y, index_t first_row,
          index_t last_row) noexcept;

/// All rows.
template <class Isa = isa::native, storage_format Format, precision Precision>
void gemv(packed_view<Format> const& w, activations<Precision> const& x, float* y) noexcept;

/// The same from x[in]: float, float16 or bfloat16. Prepares x on its stack, 16 KiB of it at a time.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T>
void gemv(packed_view<Format> const& w, T const* x, float* y, index_t first_row, index_t last_row) noexcept;

/// All rows.
template <precision Precision = precision::int8, class Isa = isa::native, storage_format Format, class T>
void gemv(packed_view<Format> const& w, T const* x, float* y) noexcept;

// ---- implementation -------------------------------------------------------------------------------------

template <class Isa, storage_format Format, precision Precision>
void gemv(packed_view<Format> const& w, activations<Precision> const& x, float* y, index_t first_row,
          index_t last_row) noexcept {
  if (w.in == 0) return detail::zero_rows(y, first_row, last_row);
  detail::direct_rows<detail::operations_of<Isa>, Format, 1>(w, x, 0, x.chunks.count(), y, first_row,
                                                             last_row, false);
}

template <class Isa, storage_format Format, precision Precision>
void gemv(packed_view<Format> const& w, activations<Precision> const& x, float* y) noexcept {
  gemv<Isa>(w, x, y, 0, w.out);
}

template <precision Precision, class Isa, storage_format Format, class T>
void gemv(packed_view<Format> const& w, T const* x, float* y, index_t first_row, index_t last_row) noexcept {
  if (w.in == 0) return detail::zero_rows(y, first_row, last_row);
  constexpr index_t stack = 16384;
  alignas(64) char workspace[stack];
  chunk_layout const chunks{w.in, Format::group_columns(w.in)};
  index_t const all = chunks.count();
  index_t const fit = stack / detail::cell_bytes<Precision>(chunks);
  for (index_t first = 0; first < all; first += fit) {
    index_t const last = first + fit < all ? first + fit : all;
    auto a = detail::activations_in<Precision>(chunks, last - first, 1, workspace);
    detail::prepare_chunks<Isa>(a, x, w.in, w.order, first, last, 0, 1);
    detail::direct_rows<detail::operations_of<Isa>, Format, 1>(w, a, first, last, y, first_row, last_row,
                                                               first != 0);
  }
}

template <precision Precision, class Isa, storage_format Format, class T>
void gemv(packed_view<Format> const& w, T const* x, float* y) noexcept {
  gemv<Precision, Isa>(w, x, y, 0, w.out);
}

}  // namespace gptq
