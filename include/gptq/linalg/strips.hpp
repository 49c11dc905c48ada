// Strips: 64 rows that one thread works on, stored by columns. Their products are so small that they are not
// left to Eigen, because a threaded BLAS behind it must not be called from several threads at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

#include <gptq/config.hpp>
#include <gptq/linalg/threads.hpp>
#include <gptq/linalg/vectors.hpp>
#include <gptq/linalg/views.hpp>

namespace gptq::linalg {

/// A few registers a column, and a block of columns fits into the L1 cache.
inline constexpr index_t strip_rows = 64;

/// strip_rows x columns floats, by columns, zeros at first.
class strip {
 public:
  explicit strip(index_t columns) : columns_(columns) {
    auto const count = static_cast<std::size_t>(columns * strip_rows);
    data_.reset(static_cast<float*>(::operator new(count * sizeof(float), alignment)));
    std::fill_n(data_.get(), count, 0.0F);
  }

  index_t columns() const { return columns_; }
  float* column(index_t c) { return data_.get() + c * strip_rows; }
  float const* column(index_t c) const { return data_.get() + c * strip_rows; }
  float& operator()(index_t r, index_t c) { return data_[static_cast<std::size_t>(c * strip_rows + r)]; }
  float operator()(index_t r, index_t c) const { return data_[static_cast<std::size_t>(c * strip_rows + r)]; }
  /// The first `rows` rows of the columns first..first+count.
  mutable_view block(index_t first, index_t count, index_t rows = strip_rows) {
    return {column(first), rows, count, strip_rows, false};
  }

 private:
  static constexpr std::align_val_t alignment{64};
  struct free_floats {
    void operator()(float* floats) const { ::operator delete(floats, alignment); }
  };
  std::unique_ptr<float[], free_floats> data_;
  index_t columns_;
};

/// Calls range(first, count) for the strips of `rows` rows, on threads.
inline void for_strips(index_t rows, int threads, function_ref<void(index_t, index_t)> range) {
  parallel_ranges(rows, strip_rows, threads, range);
}

/// c += alpha a b for c[64, columns], a[64, depth], b[depth, columns], all by columns; those of b are
/// `b_stride` apart.
GPTQ_SOLVER_FUNCTION void add_strip_product(float* c, float alpha, float const* a, index_t depth,
                                            float const* b, index_t b_stride, index_t columns);

#if !defined(GPTQ_SOLVER_ELSEWHERE)

GPTQ_SOLVER_FUNCTION void add_strip_product(float* c, float alpha, float const* a, index_t depth,
                                            float const* b, index_t b_stride, index_t columns) {
  if (depth == 0) return;
  index_t column = 0;
  for (; column + 4 <= columns; column += 4) {
    for (index_t row = 0; row < strip_rows; row += 16) {
      add_product_tile<float, 1, 4>(c + column * strip_rows + row, strip_rows, alpha, a + row, strip_rows,
                                    depth, b + column * b_stride, 1, b_stride);
    }
  }
  for (; column < columns; ++column) {
    add_product_tile<float, 4, 1>(c + column * strip_rows, strip_rows, alpha, a, strip_rows, depth,
                                  b + column * b_stride, 1, b_stride);
  }
}

#endif

}  // namespace gptq::linalg
