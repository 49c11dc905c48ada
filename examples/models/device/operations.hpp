// The arithmetic of the device's own operations, a row at a time, for any device and for the host.
//
// An operation is a struct whose operator()(row, team) computes one row. A team is what works on a row: a
// block of threads on a GPU, one thread on the host. It has rank() and size(), sum() and max() over its
// members, which all of them call, and scratch(), floats that its members share. operations<Runner> makes
// accelerator's virtual functions of them, for a Runner with run(rows, columns, scratch floats, operation).
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include <gptq/error.hpp>
#include <gptq/float16.hpp>

#include "accelerator.hpp"

namespace lm::device {

using gptq::bfloat16;
using gptq::float16;

/// v in another type, rounded once.
template <class T>
GPTQ_HOST_DEVICE inline T rounded(float v) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, float16>) {
    float16 h;
    h.bits = __half_as_ushort(__float2half_rn(v));
    return h;
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    bfloat16 h;
    h.bits = __bfloat16_as_ushort(__float2bfloat16_rn(v));
    return h;
  }
#endif
  return T(v);
}

template <class T>
GPTQ_HOST_DEVICE inline float widened(T v) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, float16>) return __half2float(__ushort_as_half(v.bits));
#endif
  return static_cast<float>(v);
}

template <class To, class From>
struct convert_rows {
  To* to;
  From const* from;
  index_t columns;
  index_t count;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    index_t const begin = row * columns, end = begin + columns < count ? begin + columns : count;
    for (index_t i = begin + team.rank(); i < end; i += team.size()) to[i] = rounded<To>(widened(from[i]));
  }
};

template <class T>
struct embed_rows {
  float* x;
  T const* table;
  std::int32_t const* tokens;
  index_t hidden;
  float multiplier;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    T const* const from = table + index_t{tokens[row]} * hidden;
    for (index_t i = team.rank(); i < hidden; i += team.size()) {
      x[row * hidden + i] = multiplier * widened(from[i]);
    }
  }
};

/// 1 / rms of n values.
template <class Team, class Value>
GPTQ_HOST_DEVICE float inverse_rms(Team& team, index_t n, float epsilon, Value const& value) {
  float squares = 0.0F;
  for (index_t i = team.rank(); i < n; i += team.size()) squares += value(i) * value(i);
  return 1.0F / std::sqrt(team.sum(squares) / static_cast<float>(n) + epsilon);
}

template <class T>
struct rms_norm_rows {
  T* y;
  float const* x;
  float const* weight;
  index_t columns;
  float epsilon;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    float const* const from = x + row * columns;
    float const factor = inverse_rms(team, columns, epsilon, [=](index_t i) { return from[i]; });
    for (index_t i = team.rank(); i < columns; i += team.size()) {
      y[row * columns + i] = rounded<T>(from[i] * factor * weight[i]);
    }
  }
};

/// A row is a head of a token.
template <class T>
struct rms_norm_head_rows {
  T* x;
  float const* weight;
  index_t stride;
  index_t first;
  index_t heads;
  index_t size;
  float epsilon;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    T* const head = x + row / heads * stride + first + row % heads * size;
    float const factor = inverse_rms(team, size, epsilon, [=](index_t i) { return widened(head[i]); });
    for (index_t i = team.rank(); i < size; i += team.size()) {
      head[i] = rounded<T>(widened(head[i]) * factor * weight[i]);
    }
  }
};

template <class T>
struct add_bias_rows {
  T* y;
  float const* bias;
  index_t columns;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    for (index_t i = team.rank(); i < columns; i += team.size()) {
      y[row * columns + i] = rounded<T>(widened(y[row * columns + i]) + bias[i]);
    }
  }
};

struct add_to_residual_rows {
  float* x;
  float const* y;
  float const* bias;
  float const* norm;
  index_t columns;
  float epsilon;
  float multiplier;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    index_t const at = row * columns;
    auto const value = [this, at](index_t i) { return y[at + i] + (bias == nullptr ? 0.0F : bias[i]); };
    float const factor = norm == nullptr ? 1.0F : inverse_rms(team, columns, epsilon, value);
    for (index_t i = team.rank(); i < columns; i += team.size()) {
      x[at + i] += multiplier * (value(i) * factor * (norm == nullptr ? 1.0F : norm[i]));
    }
  }
};

