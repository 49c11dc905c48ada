// How entries find their experts: sorted into groups on the device, or, where they are few, each by itself;
// and the kernel of gemv_portable.cuh on such groups.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/kernels/gemv_portable.cuh>
#include <gptq/cuda/kernels/operands.cuh>
#include <gptq/cuda/options.cuh>

namespace gptq::cuda {

/// Some entries of one expert; size 0: none.
struct alignas(16) entry_group {
  std::int32_t first;  ///< of expert_entries::sorted
  std::int32_t size;
  std::int32_t expert;  ///< or `experts`, where it is none
};

/// Entries by their experts, as sort_by_expert() makes them: pointers to device memory.
struct expert_entries {
  std::int32_t const* expert_ids = nullptr;  ///< [count]
  index_t count = 0;
  int experts = 0;
  int group_entries = 0;                 ///< of a group, at most: of one expert
  int groups = 0;                        ///< at most
  entry_group const* table = nullptr;    ///< [groups]; null: each entry is a group
  std::int32_t const* sorted = nullptr;  ///< [count] entries, an expert's after the other's
};

}  // namespace gptq::cuda

namespace gptq::cuda::detail {

inline constexpr int most_experts = 1024;
/// Entries up to which each is a group: reading an expert twice takes less than sorting.
inline constexpr index_t unsorted_entries = 16;

/// Groups of as many entries as experts have on average, so that few read their weights again.
inline expert_entries grouped_entries(std::int32_t const* expert_ids, index_t entries, int experts) {
  if (entries <= unsorted_entries) return {expert_ids, entries, experts, 1, static_cast<int>(entries)};
  int const size = entries <= index_t{4} * experts ? 8 : 16;
  // Every expert's last group may have few; ids that are none have groups, too.
  return {expert_ids, entries, experts, size,
          static_cast<int>(std::min(entries, entries / size + experts + 1))};
}

inline std::size_t sorting_bytes(index_t entries, int experts) {
  auto const e = grouped_entries(nullptr, entries, experts);
  return e.group_entries == 1 ? 0
                              : static_cast<std::size_t>(entries) * sizeof(std::int32_t) +
                                    static_cast<std::size_t>(e.groups) * sizeof(entry_group);
}

/// One block. counts and starts: [experts + 1], the last for ids that are none.
static __global__ void __launch_bounds__(1024)
    sort_entries(expert_entries e, entry_group* table, std::int32_t* sorted) {
  __shared__ std::int32_t counts[most_experts + 1], starts[most_experts + 1], groups[most_experts + 1];
  let_successor_start();
  wait_for_predecessor();
  int const thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = thread; i <= e.experts; i += threads) counts[i] = 0;
  __syncthreads();
  auto const expert = [&](int i) {
    std::int32_t const id = e.expert_ids[i];
    return id >= 0 && id < e.experts ? id : e.experts;
  };
  for (int i = thread; i < e.count; i += threads) atomicAdd(counts + expert(i), 1);
  __syncthreads();
  if (thread < 32) {  // sums before each, 32 experts at a time
    int before = 0, groups_before = 0;
    for (int first = 0; first <= e.experts; first += 32) {
      int const i = first + thread, own = i <= e.experts ? counts[i] : 0;
      int const own_groups = (own + e.group_entries - 1) / e.group_entries;
      int sum = own, group_sum = own_groups;
      for (int step = 1; step < 32; step *= 2) {
        int const lower = __shfl_up_sync(0xffffffff, sum, step),
                  lower_groups = __shfl_up_sync(0xffffffff, group_sum, step);
        if (thread >= step) sum += lower, group_sum += lower_groups;
      }
      if (i <= e.experts) starts[i] = before + sum - own, groups[i] = groups_before + group_sum - own_groups;
      before += __shfl_sync(0xffffffff, sum, 31), groups_before += __shfl_sync(0xffffffff, group_sum, 31);
    }
    for (int g = groups_before + thread; g < e.groups; g += 32) table[g] = {};
  }
  __syncthreads();
  for (int i = thread; i <= e.experts; i += threads) {
    for (int first = 0, group = groups[i]; first < counts[i]; first += e.group_entries, ++group) {
      table[group] = {starts[i] + first, min(e.group_entries, counts[i] - first), i};
    }
  }
  __syncthreads();
  for (int i = thread; i < e.count; i += threads) sorted[atomicAdd(starts + expert(i), 1)] = i;
}

inline expert_entries run_sort_by_expert(std::int32_t const* expert_ids, index_t entries, int experts,
                                         void* memory, product_options const& options) {
  if (entries < 0 || entries > index_t{1} << 20 || experts < 1 || experts > most_experts) {
    throw invalid_argument("gptq::cuda::sort_by_expert: " + std::to_string(entries) + " entries of " +
                           std::to_string(experts) + " experts; up to 2^20 of 1 to " +
                           std::to_string(most_experts) + " are possible");
  }
  auto e = grouped_entries(expert_ids, entries, experts);
  if (entries == 0) return e;
  if (expert_ids == nullptr || (sorting_bytes(entries, experts) > 0 && memory == nullptr)) {
    throw invalid_argument("gptq::cuda::sort_by_expert: expert_ids or memory is null");
  }
  if (e.group_entries == 1) return e;
  if (reinterpret_cast<std::uintptr_t>(memory) % 16 != 0) {
    throw invalid_argument("gptq::cuda::sort_by_expert: memory is not aligned to 16 bytes");
  }
  auto* const table = static_cast<entry_group*>(memory);
  auto* const sorted = reinterpret_cast<std::int32_t*>(table + e.groups);
  launch(sort_entries, {.grid = 1, .block = 1024, .stream = options.stream, .overlap = options.overlap}, e,
         table, sorted);
  e.table = table, e.sorted = sorted;
  return e;
}

