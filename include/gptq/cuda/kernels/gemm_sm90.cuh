// The product for many columns on compute capability 9.0: products of warpgroups, A decoded to registers, B
// in shared memory.
//
// A block has two warpgroups that multiply, 128 rows each, and a thread that copies activations, as
// prepare_stages() has arranged them, into a ring of stages of 128 columns of W. Each warp reads its codes a
// few stages ahead, straight into registers, as nobody else needs them. While one warpgroup decodes, the
// tensor cores have the other's products.
#pragma once

#include <algorithm>
#include <utility>

#include <gptq/cuda/kernels/bulk_copy.cuh>
#include <gptq/cuda/kernels/fragments.cuh>
#include <gptq/cuda/kernels/operands.cuh>
#include <gptq/cuda/kernels/warpgroup.cuh>

namespace gptq::cuda::detail {

/// What multiplies: two warpgroups of a block, 128 rows each.
inline constexpr int multiplying_warpgroups = 2;
inline constexpr int warpgroup_row_tiles = 2;  ///< of 64 rows
inline constexpr int warpgroup_rows = multiplying_warpgroups * warpgroup_row_tiles * 64;
inline constexpr int warpgroup_threads = (multiplying_warpgroups + 1) * warpgroup_size;
/// Registers of a thread that copies and of one that multiplies.
inline constexpr int copying_registers = 24, multiplying_registers = 240;
static_assert(copying_registers + multiplying_warpgroups * multiplying_registers <=
              (multiplying_warpgroups + 1) * registers_at_start(warpgroup_threads));

/// Columns of a block, in units of 8, and whether scales are part of the A operand, rounded to its type, or
/// factors of the sums of each group, float32.
template <int ColumnTiles, bool Rounded>
struct warpgroup_shape {
  static constexpr int column_tiles = ColumnTiles;
  static constexpr int columns = 8 * ColumnTiles;
  static constexpr bool rounded = Rounded;
};

template <class Shape>
struct warpgroup_ring {
  static constexpr int stage_bytes = Shape::columns * chunk_columns * 2;
  /// Of the 227 KiB of a block.
  static constexpr int depth = std::min(8, (227 * 1024 - ring_overhead) / stage_bytes);
  static constexpr std::size_t bytes = std::size_t{depth} * stage_bytes + ring_overhead;
  static_assert(depth >= 3);
};

/// Chunks of each row tile that are read ahead, in what registers the sums leave.
template <device_format Format, class Shape>
inline constexpr int chunks_ahead = [] {
  using raw = raw_chunk<Format>;
  constexpr int bytes = int{sizeof(raw)} - (Format::has_zero_point ? 0 : int{sizeof(raw::zeros)});
  constexpr int registers = Shape::columns <= 32 ? 100 : 58;
  return std::clamp(registers * 4 / (warpgroup_row_tiles * bytes), 1, 6);
}();

/// Activations as stages of the ring have them: for each `columns` columns of the product and each chunk,
/// [half][column][unit of 16 bytes], `columns` * 256 bytes; columns that are not there are 0.
///
/// A lane t of four has, of every 32 columns of W, those from 8t on, as suits B operands that are 16 bytes of
/// x. Tensor cores take columns 2t, 2t+1, 2t+8 and 2t+9 of every 16 to be its own: so pair i of its four
/// pairs goes to where pair 4i + t would. Unit u of a column c is at u ^ c % 8: see
/// operand_in_shared_memory().
template <class X, int Columns>
__global__ void prepare_stages(input<X> x, std::int32_t const* order, index_t in, index_t tokens,
                               bool in_words, operand<X>* stages) {
  let_successor_start();
  wait_for_predecessor();
  index_t const chunk = blockIdx.x;
  int const half = threadIdx.x / 8 % 2, unit = threadIdx.x % 8;
  index_t const token = index_t{blockIdx.y} * (blockDim.x / 16) + threadIdx.x / 16;
  index_t const column = chunk * chunk_columns + 64 * half + 32 * (unit / 4) + 2 * (unit % 4);
  index_t const end = (tokens * parts<X> + Columns - 1) / Columns * Columns;
  X const* const from = x.data + token * x.stride;
  X values[8];
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    index_t const p = column + 8 * t;
    if (in_words) {  // 16 bits each
      std::uint32_t word = 0;
      if (token < tokens && p < in) word = *reinterpret_cast<std::uint32_t const*>(from + p);
      std::memcpy(values + 2 * t, &word, sizeof(word));
    } else {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        values[2 * t + e] = to<X>(0.0F);
        if (token < tokens && p + e < in)
          values[2 * t + e] = from[order == nullptr ? p + e : index_t{order[p + e]}];
      }
    }
  }
