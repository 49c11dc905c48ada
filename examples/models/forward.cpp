#include "forward.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "threads.hpp"
#include "vectors.hpp"

namespace lm {
namespace {

using Eigen::Index;
using rows_of = Eigen::Ref<matrix const>;

/// Rotates each head of rows [tokens, heads * head_dim], the first row being at position `first`. Element i
/// of a head pairs with element i + head_dim / 2 (the Hugging Face order, not the interleaved one of the
/// paper).
void rotate(matrix& rows, rotations const& angles, Index head_dim, Index first) {
  Index const half = head_dim / 2;
  auto const cos = angles.cos.middleRows(first, rows.rows()).array();
  auto const sin = angles.sin.middleRows(first, rows.rows()).array();
  for (Index at = 0; at < rows.cols(); at += head_dim) {
    auto low = rows.middleCols(at, half).array();
    auto high = rows.middleCols(at + half, half).array();
    matrix const turned = (low * cos - high * sin).matrix();
    high = high * cos + low * sin;
    low = turned.array();
  }
}

/// In place, of one row.
template <class Row>
void softmax(Row&& row) {
  auto values = row.array();
  values = (values - values.maxCoeff()).exp();
  values *= 1.0F / values.sum();
}

/// Turns scores[rows, keys] into attention weights in place; row r sees the first `seen + r` keys.
void causal_softmax(matrix& scores, Index seen) {
  for (Index r = 0; r < scores.rows(); ++r) {
    softmax(scores.row(r).head(seen + r));
    scores.row(r).tail(scores.cols() - seen - r).setZero();
  }
}

/// softmax(q k') v of one query, q[1, query_size], for some of the heads. Position by position, as keys and
/// values lie in memory: head by head, each would wait for it.
/// @param weights  [heads, positions], those of these heads overwritten
/// @param result   [1, query_size]
void attend(config const& c, matrix const& q, rows_of const& k, rows_of const& v, gptq::token_range heads,
            matrix& weights, matrix& result) {
  Index const size = c.head_dim, sharing = c.num_attention_heads / c.num_key_value_heads;
  for (Index p = 0; p < k.rows(); ++p) {
    for (Index head = heads.first; head < heads.last; ++head) {
      float const* const query = q.data() + head * size;
      float const* const key = k.row(p).data() + head / sharing * size;
      vector sum{};
      for_each_vector(size, [&](Index i, std::size_t count) {
        vector a{}, b{};
        load(query + i, count, a);
        load(key + i, count, b);
        sum += a * b;
      });
      weights(head, p) = sum_of(sum);
    }
  }
  for (Index head = heads.first; head < heads.last; ++head) {
    softmax(weights.row(head));
    result.row(0).segment(head * size, size).setZero();
  }
  for (Index p = 0; p < v.rows(); ++p) {
    for (Index head = heads.first; head < heads.last; ++head) {
      float* const sums = result.data() + head * size;
      float const* const value = v.row(p).data() + head / sharing * size;
      float const weight = weights(head, p);
      for_each_vector(size, [&](Index i, std::size_t count) {
        vector sum{}, more{};
        load(sums + i, count, sum);
        load(value + i, count, more);
        sum += weight * more;
        std::memcpy(sums + i, &sum, count * sizeof(float));
      });
    }
  }
}

/// softmax(q k' / sqrt(head_dim)) v for each head; the last query sees all keys, each one before it one key
/// less.
/// @param q     [tokens, query_size], consumed
/// @param k, v  [positions, key_value_size]; several heads of q share one of k and v
matrix attention(context const& ctx, matrix q, rows_of const& k, rows_of const& v) {
  config const& c = ctx.c;
  constexpr Index block = 128;  // of queries: keys after a block's last one are not multiplied at all
  Index const size = c.head_dim;
  Index const sharing = c.num_attention_heads / c.num_key_value_heads;
  Index const earlier = k.rows() - q.rows();
  q *= 1.0F / std::sqrt(static_cast<float>(size));
  matrix result(q.rows(), q.cols());

  if (q.rows() == 1) {
    matrix weights(c.num_attention_heads, k.rows());
    run_parts(ctx.threads, [&](int part) noexcept {
      attend(c, q, k, v, gptq::token_share(c.num_attention_heads, part, ctx.threads), weights, result);
    });
    return result;
  }
  gptq::linalg::parallel_for(c.num_attention_heads, ctx.threads, [&](Index head) {
    Index const column = head * size;
    Index const shared_column = head / sharing * size;
    matrix scores;
    for (Index first = 0; first < q.rows(); first += block) {
      Index const rows = std::min(block, q.rows() - first);
      Index const keys = earlier + first + rows;
      scores.noalias() =
          q.block(first, column, rows, size) * k.block(0, shared_column, keys, size).transpose();
      causal_softmax(scores, earlier + first + 1);
      result.block(first, column, rows, size).noalias() = scores * v.block(0, shared_column, keys, size);
    }
  });
  return result;
}

/// Adds rows to the first `count` ones, with room for as many again when there is none left.
void append(matrix& rows, Index count, matrix const& more) {
  Index const needed = count + more.rows();
  if (rows.rows() < needed) rows.conservativeResize(2 * needed, more.cols());
  rows.middleRows(count, more.rows()) = more;
}

matrix self_attention(context const& ctx, decoder_layer const& layer, matrix const& input, kv_cache* cache) {
  Index const first = cache == nullptr ? 0 : cache->positions;
  auto products = layer.multiply({linear::q_proj, linear::k_proj, linear::v_proj}, input);
  auto& [q, k, v] = products;
  rotate(q, ctx.angles, ctx.c.head_dim, first);
  rotate(k, ctx.angles, ctx.c.head_dim, first);
  if (cache == nullptr) return attention(ctx, std::move(q), k, v);
  append(cache->keys, first, k);
  append(cache->values, first, v);
  cache->positions += input.rows();
  return attention(ctx, std::move(q), cache->keys.topRows(cache->positions),
                   cache->values.topRows(cache->positions));
}

}  // namespace

std::vector<double> rope_frequencies(config const& c) {
  std::vector<double> frequencies;
  for (std::int64_t i = 0; i < c.head_dim; i += 2) {
    frequencies.push_back(std::pow(c.rope_theta, -static_cast<double>(i) / static_cast<double>(c.head_dim)));
  }
  for (std::size_t i = 0; i < c.rope_factors.size(); ++i) {
    frequencies[i] /= static_cast<double>(c.rope_factors[i]);
  }
  if (!c.rope_scaling) return frequencies;

  // Long waves are stretched by `factor`, short ones stay, and those between are blended.
  rope_scaling const& s = *c.rope_scaling;
  for (double& frequency : frequencies) {
    double const waves = s.original_max_position_embeddings * frequency / (2.0 * std::numbers::pi);
    double const kept =
        std::clamp((waves - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0);
    frequency *= kept + (1.0 - kept) / s.factor;
  }
  return frequencies;
}

rotations make_rotations(config const& c, std::int64_t positions) {
  auto const frequencies = rope_frequencies(c);
  rotations r{matrix(positions, c.head_dim / 2), matrix(positions, c.head_dim / 2)};
  for (Index p = 0; p < positions; ++p) {
    for (Index i = 0; i < c.head_dim / 2; ++i) {
      double const angle = static_cast<double>(p) * frequencies[static_cast<std::size_t>(i)];
      r.cos(p, i) = static_cast<float>(std::cos(angle));
      r.sin(p, i) = static_cast<float>(std::sin(angle));
    }
  }
  return r;
}

matrix rms_norm(matrix const& x, row_vector const& weight, double epsilon) {
  matrix y(x.rows(), x.cols());
  for (Index t = 0; t < x.rows(); ++t) {
    float const mean_square = x.row(t).squaredNorm() / static_cast<float>(x.cols());
    y.row(t) =
        (x.row(t) * (1.0F / std::sqrt(mean_square + static_cast<float>(epsilon)))).cwiseProduct(weight);
  }
  return y;
}

void run_stage(context const& ctx, decoder_layer const& layer, stage s, matrix& x, matrix& input,
               kv_cache* cache) {
  switch (s) {
    case stage::query_key_value:
      input = rms_norm(x, layer.attention_norm, ctx.c.rms_norm_eps);
      return;
    case stage::output:
      input = self_attention(ctx, layer, input, cache);
      return;
    case stage::gate_up:
      x += layer.multiply(linear::o_proj, input);
      input = rms_norm(x, layer.mlp_norm, ctx.c.rms_norm_eps);
      return;
    case stage::down: {
      auto products = layer.multiply({linear::gate_proj, linear::up_proj}, input);
      auto& [gate, up] = products;
      input = std::move(up);
      input.array() *= gate.array() / (1.0F + (-gate.array()).exp());
      return;
    }
  }
}

void finish(decoder_layer const& layer, matrix& x, matrix const& input) {
  x += layer.multiply(linear::down_proj, input);
}

void run_layer(context const& ctx, decoder_layer const& layer, matrix& x, kv_cache* cache) {
  matrix input;
  for (stage const s : stages) run_stage(ctx, layer, s, x, input, cache);
  finish(layer, x, input);
}

}  // namespace lm
