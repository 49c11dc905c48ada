// What a GPU computes of one token besides products with packed weights: attention to cached keys and values,
// products with a dense weight, and the choice of the next token. All of these kernels wait for the one before
// them themselves, and let the next one start at once: its weights are on their way while they run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/kernels/fragments.cuh>

#include "operations.hpp"

namespace lm::device {

using gptq::cuda::detail::let_successor_start;
using gptq::cuda::detail::wait_for_predecessor;

__device__ inline float to_float(float16 v) { return __half2float(__ushort_as_half(v.bits)); }

/// 8 numbers of 16 bits as float.
__device__ inline void widen_eight(uint4 const& from, float (&to)[8]) {
  auto const* const pairs = reinterpret_cast<__half2 const*>(&from);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float2 const pair = __half22float2(pairs[i]);
    to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
  }
}

/// The sum, or the maximum, over the lanes of a warp whose numbers differ in the bits from `first` to `end` / 2.
template <class Join>
__device__ inline float join_lanes(float value, int first, int end, Join const& join) {
  for (int step = first; step < end; step *= 2) value = join(value, __shfl_xor_sync(~0u, value, step));
  return value;
}
__device__ inline float add(float a, float b) { return a + b; }

/// A cache line of what is read later.
__device__ inline void prefetch(void const* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(from)));
}

// ---- attention ----

inline constexpr int attention_threads = 256;
inline constexpr int attention_warps = attention_threads / 32;
/// Keys that are worth a block of their own.
inline constexpr index_t least_keys = 64;

/// How a GPU shares attention out: blocks have some of the query heads that share a key-value head, and a part of
/// the keys.
struct attention_plan {
  int heads;   ///< of a block: 1, 2, 4 or 8
  int chunks;  ///< that the heads of a key-value head are cut into
  int splits;  ///< of the keys, at most

  attention_plan(head_shape const& shape, int multiprocessors) {
    heads = shape.sharing == 1 ? 1 : shape.sharing == 2 ? 2 : shape.sharing <= 4 ? 4 : 8;
    chunks = static_cast<int>((shape.sharing + heads - 1) / heads);
    auto const rows = static_cast<index_t>(chunks) * shape.key_value_heads;
    index_t const most = (shape.length + least_keys - 1) / least_keys;
    splits = static_cast<int>(std::clamp<index_t>(2 * multiprocessors / rows, 1, std::max<index_t>(most, 1)));
  }
  index_t rows(head_shape const& shape) const { return chunks * shape.key_value_heads; }
  /// Counters of each row, then what its splits have found.
  std::size_t counter_bytes(head_shape const& shape) const {
    return (static_cast<std::size_t>(rows(shape)) * 4 + 255) / 256 * 256;
  }
  std::size_t bytes(head_shape const& shape) const {
    return counter_bytes(shape) +
           static_cast<std::size_t>(rows(shape) * splits * heads * (shape.size + 2)) * 4;
  }
  /// Of a block: queries, then maxima, sums and mixed values of its warps.
  std::size_t shared_bytes(head_shape const& shape) const {
    return static_cast<std::size_t>(heads * shape.size + attention_warps * heads * (shape.size + 2)) * 4;
  }
};

/// One head of the token, `size` numbers with their bias, normed by `weight` and rotated, by a warp; in shared
/// memory.
__device__ inline void take_head(float* to, float const* from, float const* bias, float const* weight,
                                 float epsilon, rotation const& turn, index_t position, int size) {
  int const lane = threadIdx.x % 32;
  float squares = 0.0F;
  for (int i = lane; i < size; i += 32) {
    float const value = from[i] + (bias == nullptr ? 0.0F : bias[i]);
    to[i] = value, squares += value * value;
  }
  if (weight != nullptr) {
    float const factor = 1.0F / sqrtf(join_lanes(squares, 1, 32, add) / static_cast<float>(size) + epsilon);
    for (int i = lane; i < size; i += 32) to[i] = to[i] * factor * weight[i];
  }
  __syncwarp();
  auto const half = static_cast<int>(turn.rotated / 2);
  for (int i = lane; i < half; i += 32) {
    float const cos = turn.cos[position * half + i], sin = turn.sin[position * half + i];
    float const low = to[i], high = to[i + half];
    to[i] = low * cos - high * sin, to[i + half] = high * cos + low * sin;
  }
  __syncwarp();
}

