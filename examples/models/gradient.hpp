// The arithmetic of a decoder (forward.hpp) so that it can be differentiated, for tuning (tuning.hpp).
//
// Reverse mode, written out by hand: forward() leaves on a tape what backward() needs. From the derivative
// of a loss by a decoder layer's output, backward() makes that by its input, and by its norms; and for each
// linear layer y = x W' + b that by y, from which weight_gradient() makes the derivative by W. A loss by
// the model's distribution, to begin with, is divergence().
//
// One sequence at a time, without a cache, so that sequences can be shared out among threads. Real is
// float, or double where the arithmetic itself is tested.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include "config.hpp"
#include "model.hpp"

namespace lm::gradient {

template <class Real>
using matrix_of = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class Real>
using row_of = Eigen::Matrix<Real, 1, Eigen::Dynamic>;

/// A decoder layer's parameters, or the derivatives by them.
template <class Real>
struct parameters {
  std::vector<matrix_of<Real>> weights;        ///< [out, in] each, as the description has them
  std::vector<row_of<Real>> biases;            ///< of each linear layer; empty where there is none
  std::array<row_of<Real>, norm_kinds> norms;  ///< by `norm`; empty where there is none
};

/// The parameters of a layer that is there in float32.
template <class Real>
parameters<Real> parameters_of(float_layer const& layer) {
  parameters<Real> result;
  for (auto const& weight : layer.weights) result.weights.push_back(weight.template cast<Real>());
  for (auto const& bias : layer.biases) result.biases.push_back(bias.template cast<Real>());
  for (std::size_t n = 0; n < norm_kinds; ++n) result.norms[n] = layer.norms[n].template cast<Real>();
  return result;
}

/// cos and sin of a rope's angles: [positions, dimensions / 2] each; empty where nothing is rotated.
template <class Real>
struct angles_of {
  matrix_of<Real> cos, sin;
};

/// What a decoder layer is computed with; all of it has to outlive the call.
template <class Real>
struct layer_view {
  config const& c;
  decoder_description const& description;
  parameters<Real> const& p;
  angles_of<Real> const& angles;

