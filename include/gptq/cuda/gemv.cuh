// y = W x for one or a few tokens, at the speed of reading W.
//
//   gptq::cuda::gemv(w, x, y, {.stream = stream});               // x[in], y[out]
//   gptq::cuda::gemv(w, x, tokens, y, {.stream = stream});       // x[tokens, in], y[tokens, out], row-major
//
// x and y are device memory: __half, __nv_bfloat16 or float each. Products are exact and sums in float32 on
// tensor cores: half and bfloat16 take part as they are, float as three bfloat16 numbers, which is all of its
// 24 bits. Where x is half and y has 16 bits, sums may have 2^-16 of the largest products as an error
// instead, a hundredth of what y is rounded by. Everything is done in stream order, with no allocation or
// synchronization, and may be captured in a graph. The same input gives the same bits.
//
// A workspace is needed where activations cannot be read as they lie: with a column order, with float, with
// `in` no multiple of 8 or x not aligned to 16 bytes. workspace_bytes() says how much.
//
// A warp reads whole chunks of a few row tiles, a ring of them ahead by asynchronous copies, decodes them to
// A operands and multiplies by up to 16 columns of activations, which it keeps in registers for all of its
// row tiles. The warps of a block share the chunks of a row, and add up in the end. From compute capability
// 9.0 on, most of this is for the kernel of kernels/gemv_sm90.cuh.
#pragma once

#include <cublas_v2.h>

#include <gptq/cuda/kernels/fragments.cuh>
#include <gptq/cuda/kernels/gemv_sm90.cuh>

namespace gptq::cuda {

/// Where a product is computed.
struct execution {
  cudaStream_t stream = nullptr;
  void* workspace = nullptr;        ///< device memory, aligned to 256 bytes
  std::size_t workspace_bytes = 0;  ///< what workspace_bytes() asks for, or more
  cublasHandle_t blas = nullptr;    ///< gemm() with many tokens; its stream is set
  /// Start reading weights while the kernel before in the stream still runs (compute capability 9.0). That
  /// kernel must not write the weights.
  bool overlap = false;
};

/// float, __half or __nv_bfloat16.
template <class T>
concept device_number =
    std::is_same_v<T, float> || std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;

/// Bytes of workspace that gemv() of `tokens` tokens of type X may need.
template <device_number X, device_format Format>
std::size_t gemv_workspace_bytes(prepacked_view<Format> const& w, index_t tokens);

/// One token. Throws invalid_argument, runtime_error or unsupported_device; nothing is launched then.
template <device_format Format, device_number X, device_number Y>
void gemv(prepacked_view<Format> const& w, X const* x, Y* y, execution const& where = {});

/// Any number of tokens; W is read again for each 16 of them (5 with float).
template <device_format Format, device_number X, device_number Y>
void gemv(prepacked_view<Format> const& w, X const* x, index_t tokens, Y* y, execution const& where = {});

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

/// Activations in stored order, padded to whole chunks, float as three numbers: prepared[tokens * parts,
/// padded].
template <class X>
__global__ void prepare(X const* x, std::int32_t const* order, index_t in, index_t padded,
                        operand<X>* prepared) {
  let_successor_start();
  wait_for_predecessor();
  index_t const p = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  index_t const token = blockIdx.y;
  if (p >= padded) return;
  X value = to<X>(0.0F);
  if (p < in) value = x[token * in + (order == nullptr ? p : index_t{order[p]})];
  operand<X>* const target = prepared + token * parts<X> * padded + p;
  if constexpr (parts<X> == 1) {
    *target = value;
  } else {
    float rest = value;
    for (int part = 0; part < parts<X>; ++part) {
      operand<X> const rounded = __float2bfloat16_rn(rest);
      target[part * padded] = rounded;
      rest -= __bfloat162float(rounded);
    }
  }
}

/// Reads the B operands of a lane, chunk by chunk: those of columns g, 8+g, ...; fragment f has words 2f and
/// 2f+1. Columns that are not there stay 0.
template <class T, int Tiles>
struct operand_reader {
  T const* next;  ///< of column g, at the columns of this lane in the next chunk
  index_t stride;
  int left;     ///< how many numbers of the column are left there
  int columns;  ///< columns less g

