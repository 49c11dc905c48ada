#include "forward.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "threads.hpp"
#include "vectors.hpp"

namespace lm {
namespace {

using Eigen::Index;
using rows_of = Eigen::Ref<matrix const>;

/// Rotates each head of rows [tokens, heads * head_dim], the first row being at position `first`. Element i
/// of the part of a head that turns pairs with the one half that part further on (the Hugging Face order, not
/// the interleaved one of the paper).
void rotate(matrix& rows, rotations const& angles, Index head_dim, Index first) {
  Index const half = angles.cos.cols();
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

/// Turns scores[rows, keys] into attention weights in place; row r sees the first `seen + r` keys, and of
/// these the last `window`.
void causal_softmax(matrix& scores, Index seen, Index window) {
  for (Index r = 0; r < scores.rows(); ++r) {
    Index const last = seen + r, first = std::max<Index>(0, last - window);
    softmax(scores.row(r).segment(first, last - first));
    scores.row(r).head(first).setZero();
    scores.row(r).tail(scores.cols() - last).setZero();
  }
}

/// c tanh(x / c), in place; nothing for c = 0.
template <class Values>
void cap(Values&& values, double limit) {
  if (limit == 0.0) return;
  auto const c = static_cast<float>(limit);
  values = (c * (values.array() * (1.0F / c)).tanh()).matrix();
}

/// How many keys a token sees at most.
Index window_of(decoder_layer const& layer) {
  auto const window = layer.description->sliding_window;
  return window > 0 ? static_cast<Index>(window) : std::numeric_limits<Index>::max() / 2;
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
    cap(weights.row(head), c.attention_softcap);
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

/// softmax(scale q k') v for each head; the last query sees all keys but those before its window, each one
/// before it one key less.
/// @param q     [tokens, query_size], consumed
/// @param k, v  [positions, key_value_size]; several heads of q share one of k and v
matrix attention(context const& ctx, Index window, matrix q, rows_of const& k, rows_of const& v) {
  config const& c = ctx.c;
  constexpr Index block = 128;  // of queries: keys after a block's last one are not multiplied at all
  Index const size = c.head_dim;
  Index const sharing = c.num_attention_heads / c.num_key_value_heads;
  Index const earlier = k.rows() - q.rows();
  q *= static_cast<float>(c.attention_scale);
  matrix result(q.rows(), q.cols());

  if (q.rows() == 1) {
    Index const seen = std::min(window, k.rows());
    matrix weights(c.num_attention_heads, seen);
    run_parts(ctx.threads, [&](int part) noexcept {
      attend(c, q, k.bottomRows(seen), v.bottomRows(seen),
             gptq::token_share(c.num_attention_heads, part, ctx.threads), weights, result);
    });
    return result;
  }
  gptq::linalg::parallel_for(c.num_attention_heads, ctx.threads, [&](Index head) {
    Index const column = head * size;
    Index const shared_column = head / sharing * size;
    matrix scores;
    for (Index first = 0; first < q.rows(); first += block) {
      Index const rows = std::min(block, q.rows() - first);
      Index const seen = earlier + first + 1;  // by the first query
      Index const begin = std::max<Index>(0, seen - window);
      Index const keys = earlier + first + rows - begin;
      scores.noalias() =
          q.block(first, column, rows, size) * k.block(begin, shared_column, keys, size).transpose();
      cap(scores, c.attention_softcap);
      causal_softmax(scores, seen - begin, window);
      result.block(first, column, rows, size).noalias() = scores * v.block(begin, shared_column, keys, size);
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

/// RMS norm of each head of rows [tokens, heads * head_dim].
void normalize_heads(matrix& rows, row_vector const& weight, double epsilon) {
  if (weight.size() == 0) return;
  Index const size = weight.size();
  Eigen::Map<matrix> heads(rows.data(), rows.size() / size, size);
  heads = rms_norm(heads, weight, epsilon);
}

matrix self_attention(context const& ctx, decoder_layer const& layer, matrix const& input, kv_cache* cache) {
  config const& c = ctx.c;
  Index const first = cache == nullptr ? 0 : cache->positions;
  std::array<matrix, 3> products;
  if (c.fused) {
    matrix const all = layer.multiply(linear::qkv_proj, input);
    products = {all.leftCols(c.query_size()), all.middleCols(c.query_size(), c.key_value_size()),
                all.rightCols(c.key_value_size())};
  } else {
    products = layer.multiply({linear::q_proj, linear::k_proj, linear::v_proj}, input);
  }
  auto& [q, k, v] = products;
  normalize_heads(q, layer[norm::query], c.rms_norm_eps);
  normalize_heads(k, layer[norm::key], c.rms_norm_eps);
  if (int const rope = layer.description->rope; rope >= 0) {
    rotations const& angles = ctx.angles[static_cast<std::size_t>(rope)];
    rotate(q, angles, c.head_dim, first);
    rotate(k, angles, c.head_dim, first);
  }
  Index const window = window_of(layer);
  if (cache == nullptr) return attention(ctx, window, std::move(q), k, v);
  append(cache->keys, first, k);
  append(cache->values, first, v);
  cache->positions += input.rows();
  return attention(ctx, window, std::move(q), cache->keys.topRows(cache->positions),
                   cache->values.topRows(cache->positions));
}

/// Adds what a stage makes to the residual.
void add_output(context const& ctx, decoder_layer const& layer, norm output_norm, matrix&& more, matrix& x) {
  if (row_vector const& weight = layer[output_norm]; weight.size() > 0) {
    more = rms_norm(more, weight, ctx.c.rms_norm_eps);
  }
  if (ctx.c.residual_scale != 1.0) more *= static_cast<float>(ctx.c.residual_scale);
  x += more;
}

/// act(gate) * up
matrix gated(activation act, matrix gate, matrix const& up) {
  auto const g = gate.array();
  if (act == activation::silu) {
    gate = (g / (1.0F + (-g).exp()) * up.array()).matrix();
  } else {
    // GELU as tanh approximates it (Hendrycks and Gimpel, 2016).
    constexpr float scale = 0.7978845608028654F;  // sqrt(2 / pi)
    gate = (0.5F * g * (1.0F + (scale * (g + 0.044715F * g.cube())).tanh()) * up.array()).matrix();
  }
  return gate;
}

/// gate and up of the MLP or of an expert.
matrix gated_hidden(context const& ctx, decoder_layer const& layer, std::int64_t expert, matrix const& x) {
  if (ctx.c.fused && expert == no_expert) {
    matrix const both = layer.multiply(linear::gate_up_proj, x);
    return gated(ctx.c.act, both.leftCols(both.cols() / 2), both.rightCols(both.cols() / 2));
  }
  auto products = layer.multiply({linear::gate_proj, linear::up_proj}, x, expert);
  return gated(ctx.c.act, std::move(products[0]), products[1]);
}

/// Which experts each row of x goes to: those with the largest probabilities, the first of equal ones.
std::vector<routed_tokens> route(config const& c, matrix const& router, matrix const& x) {
  matrix probabilities = x * router.transpose();
  std::vector<routed_tokens> experts(static_cast<std::size_t>(c.num_experts));
  std::vector<Index> order(experts.size());
  auto const chosen = static_cast<std::ptrdiff_t>(c.experts_per_token);
  for (Index t = 0; t < x.rows(); ++t) {
    auto row = probabilities.row(t);
    softmax(row);
    std::iota(order.begin(), order.end(), Index{0});
    std::partial_sort(order.begin(), order.begin() + chosen, order.end(),
                      [&](Index a, Index b) { return row(a) > row(b) || (row(a) == row(b) && a < b); });
    float sum = 0.0F;
    for (std::ptrdiff_t i = 0; i < chosen; ++i) sum += row(order[static_cast<std::size_t>(i)]);
    for (std::ptrdiff_t i = 0; i < chosen; ++i) {
      Index const e = order[static_cast<std::size_t>(i)];
      experts[static_cast<std::size_t>(e)].rows.push_back(t);
      experts[static_cast<std::size_t>(e)].weights.push_back(c.normalize_expert_weights ? row(e) / sum
                                                                                        : row(e));
    }
  }
  return experts;
}

}  // namespace

matrix rms_norm(matrix const& x, row_vector const& weight, double epsilon) {
  matrix y(x.rows(), x.cols());
  for (Index t = 0; t < x.rows(); ++t) {
    float const mean_square = x.row(t).squaredNorm() / static_cast<float>(x.cols());
    y.row(t) =
        (x.row(t) * (1.0F / std::sqrt(mean_square + static_cast<float>(epsilon)))).cwiseProduct(weight);
  }
  return y;
}

void run_stage(context const& ctx, decoder_layer const& layer, stage s, matrix& x, stage_input& input,
               kv_cache* cache) {
  bool const experts = layer.router.size() > 0;
  switch (s) {
    case stage::query_key_value:
      input.x = rms_norm(x, layer[norm::attention], ctx.c.rms_norm_eps);
      return;
    case stage::output:
      input.x = self_attention(ctx, layer, input.x, cache);
      return;
    case stage::gate_up:
      add_output(ctx, layer, norm::attention_output, layer.multiply(linear::o_proj, input.x), x);
      input.x = rms_norm(x, layer[norm::mlp], ctx.c.rms_norm_eps);
      if (experts) input.experts = route(ctx.c, layer.router, input.x);
      return;
    case stage::down:
      if (!experts) input.x = gated_hidden(ctx, layer, no_expert, input.x);
      return;
  }
}

matrix expert_input(stage_input const& input, std::int64_t expert) {
  auto const& rows = input.experts[static_cast<std::size_t>(expert)].rows;
  matrix gathered(static_cast<Index>(rows.size()), input.x.cols());
  for (std::size_t i = 0; i < rows.size(); ++i) gathered.row(static_cast<Index>(i)) = input.x.row(rows[i]);
  return gathered;
}

matrix expert_hidden(context const& ctx, decoder_layer const& layer, std::int64_t expert,
                     matrix const& rows) {
  return gated_hidden(ctx, layer, expert, rows);
}

void finish(context const& ctx, decoder_layer const& layer, matrix& x, stage_input const& input) {
  if (layer.router.size() == 0) {
    add_output(ctx, layer, norm::mlp_output, layer.multiply(linear::down_proj, input.x), x);
    return;
  }
  matrix sum = matrix::Zero(x.rows(), x.cols());
  for (std::int64_t e = 0; e < ctx.c.num_experts; ++e) {
    routed_tokens const& routed = input.experts[static_cast<std::size_t>(e)];
    if (routed.rows.empty()) continue;
    matrix const hidden = expert_hidden(ctx, layer, e, expert_input(input, e));
    matrix const y = layer.multiply(linear::down_proj, hidden, e);
    for (std::size_t i = 0; i < routed.rows.size(); ++i) {
      sum.row(routed.rows[i]) += routed.weights[i] * y.row(static_cast<Index>(i));
    }
  }
  add_output(ctx, layer, norm::mlp_output, std::move(sum), x);
}

void run_layer(context const& ctx, decoder_layer const& layer, matrix& x, kv_cache* cache) {
  stage_input input;
  for (stage const s : stages) run_stage(ctx, layer, s, x, input, cache);
  finish(ctx, layer, x, input);
}

void scale_logits(config const& c, Eigen::Ref<matrix> logits) {
  if (c.logit_scale != 1.0) logits *= static_cast<float>(c.logit_scale);
  cap(logits, c.logit_softcap);
}

}  // namespace lm
