// The dense operations that the Hessian and the solver need, on Eigen: product, symmetric rank update,
// quadratic form and Cholesky factorization, each spread over threads.
//
// With a BLAS behind Eigen (EIGEN_USE_BLAS) every product is one call and the BLAS uses its own threads:
// results are then as repeatable as that BLAS. Without one, products are cut into fixed tiles, each computed
// by one thread, and the same input gives the same bits for any number of threads. (If you compile with
// OpenMP, define EIGEN_DONT_PARALLELIZE: Eigen would otherwise start threads of its own inside ours.)
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <Eigen/Core>

#include <gptq/config.hpp>
#include <gptq/linalg/compiled_once.hpp>
#include <gptq/linalg/threads.hpp>
#include <gptq/linalg/vectors.hpp>
#include <gptq/linalg/views.hpp>

namespace gptq::linalg {

/// Calls tile(first, count) for tiles of `rows` rows: all of them at once when a BLAS will do the threading.
GPTQ_SOLVER_FUNCTION void for_row_tiles(index_t rows, int threads, function_ref<void(index_t, index_t)> tile);

/// Whether no entry is a NaN or an infinity.
GPTQ_SOLVER_FUNCTION bool all_finite(view x);

enum class sign { plus, minus };

/// c += a b, or c -= a b
GPTQ_SOLVER_FUNCTION void add_product(mutable_view c, sign s, view a, view b, int threads);

/// Lower triangle of c[n, n] += u u', or -= u u', for u[n, k]; both by columns.
GPTQ_SOLVER_FUNCTION void add_rank_update(mutable_view c, sign s, view u, int threads);

/// Sum over the rows w of `rows`, which lie by rows, of w S w', S symmetric and given by its lower triangle,
/// by columns. In double beyond a row's products with S.
GPTQ_SOLVER_FUNCTION double quadratic_form(view rows, view lower, int threads);

/// Cholesky factorization in place, by columns: the lower triangle of a becomes L with a = L L'; the upper
/// triangle is scratch. Returns false when a is not positive definite.
GPTQ_SOLVER_FUNCTION bool cholesky_lower(mutable_view a, int threads);

#if !defined(GPTQ_SOLVER_ELSEWHERE)

#if defined(EIGEN_USE_BLAS)
inline constexpr bool have_blas = true;
#else
inline constexpr bool have_blas = false;
#endif

inline constexpr index_t tile_rows = 256;

using columns_map = Eigen::Map<Eigen::MatrixXf, 0, Eigen::OuterStride<>>;
using columns_map_const = Eigen::Map<Eigen::MatrixXf const, 0, Eigen::OuterStride<>>;
using rows_map_const = Eigen::Map<Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> const,
                                  0, Eigen::OuterStride<>>;

template <class Map, class View>
Map as_map(View x) {
  return Map(x.data, x.rows, x.columns, Eigen::OuterStride<>(x.stride));
}

GPTQ_SOLVER_FUNCTION void for_row_tiles(index_t rows, int threads,
                                        function_ref<void(index_t, index_t)> tile) {
  if (have_blas) {
    tile(0, rows);
  } else {
    parallel_ranges(rows, tile_rows, threads, tile);
  }
}

GPTQ_SOLVER_FUNCTION bool all_finite(view x) {
  if (!x.by_rows) x = x.transposed();
  constexpr std::uint32_t exponent = 0x7f800000u;
  for (index_t row = 0; row < x.rows; ++row) {
    float const* const entries = x.data + row * x.stride;
    std::uint32_t found = 0;  // all of a row before the first question, so that it vectorizes
    for (index_t i = 0; i < x.columns; ++i) {
      found |= static_cast<std::uint32_t>((std::bit_cast<std::uint32_t>(entries[i]) & exponent) == exponent);
    }
    if (found != 0) return false;
  }
  return true;
}

template <class A, class B>
void add_product_of_maps(columns_map c, sign s, A const& a, B const& b) {
  if (s == sign::plus) {
    c.noalias() += a * b;
  } else {
    c.noalias() -= a * b;
  }
}

/// add_product on one thread, for c by columns and one of a and b by rows.
inline void add_product_on_this_thread(mutable_view c, sign s, view a, view b) {
  if (a.by_rows) {
    add_product_of_maps(as_map<columns_map>(c), s, as_map<rows_map_const>(a), as_map<columns_map_const>(b));
  } else {
    add_product_of_maps(as_map<columns_map>(c), s, as_map<columns_map_const>(a), as_map<rows_map_const>(b));
  }
}

GPTQ_SOLVER_FUNCTION void add_product(mutable_view c, sign s, view a, view b, int threads) {
  if (a.columns == 0) return;
  // Every further way that a and b may lie would be another product for the compiler to work on.
  std::vector<float> other_order;
  if (a.by_rows == b.by_rows) {
    other_order.resize(static_cast<std::size_t>(b.rows * b.columns));
    mutable_view const copied(other_order.data(), b.rows, b.columns, b.by_rows ? b.rows : b.columns,
                              !b.by_rows);
    copy(b, copied);
    b = copied;
  }
  for_row_tiles(c.rows, threads, [&](index_t first, index_t count) {
    mutable_view const target = c.middle_rows(first, count);
    view const left = a.middle_rows(first, count);
    if (target.by_rows) {
      add_product_on_this_thread(target.transposed(), s, b.transposed(), left.transposed());
    } else {
      add_product_on_this_thread(target, s, left, b);
    }
  });
}

inline void add_rank_update_tile(mutable_view c, sign s, view u) {
  as_map<columns_map>(c).selfadjointView<Eigen::Lower>().rankUpdate(as_map<columns_map_const>(u),
                                                                    s == sign::plus ? 1.0F : -1.0F);
}

GPTQ_SOLVER_FUNCTION void add_rank_update(mutable_view c, sign s, view u, int threads) {
  if (u.columns == 0) return;
  if (have_blas) {
    add_rank_update_tile(c, s, u);
    return;
  }
  index_t const n = c.rows;
  index_t const tiles = (n + tile_rows - 1) / tile_rows;
  parallel_for(tiles * (tiles + 1) / 2, threads, [&](index_t piece) {
    // Pieces are numbered along the rows of the lower triangle of tiles.
    index_t i = 0;
    while ((i + 1) * (i + 2) / 2 <= piece) ++i;
    index_t const j = piece - i * (i + 1) / 2;
    view const left = u.middle_rows(i * tile_rows, std::min(tile_rows, n - i * tile_rows));
    view const right = u.middle_rows(j * tile_rows, std::min(tile_rows, n - j * tile_rows));
    mutable_view const tile = c.block(i * tile_rows, j * tile_rows, left.rows, right.rows);
    if (i == j) {
      add_rank_update_tile(tile, s, left);
    } else {
      add_product_on_this_thread(tile, s, left, right.transposed());
    }
  });
}

GPTQ_SOLVER_FUNCTION double quadratic_form(view rows, view lower, int threads) {
  // w S w' = 2 w L w' - w diag(S) w' with L the lower triangle, diagonal included: half the work of w S.
  index_t const tile = have_blas ? 4 * tile_rows : tile_rows;
  std::vector<double> sums(static_cast<std::size_t>((rows.rows + tile - 1) / tile));
  parallel_ranges(rows.rows, tile, have_blas ? 1 : threads, [&](index_t first, index_t count) {
    view const tile_of_rows = rows.middle_rows(first, count);
    Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> product(count, rows.columns);
    product.noalias() = as_map<rows_map_const>(tile_of_rows) *
                        as_map<columns_map_const>(lower).triangularView<Eigen::Lower>();
    double sum = 0.0;
    for (index_t r = 0; r < count; ++r) {
      float const* const w = tile_of_rows.data + r * rows.stride;
      float const* const wl = product.data() + r * product.outerStride();
      double twice = 0.0;
      double diagonal = 0.0;
      for (index_t i = 0; i < rows.columns; ++i) {
        auto const x = static_cast<double>(w[i]);
        twice += x * static_cast<double>(wl[i]);
        diagonal += x * x * static_cast<double>(lower(i, i));
      }
      sum += 2.0 * twice;
      sum -= diagonal;
    }
    sums[static_cast<std::size_t>(first / tile)] = sum;
  });
  double total = 0.0;
  for (double const sum : sums) total += sum;
  return total;
}

inline bool cholesky_lower_small(mutable_view a) {
  for (index_t j = 0; j < a.rows; ++j) {
    float* const column = &a(0, j);
    for (index_t k = 0; k < j; ++k) {
      float const* const before = &a(0, k);
      add_scaled(column + j, -before[j], before + j, a.rows - j);
    }
    float const pivot = column[j];
    if (!(pivot > 0.0F) || !std::isfinite(pivot)) return false;
    float const root = std::sqrt(pivot);
    for (index_t i = j; i < a.rows; ++i) column[i] /= root;
  }
  return true;
}

GPTQ_SOLVER_FUNCTION bool cholesky_lower(mutable_view a, int threads) {
  index_t const n = a.rows;
  if (n <= 64) return cholesky_lower_small(a);
  // In halves, so that most of the work is done in large products:
  //   a = [a11 .  ]   l11 = chol(a11), l21 = a21 / l11', l22 = chol(a22 - l21 l21')
  //       [a21 a22]
  index_t const half = (n / 2 + 63) / 64 * 64;
  mutable_view const upper_left = a.block(0, 0, half, half);
  mutable_view const lower_left = a.block(half, 0, n - half, half);
  mutable_view const lower_right = a.block(half, half, n - half, n - half);
  if (!cholesky_lower(upper_left, threads)) return false;
  for_row_tiles(n - half, threads, [&](index_t first, index_t count) {
    auto rows = as_map<columns_map>(lower_left.middle_rows(first, count));
    as_map<columns_map>(upper_left)
        .triangularView<Eigen::Lower>()
        .transpose()
        .solveInPlace<Eigen::OnTheRight>(rows);
  });
  add_rank_update(lower_right, sign::minus, lower_left, threads);
  return cholesky_lower(lower_right, threads);
}

#endif

}  // namespace gptq::linalg