template <gate_function F>
GPTQ_HOST_DEVICE inline float gated(float x) {
  if constexpr (F == gate_function::silu) {
    return x / (1.0F + std::exp(-x));
  } else {
    return 0.5F * x * (1.0F + std::tanh(0.7978845608028654F * (x + 0.044715F * x * x * x)));
  }
}

/// A row of x with something added to it and, beside it, normed. What is added has been read into scratch.
template <class T, class Y>
struct add_and_norm_rows {
  float* x;
  Y const* y;
  float const* bias;
  float const* norm;
  float multiplier;
  T* normed;
  float const* weight;
  std::int32_t const* places;
  index_t columns;
  float epsilon;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    index_t const at = row * columns;
    float* const values = team.scratch();  // each member has its own
    for (index_t i = team.rank(); i < columns; i += team.size()) {
      values[i] = (y == nullptr ? 0.0F : widened(y[at + i])) + (bias == nullptr ? 0.0F : bias[i]);
    }
    float const factor =
        norm == nullptr ? 1.0F : inverse_rms(team, columns, epsilon, [=](index_t i) { return values[i]; });
    for (index_t i = team.rank(); i < columns; i += team.size()) {
      values[i] = x[at + i] + multiplier * (values[i] * factor * (norm == nullptr ? 1.0F : norm[i]));
      x[at + i] = values[i];
    }
    float const next = inverse_rms(team, columns, epsilon, [=](index_t i) { return values[i]; });
    for (index_t i = team.rank(); i < columns; i += team.size()) {
      normed[at + (places == nullptr ? i : index_t{places[i]})] = rounded<T>(values[i] * next * weight[i]);
    }
  }
};

/// A row is some of the columns.
template <class T, gate_function F>
struct gate_one_rows {
  T* y;
  float const* x;
  float const* bias;
  std::int32_t const* places;
  index_t part;
  index_t columns;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    index_t const begin = row * part, end = begin + part < columns ? begin + part : columns;
    for (index_t i = begin + team.rank(); i < end; i += team.size()) {
      float const gate = x[i] + (bias == nullptr ? 0.0F : bias[i]);
      float const up = x[columns + i] + (bias == nullptr ? 0.0F : bias[columns + i]);
      y[places == nullptr ? i : index_t{places[i]}] = rounded<T>(gated<F>(gate) * up);
    }
  }
};

/// A row is some columns of a row.
template <class To, class From>
struct copy_row_rows {
  To* to;
  index_t to_stride;
  From const* from;
  index_t from_stride;
  index_t part;
  index_t columns;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t at, Team& team) const {
    index_t const parts_of_row = (columns + part - 1) / part, row = at / parts_of_row;
    index_t const begin = at % parts_of_row * part, end = begin + part < columns ? begin + part : columns;
    for (index_t i = begin + team.rank(); i < end; i += team.size()) {
      to[row * to_stride + i] = rounded<To>(widened(from[row * from_stride + i]));
    }
  }
};

/// A row is a token.
template <class T>
struct place_head_rows {
  T* q;
  T* k;
  T* v;
  T const* rows;
  head_shape shape;
  rotation turn;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    index_t const window = row / shape.length, position = row % shape.length;
    auto const size = static_cast<int>(shape.size), sharing = static_cast<int>(shape.sharing);
    auto const keys = static_cast<int>(shape.key_value_heads);
    int const queries = keys * sharing;
    auto const half = static_cast<int>(turn.rotated / 2);
    T const* const from = rows + row * (queries + 2 * keys) * size;
    for (int e = team.rank(); e < (queries + 2 * keys) * size; e += static_cast<int>(team.size())) {
      int const head = e / size, i = e % size;
      T* to;
      if (head < queries) {
        to = q +
             (((window * keys + head / sharing) * shape.length + position) * sharing + head % sharing) * size;
      } else {
        int const key = (head - queries) % keys;
        to = (head < queries + keys ? k : v) + ((window * keys + key) * shape.length + position) * size;
      }
      if (i >= 2 * half || head >= queries + keys) {
        to[i] = from[e];
        continue;
      }
      int const pair = i < half ? i : i - half;
      float const cos = turn.cos[position * half + pair], sin = turn.sin[position * half + pair];
      float const own = widened(from[e]), other = widened(i < half ? from[e + half] : from[e - half]);
      to[i] = rounded<T>(i < half ? own * cos - other * sin : own * cos + other * sin);
    }
  }
};