  row_of<Real> const& operator[](norm kind) const { return p.norms[static_cast<std::size_t>(kind)]; }
  bool has(norm kind) const { return (*this)[kind].size() > 0; }
};

/// What forward() leaves of one sequence. Of a fused linear layer all outputs lie beside each other, and so
/// do q, k and v, gate and up where they are layers of their own.
template <class Real>
struct tape {
  matrix_of<Real> x;                             ///< [tokens, hidden]: the decoder layer's input
  matrix_of<Real> middle;                        ///< the residual after attention
  matrix_of<Real> qkv;                           ///< [tokens, query + 2 key_value], as projected
  matrix_of<Real> turned;                        ///< the same, q and k normalized and rotated, q scaled
  matrix_of<Real> attended;                      ///< the input of o_proj
  matrix_of<Real> attention_output, mlp_output;  ///< before their norms; empty without them
  matrix_of<Real> gate_up;                       ///< [tokens, 2 intermediate], as projected
  matrix_of<Real> normed[2];                     ///< the inputs of q, k and v and of gate and up
  matrix_of<Real> hidden;                        ///< the input of down_proj
};

/// What backward() makes for the linear layers of one sequence, besides the tape.
template <class Real>
struct output_gradients {
  matrix_of<Real> qkv, attention_output, gate_up, mlp_output;
};

// ---- pieces: each operation, then its derivative ----

template <class Real>
Real inverse_rms(matrix_of<Real> const& x, Eigen::Index row, double epsilon) {
  return Real(1) /
         std::sqrt(x.row(row).squaredNorm() / static_cast<Real>(x.cols()) + static_cast<Real>(epsilon));
}

template <class Real>
matrix_of<Real> rms_norm(matrix_of<Real> const& x, row_of<Real> const& weight, double epsilon) {
  matrix_of<Real> y(x.rows(), x.cols());
  for (Eigen::Index t = 0; t < x.rows(); ++t) {
    y.row(t) = (x.row(t) * inverse_rms(x, t, epsilon)).cwiseProduct(weight);
  }
  return y;
}

/// @param dy       derivative by the norm's output; becomes that by x
/// @param dweight  that by the weight is added to it
template <class Real>
void rms_norm_backward(matrix_of<Real> const& x, row_of<Real> const& weight, double epsilon,
                       matrix_of<Real>& dy, row_of<Real>& dweight) {
  for (Eigen::Index t = 0; t < x.rows(); ++t) {
    Real const r = inverse_rms(x, t, epsilon);
    dweight += dy.row(t).cwiseProduct(x.row(t)) * r;
    dy.row(t) = dy.row(t).cwiseProduct(weight).eval();
    Real const along = dy.row(t).dot(x.row(t)) * r * r / static_cast<Real>(x.cols());
    dy.row(t) = (r * (dy.row(t) - along * x.row(t))).eval();
  }
}

/// Rotates each head of `heads` columns in place (forward.cpp); with `back`, by the opposite angles, which is
/// the derivative.
template <class Real, class Block>
void rotate(Block&& rows, angles_of<Real> const& angles, Eigen::Index head_dim, bool back) {
  Eigen::Index const half = angles.cos.cols();
  auto const cos = angles.cos.topRows(rows.rows()).array();
  auto const sin = angles.sin.topRows(rows.rows()).array();
  Real const sign = back ? Real(-1) : Real(1);
  for (Eigen::Index at = 0; at < rows.cols(); at += head_dim) {
    auto low = rows.middleCols(at, half).array();
    auto high = rows.middleCols(at + half, half).array();
    matrix_of<Real> const turned = (low * cos - sign * high * sin).matrix();
    high = (high * cos + sign * low * sin).eval();
    low = turned.array();
  }
}

/// c tanh(x / c), in place; nothing for c = 0.
template <class Values>
void cap(Values&& values, double limit) {
  using Real = typename std::decay_t<Values>::Scalar;
  if (limit == 0.0) return;
  auto const c = static_cast<Real>(limit);
  values = (c * (values.array() / c).tanh()).matrix();
}

/// The derivative by cap()'s values becomes that by what they were made of.
template <class Values, class Gradient>
void cap_backward(Values const& capped, double limit, Gradient&& d) {
  using Real = typename std::decay_t<Values>::Scalar;
  if (limit == 0.0) return;
  auto const c = static_cast<Real>(limit);
  d = (d.array() * (Real(1) - (capped.array() / c).square())).matrix();
}

/// act(gate) and its derivative.
template <class Real>
std::pair<Real, Real> activate(activation act, Real g) {
  if (act == activation::silu) {
    Real const s = Real(1) / (Real(1) + std::exp(-g));
    return {g * s, s * (Real(1) + g * (Real(1) - s))};
  }
  // GELU as tanh approximates it (Hendrycks and Gimpel, 2016).
  Real const scale = static_cast<Real>(0.7978845608028654), cubic = static_cast<Real>(0.044715);
  Real const t = std::tanh(scale * (g + cubic * g * g * g));
  Real const slope = scale * (Real(1) + 3 * cubic * g * g);
  return {Real(0.5) * g * (Real(1) + t), Real(0.5) * (Real(1) + t + g * (Real(1) - t * t) * slope)};
}

/// Where q, k and v lie in a tape's columns, and what a query sees.
struct attention_shape {
  Eigen::Index size, heads, sharing, keys, values, window;
  double softcap;
};
inline attention_shape shape_of(config const& c, decoder_description const& d) {
  auto const window = d.sliding_window > 0 ? d.sliding_window : std::numeric_limits<std::int64_t>::max() / 2;
  return {c.head_dim,
          c.num_attention_heads,
          c.num_attention_heads / c.num_key_value_heads,
          c.query_size(),
          c.query_size() + c.key_value_size(),
          static_cast<Eigen::Index>(window),
          c.attention_softcap};
}

/// Queries that are multiplied at once: keys after the last one of them are not.
inline constexpr Eigen::Index query_block = 128;

/// The attention weights of some queries of a head, for the keys from `begin` on; and the capped scores that
/// they are made of, where there is a cap.
template <class Real>
struct attention_block {
  Eigen::Index first, rows, begin, keys;
  matrix_of<Real> weights, scores;