/// A block is some of the query heads of a key-value head (x), and a part of the keys (y). Lanes have eight
/// elements of a key each, so a warp has several keys at a time; every such group of lanes keeps its own maximum,
/// sum and mixed values, which are joined at the end: over the warp, the block, and by the last block of a row
/// over all parts.
template <int Heads>
__global__ void __launch_bounds__(attention_threads)
    attend_to_cache(cached_attention a, int chunks, int splits, unsigned* counters, float* found) {
  let_successor_start();
  extern __shared__ float shared[];
  auto const size = static_cast<int>(a.shape.size), sharing = static_cast<int>(a.shape.sharing);
  auto const key_heads = static_cast<int>(a.shape.key_value_heads);
  int const key_head = blockIdx.x / chunks, first_head = blockIdx.x % chunks * Heads;
  int const count = min(Heads, sharing - first_head);
  int const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  index_t const position = *a.position;  // of a step before, as all but the last key and value
  index_t const first = a.window > 0 && position + 1 > a.window ? position + 1 - a.window : 0;
  index_t const seen = position + 1 - first;
  index_t part = (seen + splits - 1) / splits;
  part = part < least_keys ? least_keys : (part + 15) / 16 * 16;
  auto const active = static_cast<int>((seen + part - 1) / part);
  if (static_cast<int>(blockIdx.y) >= active) return;
  index_t const begin = first + blockIdx.y * part, end = min(begin + part, position + 1);
  index_t const cache = key_head * a.shape.length * size;
  float16* const keys = a.keys + cache;
  float16* const values = a.values + cache;
  {
    // What does not come from the kernel ahead is on its way while that runs.
    auto const fetch = [](void const* from, index_t bytes) {
      for (index_t at = index_t{threadIdx.x} * 128; at < bytes; at += attention_threads * 128) {
        prefetch(static_cast<char const*>(from) + at);
      }
    };
    index_t const half = a.turn.rotated / 2, row_bytes = size * 4;
    fetch(keys + begin * size, (end - begin) * size * 2);
    fetch(values + begin * size, (end - begin) * size * 2);
    fetch(a.turn.cos + position * half, half * 4);
    fetch(a.turn.sin + position * half, half * 4);
    if (a.query_norm != nullptr) fetch(a.query_norm, row_bytes);
    if (a.key_norm != nullptr) fetch(a.key_norm, row_bytes);
    index_t const heads = key_head * sharing + first_head;
    if (a.bias != nullptr) fetch(a.bias + heads * size, count * row_bytes);
    if (a.places != nullptr) fetch(a.places + heads * size, count * row_bytes);
  }
  wait_for_predecessor();

  float* const queries = shared;                           // [Heads][size]
  float* const largest_of_warps = queries + Heads * size;  // [warp][Heads]
  float* const sums_of_warps = largest_of_warps + attention_warps * Heads;
  float* const mixed_of_warps = sums_of_warps + attention_warps * Heads;  // [warp][Heads][size]
  for (int h = warp; h < Heads; h += attention_warps) {
    float* const query = queries + h * size;
    if (h >= count) {
      for (int i = lane; i < size; i += 32) query[i] = 0.0F;
      continue;
    }
    int const head = key_head * sharing + first_head + h;
    take_head(query, a.rows + head * size, a.bias == nullptr ? nullptr : a.bias + head * size, a.query_norm,
              a.epsilon, a.turn, position, size);
    for (int i = lane; i < size; i += 32) query[i] *= a.scale;
  }
  if (end == position + 1 && warp == attention_warps - 1) {  // the token's own key and value
    int const key = (key_heads * sharing + key_head) * size, value = key + key_heads * size;
    float* const turned = mixed_of_warps;
    take_head(turned, a.rows + key, a.bias == nullptr ? nullptr : a.bias + key, a.key_norm, a.epsilon, a.turn,
              position, size);
    for (int i = lane; i < size; i += 32) {
      keys[position * size + i] = rounded<float16>(turned[i]);
      values[position * size + i] =
          rounded<float16>(a.rows[value + i] + (a.bias == nullptr ? 0.0F : a.bias[value + i]));
    }
  }
  __syncthreads();

  int lanes = 1;  // of a key
  while (lanes * 8 < size) lanes *= 2;
  int const at_once = lanes > 32 ? 1 : 32 / lanes, element = lane % lanes * 8;
  bool const here = element < size;
  float query[Heads][8], mixed[Heads][8], largest[Heads], sum[Heads];
#pragma unroll
  for (int h = 0; h < Heads; ++h) {
    largest[h] = -INFINITY, sum[h] = 0.0F;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      query[h][i] = here ? queries[h * size + element + i] : 0.0F, mixed[h][i] = 0.0F;
    }
  }
  uint4 const none = make_uint4(0, 0, 0, 0);
  auto const load = [&](float16 const* from, index_t key) {
    return key < end && here ? *reinterpret_cast<uint4 const*>(from + key * size + element) : none;
  };
  index_t const step = attention_warps * at_once;
  index_t key = begin + warp * at_once + lane / lanes;
  uint4 next_key = load(keys, key), next_value = load(values, key);
  for (index_t base = begin + warp * at_once; base < end; base += step) {
    uint4 const this_key = next_key, this_value = next_value;
    bool const is_key = key < end;
    key += step;
    next_key = load(keys, key), next_value = load(values, key);
    float k[8], v[8];
    widen_eight(this_key, k), widen_eight(this_value, v);
#pragma unroll
    for (int h = 0; h < Heads; ++h) {
      float score = 0.0F;
#pragma unroll
      for (int i = 0; i < 8; ++i) score += query[h][i] * k[i];
      score = join_lanes(score, 1, lanes, add);
      if (a.soft_cap > 0.0F) score = a.soft_cap * tanhf(score / a.soft_cap);
      if (!is_key) continue;
      float const top = fmaxf(largest[h], score);
      float const before = __expf(largest[h] - top), weight = __expf(score - top);
      largest[h] = top, sum[h] = sum[h] * before + weight;
#pragma unroll
      for (int i = 0; i < 8; ++i) mixed[h][i] = mixed[h][i] * before + weight * v[i];
    }
  }
  // The keys of a warp.
