// The Hessian of a layer's output error: what GPTQ knows of the layer's inputs, one matrix [in, in].
//
//   gptq::hessian h(in_features);
//   for (gptq::matrix const& x : calibration) h.add(x);      // x[tokens, in_features], one sequence
//
// With W + D in place of W, the outputs y = W x of a linear layer are wrong by D x. The squares of that, summed
// over outputs and tokens, are tr(D S D') with S = sum over tokens of x x' (Frantar et al., "GPTQ", 2022, eq. 1-3).
// The published implementations keep H = (2 / sequences) S. This class keeps S, and the numbers of tokens and
// sequences beside it: parts of a calibration are then merged by adding, and H = scale() * S. One Hessian
// serves every layer with the same input: q, k and v; gate and up.
//
// A batch of no tokens (an expert that none was routed to) adds nothing and is no sequence. What needs a
// Hessian refuses one that has seen no tokens, by name.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <span>

#include <Eigen/Core>

#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/linalg/accumulate.hpp>

namespace gptq {

/// Row-major float: weights [out, in], activations [tokens, in].
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// S = sum over tokens of (weight of the token, 1 by default) * x x', in float32; K x K floats of memory.
class hessian {
 public:
  /// @param in_features  width of the inputs; throws gptq::error unless it is positive
  /// @param threads      for add(); 0: one a core. The result does not depend on it (but see
  ///   linalg/products.hpp)
  explicit hessian(index_t in_features, int threads = 0)
      : sum_(linalg::zeros("hessian", in_features)), threads_(threads) {}

  /// An already accumulated S, [in, in], symmetric (the lower triangle is used), as sum() gives it. Throws
  /// gptq::error when it is not square, or tokens or sequences are not positive.
  static hessian from_sum(Eigen::Ref<Eigen::MatrixXf const> const& sum, double tokens, index_t sequences) {
    if (!(tokens > 0.0) || sequences <= 0) throw error("hessian: tokens and sequences must be positive");
    return hessian(linalg::scaled_square(sum, 1.0F), {tokens, sequences}, 0);
  }
  /// The same from the published solvers' H = 2 / sequences * S, [in, in], symmetric (the lower triangle is used). Throws
  /// gptq::error when it is not square, or tokens or sequences are not positive.
  static hessian from_matrix(Eigen::Ref<Eigen::MatrixXf const> const& h, index_t tokens, index_t sequences) {
    if (tokens <= 0 || sequences <= 0) throw error("hessian: tokens and sequences must be positive");
    return hessian(linalg::scaled_square(h, static_cast<float>(sequences) / 2.0F),
                   {static_cast<double>(tokens), sequences}, 0);
  }

  /// Adds one sequence x[tokens, in]. Each call counts as a sequence, by which the reported loss is scaled: collect
  /// a sequence's tokens and add them at once. `token_weights`, if not empty, has one weight >= 0 a token: 0 leaves a
  /// token (padding) out, and tokens() grows by the sum. Throws gptq::error on a wrong shape, a NaN or an
  /// infinity, naming its token and input; nothing is added then.
  void add(Eigen::Ref<matrix const> const& x, std::span<float const> token_weights = {}) {
    linalg::add_tokens(sum_, count_, x, token_weights, threads_);
  }
  /// The same from raw pointers, x[tokens, in] by rows in float, float16 or bfloat16; converted to float
  /// first. Where there are no tokens x may be null.
  void add(float const* x, index_t tokens, std::span<float const> token_weights = {}) {
    linalg::add_tokens(sum_, count_, {x, tokens, in_features(), in_features(), true}, token_weights,
                       threads_);
  }
  void add(float16 const* x, index_t tokens, std::span<float const> token_weights = {}) {
    add(linalg::as_floats(x, tokens * in_features()).data(), tokens, token_weights);
  }
  void add(bfloat16 const* x, index_t tokens, std::span<float const> token_weights = {}) {
    add(linalg::as_floats(x, tokens * in_features()).data(), tokens, token_weights);
  }

  /// Adds what another one has seen. Throws gptq::error when the widths differ.
  void merge(hessian const& other) {
    linalg::add(sum_, other.sum_);
    count_.tokens += other.count_.tokens;
    count_.sequences += other.count_.sequences;
  }

  index_t in_features() const { return sum_.rows(); }
  /// Sum of the token weights: the number of tokens if none were given.
  double tokens() const { return count_.tokens; }
  /// Number of add() calls that had tokens.
  index_t sequences() const { return count_.sequences; }
  /// S[in, in]; only its lower triangle is meaningful.
  Eigen::MatrixXf const& sum() const { return sum_; }
  /// 2 / sequences: H = scale() * S; 0 before the first of them.
  double scale() const { return sequences() == 0 ? 0.0 : 2.0 / static_cast<double>(sequences()); }

  /// Writes a binary image, little endian: "gptqHes1", the width, the sequences (int64), the tokens (double),
  /// eight bytes of zeros, then the lower triangle by columns, 40 + 2 K (K + 1) bytes in all. Throws
  /// gptq::error when the stream fails.
  void save(std::ostream& out) const { linalg::save_triangle(out, sum_, count_); }
  /// Reads what save() wrote. Throws gptq::error when it is not that, or ends early.
  static hessian load(std::istream& in, int threads = 0) {
    linalg::token_count count;
    Eigen::MatrixXf sum = linalg::load_triangle(in, count);
    return hessian(std::move(sum), count, threads);
  }

 private:
  hessian(Eigen::MatrixXf&& sum, linalg::token_count count, int threads)
      : sum_(std::move(sum)), count_(count), threads_(threads) {}

  Eigen::MatrixXf sum_;
  linalg::token_count count_;
  int threads_ = 0;
};

}  // namespace gptq
