// Y = X W' for many tokens, straight from packed codes.
//
//   std::size_t bytes = gptq::workspace_bytes(w.layout(), tokens);         // yours to allocate
//   auto a = gptq::prepare(w, x, tokens, workspace);                       // activations.hpp
//   gptq::gemm(w, a, y);                                                   // y[tokens, out], float,
//   row-major gptq::gemm(w, a, y, first_row, last_row);                              // a thread's share
//
// The contract is that of gemv.hpp, and the bits of each token are what gemv gives. Needs no memory beside
// the prepared activations, and up to 64 KiB of stack.
#pragma once

#include <gptq/gemv.hpp>

namespace gptq {

/// y[token, row] for all tokens and rows first_row..last_row-1; other rows of y are left alone. Shares best
/// start at multiples of 32.
template <class Isa = isa::native, storage_format Format, precision Precision>
void gemm(packed_view<Format> const& w, activations<Precision> const& x, float* y, index_t first_row,
          index_t last_row) noexcept;

/// All rows.
template <class Isa = isa::native, storage_format Format, precision Precision>
void gemm(packed_view<Format> const& w, activations<Precision> const& x, float* y) noexcept;

// ---- implementation -------------------------------------------------------------------------------------

template <class Isa, storage_format Format, precision Precision>
void gemm(packed_view<Format> const& w, activations<Precision> const& x, float* y, index_t first_row,
          index_t last_row) noexcept {
  using ops = detail::operations_of<Isa>;
  if (w.in == 0) {
    for (index_t token = 0; token < x.tokens; ++token)
      detail::zero_rows(y + token * w.out, first_row, last_row);
    return;
  }
  if constexpr (std::is_same_v<Isa, isa::amx_int8>) {
    // Linux may refuse tiles to a process on a CPU that has them.
    if (!isa::detail::may_use_tiles())
      return gemm<isa::detail::amx_without_tiles>(w, x, y, first_row, last_row);
  }
  if constexpr (Precision != precision::float32) {
    if (x.tokens > ops::direct_tokens) return detail::panel_rows<ops>(w, x, y, first_row, last_row);
  }
  detail::direct_rows<ops, Format, detail::direct_tokens<ops, Precision>>(w, x, 0, x.chunks.count(), y,
                                                                          first_row, last_row, false);
}

template <class Isa, storage_format Format, precision Precision>
void gemm(packed_view<Format> const& w, activations<Precision> const& x, float* y) noexcept {
  gemm<Isa>(w, x, y, 0, w.out);
}

}  // namespace gptq