  attention_block(attention_shape const& s, matrix_of<Real> const& turned, Eigen::Index head,
                  Eigen::Index from)
      : first(from),
        rows(std::min(query_block, turned.rows() - from)),
        begin(std::max<Eigen::Index>(0, from + 1 - s.window)),
        keys(from + rows - begin) {
    weights.noalias() = turned.block(first, head * s.size, rows, s.size) *
                        turned.block(begin, s.keys + head / s.sharing * s.size, keys, s.size).transpose();
    if (s.softcap != 0.0) {
      cap(weights, s.softcap);
      scores = weights;
    }
    for (Eigen::Index r = 0; r < rows; ++r) {
      Eigen::Index const last = first + r + 1 - begin, start = std::max<Eigen::Index>(0, last - s.window);
      auto seen = weights.row(r).segment(start, last - start).array();
      seen = (seen - seen.maxCoeff()).exp();
      seen *= Real(1) / seen.sum();
      weights.row(r).head(start).setZero();
      weights.row(r).tail(keys - last).setZero();
    }
  }
};

/// softmax(q k') v of each head: [tokens, query_size].
template <class Real>
matrix_of<Real> attend(attention_shape const& s, matrix_of<Real> const& turned) {
  matrix_of<Real> result(turned.rows(), s.heads * s.size);
  for (Eigen::Index head = 0; head < s.heads; ++head) {
    for (Eigen::Index first = 0; first < turned.rows(); first += query_block) {
      attention_block<Real> const b(s, turned, head, first);
      result.block(first, head * s.size, b.rows, s.size).noalias() =
          b.weights * turned.block(b.begin, s.values + head / s.sharing * s.size, b.keys, s.size);
    }
  }
  return result;
}

/// @param d  derivative by attend()'s result
/// @returns that by `turned`
template <class Real>
matrix_of<Real> attend_backward(attention_shape const& s, matrix_of<Real> const& turned,
                                matrix_of<Real> const& d) {
  matrix_of<Real> result = matrix_of<Real>::Zero(turned.rows(), turned.cols());
  matrix_of<Real> dweights;
  for (Eigen::Index head = 0; head < s.heads; ++head) {
    Eigen::Index const q = head * s.size, shared = head / s.sharing * s.size;
    for (Eigen::Index first = 0; first < turned.rows(); first += query_block) {
      attention_block<Real> const b(s, turned, head, first);
      auto const own = d.block(first, q, b.rows, s.size);
      auto const block = [&](auto& m, Eigen::Index column) {
        return m.block(b.begin, column + shared, b.keys, s.size);
      };
      block(result, s.values).noalias() += b.weights.transpose() * own;
      dweights.noalias() = own * block(turned, s.values).transpose();
      // softmax: dscore = weight (dweight - the mean of dweight by the weights); 0 where the weight is
      for (Eigen::Index r = 0; r < b.rows; ++r) {
        Real const mean = dweights.row(r).dot(b.weights.row(r));
        dweights.row(r) = (b.weights.row(r).array() * (dweights.row(r).array() - mean)).matrix();
      }
      if (s.softcap != 0.0) cap_backward(b.scores, s.softcap, dweights);
      result.block(first, q, b.rows, s.size).noalias() += dweights * block(turned, s.keys);
      block(result, s.keys).noalias() += dweights.transpose() * turned.block(first, q, b.rows, s.size);
    }
  }
  return result;
}

/// Norms the heads of some columns in place.
template <class Real, class Block>
void normalize_heads(Block&& rows, row_of<Real> const& weight, double epsilon) {
  if (weight.size() == 0) return;
  for (Eigen::Index at = 0; at < rows.cols(); at += weight.size()) {
    auto head = rows.middleCols(at, weight.size());
    head = rms_norm<Real>(head, weight, epsilon);
  }
}

template <class Real, class Block, class Gradient>
void normalize_heads_backward(Block const& rows, row_of<Real> const& weight, double epsilon, Gradient&& d,
                              row_of<Real>& dweight) {
  if (weight.size() == 0) return;
  for (Eigen::Index at = 0; at < rows.cols(); at += weight.size()) {
    matrix_of<Real> dhead = d.middleCols(at, weight.size());
    rms_norm_backward<Real>(rows.middleCols(at, weight.size()), weight, epsilon, dhead, dweight);
    d.middleCols(at, weight.size()) = dhead;
  }
}

// ---- linear layers ----

/// The linear layers of a stage, in the order in which their outputs lie beside each other on the tape.
inline std::vector<std::size_t> places_of(config const& c, decoder_description const& d, stage s) {
  switch (s) {
    case stage::query_key_value:
      if (c.fused) return {d.index(linear::qkv_proj)};
      return {d.index(linear::q_proj), d.index(linear::k_proj), d.index(linear::v_proj)};
    case stage::output:
      return {d.index(linear::o_proj)};
    case stage::gate_up:
      if (c.fused) return {d.index(linear::gate_up_proj)};
      return {d.index(linear::gate_proj), d.index(linear::up_proj)};
    case stage::down:
      break;
  }
  return {d.index(linear::down_proj)};
}

/// The outputs of a stage's linear layers beside each other.
template <class Real>
matrix_of<Real> multiply(layer_view<Real> const& layer, stage s, matrix_of<Real> const& x) {
  auto const places = places_of(layer.c, layer.description, s);
  Eigen::Index columns = 0;
  for (std::size_t const place : places) columns += layer.p.weights[place].rows();
  matrix_of<Real> y(x.rows(), columns);
  Eigen::Index at = 0;
  for (std::size_t const place : places) {
    auto const& weight = layer.p.weights[place];
    auto part = y.middleCols(at, weight.rows());
    part.noalias() = x * weight.transpose();
    if (auto const& bias = layer.p.biases[place]; bias.size() > 0) part.rowwise() += bias;
    at += weight.rows();
  }
  return y;
}

/// From the derivative by those outputs that by x.
template <class Real>
matrix_of<Real> multiply_backward(layer_view<Real> const& layer, stage s, matrix_of<Real> const& dy) {
  auto const places = places_of(layer.c, layer.description, s);
  matrix_of<Real> dx;
  Eigen::Index at = 0;
  for (std::size_t const place : places) {
    auto const& weight = layer.p.weights[place];
    if (at == 0)
      dx.noalias() = dy.middleCols(at, weight.rows()) * weight;
    else
      dx.noalias() += dy.middleCols(at, weight.rows()) * weight;
    at += weight.rows();
  }
  return dx;
}

/// The derivative by the weight of a linear layer, and by its bias where it has one, summed over sequences in
/// their order.
template <class Real>
void weight_gradient(layer_view<Real> const& layer, std::size_t place, std::vector<tape<Real>> const& tapes,
                     std::vector<output_gradients<Real>> const& outputs, parameters<Real>& result) {
  auto const& l = layer.description.linears[place];
  stage const s = stage_of(l.kind);
  Eigen::Index first = 0;
  for (std::size_t const other : places_of(layer.c, layer.description, s)) {
    if (other == place) break;
    first += layer.p.weights[other].rows();
  }
  auto& weight = result.weights[place];
  weight.setZero(l.out, l.in);
  if (l.bias) result.biases[place].setZero(l.out);
  for (std::size_t w = 0; w < tapes.size(); ++w) {
    matrix_of<Real> const* x = &tapes[w].hidden;
    matrix_of<Real> const* dy = &outputs[w].mlp_output;
    if (s == stage::query_key_value) {
      x = &tapes[w].normed[0], dy = &outputs[w].qkv;
    } else if (s == stage::output) {
      x = &tapes[w].attended, dy = &outputs[w].attention_output;
    } else if (s == stage::gate_up) {
      x = &tapes[w].normed[1], dy = &outputs[w].gate_up;
    }
    weight.noalias() += dy->middleCols(first, l.out).transpose() * *x;
    if (l.bias) result.biases[place] += dy->middleCols(first, l.out).colwise().sum();
  }
}

// ---- a decoder layer ----

/// Adds the output of o_proj or down_proj, normed and scaled, to x; `output` keeps it where it is needed.
template <class Real>
void add_output(layer_view<Real> const& layer, norm kind, matrix_of<Real>&& more, matrix_of<Real>& x,
                matrix_of<Real>& output) {
  auto const scale = static_cast<Real>(layer.c.residual_scale);
  if (!layer.has(kind)) {
    x += scale * more;
    return;
  }
  output = std::move(more);
  x += scale * rms_norm<Real>(output, layer[kind], layer.c.rms_norm_eps);
}

/// The derivative by such an output, from that by the sum.
template <class Real>
matrix_of<Real> add_output_backward(layer_view<Real> const& layer, norm kind, matrix_of<Real> const& dx,
                                    matrix_of<Real> const& output, row_of<Real>& dweight) {
  matrix_of<Real> d = static_cast<Real>(layer.c.residual_scale) * dx;
  if (layer.has(kind)) rms_norm_backward<Real>(output, layer[kind], layer.c.rms_norm_eps, d, dweight);
  return d;
}

/// The decoder layer's output for its input x[tokens, hidden], positions 0 and on. A layer without experts.
template <class Real>
matrix_of<Real> forward(layer_view<Real> const& layer, matrix_of<Real> x, tape<Real>& t) {
  config const& c = layer.c;
  t.x = std::move(x);
  t.normed[0] = rms_norm<Real>(t.x, layer[norm::attention], c.rms_norm_eps);
  t.qkv = multiply(layer, stage::query_key_value, t.normed[0]);
  t.turned = t.qkv;
  auto q = t.turned.leftCols(c.query_size());
  auto k = t.turned.middleCols(c.query_size(), c.key_value_size());
  normalize_heads<Real>(q, layer[norm::query], c.rms_norm_eps);
  normalize_heads<Real>(k, layer[norm::key], c.rms_norm_eps);
  if (layer.description.rope >= 0) {
    rotate<Real>(q, layer.angles, c.head_dim, false);
    rotate<Real>(k, layer.angles, c.head_dim, false);
  }
  q *= static_cast<Real>(c.attention_scale);
  t.attended = attend<Real>(shape_of(c, layer.description), t.turned);
  t.middle = t.x;
  add_output<Real>(layer, norm::attention_output, multiply(layer, stage::output, t.attended), t.middle,
                   t.attention_output);
  t.normed[1] = rms_norm<Real>(t.middle, layer[norm::mlp], c.rms_norm_eps);
  t.gate_up = multiply(layer, stage::gate_up, t.normed[1]);
  Eigen::Index const size = t.gate_up.cols() / 2;
  t.hidden = t.gate_up.leftCols(size)
                 .unaryExpr([act = c.act](Real g) { return activate(act, g).first; })
                 .cwiseProduct(t.gate_up.rightCols(size));
  matrix_of<Real> y = t.middle;
  add_output<Real>(layer, norm::mlp_output, multiply(layer, stage::down, t.hidden), y, t.mlp_output);
  return y;
}

/// @param dx      derivative by the decoder layer's output; becomes that by its input
/// @param norms   those by the norms are added to them
/// @param result  those by the linear layers' outputs
template <class Real>
void backward(layer_view<Real> const& layer, tape<Real> const& t, matrix_of<Real>& dx,
              std::array<row_of<Real>, norm_kinds>& norms, output_gradients<Real>& result) {
  config const& c = layer.c;
  auto const of = [&](norm kind) -> row_of<Real>& { return norms[static_cast<std::size_t>(kind)]; };
  Eigen::Index const size = t.gate_up.cols() / 2;
  result.mlp_output =
      add_output_backward<Real>(layer, norm::mlp_output, dx, t.mlp_output, of(norm::mlp_output));
  matrix_of<Real> const dhidden = multiply_backward(layer, stage::down, result.mlp_output);
  result.gate_up.resize(t.gate_up.rows(), t.gate_up.cols());
  for (Eigen::Index r = 0; r < dhidden.rows(); ++r) {
    for (Eigen::Index i = 0; i < size; ++i) {
      auto const [value, slope] = activate(c.act, t.gate_up(r, i));
      result.gate_up(r, i) = dhidden(r, i) * t.gate_up(r, size + i) * slope;
      result.gate_up(r, size + i) = dhidden(r, i) * value;
    }
  }
  matrix_of<Real> d = multiply_backward(layer, stage::gate_up, result.gate_up);
  rms_norm_backward<Real>(t.middle, layer[norm::mlp], c.rms_norm_eps, d, of(norm::mlp));
  dx += d;

  result.attention_output = add_output_backward<Real>(layer, norm::attention_output, dx, t.attention_output,
                                                      of(norm::attention_output));
  d = multiply_backward(layer, stage::output, result.attention_output);
  result.qkv = attend_backward<Real>(shape_of(c, layer.description), t.turned, d);
  auto dq = result.qkv.leftCols(c.query_size());
  auto dk = result.qkv.middleCols(c.query_size(), c.key_value_size());
  dq *= static_cast<Real>(c.attention_scale);
  if (layer.description.rope >= 0) {
    rotate<Real>(dq, layer.angles, c.head_dim, true);
    rotate<Real>(dk, layer.angles, c.head_dim, true);
  }
  normalize_heads_backward<Real>(t.qkv.leftCols(c.query_size()), layer[norm::query], c.rms_norm_eps, dq,
                                 of(norm::query));
  normalize_heads_backward<Real>(t.qkv.middleCols(c.query_size(), c.key_value_size()), layer[norm::key],
                                 c.rms_norm_eps, dk, of(norm::key));
  d = multiply_backward(layer, stage::query_key_value, result.qkv);
  rms_norm_backward<Real>(t.x, layer[norm::attention], c.rms_norm_eps, d, of(norm::attention));
  dx += d;
}

// ---- the model's distribution ----

/// log softmax of each row, in place, of logits as the output layer makes them.
template <class Real>
void log_probabilities(config const& c, matrix_of<Real>& logits) {
  logits *= static_cast<Real>(c.logit_scale);
  cap(logits, c.logit_softcap);
  for (Eigen::Index t = 0; t < logits.rows(); ++t) {
    auto row = logits.row(t).array();
    row -= row.maxCoeff();
    row -= std::log(row.exp().sum());
  }
}

/// The sum over tokens of the Kullback-Leibler divergence of the distribution after `x` from that after
/// `exact`, and its derivative by x.
/// @param x, exact  [tokens, hidden], behind the last norm
/// @param output    the output layer [vocabulary, hidden]
/// @param dx        [tokens, hidden], overwritten; null: not needed
template <class Real>
double divergence(config const& c, matrix_of<Real> const& x, matrix_of<Real> const& exact,
                  matrix_of<Real> const& output, matrix_of<Real>* dx) {
  constexpr Eigen::Index block = 64;  // tokens: their logits are the largest matrices there are
  double sum = 0.0;
  if (dx != nullptr) dx->resize(x.rows(), x.cols());
  matrix_of<Real> ours, theirs, capped;
  for (Eigen::Index first = 0; first < x.rows(); first += block) {
    Eigen::Index const rows = std::min(block, x.rows() - first);
    theirs.noalias() = exact.middleRows(first, rows) * output.transpose();
    log_probabilities(c, theirs);
    ours.noalias() = x.middleRows(first, rows) * output.transpose();
    if (c.logit_softcap != 0.0 && dx != nullptr) {
      capped = static_cast<Real>(c.logit_scale) * ours;
      cap(capped, c.logit_softcap);
    }
    log_probabilities(c, ours);
    for (Eigen::Index t = 0; t < rows; ++t) {
      auto const log_p = theirs.row(t).array();
      auto log_q = ours.row(t).array();
      sum += static_cast<double>((log_p.exp() * (log_p - log_q)).sum());
      if (dx != nullptr) log_q = log_q.exp() - log_p.exp();  // d KL / d logits
    }
    if (dx == nullptr) continue;
    if (c.logit_softcap != 0.0) cap_backward(capped, c.logit_softcap, ours);
    ours *= static_cast<Real>(c.logit_scale);
    dx->middleRows(first, rows).noalias() = ours * output;
  }
  return sum;
}

}  // namespace lm::gradient