#pragma unroll
  for (int h = 0; h < Heads; ++h) {
    float const top = join_lanes(largest[h], lanes, 32, [](float x, float y) { return fmaxf(x, y); });
    float const factor = largest[h] == -INFINITY ? 0.0F : __expf(largest[h] - top);
    float const total = join_lanes(sum[h] * factor, lanes, 32, add);
    if (lane == 0) largest_of_warps[warp * Heads + h] = top, sums_of_warps[warp * Heads + h] = total;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float const value = join_lanes(mixed[h][i] * factor, lanes, 32, add);
      if (lane < lanes && here) mixed_of_warps[(warp * Heads + h) * size + element + i] = value;
    }
  }
  __syncthreads();
  // Those of the block. A row of what is found: largest and sum, then values, a head after the other.
  int const row = size + 2;
  float* const of_row = found + index_t{blockIdx.x} * splits * Heads * row;
  auto const store = [&](int h, int i, float value) {
    int const at = (key_head * sharing + first_head + h) * size + i;
    a.to[a.places == nullptr ? at : a.places[at]] = rounded<float16>(value);
  };
  for (int j = threadIdx.x; j < count * size; j += attention_threads) {
    int const h = j / size, i = j % size;
    float top = -INFINITY;
    for (int w = 0; w < attention_warps; ++w) top = fmaxf(top, largest_of_warps[w * Heads + h]);
    float total = 0.0F, value = 0.0F;
    for (int w = 0; w < attention_warps; ++w) {
      float const largest_of_warp = largest_of_warps[w * Heads + h];
      float const factor = largest_of_warp == -INFINITY ? 0.0F : __expf(largest_of_warp - top);
      total += factor * sums_of_warps[w * Heads + h];
      value += factor * mixed_of_warps[(w * Heads + h) * size + i];
    }
    if (active == 1) {
      store(h, i, value / total);
    } else {
      float* const to = of_row + (blockIdx.y * Heads + h) * row;
      if (i == 0) to[0] = top, to[1] = total;
      to[2 + i] = value;
    }
  }
  if (active == 1) return;
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counters + blockIdx.x, 1u) == static_cast<unsigned>(active - 1);
    if (last) counters[blockIdx.x] = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int j = threadIdx.x; j < count * size; j += attention_threads) {
    int const h = j / size, i = j % size;
    float top = -INFINITY;
    for (int s = 0; s < active; ++s) top = fmaxf(top, __ldcg(of_row + (s * Heads + h) * row));
    float total = 0.0F, value = 0.0F;
    for (int s = 0; s < active; ++s) {
      float const* const from = of_row + (s * Heads + h) * row;
      float const factor = __expf(__ldcg(from) - top);
      total += factor * __ldcg(from + 1), value += factor * __ldcg(from + 2 + i);
    }
    store(h, i, value / total);
  }
}