template <class T>
struct merge_head_rows {
  T* rows;
  T const* q;
  head_shape shape;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    index_t const window = row / shape.length, position = row % shape.length;
    auto const run = static_cast<int>(shape.sharing * shape.size);
    auto const keys = static_cast<int>(shape.key_value_heads);
    for (int e = team.rank(); e < keys * run; e += static_cast<int>(team.size())) {
      rows[row * keys * run + e] = q[((window * keys + e / run) * shape.length + position) * run + e % run];
    }
  }
};

/// In place: what a row of T overwrites of a row of float32 has been read into scratch before.
template <class T>
struct softmax_rows {
  float* scores;
  index_t sharing;
  score_block block;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    index_t const query = block.first_query + row % (block.queries * sharing) / sharing;
    // The keys that it sees, counted from the block's first.
    index_t const end = query + 1 - block.first_key < block.keys ? query + 1 - block.first_key : block.keys;
    index_t const earliest = block.window > 0 ? query + 1 - block.window : 0;
    index_t const begin = earliest > block.first_key ? earliest - block.first_key : 0;
    float* const from = scores + row * block.keys;
    float* const values = team.scratch();
    float largest = -INFINITY;
    for (index_t i = begin + team.rank(); i < end; i += team.size()) {
      float score = from[i];
      if (block.soft_cap > 0.0F) score = block.soft_cap * std::tanh(score / block.soft_cap);
      values[i] = score;
      largest = largest < score ? score : largest;
    }
    largest = team.max(largest);
    float sum = 0.0F;
    for (index_t i = begin + team.rank(); i < end; i += team.size()) {
      values[i] = std::exp(values[i] - largest);
      sum += values[i];
    }
    float const factor = 1.0F / team.sum(sum);  // after it, everything has been read
    T* const to = reinterpret_cast<T*>(from);
    for (index_t i = team.rank(); i < block.keys; i += team.size()) {
      to[i] = rounded<T>(i >= begin && i < end ? values[i] * factor : 0.0F);
    }
  }
};

template <class T, gate_function F>
struct gate_rows {
  T* y;
  T const* x;
  index_t columns;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    T const* const from = x + row * 2 * columns;
    for (index_t i = team.rank(); i < columns; i += team.size()) {
      y[row * columns + i] = rounded<T>(gated<F>(widened(from[i])) * widened(from[columns + i]));
    }
  }
};

struct loss_rows {
  running_loss loss;
  float const* logits;
  std::int32_t const* targets;
  index_t columns;
  index_t first;
  float soft_cap;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    auto const logit = [this, row](index_t i) {
      float const x = logits[row * columns + i];
      return soft_cap > 0.0F ? soft_cap * std::tanh(x / soft_cap) : x;
    };
    float largest = -INFINITY;
    for (index_t i = team.rank(); i < columns; i += team.size()) {
      largest = largest < logit(i) ? logit(i) : largest;
    }
    float const before = loss.largest[row];
    largest = team.max(largest);
    largest = largest < before ? before : largest;
    float sum = 0.0F;
    for (index_t i = team.rank(); i < columns; i += team.size()) sum += std::exp(logit(i) - largest);
    sum = team.sum(sum);
    if (team.rank() != 0) return;
    loss.sum[row] = loss.sum[row] * std::exp(static_cast<double>(before) - static_cast<double>(largest)) +
                    static_cast<double>(sum);
    loss.largest[row] = largest;
    index_t const target = targets[row] - first;
    if (target >= 0 && target < columns) loss.target[row] = logit(target);
  }
};

template <class T>
struct subtract_rows {
  T* to;
  T const* a;
  T const* b;
  index_t columns;
  index_t count;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    index_t const begin = row * columns, end = begin + columns < count ? begin + columns : count;
    for (index_t i = begin + team.rank(); i < end; i += team.size()) {
      to[i] = rounded<T>(widened(a[i]) - widened(b[i]));
    }
  }
};

/// A row is an entry of the diagonal.
struct add_to_diagonal_rows {
  float* a;
  index_t n;
  float value;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    if (team.rank() == 0) a[row * n + row] += value;
  }
};

template <class T>
struct gather_row_rows {
  float* to;
  T const* x;
  std::int64_t const* rows;
  index_t columns;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    for (index_t i = team.rank(); i < columns; i += team.size()) {
      to[row * columns + i] = widened(x[rows[row] * columns + i]);
    }
  }
};