  __device__ operand_reader(operands<T> const& x, int chunk, int lane)
      : next(x.data + lane / 4 * x.stride + chunk * chunk_columns + 8 * (lane % 4)),
        stride(8 * x.stride),
        left(static_cast<int>(x.width) - chunk * chunk_columns - 8 * (lane % 4)),
        columns(x.columns - lane / 4) {}

  __device__ __forceinline__ void read(int chunks_ahead, std::uint32_t (&b)[Tiles][16]) {
    bool const whole = left > 96;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      if (8 * n < columns) {
#pragma unroll
        for (int h = 0; h < 4; ++h) {
          uint4 v = make_uint4(0, 0, 0, 0);
          if (whole || 32 * h < left) v = *reinterpret_cast<uint4 const*>(next + n * stride + 32 * h);
          b[n][4 * h] = v.x, b[n][4 * h + 1] = v.y, b[n][4 * h + 2] = v.z, b[n][4 * h + 3] = v.w;
        }
      }
    }
    next += chunks_ahead * chunk_columns;
    left -= chunks_ahead * chunk_columns;
  }
};

/// Copies the columns of a chunk to shared memory, 256 bytes each, and reads B operands from there. The
/// latency of activations is that of the cache they are in, several times over that of a product.
template <class T>
struct operand_ring {
  operands<T> x;
  int lane;

  __device__ __forceinline__ void copy(char* slot, int chunk) const {
    for (int u = lane; u < 16 * x.columns; u += 32) {
      index_t const at = index_t{chunk} * chunk_columns + 8 * (u % 16);
      copy_async_or_zero(slot + 16 * u, x.data + (at < x.width ? u / 16 * x.stride + at : 0), at < x.width);
    }
  }
  __device__ __forceinline__ void read(char const* slot, std::uint32_t (&b)[16]) const {
    if (lane / 4 >= x.columns) return;  // stays 0
#pragma unroll
    for (int h = 0; h < 4; ++h) {
      uint4 const v = *reinterpret_cast<uint4 const*>(slot + lane / 4 * 256 + 64 * h + 16 * (lane % 4));
      b[4 * h] = v.x, b[4 * h + 1] = v.y, b[4 * h + 2] = v.z, b[4 * h + 3] = v.w;
    }
  }
};

/// Adds a chunk of a row tile, times Tiles * 8 columns b, to `sums`.
template <device_format Format, class T, int Tiles>
__device__ __forceinline__ void multiply_chunk(lane_chunk<Format> const& w,
                                               std::uint32_t const (&b)[Tiles][16], float (&sums)[Tiles][4]) {
  constexpr int groups = staged<Format>::groups;
  unrolled<0, groups>([&]<int J>() {
    constexpr int chains = Tiles == 1 && groups == 1 ? 2 : 1;  // products that wait for one another
    constexpr int first = 8 / groups * J, last = first + 8 / groups;
    float c[chains][Tiles][4] = {};
    unrolled<first, last>([&]<int F>() {
      std::uint32_t a[4];
      w.template decode<T, F>(a);
#pragma unroll
      for (int n = 0; n < Tiles; ++n) multiply<T>(c[F % chains][n], a, b[n][2 * F], b[n][2 * F + 1]);
    });
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float dot = c[0][n][i];
        if constexpr (chains == 2) dot += c[chains - 1][n][i];
        sums[n][i] = fmaf(w.scales[J][i / 2], dot, sums[n][i]);
      }
    }
  });
}

/// Warps of a block, and (row tile, chunk) pairs that a warp has under way.
inline constexpr int gemv_warps = 8;
template <class Format>
inline constexpr int gemv_depth = 4;

/// Blocks that a multiprocessor has registers for.
template <class Format, int RowTiles, int Tiles>
inline constexpr int gemv_blocks =
    Tiles == 2                                                                          ? 2
    : RowTiles == 1 && Format::bits <= 4 && prepacked_layout<Format>::chunk_groups == 1 ? 4
                                                                                        : 3;