inline void launch_attention(cached_attention const& a, cudaStream_t stream, bool overlap,
                             gptq::cuda::device const& gpu) {
  if (a.shape.size % 8 != 0 || a.shape.size > 256) {
    throw gptq::error("heads of " + std::to_string(a.shape.size) +
                      " elements: the device attends with multiples of 8 up to 256");
  }
  attention_plan const plan(a.shape, gpu.multiprocessors);
  auto const go = [&]<int Heads>() {
    gptq::cuda::launch(
        attend_to_cache<Heads>,
        {.grid = dim3(static_cast<unsigned>(plan.rows(a.shape)), static_cast<unsigned>(plan.splits)),
         .block = attention_threads,
         .shared_memory = plan.shared_bytes(a.shape),
         .stream = stream,
         .overlap = overlap},
        a, plan.chunks, plan.splits, static_cast<unsigned*>(a.workspace),
        reinterpret_cast<float*>(static_cast<char*>(a.workspace) + plan.counter_bytes(a.shape)));
  };
  switch (plan.heads) {
    case 1:
      return go.operator()<1>();
    case 2:
      return go.operator()<2>();
    case 4:
      return go.operator()<4>();
    default:
      return go.operator()<8>();
  }
}

// ---- a product of one row with a dense weight ----

inline constexpr int dense_threads = 256;

/// y[out] = alpha w x for w[out, in] and x[in] of float16, `in` a multiple of 8; a warp two rows at a time, the next
/// words of which are on their way while some are multiplied.
__global__ void __launch_bounds__(dense_threads)
    multiply_row(float16 const* w, float16 const* x, float* y, index_t out, int in, float alpha) {
  let_successor_start();
  extern __shared__ uint4 columns[];
  constexpr int rows = 2, ahead = 4;
  int const lane = threadIdx.x % 32, words = in / 8;
  index_t const step = index_t{rows} * gridDim.x * (dense_threads / 32);
  index_t row = rows * (index_t{blockIdx.x} * (dense_threads / 32) + threadIdx.x / 32);
  uint4 const none = make_uint4(0, 0, 0, 0);
  uint4 next[ahead][rows];
  auto const load = [&](index_t from_row, int base) {
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      auto const* const from = reinterpret_cast<uint4 const*>(w + min(from_row + r, out - 1) * in);
#pragma unroll
      for (int u = 0; u < ahead; ++u) {
        int const i = base + 32 * u + lane;
        next[u][r] = i < words && from_row < out ? __ldcs(from + i) : none;
      }
    }
  };
  load(row, 0);
  wait_for_predecessor();
  for (int i = threadIdx.x; i < words; i += dense_threads) columns[i] = reinterpret_cast<uint4 const*>(x)[i];
  __syncthreads();
  float sums[rows] = {};
  for (int base = 0; row < out;) {
    uint4 these[ahead][rows];
#pragma unroll
    for (int u = 0; u < ahead; ++u) {
#pragma unroll
      for (int r = 0; r < rows; ++r) these[u][r] = next[u][r];
    }
    bool const ends = base + 32 * ahead >= words;
    load(ends ? row + step : row, ends ? 0 : base + 32 * ahead);
#pragma unroll
    for (int u = 0; u < ahead; ++u) {
      int const i = base + 32 * u + lane;
      float b[8];
      widen_eight(i < words ? columns[i] : none, b);
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        float a[8];
        widen_eight(these[u][r], a);
#pragma unroll
        for (int e = 0; e < 8; ++e) sums[r] += a[e] * b[e];
      }
    }
    base += 32 * ahead;
    if (!ends) continue;
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      float const sum = join_lanes(sums[r], 1, 32, add);
      if (lane == 0 && row + r < out) y[row + r] = alpha * sum;
      sums[r] = 0.0F;
    }
    row += step, base = 0;
  }
}