/// A row is a token.
struct choose_expert_rows {
  expert_choice c;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    float const* const logits = c.logits + row * c.experts;
    float* const left = team.scratch();  // probabilities of what is not chosen yet; each member has its own
    float largest = -INFINITY;
    for (index_t e = team.rank(); e < c.experts; e += team.size()) {
      largest = largest < logits[e] ? logits[e] : largest;
    }
    largest = team.max(largest);
    float all = 0.0F;
    for (index_t e = team.rank(); e < c.experts; e += team.size()) {
      left[e] = std::exp(logits[e] - largest);
      all += left[e];
    }
    float const factor = 1.0F / team.sum(all);
    float sum = 0.0F;
    for (index_t i = 0; i < c.chosen; ++i) {
      float top = -1.0F;
      for (index_t e = team.rank(); e < c.experts; e += team.size()) top = top < left[e] ? left[e] : top;
      top = team.max(top);
      float first = -INFINITY;  // minus the number of the first that is as large
      for (index_t e = team.rank(); e < c.experts; e += team.size()) {
        if (left[e] == top && first < static_cast<float>(-e)) first = static_cast<float>(-e);
      }
      auto const chosen = static_cast<index_t>(-team.max(first));
      if (chosen % team.size() == team.rank()) left[chosen] = -1.0F;
      sum += top;
      if (team.rank() != 0) continue;
      c.keys[row * c.chosen + i] = static_cast<std::int32_t>(chosen * c.windows + row / c.length);
      c.weights[row * c.chosen + i] = top * factor;
    }
    if (team.rank() != 0 || !c.normalized) return;
    for (index_t i = 0; i < c.chosen; ++i) c.weights[row * c.chosen + i] /= sum * factor;
  }
};

template <class T>
struct gather_entry_rows {
  T* to;
  T const* x;
  std::int32_t const* order;
  index_t divisor;
  index_t columns;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    T const* const from = x + order[row] / divisor * columns;
    for (index_t i = team.rank(); i < columns; i += team.size()) to[row * columns + i] = from[i];
  }
};

struct add_entry_rows {
  float* to;
  float const* y;
  float const* weights;
  std::int32_t const* places;
  index_t terms;
  index_t columns;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    for (index_t i = team.rank(); i < columns; i += team.size()) {
      float sum = 0.0F;
      for (index_t j = 0; j < terms; ++j) {
        sum += weights[row * terms + j] * y[index_t{places[row * terms + j]} * columns + i];
      }
      to[row * columns + i] = sum;
    }
  }
};

struct gather_rows_of_elements {
  float* to;
  float const* x;
  std::int64_t const* at;
  index_t columns;
  index_t count;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    index_t const begin = row * columns, end = begin + columns < count ? begin + columns : count;
    for (index_t i = begin + team.rank(); i < end; i += team.size()) to[i] = x[at[i]];
  }
};

/// A quantized layer where it lies on a device.
struct coded_rows {
  std::uint8_t const* codes;
  float const* scales;
  std::uint8_t const* zeros;
  std::int32_t const* order;
  index_t columns;
  index_t group_columns;
  gptq::code_levels levels;

  index_t groups() const { return (columns + group_columns - 1) / group_columns; }
};

template <class T>
struct dequantize_rows {
  T* to;
  float const* minus;
  coded_rows from;
  index_t groups;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    for (index_t i = team.rank(); i < from.columns; i += team.size()) {
      index_t const at = row * groups + i / from.group_columns;
      gptq::grid const g{from.scales[at], from.zeros == nullptr ? 0 : int{from.zeros[at]}};
      index_t const column = from.order == nullptr ? i : index_t{from.order[i]};
      float const value = from.levels.decode(from.codes[row * from.columns + i], g);
      index_t const target = row * from.columns + column;
      to[target] = rounded<T>(minus == nullptr ? value : value - minus[target]);
    }
  }
};

/// What int8 makes of a row of activations, as the kernels for the CPU take them (gptq/activations.hpp), less
/// the row itself.
template <class T>
struct int8_error_rows {
  T* to;
  float const* x;
  std::int32_t const* order;
  index_t columns;
  index_t group_columns;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    constexpr index_t most = 128;  // columns that share a scale
    float const* const from = x + row * columns;
    auto const column = [this](index_t i) { return order == nullptr ? i : index_t{order[i]}; };
    for (index_t first = 0; first < columns;) {
      index_t const in_group = first % group_columns;
      index_t end = first + (group_columns - in_group < most ? group_columns - in_group : most);
      if (end > columns) end = columns;
      float largest = 0.0F;
      for (index_t i = first + team.rank(); i < end; i += team.size()) {
        float const size = std::abs(from[column(i)]);
        largest = largest < size ? size : largest;
      }
      largest = team.max(largest);
      float const steps = largest >= 0x1p-100F ? 127.0F / largest : 0.0F;
      for (index_t i = first + team.rank(); i < end; i += team.size()) {
        float const value = from[column(i)];
        to[row * columns + column(i)] = rounded<T>(largest / 127.0F * std::nearbyint(value * steps) - value);
      }
      first = end;
    }
  }
};