/// Bytes of shared memory: the rings, and in the end, in their place, the sums of all warps.
template <device_format Format, int RowTiles, int Tiles>
constexpr int gemv_shared_memory(int columns) {
  int const codes = gemv_depth<Format> * staged<Format>::bytes;
  int const activations = Tiles == 1 ? gemv_depth<Format> / RowTiles * columns * 256 : 0;
  int const sums = RowTiles * tile_rows * (8 * Tiles + 2) * int{sizeof(float)};
  return gemv_warps * std::max(codes + activations, sums);
}

/// RowTiles row tiles a block; Tiles * 8 columns.
template <device_format Format, class T, int Parts, class Y, int RowTiles, int Tiles>
__global__ void __launch_bounds__(32 * gemv_warps, gemv_blocks<Format, RowTiles, Tiles>)
    gemv_kernel(prepacked_view<Format> w, operands<T> x, Y* y) {
  constexpr int depth = gemv_depth<Format>;
  extern __shared__ __align__(128) char memory[];
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto const layout = w.layout();
  int const chunks = static_cast<int>(layout.chunks());
  index_t const first_tile = index_t{blockIdx.x} * RowTiles;
  int const tiles = static_cast<int>(min(index_t{RowTiles}, layout.row_tiles() - first_tile));
  int const mine = warp < chunks ? (chunks - warp + gemv_warps - 1) / gemv_warps : 0;
  char* const ring = memory + warp * depth * staged<Format>::bytes;
  // Up to 8 columns go through a ring, too; for 16 it would be too large.
  constexpr bool columns_in_ring = Tiles == 1;
  constexpr int chunk_depth = depth / RowTiles;
  int const column_bytes = x.columns * 256;
  char* const column_ring =
      memory + gemv_warps * depth * staged<Format>::bytes + warp * chunk_depth * column_bytes;
  operand_ring<T> const column_copies{x, lane};

  let_successor_start();
  chunk_reader<Format> reader(w, first_tile, warp, lane);
  // Copies are made in the order of use, RowTiles for each chunk: `depth` of them are under way, so the next
  // one is of the same row tile. Row tiles beyond the last repeat it.
  static_assert(depth % RowTiles == 0);
  int offsets[RowTiles];
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) offsets[r] = min(r, tiles - 1);
  char* slot = ring;
  auto const next_slot = [&] {
    slot += staged<Format>::bytes;
    if (slot == ring + depth * staged<Format>::bytes) slot = ring;
  };
#pragma unroll
  for (int i = 0; i < depth; ++i) {
    if (i / RowTiles < mine) reader.copy(slot, offsets[i % RowTiles]);
    if constexpr (!columns_in_ring) commit_copies();
    next_slot();
    if (i % RowTiles == RowTiles - 1) reader.advance(gemv_warps);
  }
  wait_for_predecessor();
  if constexpr (columns_in_ring) {
#pragma unroll
    for (int i = 0; i < depth; ++i) {
      if (i % RowTiles == 0 && i / RowTiles < mine) {
        column_copies.copy(column_ring + i / RowTiles * column_bytes, warp + i / RowTiles * gemv_warps);
      }
      commit_copies();  // the first group has all codes so far
    }
  }

  float sums[RowTiles][Tiles][4] = {};
  std::uint32_t b[Tiles][16] = {};
  operand_reader<T, Tiles> columns(x, warp, lane);
  char* column_slot = column_ring;
  for (int i = 0; i < mine; ++i) {
    if constexpr (!columns_in_ring) columns.read(gemv_warps, b);
    bool const more = i + chunk_depth < mine;
#pragma unroll
    for (int r = 0; r < RowTiles; ++r) {
      wait_copies<depth - 1>();
      __syncwarp();
      lane_chunk<Format> chunk;
      chunk.load(slot, lane);
      if constexpr (columns_in_ring) {
        if (r == 0) column_copies.read(column_slot, b[0]);
      }
      __syncwarp();
      if (more) reader.copy(slot, offsets[r]);
      if constexpr (columns_in_ring) {
        if (r == 0) {
          if (more) column_copies.copy(column_slot, warp + (i + chunk_depth) * gemv_warps);
          column_slot += column_bytes;
          if (column_slot == column_ring + chunk_depth * column_bytes) column_slot = column_ring;
        }
      }
      commit_copies();
      next_slot();
      multiply_chunk<Format, T, Tiles>(chunk, b, sums[r]);
    }
    reader.advance(gemv_warps);
  }
  wait_copies<0>();
  __syncthreads();

  // The warps' sums: [warp][row][column], rows two floats apart from a multiple of the banks.
  constexpr int pitch = 8 * Tiles + 2;
  float* const shared = reinterpret_cast<float*>(memory);
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        int const row = (warp * RowTiles + r) * tile_rows + lane / 4 + 8 * upper;
        *reinterpret_cast<float2*>(shared + row * pitch + 8 * n + 2 * (lane % 4)) =
            make_float2(sums[r][n][2 * upper], sums[r][n][2 * upper + 1]);
      }
    }
  }
  __syncthreads();
  constexpr int rows = RowTiles * tile_rows;
  for (int i = threadIdx.x; i < rows * (x.columns / Parts); i += blockDim.x) {
    int const row = i % rows, token = i / rows;
    float const sum = sum_of_warps<gemv_warps, Parts>(shared + row * pitch + token * Parts, rows * pitch, 1);
    index_t const at = first_tile * tile_rows + row;
    if (at < w.out) y[token * w.out + at] = to<Y>(sum);
  }
}