#pragma unroll
  for (int part = 0; part < parts<X>; ++part) {
    index_t const c = token * parts<X> + part;
    if (c >= end) return;
    alignas(16) operand<X> numbers[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if constexpr (parts<X> == 1) {
        numbers[i] = values[i];
      } else {
        numbers[i] = __float2bfloat16_rn(values[i]);
        values[i] -= __bfloat162float(numbers[i]);
      }
    }
    int const in_block = static_cast<int>(c % Columns);
    operand<X>* const stage = stages + (c / Columns * gridDim.x + chunk) * (Columns * chunk_columns);
    *reinterpret_cast<uint4*>(stage + (half * Columns + in_block) * 64 + 8 * (unit ^ in_block % 8)) =
        *reinterpret_cast<uint4 const*>(numbers);
  }
}

#if GPTQ_WARPGROUPS

/// The A operand with the scales of its rows, rounded to T: each number twice, and what T is short of.
template <device_format Format, class T>
struct row_scale {
  static constexpr bool exact = number<T>::fraction == 10;
  std::uint32_t value, rest;

  __device__ explicit row_scale(float scale) {
    if constexpr (exact) {
      static_assert(sizeof(typename Format::scale) == 2);
      value = twice(__half_as_ushort(__float2half_rn(scale)));
    } else {
      auto const rounded = __float2bfloat16_rn(scale);
      value = twice(__bfloat16_as_ushort(rounded));
      rest = twice(__bfloat16_as_ushort(__float2bfloat16_rn(scale - __bfloat162float(rounded))));
    }
  }
  __device__ __forceinline__ std::uint32_t times(std::uint32_t a) const {
    constexpr std::uint32_t none = twice(0x8000);
    return number<T>::fma(a, value, exact ? none : number<T>::fma(a, rest, none));
  }
};

#endif

/// Block (x, y, z) has columns Shape::columns * x and on, rows warpgroup_rows * y and on, split z of the
/// chunks. Where `partial` is null the result goes to y, else the sums to partial[split, column, row].
template <device_format Format, class T, class Results, class Shape>
__global__ void __launch_bounds__(warpgroup_bound(warpgroup_threads), 1)
    warpgroup_gemm(prepacked_view<Format> w, T const* stages, int columns, Results y, float* partial) {
#if GPTQ_WARPGROUPS
  using ring = warpgroup_ring<Shape>;
  using s = staged<Format>;
  using prepacked = prepacked_layout<Format>;
  constexpr int depth = ring::depth, row_tiles = warpgroup_row_tiles, column_tiles = Shape::column_tiles;
  extern __shared__ char unaligned[];
  char* const memory =
      unaligned + (ring_alignment - shared_address(unaligned) % ring_alignment) % ring_alignment;
  auto* const full = reinterpret_cast<std::uint64_t*>(memory + depth * ring::stage_bytes);
  auto* const empty = full + depth;
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / warpgroup_size;
  auto const layout = w.layout();
  int const chunks = static_cast<int>(layout.chunks()), splits = static_cast<int>(gridDim.z);
  int const first = static_cast<int>(index_t{blockIdx.z} * chunks / splits);
  int const count = static_cast<int>(index_t{blockIdx.z + 1} * chunks / splits) - first;
  index_t const first_tile = index_t{blockIdx.y} * (warpgroup_rows / tile_rows);
  int const first_column = static_cast<int>(blockIdx.x) * Shape::columns;

  let_successor_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i < depth; ++i) {
      initialize_barrier(full + i, 1);
      initialize_barrier(empty + i, warpgroup_size * multiplying_warpgroups);
    }
    publish_barriers();
  }
  __syncthreads();

  if (group == 0) {
    shrink_to<copying_registers>();
    if (warp != 0 || !one_of_warp()) return;
    wait_for_predecessor();
    T const* activations = stages + (blockIdx.x * index_t{chunks} + first) * (Shape::columns * chunk_columns);
    int slot = 0, parity = 1;
    for (int i = 0; i < count; ++i) {
      wait_for(empty + slot, parity);
      arrive_expecting(full + slot, ring::stage_bytes);
      copy_bulk(memory + slot * ring::stage_bytes, activations, ring::stage_bytes, full + slot);
      activations += Shape::columns * chunk_columns;
      if (++slot == depth) slot = 0, parity ^= 1;
    }
    return;
  }

  grow_to<multiplying_registers>();
  constexpr int ahead = chunks_ahead<Format, Shape>;
  int const own = (group - 1) * row_tiles * 4 + warp;  // row tile of the block; the next is 4 on
  raw_chunk<Format> raw[ahead][row_tiles];
  char const *codes[row_tiles], *scales[row_tiles], *zeros[row_tiles];
