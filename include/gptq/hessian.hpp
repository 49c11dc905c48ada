// The Hessian of a layer's output error: what the inputs of a layer look like, as one in x in matrix.
//
//   gptq::hessian h(in_features);
//   for (auto const& x : calibration) h.add(x);      // x[tokens, in], one sequence
//
// For a linear layer y = W x the squared output error of replacing W by W + D, summed over tokens, is
// tr(D S D') with S = sum of x x' (Frantar et al., "GPTQ", 2022, eq. 1-3). The published implementations use
// H = 2 / sequences * S; this class keeps S, so that parts add up exactly as counted, and gives H where a
// loss is reported. One Hessian serves every layer with the same input: q, k and v; gate and up.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <istream>
#include <ostream>
#include <span>
#include <string>

#include <Eigen/Core>

#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/format.hpp>
#include <gptq/linalg/products.hpp>
#include <gptq/solver/solver_function.hpp>

namespace gptq {

/// Row-major float: weights [out, in], activations [tokens, in].
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// S = sum over tokens of weight * x x', in float32; K x K floats of memory.
class hessian {
 public:
  /// @param in_features  width of the inputs, positive
  /// @param threads      for add(); 0: one a core. The result does not depend on it (but see
  /// linalg/products.hpp)
  explicit hessian(index_t in_features, int threads = 0);

  /// An already accumulated H = 2 / sequences * S, symmetric (the lower triangle is used).
  static hessian from_matrix(Eigen::Ref<Eigen::MatrixXf const> const& h, index_t tokens, index_t sequences);

  /// Adds one sequence x[tokens, in]. `token_weights`, if not empty, has one weight >= 0 a token: 0 leaves a
  /// token (padding) out, and tokens() grows by the sum. Throws gptq::error on a wrong shape, a NaN or an
  /// infinity, naming its token and input; nothing is added then.
  void add(Eigen::Ref<matrix const> const& x, std::span<float const> token_weights = {});
  /// The same from raw pointers, x[tokens, in] row-major in float16 or bfloat16; converted to float first.
  void add(float16 const* x, index_t tokens, std::span<float const> token_weights = {});
  void add(bfloat16 const* x, index_t tokens, std::span<float const> token_weights = {});
  void add(float const* x, index_t tokens, std::span<float const> token_weights = {});

  /// Adds what another one has seen. Throws gptq::error when the widths differ.
  void merge(hessian const& other);

  index_t in_features() const { return sum_.rows(); }
  /// Sum of the token weights: the number of tokens if none were given.
  double tokens() const { return tokens_; }
  /// Number of add() calls.
  index_t sequences() const { return sequences_; }
  /// S; only its lower triangle is meaningful.
  Eigen::MatrixXf const& sum() const { return sum_; }
  /// 2 / sequences: H = scale() * S.
  double scale() const { return sequences_ == 0 ? 0.0 : 2.0 / static_cast<double>(sequences_); }

  /// Writes a binary image of the lower triangle: 40 + 2 K (K + 1) bytes, little endian. Throws gptq::error
  /// when the stream fails.
  void save(std::ostream& out) const;
  /// Reads what save() wrote. Throws gptq::error when it is not that, or ends early.
  static hessian load(std::istream& in, int threads = 0);

 private:
  template <class T>
  void add_converted(T const* x, index_t tokens, std::span<float const> token_weights);
  void check_input(Eigen::Ref<matrix const> const& x, std::span<float const> weights, index_t first) const;