template <device_format Format, class T, int Parts, class Y, int RowTiles, int Tiles>
void launch_gemv(prepacked_view<Format> const& w, operands<T> const& x, Y* y, execution const& where,
                 device const& gpu) {
  auto const blocks = static_cast<int>((w.layout().row_tiles() + RowTiles - 1) / RowTiles);
  // No multiprocessor should get more blocks than its share while others wait for the kernel before to end:
  // that much shared memory is asked for that no more fit.
  int const share = (blocks + gpu.multiprocessors - 1) / gpu.multiprocessors;
  int const needed = gemv_shared_memory<Format, RowTiles, Tiles>(x.columns);
  launch(gemv_kernel<Format, T, Parts, Y, RowTiles, Tiles>,
         {.grid = static_cast<unsigned>(blocks),
          .block = 32 * gemv_warps,
          .shared_memory = static_cast<std::size_t>(std::max(needed, gpu.shared_memory / (share + 1) + 1024)),
          .stream = where.stream,
          .overlap = where.overlap},
         w, x, y);
}

/// Up to 16 columns. Two row tiles a block with up to 8, which halves what is done for each chunk besides the
/// row tiles, unless that leaves multiprocessors idle; with 16 as few as one wave of blocks allows.
template <device_format Format, class T, int Parts, class Y>
void gemv_columns(prepacked_view<Format> const& w, operands<T> const& x, Y* y, execution const& where,
                  device const& gpu) {
  constexpr auto blocks = [](index_t tiles, int of_block) { return (tiles + of_block - 1) / of_block; };
  index_t const tiles = w.layout().row_tiles(), sms = gpu.multiprocessors;
  if (launch_gemv_sm90<Format, T, Parts>(w, x, y, where.stream, where.overlap, gpu)) return;
  if (x.columns <= 8) {
    tiles <= sms ? launch_gemv<Format, T, Parts, Y, 1, 1>(w, x, y, where, gpu)
                 : launch_gemv<Format, T, Parts, Y, 2, 1>(w, x, y, where, gpu);
  } else if (tiles <= sms * gemv_blocks<Format, 1, 2>) {
    launch_gemv<Format, T, Parts, Y, 1, 2>(w, x, y, where, gpu);
  } else if (blocks(tiles, 2) <= sms * gemv_blocks<Format, 2, 2>) {
    launch_gemv<Format, T, Parts, Y, 2, 2>(w, x, y, where, gpu);
  } else {
    launch_gemv<Format, T, Parts, Y, 4, 2>(w, x, y, where, gpu);
  }
}