#pragma unroll
  for (int r = 0; r < row_tiles; ++r) {  // row tiles beyond the last repeat it
    index_t const tile = min(first_tile + own + 4 * r, layout.row_tiles() - 1);
    codes[r] = reinterpret_cast<char const*>(w.codes) + (tile * chunks + first) * s::code_bytes;
    scales[r] = reinterpret_cast<char const*>(w.scales) + tile * layout.groups() * prepacked::scale_bytes;
    zeros[r] = reinterpret_cast<char const*>(w.zeros) + tile * layout.groups() * prepacked::zero_bytes;
  }
  auto const read = [&](raw_chunk<Format>(&to)[row_tiles], int i) {  // those beyond the last repeat it
    int const chunk = min(i, count - 1), of_group = static_cast<int>(layout.first_group(first + chunk));
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
      to[r].load(codes[r] + chunk * s::code_bytes, scales[r] + of_group * prepacked::scale_bytes,
                 zeros[r] + of_group * prepacked::zero_bytes, lane,
                 [](auto const* p) { return __ldcs(p); });  // read once: makes way first
    }
  };
  unrolled<0, ahead>([&]<int P>() { read(raw[P], P); });
  wait_for_predecessor();
  float sums[row_tiles][column_tiles][4];
  float c[row_tiles][column_tiles][4];  // of a group, where scales are not part of A
#pragma unroll
  for (int r = 0; r < row_tiles; ++r) {
    if constexpr (Shape::rounded) {
      leave_undefined(sums[r]);
    } else {
      leave_undefined(c[r]);
#pragma unroll
      for (int n = 0; n < column_tiles; ++n) {
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[r][n][k] = 0.0F;
      }
    }
  }
  int i = 0, slot = 0, parity = 0;
  wait_for(full, 0);
  auto const step = [&]<int P>() {  // chunk i, which is the P-th of those read ahead
    lane_chunk<Format> chunk[row_tiles];
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) chunk[r].unpack(raw[P][r]);
    std::uint32_t const address = shared_address(memory + slot * ring::stage_bytes);
    int const before = (slot > 0 ? slot : depth) - 1, next = slot + 1 < depth ? slot + 1 : 0;
    constexpr int groups = s::groups;
    unrolled<0, groups>([&]<int J>() {
      constexpr int first_half = 4 / groups * J, last_half = first_half + 4 / groups;
      unrolled<first_half, last_half>([&]<int H>() {
        wait_products<1>();  // A operands are two halves old
        if constexpr (Shape::rounded && H == 1) {
          if (i > 0) arrive(empty + before);
        }
        std::uint32_t a[row_tiles][2][4];
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
          chunk[r].template decode<T, 2 * H>(a[r][0]);
          chunk[r].template decode<T, 2 * H + 1>(a[r][1]);
          if constexpr (Shape::rounded) {
            row_scale<Format, T> const of_rows[] = {row_scale<Format, T>(chunk[r].scales[J][0]),
                                                    row_scale<Format, T>(chunk[r].scales[J][1])};
#pragma unroll
            for (int k = 0; k < 8; ++k) a[r][k / 4][k % 4] = of_rows[k % 2].times(a[r][k / 4][k % 4]);
          }
        }
        begin_products();
        auto const b = [&](int fragment) {
          return operand_in_shared_memory(address + fragment / 4 * (Shape::columns * 128) +
                                          fragment % 4 * 32);
        };
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
          auto& target = Shape::rounded ? sums[r] : c[r];
          start_product<T>(target, a[r][0], b(2 * H), Shape::rounded ? H > 0 || i > 0 : H > first_half);
          start_product<T>(target, a[r][1], b(2 * H + 1), true);
        }
        commit_products();
        // Here, so that the next chunk begins without waiting.
        if constexpr (H == 1) {
          if (i + 1 < count) wait_for(full + next, next > 0 ? parity : parity ^ 1);
        }
        if constexpr (H == 3) read(raw[P], i + ahead);
      });
      if constexpr (!Shape::rounded) {
        wait_products<0>();
        if constexpr (J == groups - 1) arrive(empty + slot);
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
          pin(c[r]);
#pragma unroll
          for (int n = 0; n < column_tiles; ++n) {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              sums[r][n][k] = fmaf(chunk[r].scales[J][k / 2], c[r][n][k], sums[r][n][k]);
            }
          }
        }
      }
    });
    slot = next;
    if (next == 0) parity ^= 1;
    return ++i < count;
  };
  auto const round = [&]<int... P>(std::integer_sequence<int, P...>) {
    return (step.template operator()<P>() && ...);
  };
  while (round(std::make_integer_sequence<int, ahead>())) {
  }
  wait_products<0>();