// ---- what lies between products ----

inline constexpr int norm_threads = 1024;
/// Of a row that a block of such threads holds.
inline constexpr index_t most_norm_columns = 16 * norm_threads;

/// The sum over a block of norm_threads threads.
__device__ inline float add_block(float value) {
  __shared__ float of_warps[norm_threads / 32];
  value = join_lanes(value, 1, 32, add);
  __syncthreads();  // what an earlier call has written is read
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  return join_lanes(of_warps[threadIdx.x % 32], 1, 32, add);
}

/// add_and_norm(), a block a row, `Each` columns a thread. Weights are there before the kernel ahead ends.
template <int Each, class Y>
__global__ void __launch_bounds__(norm_threads)
    add_and_norm_block(float* x, Y const* y, float const* bias, float const* norm, float multiplier,
                       float16* normed, float const* weight, std::int32_t const* places, int columns,
                       float epsilon) {
  let_successor_start();
  float weights[Each], biases[Each], norms[Each], values[Each];
  int to[Each];
#pragma unroll
  for (int k = 0; k < Each; ++k) {
    int const i = static_cast<int>(threadIdx.x) + k * norm_threads;
    bool const there = i < columns;
    weights[k] = there ? weight[i] : 0.0F;
    biases[k] = there && bias != nullptr ? bias[i] : 0.0F;
    norms[k] = there && norm != nullptr ? norm[i] : 1.0F;
    to[k] = there && places != nullptr ? places[i] : i;
  }
  wait_for_predecessor();
  index_t const row = index_t{blockIdx.x} * columns;
  x += row, normed += row;
  if (y != nullptr) y += row;
  float residual[Each], squares = 0.0F;
#pragma unroll
  for (int k = 0; k < Each; ++k) {
    int const i = static_cast<int>(threadIdx.x) + k * norm_threads;
    bool const there = i < columns;
    values[k] = there && y != nullptr ? widened(y[i]) + biases[k] : 0.0F;
    residual[k] = there ? x[i] : 0.0F;
    squares += values[k] * values[k];
  }
  float factor = 1.0F;
  if (norm != nullptr) factor = 1.0F / sqrtf(add_block(squares) / static_cast<float>(columns) + epsilon);
  squares = 0.0F;
#pragma unroll
  for (int k = 0; k < Each; ++k) {
    int const i = static_cast<int>(threadIdx.x) + k * norm_threads;
    values[k] = residual[k] + multiplier * (values[k] * factor * norms[k]);
    if (i < columns) x[i] = values[k];
    squares += values[k] * values[k];
  }
  float const next = 1.0F / sqrtf(add_block(squares) / static_cast<float>(columns) + epsilon);
#pragma unroll
  for (int k = 0; k < Each; ++k) {
    int const i = static_cast<int>(threadIdx.x) + k * norm_threads;
    if (i < columns) normed[to[k]] = rounded<float16>(values[k] * next * weights[k]);
  }
}

inline constexpr int gate_threads = 128;

template <gate_function F>
__global__ void __launch_bounds__(gate_threads)
    gate_row(float16* y, float const* x, float const* bias, std::int32_t const* places, int columns) {
  let_successor_start();
  int const i = static_cast<int>(blockIdx.x * gate_threads + threadIdx.x);
  bool const there = i < columns;
  float const gate_bias = there && bias != nullptr ? bias[i] : 0.0F;
  float const up_bias = there && bias != nullptr ? bias[columns + i] : 0.0F;
  int const to = there && places != nullptr ? places[i] : i;
  wait_for_predecessor();
  if (there) y[to] = rounded<float16>(gated<F>(x[i] + gate_bias) * (x[columns + i] + up_bias));
}