  Eigen::MatrixXf sum_;
  double tokens_ = 0.0;
  index_t sequences_ = 0;
  int threads_ = 0;
};

// ---- implementation -------------------------------------------------------------------------------------

inline hessian::hessian(index_t in_features, int threads) : threads_(threads) {
  if (in_features <= 0) {
    throw error("hessian: in_features is " + std::to_string(in_features) + ", not positive");
  }
  sum_.setZero(in_features, in_features);
}

inline hessian hessian::from_matrix(Eigen::Ref<Eigen::MatrixXf const> const& h, index_t tokens,
                                    index_t sequences) {
  if (h.rows() != h.cols()) {
    throw error("hessian: a matrix of " + std::to_string(h.rows()) + " x " + std::to_string(h.cols()) +
                " is not square");
  }
  if (tokens <= 0 || sequences <= 0) throw error("hessian: tokens and sequences must be positive");
  hessian result(h.rows());
  result.sum_ = h * (static_cast<float>(sequences) / 2.0F);
  result.tokens_ = static_cast<double>(tokens);
  result.sequences_ = sequences;
  return result;
}

#if !defined(GPTQ_SOLVER_ELSEWHERE)

GPTQ_SOLVER_FUNCTION void hessian::check_input(Eigen::Ref<matrix const> const& x,
                                               std::span<float const> weights, index_t first) const {
  if (!detail::all_rows_finite(x)) {
    for (index_t t = 0; t < x.rows(); ++t) {
      for (index_t i = 0; i < x.cols(); ++i) {
        if (!std::isfinite(x(t, i))) {
          throw error("hessian: activation of token " + std::to_string(first + t) + ", input " +
                      std::to_string(i) + " is " + std::to_string(x(t, i)));
        }
      }
    }
  }
  for (std::size_t t = 0; t < weights.size(); ++t) {
    if (!(weights[t] >= 0.0F) || !std::isfinite(weights[t])) {
      throw error("hessian: weight of token " + std::to_string(first + static_cast<index_t>(t)) + " is " +
                  std::to_string(weights[t]) + ", not a finite number >= 0");
    }
  }
}

GPTQ_SOLVER_FUNCTION void hessian::add(Eigen::Ref<matrix const> const& x,
                                       std::span<float const> token_weights) {
  if (x.cols() != in_features()) {
    throw error("hessian: activations are " + std::to_string(x.cols()) + " wide, not " +
                std::to_string(in_features()));
  }
  if (!token_weights.empty() && static_cast<index_t>(token_weights.size()) != x.rows()) {
    throw error("hessian: " + std::to_string(token_weights.size()) + " token weights for " +
                std::to_string(x.rows()) + " tokens");
  }
  check_input(x, token_weights, 0);
  if (token_weights.empty()) {
    detail::add_rank_update(sum_, 1.0F, x.transpose(), threads_);
    tokens_ += static_cast<double>(x.rows());
  } else {
    matrix weighted = x;
    for (index_t t = 0; t < x.rows(); ++t) {
      float const weight = token_weights[static_cast<std::size_t>(t)];
      weighted.row(t) *= std::sqrt(weight);
      tokens_ += static_cast<double>(weight);
    }
    detail::add_rank_update(sum_, 1.0F, weighted.transpose(), threads_);
  }
  ++sequences_;
}

#endif

inline void hessian::add(float const* x, index_t tokens, std::span<float const> token_weights) {
  add(Eigen::Map<matrix const>(x, tokens, in_features()), token_weights);
}

template <class T>
void hessian::add_converted(T const* x, index_t tokens, std::span<float const> token_weights) {
  matrix converted(tokens, in_features());
  for (index_t i = 0; i < converted.size(); ++i) converted.data()[i] = static_cast<float>(x[i]);
  add(converted, token_weights);
}

inline void hessian::add(float16 const* x, index_t tokens, std::span<float const> token_weights) {
  add_converted(x, tokens, token_weights);
}

inline void hessian::add(bfloat16 const* x, index_t tokens, std::span<float const> token_weights) {
  add_converted(x, tokens, token_weights);
}

inline void hessian::merge(hessian const& other) {
  if (other.in_features() != in_features()) {
    throw error("hessian: cannot merge a width of " + std::to_string(other.in_features()) + " into one of " +
                std::to_string(in_features()));
  }
  sum_ += other.sum_;
  tokens_ += other.tokens_;
  sequences_ += other.sequences_;
}

namespace detail {
inline constexpr char hessian_magic[8] = {'g', 'p', 't', 'q', 'H', 'e', 's', '1'};
struct hessian_header {
  char magic[8];
  std::int64_t in_features;
  std::int64_t sequences;
  double tokens;
  std::uint64_t reserved;
};
static_assert(sizeof(hessian_header) == 40);
}  // namespace detail

inline void hessian::save(std::ostream& out) const {
  detail::hessian_header header{{}, in_features(), sequences_, tokens_, 0};
  std::memcpy(header.magic, detail::hessian_magic, sizeof header.magic);
  out.write(reinterpret_cast<char const*>(&header), sizeof header);
  for (index_t j = 0; j < in_features(); ++j) {
    out.write(reinterpret_cast<char const*>(sum_.data() + j * in_features() + j),
              (in_features() - j) * static_cast<std::streamsize>(sizeof(float)));
  }
  if (!out.flush()) throw error("hessian: writing failed");
}

inline hessian hessian::load(std::istream& in, int threads) {
  detail::hessian_header header{};
  if (!in.read(reinterpret_cast<char*>(&header), sizeof header) ||
      std::memcmp(header.magic, detail::hessian_magic, sizeof header.magic) != 0) {
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
  hessian result(n, threads);
  float const* next = columns.data();
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = j; i < n; ++i, ++next) {
      if (!std::isfinite(*next)) {
        throw error("hessian: saved entry (" + std::to_string(i) + ", " + std::to_string(j) + ") is " +
                    std::to_string(*next));
      }
      result.sum_(i, j) = *next;
    }
  }
  result.tokens_ = header.tokens;
  result.sequences_ = static_cast<index_t>(header.sequences);
  return result;
}

}  // namespace gptq
