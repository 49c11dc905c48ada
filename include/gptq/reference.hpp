// The executable specification: scalar code in double that every kernel is tested against. Slow on purpose.
//
//   dequantize   weight(row, column) = scale * (code - zero), or scale * level(code)
//   gemv         y[row]        = sum over columns of weight(row, column) * x[column]
//   gemm         Y[token, row] = sum over columns of weight(row, column) * X[token, column]
//
// Columns are the original ones: a column order in the view is undone here.
//
//   std::vector<double> y(static_cast<std::size_t>(w.out));
//   gptq::reference::gemv(w, x, y.data());          // x[w.in]
#pragma once

#include <gptq/layout.hpp>

namespace gptq::reference {

/// weights[out, in]; exact: a scale has at most 24 bits, a level at most 10.
template <storage_format Format>
void dequantize(packed_view<Format> const& view, double* weights);

/// x[in] of float, float16, bfloat16 or double; y[out]. Sums run over stored columns in order, in double.
template <storage_format Format, class T>
void gemv(packed_view<Format> const& view, T const* x, double* y);

/// x[tokens, in], y[tokens, out], row-major.
template <storage_format Format, class T>
void gemm(packed_view<Format> const& view, T const* x, index_t tokens, double* y);

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

template <storage_format Format>
double weight(packed_view<Format> const& view, index_t row, index_t stored_column) {
  gptq::grid const g = view.grid(row, stored_column / view.layout().group_columns());
  return static_cast<double>(g.scale) *
         static_cast<double>(Format::levels.level(view.code(row, stored_column), g));
}

template <storage_format Format>
index_t column(packed_view<Format> const& view, index_t stored_column) {
  return view.order == nullptr ? stored_column : index_t{view.order[stored_column]};
}

}  // namespace detail

template <storage_format Format>
void dequantize(packed_view<Format> const& view, double* weights) {
  for (index_t row = 0; row < view.out; ++row) {
    for (index_t p = 0; p < view.in; ++p) {
      weights[row * view.in + detail::column(view, p)] = detail::weight(view, row, p);
    }
  }
}

template <storage_format Format, class T>
void gemv(packed_view<Format> const& view, T const* x, double* y) {
  for (index_t row = 0; row < view.out; ++row) {
    double sum = 0.0;
    for (index_t p = 0; p < view.in; ++p) {
      sum += detail::weight(view, row, p) * static_cast<double>(x[detail::column(view, p)]);
    }
    y[row] = sum;
  }
}

template <storage_format Format, class T>
void gemm(packed_view<Format> const& view, T const* x, index_t tokens, double* y) {
  for (index_t token = 0; token < tokens; ++token) gemv(view, x + token * view.in, y + token * view.out);
}

}  // namespace gptq::reference