/// gate() of many rows, eight columns a thread, of a type of 16 bits.
template <class T, gate_function F>
__global__ void __launch_bounds__(256) gate_eights(T* y, T const* x, index_t eights, index_t columns) {
  index_t const at = index_t{blockIdx.x} * 256 + threadIdx.x;
  if (at >= eights) return;
  index_t const row = at / (columns / 8), i = at % (columns / 8) * 8;
  uint4 const gates = *reinterpret_cast<uint4 const*>(x + row * 2 * columns + i);
  uint4 const ups = *reinterpret_cast<uint4 const*>(x + row * 2 * columns + columns + i);
  uint4 results;
  auto const *gate = reinterpret_cast<T const*>(&gates), *up = reinterpret_cast<T const*>(&ups);
  auto* const result = reinterpret_cast<T*>(&results);
#pragma unroll
  for (int e = 0; e < 8; ++e) result[e] = rounded<T>(gated<F>(widened(gate[e])) * widened(up[e]));
  *reinterpret_cast<uint4*>(y + row * columns + i) = results;
}

// ---- the choice of a token ----

inline constexpr int choice_threads = 256, choice_blocks = 132;

/// Between kernels of a choice; zero before the first, and left so.
struct choice_state {
  unsigned long long likeliest;  ///< (ordered logit, ~token)
  unsigned done;                 ///< blocks
  bool refused;                  ///< some logits are not finite
};

__device__ inline unsigned ordered(float v) {
  unsigned const bits = __float_as_uint(v);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float scaled_logit(token_choice const& c, index_t i) {
  float const logit = c.multiplier * c.logits[i];
  return c.soft_cap > 0.0F ? c.soft_cap * tanhf(logit / c.soft_cap) : logit;
}
__device__ inline void take_token(token_choice const& c, std::int32_t token) {
  std::int32_t const position = *c.position + 1;
  c.history[position] = token;
  *c.token = token < 0 ? 0 : token;
  *c.position = position;
  __threadfence_system();
}

/// The likeliest token, which is taken where the temperature is 0.
__global__ void __launch_bounds__(choice_threads) find_likeliest(token_choice c, choice_state* state) {
  let_successor_start();
  wait_for_predecessor();
  unsigned long long best = 0;
  for (index_t i = index_t{blockIdx.x} * choice_threads + threadIdx.x; i < c.count;
       i += index_t{gridDim.x} * choice_threads) {
    float const logit = scaled_logit(c, i);
    unsigned long long const mine = isfinite(logit) ? static_cast<unsigned long long>(ordered(logit)) << 32 |
                                                          (~0u - static_cast<unsigned>(i))
                                                    : ~0ull;
    best = best < mine ? mine : best;
  }
  for (int step = 16; step > 0; step /= 2) {
    unsigned long long const other = __shfl_xor_sync(~0u, best, step);
    best = best < other ? other : best;
  }
  __shared__ unsigned long long of_warps[choice_threads / 32];
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < choice_threads / 32; ++w) best = best < of_warps[w] ? of_warps[w] : best;
  atomicMax(&state->likeliest, best);
  __threadfence();
  if (atomicAdd(&state->done, 1u) != gridDim.x - 1) return;
  best = atomicExch(&state->likeliest, 0ull);
  state->done = 0;
  auto const token = best == ~0ull ? -1 : static_cast<std::int32_t>(~0u - static_cast<unsigned>(best));
  state->refused = token < 0;
  if (c.temperature <= 0.0 || token < 0) take_token(c, token);
}

/// What tokens are sorted by, and their numbers.
__global__ void __launch_bounds__(choice_threads)
    number_tokens(token_choice c, float* logits, std::int32_t* tokens) {
  let_successor_start();
  wait_for_predecessor();
  index_t const i = index_t{blockIdx.x} * choice_threads + threadIdx.x;
  if (i < c.count) logits[i] = scaled_logit(c, i), tokens[i] = static_cast<std::int32_t>(i);
}

/// exp((logit - top) / temperature)
__global__ void __launch_bounds__(choice_threads)
    weigh_tokens(token_choice c, float const* sorted, double* weights) {
  let_successor_start();
  wait_for_predecessor();
  index_t const i = index_t{blockIdx.x} * choice_threads + threadIdx.x;
  if (i >= c.count) return;
  weights[i] = exp((static_cast<double>(sorted[i]) - static_cast<double>(sorted[0])) / c.temperature);
}

