// The Cholesky factor of an inverse, in double: what the published solver works with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <gptq/config.hpp>
#include <gptq/linalg/threads.hpp>
#include <gptq/linalg/vectors.hpp>

namespace gptq::linalg {

/// A square matrix of doubles by columns. Its rows are made up to whole vectors, of zeros.
class square_of_doubles {
 public:
  explicit square_of_doubles(index_t size)
      : size_(size), stride_((size + 7) / 8 * 8), data_(static_cast<std::size_t>(stride_ * size)) {}

  index_t size() const { return size_; }
  index_t stride() const { return stride_; }
  double* column(index_t j) { return data_.data() + j * stride_; }
  double const* column(index_t j) const { return data_.data() + j * stride_; }

 private:
  index_t size_;
  index_t stride_;
  std::vector<double> data_;
};

inline constexpr index_t factor_block = 64;

/// c[rows, columns] -= a b for whole vectors of rows; b[k, j] is b[k * b_row + j * b_column].
inline void subtract_product(double* c, index_t stride, double const* a, index_t depth, double const* b,
                             index_t b_row, index_t b_column, index_t rows, index_t columns) {
  for (index_t row = 0; row < rows; row += 8) {
    index_t j = 0;
    for (; j + 4 <= columns; j += 4) {
      add_product_tile<double, 1, 4>(c + j * stride + row, stride, -1.0, a + row, stride, depth,
                                     b + j * b_column, b_row, b_column);
    }
    for (; j < columns; ++j) {
      add_product_tile<double, 1, 1>(c + j * stride + row, stride, -1.0, a + row, stride, depth,
                                     b + j * b_column, b_row, b_column);
    }
  }
}

/// The lower triangle of a becomes L with a = L L'. Returns false when a is not positive definite.
inline bool cholesky_in_double(square_of_doubles& a, int threads) {
  index_t const n = a.size();
  index_t const stride = a.stride();
  for (index_t first = 0; first < n; first += factor_block) {
    index_t const end = std::min(first + factor_block, n);
    for (index_t j = first; j < end; ++j) {
      double* const column = a.column(j);
      for (index_t k = first; k < j; ++k) add_scaled(column + j, -a.column(k)[j], a.column(k) + j, n - j);
      double const pivot = column[j];
      if (!(pivot > 0.0) || !std::isfinite(pivot)) return false;
      double const root = std::sqrt(pivot);
      for (index_t i = j; i < n; ++i) column[i] /= root;
    }
    parallel_ranges(n - end, factor_block, threads, [&](index_t offset, index_t count) {
      index_t const from =
          end + offset;  // the first row of the trailing columns' lower triangle, or of its block
      subtract_product(a.column(from) + from, stride, a.column(first) + from, end - first,
                       a.column(first) + from, stride, 1, stride - from, count);
    });
  }
  return true;
}

/// The lower triangle of the inverse of the lower triangular l.
inline square_of_doubles inverse_of_lower(square_of_doubles const& l, int threads) {
  index_t const n = l.size();
  index_t const stride = l.stride();
  square_of_doubles inverse(n);
  parallel_ranges(n, factor_block, threads, [&](index_t c0, index_t columns) {
    for (index_t j = c0; j < c0 + columns; ++j) inverse.column(j)[j] = 1.0;
    for (index_t r0 = c0; r0 < n; r0 += factor_block) {
      index_t const r1 = std::min(r0 + factor_block, n);
      for (index_t j = c0; j < c0 + columns; ++j) {
        double* const x = inverse.column(j);
        for (index_t i = r0; i < r1; ++i) {
          x[i] /= l.column(i)[i];
          add_scaled(x + i + 1, -x[i], l.column(i) + i + 1, r1 - i - 1);
        }
      }
      // What these rows of the inverse owe to all that follow them.
      if (r1 < n) {
        subtract_product(inverse.column(c0) + r1, stride, l.column(r0) + r1, r1 - r0, inverse.column(c0) + r0,
                         1, stride, stride - r1, columns);
      }
    }
  });
  return inverse;
}

}  // namespace gptq::linalg