/// sums[row] = sum of the products of two rows.
struct dot_rows {
  float const* a;
  float const* b;
  double* sums;
  index_t columns;

  template <class Team>
  GPTQ_HOST_DEVICE void operator()(index_t row, Team& team) const {
    float sum = 0.0F;
    for (index_t i = team.rank(); i < columns; i += team.size())
      sum += a[row * columns + i] * b[row * columns + i];
    sum = team.sum(sum);
    if (team.rank() == 0) sums[row] = static_cast<double>(sum);
  }
};

/// Calls f<T>() for the type that `type` names.
template <class F>
decltype(auto) with_number(number type, F&& f) {
  switch (type) {
    case number::float16:
      return f.template operator()<float16>();
    case number::bfloat16:
      return f.template operator()<bfloat16>();
    case number::float32:
      break;
  }
  return f.template operator()<float>();
}

template <class T>
T* as(numbers const& n) {
  return static_cast<T*>(n.data);
}

/// The operations above as an accelerator has them.
template <class Runner>
class operations : public accelerator {
 public:
  void convert(numbers to, numbers from, index_t count) override {
    with_number(to.type, [&]<class To>() {
      with_number(from.type, [&]<class From>() {
        run((count + run_columns - 1) / run_columns, run_columns,
            convert_rows<To, From>{as<To>(to), as<From>(from), run_columns, count});
      });
    });
  }
  void embed(float* x, numbers table, std::int32_t const* tokens, index_t count, index_t hidden,
             float multiplier) override {
    with_number(table.type, [&]<class T>() {
      run(count, hidden, embed_rows<T>{x, as<T>(table), tokens, hidden, multiplier});
    });
  }
  void rms_norm(numbers y, float const* x, float const* weight, index_t rows, index_t columns,
                float epsilon) override {
    with_number(y.type, [&]<class T>() {
      run(rows, columns, rms_norm_rows<T>{as<T>(y), x, weight, columns, epsilon});
    });
  }
  void rms_norm_heads(numbers x, float const* weight, index_t rows, index_t stride, index_t first,
                      index_t heads, index_t size, float epsilon) override {
    with_number(x.type, [&]<class T>() {
      run(rows * heads, size, rms_norm_head_rows<T>{as<T>(x), weight, stride, first, heads, size, epsilon});
    });
  }
  void add_bias(numbers y, float const* bias, index_t rows, index_t columns) override {
    with_number(y.type, [&]<class T>() { run(rows, columns, add_bias_rows<T>{as<T>(y), bias, columns}); });
  }
  void add_to_residual(float* x, float const* y, float const* bias, float const* norm, index_t rows,
                       index_t columns, float epsilon, float multiplier) override {
    run(rows, columns, add_to_residual_rows{x, y, bias, norm, columns, epsilon, multiplier});
  }
  void place_heads(numbers q, numbers k, numbers v, numbers rows, head_shape const& shape,
                   rotation const& turn) override {
    with_number(rows.type, [&]<class T>() {
      run(shape.tokens(), shape.query_size() + 2 * shape.key_value_size(),
          place_head_rows<T>{as<T>(q), as<T>(k), as<T>(v), as<T>(rows), shape, turn});
    });
  }
  void merge_heads(numbers rows, numbers q, head_shape const& shape) override {
    with_number(rows.type, [&]<class T>() {
      run(shape.tokens(), shape.query_size(), merge_head_rows<T>{as<T>(rows), as<T>(q), shape});
    });
  }
  void softmax(float* scores, number type, head_shape const& shape, score_block const& block) override {
    with_number(type, [&]<class T>() {
      run(shape.windows * shape.key_value_heads * block.queries * shape.sharing, block.keys,
          softmax_rows<T>{scores, shape.sharing, block}, block.keys);
    });
  }
  void gate(numbers y, numbers x, index_t rows, index_t columns, gate_function f) override {
    with_number(y.type, [&]<class T>() {
      if (f == gate_function::silu) {
        run(rows, columns, gate_rows<T, gate_function::silu>{as<T>(y), as<T>(x), columns});
      } else {
        run(rows, columns, gate_rows<T, gate_function::gelu_tanh>{as<T>(y), as<T>(x), columns});
      }
    });
  }
  void add_and_norm(float* x, numbers y, float const* bias, float const* norm, float multiplier,
                    numbers normed, float const* weight, std::int32_t const* places, index_t rows,
                    index_t columns, float epsilon) override {
    with_number(normed.type, [&]<class T>() {
      with_number(y.type, [&]<class Y>() {
        run(rows, columns,
            add_and_norm_rows<T, Y>{x, as<Y>(y), bias, norm, multiplier, as<T>(normed), weight, places,
                                    columns, epsilon},
            columns);
      });
    });
  }
  void gate_one(numbers y, float const* x, float const* bias, std::int32_t const* places, index_t columns,
                gate_function f) override {
    constexpr index_t part = 256;
    with_number(y.type, [&]<class T>() {
      index_t const parts = (columns + part - 1) / part;
      if (f == gate_function::silu) {
        run(parts, part, gate_one_rows<T, gate_function::silu>{as<T>(y), x, bias, places, part, columns});
      } else {
        run(parts, part,
            gate_one_rows<T, gate_function::gelu_tanh>{as<T>(y), x, bias, places, part, columns});
      }
    });
  }
  void copy_rows(numbers to, index_t to_stride, numbers from, index_t from_stride, index_t rows,
                 index_t columns) override {
    with_number(to.type, [&]<class To>() {
      with_number(from.type, [&]<class From>() {
        run(rows * ((columns + run_columns - 1) / run_columns), std::min(columns, run_columns),
            copy_row_rows<To, From>{as<To>(to), to_stride, as<From>(from), from_stride, run_columns,
                                    columns});
      });
    });
  }
  void count_loss(running_loss const& loss, float const* logits, std::int32_t const* targets, index_t rows,
                  index_t columns, index_t first, float soft_cap) override {
    run(rows, columns, loss_rows{loss, logits, targets, columns, first, soft_cap});
  }
  void gather_rows(float* to, numbers x, std::int64_t const* rows, index_t count, index_t columns) override {
    with_number(x.type, [&]<class T>() {
      run(count, columns, gather_row_rows<T>{to, as<T>(x), rows, columns});
    });
  }
  void choose_experts(expert_choice const& c) override {
    run(c.windows * c.length, c.experts, choose_expert_rows{c}, c.experts);
  }
  void gather_entries(numbers to, numbers x, std::int32_t const* order, index_t divisor, index_t count,
                      index_t columns) override {
    with_number(to.type, [&]<class T>() {
      run(count, columns, gather_entry_rows<T>{as<T>(to), as<T>(x), order, divisor, columns});
    });
  }
  void add_entries(float* to, float const* y, float const* weights, std::int32_t const* places, index_t rows,
                   index_t terms, index_t columns) override {
    run(rows, columns, add_entry_rows{to, y, weights, places, terms, columns});
  }
  void int8_error(numbers to, float const* x, std::int32_t const* order, index_t rows, index_t columns,
                  index_t group_columns) override {
    with_number(to.type, [&]<class T>() {
      run(rows, columns, int8_error_rows<T>{as<T>(to), x, order, columns, group_columns});
    });
  }
  void dot(double* sums, float const* a, float const* b, index_t rows, index_t columns) override {
    run(rows, columns, dot_rows{a, b, sums, columns});
  }
  void subtract(numbers to, numbers a, numbers b, index_t count) override {
    with_number(to.type, [&]<class T>() {
      run((count + run_columns - 1) / run_columns, run_columns,
          subtract_rows<T>{as<T>(to), as<T>(a), as<T>(b), run_columns, count});
    });
  }
  void gather(float* to, float const* x, std::int64_t const* at, index_t count) override {
    run((count + run_columns - 1) / run_columns, run_columns,
        gather_rows_of_elements{to, x, at, run_columns, count});
  }

 private:
  static constexpr index_t run_columns = 4096;

  template <class Operation>
  void run(index_t rows, index_t columns, Operation const& operation, index_t scratch = 0) {
    if (rows > 0 && columns > 0) static_cast<Runner*>(this)->run_rows(rows, columns, scratch, operation);
  }
};

}  // namespace lm::device