/// Takes the first token, in falling order of logits, with which the sum of weights is beyond a share of what top_p
/// keeps.
__global__ void draw_token(token_choice c, choice_state const* state, double const* sums,
                           std::int32_t const* tokens) {
  let_successor_start();
  wait_for_predecessor();
  if (state->refused) return;
  // The first of n sums that is `share` or more, or more than it; the last one if none is.
  auto const find = [sums](index_t n, double share, bool beyond) {
    index_t first = 0, last = n - 1;
    while (first < last) {
      index_t const middle = (first + last) / 2;
      if (beyond ? sums[middle] > share : sums[middle] >= share) {
        last = middle;
      } else {
        first = middle + 1;
      }
    }
    return first;
  };
  index_t const kept = find(c.count, c.top_p * sums[c.count - 1], false) + 1;
  take_token(c, tokens[find(kept, c.random[*c.position + 1] * sums[kept - 1], true)]);
}

/// Where a choice has what in its workspace; sorting and adding up by CUB.
struct choice_memory {
  std::size_t logits[2], tokens[2], weights, sums, library, library_bytes, bytes;

  explicit choice_memory(index_t count) {
    std::size_t next = 256;  // a choice_state
    auto const take = [&](std::size_t size) { return std::exchange(next, next + (size + 255) / 256 * 256); };
    auto const n = static_cast<std::size_t>(count);
    for (auto& at : logits) at = take(n * 4);
    for (auto& at : tokens) at = take(n * 4);
    weights = take(n * 8), sums = take(n * 8);
    std::size_t sort = 0, add = 0;
    gptq::cuda::check(cub::DeviceRadixSort::SortPairsDescending(
                          nullptr, sort, static_cast<float const*>(nullptr), static_cast<float*>(nullptr),
                          static_cast<std::int32_t const*>(nullptr), static_cast<std::int32_t*>(nullptr),
                          static_cast<int>(count)),
                      "asking for the memory of a sort");
    gptq::cuda::check(cub::DeviceScan::InclusiveSum(nullptr, add, static_cast<double const*>(nullptr),
                                                    static_cast<double*>(nullptr), static_cast<int>(count)),
                      "asking for the memory of sums");
    library_bytes = std::max(sort, add);
    library = take(library_bytes);
    bytes = next;
  }
};

inline void launch_choice(token_choice const& c, cudaStream_t stream, bool overlap) {
  auto* const base = static_cast<char*>(c.workspace);
  auto* const state = reinterpret_cast<choice_state*>(base);
  auto const config = [&](unsigned grid, unsigned block) {
    return gptq::cuda::launch_config{.grid = grid, .block = block, .stream = stream, .overlap = overlap};
  };
  gptq::cuda::launch(find_likeliest, config(choice_blocks, choice_threads), c, state);
  if (c.temperature <= 0.0) return;
  choice_memory const m(c.count);
  auto const floats = [&](std::size_t at) { return reinterpret_cast<float*>(base + at); };
  auto const ids = [&](std::size_t at) { return reinterpret_cast<std::int32_t*>(base + at); };
  auto const doubles = [&](std::size_t at) { return reinterpret_cast<double*>(base + at); };
  auto const all =
      config(static_cast<unsigned>((c.count + choice_threads - 1) / choice_threads), choice_threads);
  std::size_t bytes = m.library_bytes;
  gptq::cuda::launch(number_tokens, all, c, floats(m.logits[0]), ids(m.tokens[0]));
  gptq::cuda::check(cub::DeviceRadixSort::SortPairsDescending(
                        base + m.library, bytes, floats(m.logits[0]), floats(m.logits[1]), ids(m.tokens[0]),
                        ids(m.tokens[1]), static_cast<int>(c.count), 0, 32, stream),
                    "sorting logits");
  gptq::cuda::launch(weigh_tokens, all, c, floats(m.logits[1]), doubles(m.weights));
  bytes = m.library_bytes;
  gptq::cuda::check(cub::DeviceScan::InclusiveSum(base + m.library, bytes, doubles(m.weights),
                                                  doubles(m.sums), static_cast<int>(c.count), stream),
                    "adding up weights of tokens");
  gptq::cuda::launch(draw_token, config(1, 1), c, state, doubles(m.sums), ids(m.tokens[1]));
}

}  // namespace lm::device
