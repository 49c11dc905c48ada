// The three dense operations that the Hessian and the solver need, on Eigen: product, symmetric rank update
// and Cholesky factorization, each spread over threads.
//
// With a BLAS behind Eigen (EIGEN_USE_BLAS) every product is one call and the BLAS uses its own threads:
// results are then as repeatable as that BLAS. Without one, products are cut into fixed tiles, each computed
// by one thread, and the same input gives the same bits for any number of threads. (If you compile with
// OpenMP, define EIGEN_DONT_PARALLELIZE: Eigen would otherwise start threads of its own inside ours.)
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include <Eigen/Core>

#include <gptq/linalg/threads.hpp>
#include <gptq/solver/solver_function.hpp>

namespace gptq::detail {

#if defined(EIGEN_USE_BLAS)
inline constexpr bool have_blas = true;
#else
inline constexpr bool have_blas = false;
#endif

inline constexpr Eigen::Index tile_rows = 256;

/// Calls tile(first, count) for the tiles of `rows` rows: all of them at once when a BLAS will do the
/// threading.
template <class Tile>
void for_row_tiles(Eigen::Index rows, int threads, Tile&& tile) {
  if (have_blas) {
    tile(Eigen::Index{0}, rows);
    return;
  }
  parallel_for((rows + tile_rows - 1) / tile_rows, threads,
               [&](Eigen::Index i) { tile(i * tile_rows, std::min(tile_rows, rows - i * tile_rows)); });
}

/// Whether none of n numbers is a NaN or an infinity. (Eigen's allFinite does not vectorize.)
inline bool all_finite(float const* x, Eigen::Index n) {
  constexpr std::uint32_t exponent = 0x7f800000u;
  std::uint32_t found = 0;
  for (Eigen::Index i = 0; i < n; ++i) {
    found |= static_cast<std::uint32_t>((std::bit_cast<std::uint32_t>(x[i]) & exponent) == exponent);
  }
  return found == 0;
}

/// The same for every row of a row-major matrix.
template <class Rows>
bool all_rows_finite(Rows const& x) {
  for (Eigen::Index row = 0; row < x.rows(); ++row) {
    if (!all_finite(x.data() + row * x.outerStride(), x.cols())) return false;
  }
  return true;
}

/// c += alpha a b
template <class C, class A, class B>
void add_product(C&& c, float alpha, A const& a, B const& b, int threads) {
  if (a.cols() == 0) return;
  for_row_tiles(c.rows(), threads, [&](Eigen::Index first, Eigen::Index count) {
    c.middleRows(first, count).noalias() += alpha * (a.middleRows(first, count) * b);
  });
}

/// Lower triangle of c[n, n] += alpha u u' for u[n, k].
template <class C, class U>
void add_rank_update(C&& c, float alpha, U const& u, int threads) {
  if (have_blas) {
    c.template selfadjointView<Eigen::Lower>().rankUpdate(u, alpha);
    return;
  }
  Eigen::Index const n = c.rows();
  Eigen::Index const tiles = (n + tile_rows - 1) / tile_rows;
  parallel_for(tiles * (tiles + 1) / 2, threads, [&](Eigen::Index piece) {
    // Pieces are numbered along the rows of the lower triangle of tiles.
    Eigen::Index i = 0;
    while ((i + 1) * (i + 2) / 2 <= piece) ++i;
    Eigen::Index const j = piece - i * (i + 1) / 2;
    auto const left = u.middleRows(i * tile_rows, std::min(tile_rows, n - i * tile_rows));
    auto const right = u.middleRows(j * tile_rows, std::min(tile_rows, n - j * tile_rows));
    auto tile = c.block(i * tile_rows, j * tile_rows, left.rows(), right.rows());
    if (i == j) {
      tile.template selfadjointView<Eigen::Lower>().rankUpdate(left, alpha);
    } else {
      tile.noalias() += alpha * (left * right.transpose());
    }
  });
}

/// Rows that the column sweep handles together: a few registers a column, and a block of columns fits into
/// the L1 cache.
inline constexpr Eigen::Index strip_rows = 64;
using strip_matrix = Eigen::Matrix<float, strip_rows, Eigen::Dynamic>;

/// `Vectors` x 16 rows and `Columns` columns of add_strip_product, held in registers.
template <int Vectors, int Columns>
void add_strip_tile(float* c, float alpha, float const* a, Eigen::Index depth, float const* b,
                    Eigen::Index b_stride) {
  using vector [[gnu::vector_size(64), gnu::aligned(4), gnu::may_alias]] = float;
  vector sums[Columns][Vectors] = {};
  for (Eigen::Index k = 0; k < depth; ++k) {
    for (int j = 0; j < Columns; ++j) {
      for (int v = 0; v < Vectors; ++v) {
        sums[j][v] += *reinterpret_cast<vector const*>(a + k * strip_rows + 16 * v) * b[k + j * b_stride];
      }
    }
  }
  for (int j = 0; j < Columns; ++j) {
    for (int v = 0; v < Vectors; ++v) {
      *reinterpret_cast<vector*>(c + j * strip_rows + 16 * v) += alpha * sums[j][v];
    }
  }
}

/// c += alpha a b for c[64, columns], a[64, depth], b[depth, columns], all by columns; those of b are
/// b_stride apart. Not left to Eigen, because a threaded BLAS behind it must not be called from several
/// threads at once for products as small as these.
inline void add_strip_product(float* c, float alpha, float const* a, Eigen::Index depth, float const* b,
                              Eigen::Index b_stride, Eigen::Index columns) {
  if (depth == 0) return;
  Eigen::Index column = 0;
  for (; column + 4 <= columns; column += 4) {
    for (Eigen::Index row = 0; row < strip_rows; row += 16) {
      add_strip_tile<1, 4>(c + column * strip_rows + row, alpha, a + row, depth, b + column * b_stride,
                           b_stride);
    }
  }
  for (; column < columns; ++column) {
    add_strip_tile<4, 1>(c + column * strip_rows, alpha, a, depth, b + column * b_stride, b_stride);
  }
}

/// Sum over the rows w of `rows` of w S w', S symmetric and given by its lower triangle, in double beyond
/// tiles.
template <class Rows, class Lower>
double quadratic_form(Rows const& rows, Lower const& lower, int threads) {
  // w S w' = 2 w L w' - w diag(S) w' with L the lower triangle, diagonal included: half the work of w S.
  Eigen::Index const tile = have_blas ? 4 * tile_rows : tile_rows;
  std::vector<double> sums(static_cast<std::size_t>((rows.rows() + tile - 1) / tile));
  auto const one = [&](Eigen::Index i) {
    Eigen::Index const first = i * tile;
    Eigen::Index const count = std::min(tile, rows.rows() - first);
    auto const w = rows.middleRows(first, count);
    using buffer = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    buffer const product = w * lower.template triangularView<Eigen::Lower>();
    double sum = 0.0;
    for (Eigen::Index r = 0; r < count; ++r) {
      sum += 2.0 * w.row(r).template cast<double>().dot(product.row(r).template cast<double>());
      sum -= w.row(r).template cast<double>().cwiseAbs2().dot(
          lower.diagonal().transpose().template cast<double>());
    }
    sums[static_cast<std::size_t>(i)] = sum;
  };
  parallel_for(static_cast<Eigen::Index>(sums.size()), have_blas ? 1 : threads, one);
  double total = 0.0;
  for (double const sum : sums) total += sum;
  return total;
}

/// Cholesky factorization in place: the lower triangle of a becomes L with a = L L'; the upper triangle is
/// scratch. Returns false when a is not positive definite.
GPTQ_SOLVER_FUNCTION bool cholesky_lower(Eigen::Ref<Eigen::MatrixXf> a, int threads);

#if !defined(GPTQ_SOLVER_ELSEWHERE)
GPTQ_SOLVER_FUNCTION bool cholesky_lower(Eigen::Ref<Eigen::MatrixXf> a, int threads) {
  Eigen::Index const n = a.rows();
  if (n <= 64) {
    for (Eigen::Index j = 0; j < n; ++j) {
      auto column = a.col(j).tail(n - j);
      for (Eigen::Index i = 0; i < j; ++i) column -= a(j, i) * a.col(i).tail(n - j);
      float const pivot = column(0);
      if (!(pivot > 0.0F) || !std::isfinite(pivot)) return false;
      column /= std::sqrt(pivot);
    }
    return true;
  }
  // In halves, so that most of the work is done in large products:
  //   a = [a11 .  ]   l11 = chol(a11), l21 = a21 / l11', l22 = chol(a22 - l21 l21')
  //       [a21 a22]
  Eigen::Index const half = (n / 2 + 63) / 64 * 64;
  Eigen::Ref<Eigen::MatrixXf> upper_left = a.topLeftCorner(half, half);
  Eigen::Ref<Eigen::MatrixXf> lower_left = a.bottomLeftCorner(n - half, half);
  Eigen::Ref<Eigen::MatrixXf> lower_right = a.bottomRightCorner(n - half, n - half);
  if (!cholesky_lower(upper_left, threads)) return false;
  for_row_tiles(n - half, threads, [&](Eigen::Index first, Eigen::Index count) {
    auto rows = lower_left.middleRows(first, count);
    upper_left.template triangularView<Eigen::Lower>().transpose().template solveInPlace<Eigen::OnTheRight>(
        rows);
  });
  add_rank_update(lower_right, -1.0F, lower_left, threads);
  return cholesky_lower(lower_right, threads);
}
#endif

}  // namespace gptq::detail