/// Block (x, y): row tiles of an expert in turn, of group y.
struct expert_groups {
  static constexpr bool may_be_empty = true;
  GPTQ_HOST_DEVICE static constexpr int most_blocks(int blocks) { return blocks < 3 ? blocks : 3; }
  expert_entries e;
  index_t rows;  ///< of an expert
  int of_token;

  template <int RowTiles, class Format, class T>
  __device__ __forceinline__ block_work<listed_operands<T>> find(prepacked_view<Format> const&,
                                                                 operands<T> const& x) const {
    __shared__ int entries[16], tokens[16];
    int const tiles = static_cast<int>(rows / tile_rows),
              first_of_block = static_cast<int>(blockIdx.x) * RowTiles;
    int const place = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
    entry_group group{place, 1, 0};
    if (e.table != nullptr) {
      wait_for_predecessor();  // which may be sort_entries()
      group = e.table[place];
    } else {
      group.expert = e.expert_ids[place];
    }
    if (thread < group.size) {
      int const entry = e.table != nullptr ? e.sorted[group.first + thread] : place;
      entries[thread] = entry, tokens[thread] = entry / of_token;
    }
    __syncthreads();
    listed_operands<T> const columns{x.data, group.size, x.width, x.stride, tokens};
    if (group.size == 0) return {0, 0, 0, 0, columns};
    bool const known = group.expert >= 0 && group.expert < e.experts;
    return {index_t{known ? group.expert : 0} * tiles + first_of_block,
            index_t{first_of_block} * tile_rows,
            min(RowTiles, tiles - first_of_block),
            rows,
            columns,
            0,
            entries,
            !known};
  }
};

template <int RowTiles, int ColumnTiles, class Format, class T, class Results>
void launch_grouped(prepacked_view<Format> const& w, operands<T> const& x, Results const& y,
                    expert_groups const& work, product_options const& options) {
  auto const tiles = static_cast<int>(work.rows / tile_rows);
  launch(gemv_kernel<Format, T, 1, Results, RowTiles, ColumnTiles, expert_groups>,
         {.grid = dim3(static_cast<unsigned>((tiles + RowTiles - 1) / RowTiles),
                       static_cast<unsigned>(work.e.groups)),
          .block = 32 * gemv_warps,
          .shared_memory = static_cast<std::size_t>(
              gemv_shared_memory<Format, RowTiles, ColumnTiles>(work.e.group_entries)),
          .stream = options.stream,
          .overlap = options.overlap},
         w, x, y, work);
}

template <class Format, class X, class Results>
void run_grouped(prepacked_view<Format> const& w, expert_entries const& sent, input<X> const& x, int of_token,
                 Results const& y, product_options const& options) {
  static_assert(parts<X> == 1, "grouped_gemm() takes activations in float16 or bfloat16");
  if (sent.experts < 1 || w.out % (index_t{sent.experts} * tile_rows) != 0) {
    throw invalid_argument("gptq::cuda::grouped_gemm: " + std::to_string(w.out) + " rows of " +
                           std::to_string(sent.experts) +
                           " experts; each must have as many, a multiple of 16");
  }
  if (of_token < 1)
    throw invalid_argument("gptq::cuda::grouped_gemm: " + std::to_string(of_token) + " entries of a token");
  index_t const rows = w.out / sent.experts, tokens = (sent.count + of_token - 1) / of_token;
  if (sent.count > 1 && y.stride < rows) {
    throw invalid_argument("gptq::cuda::grouped_gemm: a stride of " + std::to_string(y.stride) +
                           " between entries of " + std::to_string(rows) + " rows");
  }
  check_product(w, x.data, x.stride, tokens, y.data, w.out);
  device const gpu = device::current();
  if (w.out == 0 || sent.count == 0) return;
  if (sent.groups > 65535)
    throw invalid_argument("gptq::cuda::grouped_gemm: more than 65535 groups of entries");
  if (w.in == 0) return zero_product(rows, sent.count, y, options);
  auto const all = readable_operands(w, x, tokens, options);
  expert_groups const work{sent, rows, of_token};
  if (sent.group_entries > 8) {
    launch_grouped<4, 2>(w, all, y, work, options);
  } else if (sent.group_entries > 1) {
    launch_grouped<4, 1>(w, all, y, work, options);
  } else if (rows / tile_rows * sent.groups > 3 * gpu.multiprocessors) {
    launch_grouped<2, 1>(w, all, y, work, options);
  } else {
    launch_grouped<1, 1>(w, all, y, work, options);  // all blocks run at once
  }
}

}  // namespace gptq::cuda::detail
