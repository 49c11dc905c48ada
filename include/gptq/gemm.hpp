// Y = X W' for many tokens, straight from packed codes.
//
//   std::size_t bytes = gptq::workspace_bytes(w.layout(), tokens);    // activations.hpp; yours to allocate
//   auto a = gptq::prepare(w, x, tokens, workspace);                  // prepare.hpp: x[tokens, in], to int8
//   gptq::gemm(w, a, y);                                              // y[tokens, out], float, row-major
//   gptq::gemm(w, a, y, {first_row, last_row});                       // a thread's share of the rows of W
//
// W' is W transposed: row i of Y is W times row i of X, bit for bit as gemv gives it. gemv.hpp says what is asked
// of the arguments. Needs no memory beside
// the prepared activations, and up to 64 KiB of stack.
#pragma once

#include <gptq/gemv.hpp>

namespace gptq {

/// y[token, row] for all tokens and `rows`; other rows of y are left alone. Shares best start at multiples
/// of 32.
template <precision Precision, class Isa = isa::native, storage_format Format>
void gemm(packed_view<Format> const& w, activations<Precision> const& x, float* y, row_range rows) noexcept {
  detail::expect_none(detail::find_argument_fault(w, x, rows, false), "gptq::gemm");
  detail::gemm_rows<Isa>(w, x, {0, x.tokens}, y, w.out, rows);
}

/// All rows.
template <precision Precision, class Isa = isa::native, storage_format Format>
void gemm(packed_view<Format> const& w, activations<Precision> const& x, float* y) noexcept {
  gemm<Precision, Isa>(w, x, y, {0, w.out});
}

/// gemm() for arguments that may be wrong: returns what is wrong, and then has written nothing. y[tokens, out].
template <precision Precision, class Isa = isa::native, storage_format Format>
fault checked_gemm(packed_view<Format> const& w, activations<Precision> const& x, std::span<float> y,
                   row_range rows) noexcept {
  fault what = detail::find_argument_fault(w, x, rows, false);
  if (y.size() < static_cast<std::size_t>(x.tokens * w.out)) what = fault::few_outputs;
  if (what == fault::none) gemm<Precision, Isa>(w, x, y.data(), rows);
  return what;
}

}  // namespace gptq
