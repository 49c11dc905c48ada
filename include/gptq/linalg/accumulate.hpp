// What hessian.hpp does with tokens and with files, on plain matrices.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <istream>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include <Eigen/Core>

#include <gptq/error.hpp>
#include <gptq/linalg/products.hpp>

namespace gptq::linalg {

/// What a Hessian has counted.
struct token_count {
  double tokens = 0.0;    ///< sum of the token weights
  index_t sequences = 0;  ///< batches that had tokens
};

/// Adds x[tokens, in], weighted if `weights` are not empty, to the lower triangle of sum[in, in]; a batch of
/// no tokens adds nothing. Throws gptq::error for what does not fit or is not finite, naming its place:
/// nothing is added then.
GPTQ_SOLVER_FUNCTION void add_tokens(Eigen::MatrixXf& sum, token_count& count, view x,
                                     std::span<float const> weights, int threads);

/// to += from, of the same shape.
GPTQ_SOLVER_FUNCTION void add(Eigen::MatrixXf& to, Eigen::MatrixXf const& from);

/// factor * h for a square h[in, in]; throws gptq::error for any other.
GPTQ_SOLVER_FUNCTION Eigen::MatrixXf scaled_square(view h, float factor);

/// A matrix of zeros; throws gptq::error, naming `what`, when `in` is not positive.
GPTQ_SOLVER_FUNCTION Eigen::MatrixXf zeros(char const* what, index_t in);

/// x[count] as floats.
template <class Float>
std::vector<float> as_floats(Float const* x, index_t count) {
  std::vector<float> floats(static_cast<std::size_t>(std::max<index_t>(0, count)));
  for (std::size_t i = 0; i < floats.size(); ++i) floats[i] = static_cast<float>(x[i]);
  return floats;
}

/// The image that hessian.hpp describes. Both throw gptq::error.
GPTQ_SOLVER_FUNCTION void save_triangle(std::ostream& out, Eigen::MatrixXf const& sum, token_count count);
GPTQ_SOLVER_FUNCTION Eigen::MatrixXf load_triangle(std::istream& in, token_count& count);

#if !defined(GPTQ_SOLVER_ELSEWHERE)

inline void check_tokens(index_t in, view x, std::span<float const> weights) {
  if (x.columns != in) {
    throw error("hessian: activations are " + std::to_string(x.columns) + " wide, not " + std::to_string(in));
  }
  if (x.rows < 0) throw error("hessian: " + std::to_string(x.rows) + " tokens");
  if (!weights.empty() && static_cast<index_t>(weights.size()) != x.rows) {
    throw error("hessian: " + std::to_string(weights.size()) + " token weights for " +
                std::to_string(x.rows) + " tokens");
  }
  if (!all_finite(x)) {
    for (index_t t = 0; t < x.rows; ++t) {
      for (index_t i = 0; i < x.columns; ++i) {
        if (!std::isfinite(x(t, i))) {
          throw error("hessian: activation of token " + std::to_string(t) + ", input " + std::to_string(i) +
                      " is " + std::to_string(x(t, i)));
        }
      }
    }
  }
  for (std::size_t t = 0; t < weights.size(); ++t) {
    if (!(weights[t] >= 0.0F) || !std::isfinite(weights[t])) {
      throw error("hessian: weight of token " + std::to_string(t) + " is " + std::to_string(weights[t]) +
                  ", not a finite number >= 0");
    }
  }
}

GPTQ_SOLVER_FUNCTION void add_tokens(Eigen::MatrixXf& sum, token_count& count, view x,
                                     std::span<float const> weights, int threads) {
  check_tokens(sum.rows(), x, weights);
  if (x.rows == 0) return;
  if (weights.empty()) {
    add_rank_update(sum, sign::plus, x.transposed(), threads);
    count.tokens += static_cast<double>(x.rows);
  } else {
    std::vector<float> weighted(static_cast<std::size_t>(x.rows * x.columns));
    for (index_t t = 0; t < x.rows; ++t) {
      float const weight = weights[static_cast<std::size_t>(t)];
      float const root = std::sqrt(weight);
      float* const row = weighted.data() + t * x.columns;
      for (index_t i = 0; i < x.columns; ++i) row[i] = x(t, i) * root;
      count.tokens += static_cast<double>(weight);
    }
    add_rank_update(sum, sign::plus, view(weighted.data(), x.columns, x.rows, x.columns, false), threads);
  }
  ++count.sequences;
}

GPTQ_SOLVER_FUNCTION void add(Eigen::MatrixXf& to, Eigen::MatrixXf const& from) {
  if (to.rows() != from.rows()) {
    throw error("hessian: cannot merge a width of " + std::to_string(from.rows()) + " into one of " +
                std::to_string(to.rows()));
  }
  for (index_t i = 0; i < to.size(); ++i) to.data()[i] += from.data()[i];
}

GPTQ_SOLVER_FUNCTION Eigen::MatrixXf scaled_square(view h, float factor) {
  if (h.rows != h.columns || h.rows == 0) {
    throw error("hessian: a matrix of " + std::to_string(h.rows) + " x " + std::to_string(h.columns) +
                (h.rows == h.columns ? " is empty" : " is not square"));
  }
  Eigen::MatrixXf scaled(h.rows, h.rows);
  for (index_t j = 0; j < h.rows; ++j) {
    for (index_t i = 0; i < h.rows; ++i) scaled.data()[j * h.rows + i] = factor * h(i, j);
  }
  return scaled;
}

GPTQ_SOLVER_FUNCTION Eigen::MatrixXf zeros(char const* what, index_t in) {
  if (in <= 0) throw error(std::string(what) + ": in_features is " + std::to_string(in) + ", not positive");
  Eigen::MatrixXf all(in, in);
  std::fill_n(all.data(), all.size(), 0.0F);
  return all;
}

inline constexpr char hessian_magic[8] = {'g', 'p', 't', 'q', 'H', 'e', 's', '1'};
struct hessian_header {
  char magic[8];
  std::int64_t in_features;
  std::int64_t sequences;
  double tokens;
  std::uint64_t reserved;
};
static_assert(sizeof(hessian_header) == 40);

GPTQ_SOLVER_FUNCTION void save_triangle(std::ostream& out, Eigen::MatrixXf const& sum, token_count count) {
  index_t const n = sum.rows();
  hessian_header header{{}, n, count.sequences, count.tokens, 0};
  std::memcpy(header.magic, hessian_magic, sizeof header.magic);
  out.write(reinterpret_cast<char const*>(&header), sizeof header);
  for (index_t j = 0; j < n; ++j) {
    out.write(reinterpret_cast<char const*>(sum.data() + j * n + j),
              (n - j) * static_cast<std::streamsize>(sizeof(float)));
  }
  if (!out.flush()) throw error("hessian: writing failed");
}

GPTQ_SOLVER_FUNCTION Eigen::MatrixXf load_triangle(std::istream& in, token_count& count) {
  hessian_header header{};
  if (!in.read(reinterpret_cast<char*>(&header), sizeof header) ||
      std::memcmp(header.magic, hessian_magic, sizeof header.magic) != 0) {
    throw error("hessian: not a saved hessian");
  }
  // 2^20 inputs are a matrix of 4 TiB: anything larger is not a size but damage.
  if (header.in_features <= 0 || header.in_features > (1 << 20) || header.sequences < 0 ||
      !(header.tokens >= 0.0) || !std::isfinite(header.tokens)) {
    throw error("hessian: the saved hessian's header is damaged");
  }
  // Columns are appended as they arrive, so that a damaged width cannot allocate more than the file holds.
  auto const n = static_cast<index_t>(header.in_features);
  std::vector<float> columns;
  std::vector<float> column(static_cast<std::size_t>(n));
  for (index_t j = 0; j < n; ++j) {
    auto const bytes = (n - j) * static_cast<std::streamsize>(sizeof(float));
    if (!in.read(reinterpret_cast<char*>(column.data()), bytes)) {
      throw error("hessian: the saved hessian ends in column " + std::to_string(j) + " of " +
                  std::to_string(n));
    }
    columns.insert(columns.end(), column.begin(), column.begin() + (n - j));
  }
  Eigen::MatrixXf sum(n, n);
  float const* next = columns.data();
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = 0; i < j; ++i) sum.data()[j * n + i] = 0.0F;
    for (index_t i = j; i < n; ++i, ++next) {
      if (!std::isfinite(*next)) {
        throw error("hessian: saved entry (" + std::to_string(i) + ", " + std::to_string(j) + ") is " +
                    std::to_string(*next));
      }
      sum.data()[j * n + i] = *next;
    }
  }
  count.tokens = header.tokens;
  count.sequences = static_cast<index_t>(header.sequences);
  return sum;
}

#endif

}  // namespace gptq::linalg