template <class Format>
void check_product(prepacked_view<Format> const& w, void const* x, index_t tokens, void const* y) {
  check_shape(w.out, w.in);
  if (tokens < 0 || tokens > 65535) {
    throw invalid_argument("gptq::cuda: " + std::to_string(tokens) + " tokens; 0 to 65535 are possible");
  }
  if (w.out == 0 || tokens == 0) return;
  if (y == nullptr || (w.in != 0 && x == nullptr)) throw invalid_argument("gptq::cuda: x or y is null");
  if (w.in == 0) return;
  if (w.codes == nullptr || w.scales == nullptr || (Format::has_zero_point && w.zeros == nullptr)) {
    throw invalid_argument("gptq::cuda: the matrix lacks codes, scales or zeros");
  }
  if (reinterpret_cast<std::uintptr_t>(w.codes) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(w.scales) % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(w.zeros) % 4 != 0) {
    throw invalid_argument("gptq::cuda: codes or scales are not aligned to 16 bytes");
  }
}

inline void check_workspace(execution const& where, std::size_t needed) {
  if (where.workspace_bytes < needed || where.workspace == nullptr) {
    throw invalid_argument("gptq::cuda: the workspace has " +
                           std::to_string(where.workspace == nullptr ? 0 : where.workspace_bytes) +
                           " bytes, and " + std::to_string(needed) + " are needed");
  }
}

/// Whether kernels can read x as it lies.
template <class X, class Format>
bool readable(prepacked_view<Format> const& w, X const* x) {
  return parts<X> == 1 && w.order == nullptr && w.in % 8 == 0 &&
         reinterpret_cast<std::uintptr_t>(x) % 16 == 0;
}

/// x as kernels read it: in place, or prepared in the workspace.
template <class X, class Format>
operands<operand<X>> operands_of(prepacked_view<Format> const& w, X const* x, index_t tokens,
                                 execution const& where) {
  if constexpr (parts<X> == 1) {
    if (readable(w, x)) return {x, static_cast<int>(tokens), w.in, w.in};
  }
  index_t const padded = w.layout().chunks() * chunk_columns;
  check_workspace(where, gemv_workspace_bytes<X>(w, tokens));
  auto* const prepared = static_cast<operand<X>*>(where.workspace);
  constexpr unsigned threads = 256;
  launch(
      prepare<X>,
      {.grid = dim3(static_cast<unsigned>((padded + threads - 1) / threads), static_cast<unsigned>(tokens)),
       .block = threads,
       .stream = where.stream,
       .overlap = where.overlap},
      x, w.order, w.in, padded, prepared);
  return {prepared, static_cast<int>(tokens) * parts<X>, padded, padded};
}

}  // namespace detail

template <device_number X, device_format Format>
std::size_t gemv_workspace_bytes(prepacked_view<Format> const& w, index_t tokens) {
  index_t const padded = w.layout().chunks() * chunk_columns;
  return static_cast<std::size_t>(tokens * detail::parts<X> * padded) * sizeof(detail::operand<X>);
}

template <device_format Format, device_number X, device_number Y>
void gemv(prepacked_view<Format> const& w, X const* x, index_t tokens, Y* y, execution const& where) {
  using T = detail::operand<X>;
  constexpr int parts = detail::parts<X>;
  detail::check_product(w, x, tokens, y);
  device const gpu = device::current();
  if (w.out == 0 || tokens == 0) return;
  if (w.in == 0) {
    check(cudaMemsetAsync(y, 0, static_cast<std::size_t>(tokens * w.out) * sizeof(Y), where.stream),
          "zeroing y");
    return;
  }
  detail::operands<T> const all = detail::operands_of(w, x, tokens, where);
  constexpr index_t most = 16 / parts;
  for (index_t token = 0; token < tokens; token += most) {
    auto const some = static_cast<int>(std::min(most, tokens - token));
    detail::gemv_columns<Format, T, parts>(
        w, {all.data + token * parts * all.stride, some * parts, all.width, all.stride}, y + token * w.out,
        where, gpu);
  }
}

template <device_format Format, device_number X, device_number Y>
void gemv(prepacked_view<Format> const& w, X const* x, Y* y, execution const& where) {
  gemv(w, x, 1, y, where);
}

}  // namespace gptq::cuda
