// Rectangles of floats within a matrix, by rows or by columns: what the operations of this room take, so that
// each of them is compiled once and not once a way to write a matrix down.
#pragma once

#include <Eigen/Core>

#include <gptq/config.hpp>

namespace gptq::linalg {

/// Does not own the floats. Entry (i, j) is data[i * stride + j] where `by_rows`, and data[i + j * stride]
/// otherwise.
template <class Float>
struct rectangle {
  Float* data;
  index_t rows;
  index_t columns;
  index_t stride;
  bool by_rows;

  rectangle(Float* entries, index_t row_count, index_t column_count, index_t distance, bool rows_first)
      : data(entries), rows(row_count), columns(column_count), stride(distance), by_rows(rows_first) {}
  /// All of an Eigen matrix, map or reference.
  template <class Matrix>
  requires requires(Matrix& m) { m.outerStride(); }
  // NOLINTNEXTLINE(bugprone-forwarding-reference-overload): rectangles have no outerStride()
  rectangle(Matrix&& m)
      : rectangle(m.data(), m.rows(), m.cols(), m.outerStride(),
                  std::remove_cvref_t<Matrix>::IsRowMajor != 0) {}
  operator rectangle<float const>() const { return {data, rows, columns, stride, by_rows}; }

  Float& operator()(index_t i, index_t j) const { return data[by_rows ? i * stride + j : i + j * stride]; }
  rectangle block(index_t i, index_t j, index_t row_count, index_t column_count) const {
    return {data + (by_rows ? i * stride + j : i + j * stride), row_count, column_count, stride, by_rows};
  }
  rectangle middle_rows(index_t first, index_t count) const { return block(first, 0, count, columns); }
  rectangle middle_columns(index_t first, index_t count) const { return block(0, first, rows, count); }
  rectangle transposed() const { return {data, columns, rows, stride, !by_rows}; }
};

using view = rectangle<float const>;
using mutable_view = rectangle<float>;

/// to = from, of the same shape.
inline void copy(view from, mutable_view to) {
  for (index_t outer = 0; outer < (to.by_rows ? to.rows : to.columns); ++outer) {
    for (index_t inner = 0; inner < (to.by_rows ? to.columns : to.rows); ++inner) {
      to.data[outer * to.stride + inner] = to.by_rows ? from(outer, inner) : from(inner, outer);
    }
  }
}

}  // namespace gptq::linalg
