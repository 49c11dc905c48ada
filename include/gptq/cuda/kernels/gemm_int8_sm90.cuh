// The product of int8 activations on compute capability 9.0: products of warpgroups, codes decoded to signed
// bytes in registers, digits in shared memory.
//
// A block has two warpgroups that multiply, 64 or 128 rows each, and four warps that copy codes and digits of
// 128 columns of W into a ring of stages: four, as each row tile's codes are a copy of their own. The sums of
// a group are integers and exact; they are converted, scaled and added to float32 sums, three instructions
// each. These take longer than the products and hardly overlap with those of the other warpgroup, nor do they
// where barriers have the two take turns (bench/README.md): fewer of them is what would make it faster.
#pragma once

#include <algorithm>

#include <gptq/cuda/activations.cuh>
#include <gptq/cuda/kernels/bulk_copy.cuh>
#include <gptq/cuda/kernels/fragments.cuh>
#include <gptq/cuda/kernels/int8_codes.cuh>
#include <gptq/cuda/kernels/operands.cuh>
#include <gptq/cuda/kernels/warpgroup.cuh>

namespace gptq::cuda::detail {

/// Two warpgroups that multiply, of RowTiles times 64 rows each, and one that copies.
template <int RowTiles>
struct int8_block {
  static constexpr int warpgroups = 2, row_tiles = RowTiles, tokens = activation_tokens;
  static constexpr int rows = warpgroups * row_tiles * 64;
  static constexpr int tiles = rows / tile_rows;
  static constexpr int threads = (warpgroups + 1) * warpgroup_size;
  static constexpr int copying_registers = 24, multiplying_registers = 240;
  static_assert(copying_registers + warpgroups * multiplying_registers <=
                (warpgroups + 1) * registers_at_start(threads));
};

/// A stage: digits, codes, scales of the digits.
template <device_format Format, class Block>
struct int8_ring {
  static constexpr int digit_bytes = Block::tokens * chunk_columns;
  static constexpr int code_bytes = Block::tiles * staged<Format>::code_bytes;
  static constexpr int scale_bytes = Block::tokens * int{sizeof(float)};
  static constexpr int copied_bytes = digit_bytes + code_bytes + scale_bytes;
  static constexpr int stage_bytes = (copied_bytes + ring_alignment - 1) / ring_alignment * ring_alignment;
  static constexpr int depth = std::min(8, (227 * 1024 - ring_overhead) / stage_bytes);
  static constexpr std::size_t bytes = std::size_t{depth} * stage_bytes + ring_overhead;
  static_assert(depth >= 3);
};

/// Block (x, y, z) has tokens Block::tokens * x and on, rows Block::rows * y and on, split z of the chunks.
/// Where `partial` is null the result goes to y, else the sums to partial[split, token, row].
template <device_format Format, class Results, class Block>
__global__ void __launch_bounds__(warpgroup_bound(Block::threads), 1)
    int8_gemm(prepacked_view<Format> w, std::int8_t const* digits, float const* digit_scales, int tokens,
              Results y, float* partial) {
#if GPTQ_WARPGROUPS
  using ring = int8_ring<Format, Block>;
  using s = staged<Format>;
  using prepacked = prepacked_layout<Format>;
  constexpr int depth = ring::depth, row_tiles = Block::row_tiles, column_tiles = Block::tokens / 8;
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
  index_t const first_tile = index_t{blockIdx.y} * Block::tiles;

  let_successor_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i < depth; ++i) {
      initialize_barrier(full + i, 4);
      initialize_barrier(empty + i, warpgroup_size * Block::warpgroups);
    }
    publish_barriers();
  }
  __syncthreads();

  if (group == 0) {
    shrink_to<Block::copying_registers>();
    if (!one_of_warp()) return;
    // Row tiles beyond the last repeat it. Codes do not depend on the kernel before: those of the first
    // stages are copied before it has ended.
    constexpr int own_tiles = Block::tiles / 4;
    int const last = static_cast<int>(min(index_t{Block::tiles}, layout.row_tiles() - first_tile)) - 1;
    index_t const tile_stride = index_t{chunks} * s::code_bytes;
    char const* codes =
        reinterpret_cast<char const*>(w.codes) + (first_tile * chunks + first) * s::code_bytes;
    index_t const stage = index_t{blockIdx.x} * chunks + first;
    std::int8_t const* from = digits + stage * ring::digit_bytes;
    float const* scales = digit_scales + stage * Block::tokens;
    auto const copy_codes = [&](int slot) {
      char* const to = memory + slot * ring::stage_bytes + ring::digit_bytes;
      arrive_expecting(full + slot,
                       own_tiles * s::code_bytes + (warp == 0 ? ring::digit_bytes + ring::scale_bytes : 0));
#pragma unroll
      for (int t = 0; t < own_tiles; ++t) {
        int const tile = warp * own_tiles + t;
        copy_bulk(to + tile * s::code_bytes, codes + min(tile, last) * tile_stride, s::code_bytes,
                  full + slot);
      }
      codes += s::code_bytes;
    };
    auto const copy_digits = [&](int slot) {
      if (warp != 0) return;
      char* const to = memory + slot * ring::stage_bytes;
      copy_bulk(to, from, ring::digit_bytes, full + slot);
      copy_bulk(to + ring::digit_bytes + ring::code_bytes, scales, ring::scale_bytes, full + slot);
      from += ring::digit_bytes;
      scales += Block::tokens;
    };
    int const ahead = min(depth, count);
    for (int i = 0; i < ahead; ++i) copy_codes(i);
    wait_for_predecessor();
    for (int i = 0; i < ahead; ++i) copy_digits(i);
    int slot = 0, parity = 0;
    for (int i = depth; i < count; ++i) {
      wait_for(empty + slot, parity);
      copy_digits(slot);
      copy_codes(slot);
      if (++slot == depth) slot = 0, parity ^= 1;
    }
    return;
  }

  grow_to<Block::multiplying_registers>();
  int const own = (group - 1) * row_tiles * 4 + warp;  // row tile of the block; the next is 4 on
  raw_chunk<Format> raw[row_tiles];                    // scales and zeros a chunk ahead
  index_t const last_tile = layout.row_tiles() - 1;
  auto const read_group = [&](int r, int i, int j) {
    index_t const of_group = min(first_tile + own + 4 * r, last_tile) * layout.groups() +
                             layout.first_group(first + min(i, count - 1));
    raw[r].load_group(reinterpret_cast<char const*>(w.scales) + of_group * prepacked::scale_bytes,
                      reinterpret_cast<char const*>(w.zeros) + of_group * prepacked::zero_bytes, lane, j);
  };
  constexpr bool groups_ahead = s::groups == 1;  // of more groups registers would not hold them
  if constexpr (groups_ahead) {
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) read_group(r, 0, 0);
  }
  wait_for_predecessor();
  float sums[row_tiles][column_tiles][4] = {};
  std::int32_t c[column_tiles][4];
  leave_undefined(c);
  int slot = 0, parity = 0;
  for (int i = 0; i < count; ++i) {
    char const* const stage = memory + slot * ring::stage_bytes;
    wait_for(full + slot, parity);
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
      raw[r].load_codes(stage + ring::digit_bytes + (own + 4 * r) * s::code_bytes, lane,
                        [](auto const* p) { return *p; });
      lane_chunk<Format> chunk;
      chunk.unpack_codes(raw[r]);
      constexpr int groups = s::groups;
      unrolled<0, groups>([&]<int J>() {
        constexpr int first_step = 4 / groups * J, steps = 4 / groups;
        if constexpr (!groups_ahead) read_group(r, i, J);
        chunk.unpack_group(raw[r], J);
        if constexpr (groups_ahead) read_group(r, i + 1, 0);
        std::uint32_t a[steps][4];
        unrolled<0, steps>([&]<int K>() {
          constexpr int step = first_step + K;
          a[K][0] = signed_bytes<Format, step, false, 0>(chunk.words, chunk.zeros[J][0]);
          a[K][1] = signed_bytes<Format, step, true, 0>(chunk.words, chunk.zeros[J][1]);
          a[K][2] = signed_bytes<Format, step, false, 1>(chunk.words, chunk.zeros[J][0]);
          a[K][3] = signed_bytes<Format, step, true, 1>(chunk.words, chunk.zeros[J][1]);
        });
        begin_products();
        unrolled<0, steps>([&]<int K>() {
          start_product_int8(c, a[K], operand_in_shared_memory(shared_address(stage) + 32 * (first_step + K)),
                             K > 0);
        });
        commit_products();
        wait_products<0>();
        pin(c);
        float const unit = int8_levels<Format>::unit;
        float const of_rows[2] = {unit * chunk.scales[J][0], unit * chunk.scales[J][1]};
        auto const* const of_tokens =
            reinterpret_cast<float2 const*>(stage + ring::digit_bytes + ring::code_bytes) + lane % 4;
#pragma unroll
        for (int n = 0; n < column_tiles; ++n) {
          float2 const two = of_tokens[4 * n];  // tokens 8n + 2t and the next
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            float const scale = of_rows[k / 2] * (k % 2 == 0 ? two.x : two.y);
            sums[r][n][k] = fmaf(scale, static_cast<float>(c[n][k]), sums[r][n][k]);
          }
        }
      });
    }
    arrive(empty + slot);
    if (++slot == depth) slot = 0, parity ^= 1;
  }
#pragma unroll
  for (int r = 0; r < row_tiles; ++r) {
    store_sums(sums[r], (first_tile + own + 4 * r) * tile_rows, w.out,
               static_cast<int>(blockIdx.x) * Block::tokens, tokens, y,
               partial == nullptr ? nullptr : partial + index_t{blockIdx.z} * tokens * w.out);
  }
#endif
}

}  // namespace gptq::cuda::detail
