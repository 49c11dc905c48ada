// Loops that are to use vector instructions whatever the level of optimization.
#pragma once

#include <gptq/config.hpp>

namespace gptq::linalg {

/// 64 bytes of numbers: a few registers of whatever CPU is compiled for.
template <class Number>
struct wide_vector {
  using type [[gnu::vector_size(64), gnu::aligned(4), gnu::may_alias]] = Number;
  static constexpr index_t size = 64 / sizeof(Number);
};

/// to[count] += alpha from[count]
template <class Number>
void add_scaled(Number* to, Number alpha, Number const* from, index_t count) {
  using vector = typename wide_vector<Number>::type;
  constexpr index_t size = wide_vector<Number>::size;
  index_t i = 0;
  for (; i + size <= count; i += size) {
    *reinterpret_cast<vector*>(to + i) += alpha * *reinterpret_cast<vector const*>(from + i);
  }
  for (; i < count; ++i) to[i] += alpha * from[i];
}

/// `Vectors` vectors of rows and `Columns` columns of c += alpha a b, held in registers. c and a lie by
/// columns, `c_stride` and `a_stride` apart; b[k, j] is b[k * b_row + j * b_column].
template <class Number, int Vectors, int Columns>
void add_product_tile(Number* c, index_t c_stride, Number alpha, Number const* a, index_t a_stride,
                      index_t depth, Number const* b, index_t b_row, index_t b_column) {
  using vector = typename wide_vector<Number>::type;
  constexpr index_t size = wide_vector<Number>::size;
  vector sums[Columns][Vectors] = {};
  for (index_t k = 0; k < depth; ++k) {
    for (int j = 0; j < Columns; ++j) {
      for (int v = 0; v < Vectors; ++v) {
        sums[j][v] +=
            *reinterpret_cast<vector const*>(a + k * a_stride + size * v) * b[k * b_row + j * b_column];
      }
    }
  }
  for (int j = 0; j < Columns; ++j) {
    for (int v = 0; v < Vectors; ++v) {
      *reinterpret_cast<vector*>(c + j * c_stride + size * v) += alpha * sums[j][v];
    }
  }
}

}  // namespace gptq::linalg