#pragma unroll
  for (int r = 0; r < row_tiles; ++r) pin(sums[r]);
#pragma unroll
  for (int r = 0; r < row_tiles; ++r) {
    store_sums(sums[r], (first_tile + own + 4 * r) * tile_rows, w.out, first_column, columns, y,
               partial == nullptr ? nullptr : partial + index_t{blockIdx.z} * columns * w.out);
  }
#endif
}

/// Whether weights with their scales may be rounded to the type of x, as they are for cuBLAS: where y has 16
/// bits, too, and the scales are in the type's range.
template <class Format, class X, class Y>
inline constexpr bool rounds_weights = sizeof(X) == 2 && sizeof(Y) == 2 &&
                                       (sizeof(typename Format::scale) == 2 ||
                                        std::is_same_v<X, __nv_bfloat16>);

/// Whether this device runs warpgroup_gemm(), and the program has it for sm_90a.
template <class Format, class T, class Results>
bool warpgroups_run(device const& gpu) {
  return gpu.capability == 90 &&
         compiled_for(warpgroup_gemm<Format, T, Results, warpgroup_shape<8, false>>, warpgroup_threads);
}

template <class Format, class X>
void launch_prepare_stages(prepacked_view<Format> const& w, input<X> const& x, index_t tokens,
                           int block_columns, operand<X>* stages, product_options const& options) {
  auto const launch_for = [&]<int Columns>() {
    constexpr int block_tokens = 16;
    index_t const columns = (tokens * parts<X> + Columns - 1) / Columns * Columns;
    index_t const blocks = (columns + block_tokens * parts<X> - 1) / (block_tokens * parts<X>);
    bool const in_words = sizeof(X) == 2 && w.order == nullptr && w.in % 2 == 0 && x.stride % 2 == 0 &&
                          reinterpret_cast<std::uintptr_t>(x.data) % 4 == 0;
    launch(prepare_stages<X, Columns>,
           {.grid = dim3(static_cast<unsigned>(w.layout().chunks()), static_cast<unsigned>(blocks)),
            .block = 16 * block_tokens,
            .stream = options.stream,
            .overlap = options.overlap},
           x, w.order, w.in, tokens, in_words, stages);
  };
  if (block_columns == 32) return launch_for.template operator()<32>();
  if (block_columns == 64) return launch_for.template operator()<64>();
  launch_for.template operator()<128>();
}

template <class Shape, class Format, class T, class Results>
void launch_warpgroups(prepacked_view<Format> const& w, T const* stages, int columns, Results const& y,
                       float* partial, int splits, product_options const& options) {
  launch(warpgroup_gemm<Format, T, Results, Shape>,
         {.grid = dim3(static_cast<unsigned>((columns + Shape::columns - 1) / Shape::columns),
                       static_cast<unsigned>((w.out + warpgroup_rows - 1) / warpgroup_rows),
                       static_cast<unsigned>(splits)),
          .block = warpgroup_threads,
          .shared_memory = warpgroup_ring<Shape>::bytes,
          .stream = options.stream,
          .overlap = options.overlap},
         w, stages, columns, y, partial);
}

}  // namespace gptq::cuda::detail
