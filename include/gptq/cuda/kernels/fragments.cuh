// What the kernels are made of: codes to operands of the tensor cores, products, copies into shared memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>

#include <gptq/cuda/kernels/code_places.cuh>
#include <gptq/cuda/kernels/numbers.cuh>
#include <gptq/cuda/kernels/results.cuh>
#include <gptq/cuda/prepacked.cuh>

namespace gptq::cuda::detail {

/// (a & mask) | b in one instruction.
template <std::uint32_t Mask>
__device__ __forceinline__ std::uint32_t masked_or(std::uint32_t a, std::uint32_t b) {
  std::uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "n"(Mask), "r"(b));
  return d;
}

/// Shifts to the right, or, by a negative distance, to the left.
template <int Distance>
__device__ __forceinline__ std::uint32_t shifted(std::uint32_t word) {
  return Distance >= 0 ? word >> (Distance & 31) : word << (-Distance & 31);
}

/// Two 8-bit codes, in bits 0..7 and 16..23, less 128 each, in a type of 7 fraction bits: 2^7 + the lower
/// seven bits, less 2^7 where the top bit is set and 2^8 where it is not.
template <class T>
__device__ __forceinline__ std::uint32_t centered_bytes(std::uint32_t codes) {
  using n = number<T>;
  return n::fma(masked_or<twice(0x80)>(~codes, twice(n::magic)), twice(n::one | 0x8000u),
                masked_or<twice(0x7f)>(codes, twice(n::magic)));
}

/// Register P % 4 of fragment P / 4 from the words of a lane: code - zero, twice, and exact. Codes become the
/// low bits of the fraction of 2^m, at bit `at` and so scaled by 2^at, and one fma takes both off again, with
/// the zero point. `zeros` is the stored one of the row, twice.
template <device_format Format, class T, int P>
__device__ __forceinline__ std::uint32_t decoded(std::uint32_t const* words, std::uint32_t zeros) {
  using n = number<T>;
  constexpr int bits = Format::bits;
  constexpr code_place place = code_place_at<bits>(P, 0);
  if constexpr (bits == 8 && n::fraction < 8) {
    std::uint32_t const code = centered_bytes<T>(words[place.word] >> place.bit);
    if constexpr (Format::has_zero_point)
      return n::fma(centered_bytes<T>(zeros), twice(n::one | 0x8000u), code);
    constexpr float offset = 128.0F - Format::levels.zero;
    constexpr std::uint32_t offsets = twice(n::bits(offset));
    return offset == 0.0F ? code : n::fma(code, twice(n::one), offsets);
  } else {
    constexpr int reach = n::fraction - bits;  // the highest bit at which a code may start
    constexpr int width = bits == 3 ? 2 : bits;
    constexpr int step = reach / width * width + width;
    constexpr int shift = place.bit / step * step;
    constexpr int at = place.bit - shift;
    constexpr std::uint32_t mask = twice(((1u << width) - 1u) << at);
    std::uint32_t value = masked_or<mask>(words[place.word] >> shift, twice(n::magic));
    if constexpr (bits == 3) {
      constexpr code_place top = top_place(P, 0);
      constexpr std::uint32_t top_mask = twice(4u << at);
      value = masked_or<top_mask>(shifted<top.bit - (at + 2)>(words[top.word]), value);
    }
    constexpr float one = static_cast<float>(1 << n::fraction) / static_cast<float>(1 << at);  // 2^m, scaled
    constexpr std::uint32_t factor = twice(n::bits(1.0F / static_cast<float>(1 << at)));
    if constexpr (Format::has_zero_point) {
      constexpr std::uint32_t negative = twice(n::bits(-one));
      return n::fma(value, factor, negative | zeros << at);
    } else if constexpr (n::holds(one + Format::levels.zero)) {
      constexpr std::uint32_t offset = twice(n::bits(-(one + Format::levels.zero)));
      return n::fma(value, factor, offset);
    } else {  // a half-step zero, out of the reach of the fraction of 2^m
      constexpr float whole = static_cast<float>(static_cast<int>(Format::levels.zero));
      constexpr std::uint32_t offset = twice(n::bits(-(one + whole)));
      constexpr std::uint32_t rest = twice(n::bits(whole - Format::levels.zero));
      return n::fma(n::fma(value, factor, offset), twice(n::one), rest);
    }
  }
}

/// Whether products take codes as they are: as bits of a number below the normal ones they are that many
/// times 2^-24 in float16, which tensor cores multiply exactly. They do not normalize it, though: sums lose
/// the bits that the code is short of 10. In bfloat16 products would be too small.
template <class T>
inline constexpr bool takes_bare_codes = number<T>::fraction == 10;

/// Register P % 4 of fragment P / 4 from the words of a lane: code * 2^-24, twice. What a mask leaves in
/// place need not be shifted: rows g+8 have bare_factor times that, and 4-bit codes leave that of row g in
/// it, too, which is as good to multiply by and can be taken off the sums.
template <int Bits>
inline constexpr int bare_factor = Bits == 4  ? 16
                                   : Bits < 4 ? 4
                                              : 1;
template <int Bits>
inline constexpr bool bare_rows_overlap = Bits == 4;

template <int Bits, int P>
__device__ __forceinline__ std::uint32_t bare_code(std::uint32_t const* words) {
  constexpr code_place place = code_place_at<Bits>(P, 0);
  std::uint32_t const word = words[place.word];
  if constexpr (Bits == 8) {
    return __byte_perm(word, 0, place.bit == 0 ? 0x4240 : 0x4341);
  } else if constexpr (Bits == 4) {
    std::uint32_t const both = place.bit < 8 ? word & twice(0xff) : __byte_perm(word, 0, 0x4341);
    return P % 2 == 0 ? both & twice(0xf) : both;
  } else {
    constexpr int at = 2 * (P % 2);
    std::uint32_t value = (word >> (place.bit - at)) & twice(3u << at);
    if constexpr (Bits == 3) {
      constexpr code_place top = top_place(P, 0);
      value = masked_or<twice(4u << at)>(shifted<top.bit - (at + 2)>(words[top.word]), value);
    }
    return value;
  }
}

/// c += a b: 16 x 16 times 16 x 8. c[0], c[1]: row g, columns 2t and 2t+1; c[2], c[3]: row g+8.
template <class T>
__device__ __forceinline__ void multiply(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t b0,
                                         std::uint32_t b1) {
  if constexpr (number<T>::fraction == 10) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

/// A (row tile, chunk) pair in shared memory, as a warp copies it there: codes, scales, zeros.
template <device_format Format>
struct staged {
  using layout = prepacked_layout<Format>;
  using scale = typename Format::scale;
  static constexpr int groups = layout::chunk_groups;
  static constexpr int code_bytes = 4 * layout::chunk_words;
  static constexpr int scale_bytes = groups * layout::scale_bytes;
  static constexpr int zero_bytes = groups * layout::zero_bytes;
  static constexpr int bytes = (code_bytes + scale_bytes + zero_bytes + 15) / 16 * 16;
};

template <int Bytes>
__device__ __forceinline__ void copy_async(void* to, void const* from) {
  auto const shared = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(Bytes) : "memory");
  }
}
/// 16 bytes, or zeros.
__device__ __forceinline__ void copy_async_or_zero(void* to, void const* from, bool there) {
  auto const shared = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(there ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Left>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

/// Copies chunks of a few row tiles, one after the other, from where a lane reads.
template <device_format Format>
struct chunk_reader {
  using s = staged<Format>;
  using layout = prepacked_layout<Format>;
  static constexpr int pair_bytes = layout::scale_bytes / 8;

  char const* codes;  ///< of this chunk in the first row tile
  char const* scales;
  char const* zeros;
  int code_stride;  ///< bytes from one row tile to the next
  int groups;       ///< of a row
  int chunk;
  int lane;

  __device__ chunk_reader(prepacked_view<Format> const& w, index_t first_tile, int first_chunk, int of_lane)
      : code_stride(static_cast<int>(w.layout().chunks()) * layout::chunk_words * 4),
        groups(static_cast<int>(w.layout().groups())),
        chunk(first_chunk),
        lane(of_lane) {
    codes = reinterpret_cast<char const*>(w.codes) + first_tile * code_stride +
            index_t{chunk} * layout::chunk_words * 4 + 16 * lane;
    scales = reinterpret_cast<char const*>(w.scales) + first_tile * groups * layout::scale_bytes +
             pair_bytes * lane;
    zeros = reinterpret_cast<char const*>(w.zeros) + first_tile * groups * layout::zero_bytes + 4 * lane;
  }

  __device__ __forceinline__ void advance(int chunks) {
    codes += chunks * (layout::chunk_words * 4);
    chunk += chunks;
  }

  /// Starts copying the chunk of the row tile `tile` from the first to `slot`.
  __device__ __forceinline__ void copy(char* slot, int tile) const {
    char const* const from = codes + index_t{tile} * code_stride;
#pragma unroll
    for (int v = 0; v < layout::lane_words / 4; ++v) {
      copy_async<16>(slot + 512 * v + 16 * lane, from + 512 * v);
    }
    if constexpr (layout::lane_words % 4 != 0) copy_async<8>(slot + 512 + 8 * lane, from + 512 - 8 * lane);
    int const group = tile * groups + static_cast<int>(layout{}.first_group(chunk));
    if (lane < 8 * s::groups) {
      copy_async<pair_bytes>(slot + s::code_bytes + pair_bytes * lane,
                             scales + index_t{group} * layout::scale_bytes);
    }
    if constexpr (Format::has_zero_point) {
      if (lane < s::zero_bytes / 4) {
        copy_async<4>(slot + s::code_bytes + s::scale_bytes + 4 * lane,
                      zeros + index_t{group} * layout::zero_bytes);
      }
    }
  }
};

/// What this lane reads of a chunk of a row tile, as it lies: its words, and for each group the scales of
/// rows g and g+8 and their zero points.
template <device_format Format>
struct raw_chunk {
  using s = staged<Format>;
  using scale_pair = std::conditional_t<sizeof(typename Format::scale) == 2, __half2, float2>;
  using zero_pair = std::conditional_t<Format::bits == 8, uchar2, unsigned char>;  // as it lies
  static constexpr int count = prepacked_layout<Format>::lane_words;

  std::uint32_t words[count];
  scale_pair scales[s::groups];
  std::conditional_t<Format::bits == 8, uchar2, std::uint32_t> zeros[s::groups];

  /// From where a chunk_reader has copied it, or from a prepacked matrix; read_codes(p) is *p.
  template <class Read>
  __device__ __forceinline__ void load(char const* codes, char const* group_scales, char const* group_zeros,
                                       int lane, Read const& read_codes) {
    load_codes(codes, lane, read_codes);
    load_groups(group_scales, group_zeros, lane);
  }
  template <class Read>
  __device__ __forceinline__ void load_codes(char const* codes, int lane, Read const& read_codes) {
#pragma unroll
    for (int part = 0; part < count / 4; ++part) {
      auto const v = read_codes(reinterpret_cast<uint4 const*>(codes + 512 * part + 16 * lane));
      words[4 * part] = v.x, words[4 * part + 1] = v.y, words[4 * part + 2] = v.z, words[4 * part + 3] = v.w;
    }
    if constexpr (count % 4 != 0) {
      auto const v = read_codes(reinterpret_cast<uint2 const*>(codes + 512 + 8 * lane));
      words[4] = v.x, words[5] = v.y;
    }
  }
  __device__ __forceinline__ void load_groups(char const* group_scales, char const* group_zeros, int lane) {
#pragma unroll
    for (int j = 0; j < s::groups; ++j) load_group(group_scales, group_zeros, lane, j);
  }
  __device__ __forceinline__ void load_group(char const* group_scales, char const* group_zeros, int lane,
                                             int j) {
    int const at = 8 * j + lane / 4;
    scales[j] = reinterpret_cast<scale_pair const*>(group_scales)[at];
    if constexpr (Format::has_zero_point) zeros[j] = reinterpret_cast<zero_pair const*>(group_zeros)[at];
  }
};

/// A chunk of a row tile as it is multiplied: the words of this lane, and for each group the scales of rows g
/// and g+8 and their zero points.
template <device_format Format>
struct lane_chunk {
  using s = staged<Format>;

  std::uint32_t words[prepacked_layout<Format>::lane_words];
  float scales[s::groups][2];
  std::uint32_t zeros[s::groups][2];

  __device__ __forceinline__ void unpack(raw_chunk<Format> const& raw) {
    unpack_codes(raw);
#pragma unroll
    for (int j = 0; j < s::groups; ++j) unpack_group(raw, j);
  }
  __device__ __forceinline__ void unpack_codes(raw_chunk<Format> const& raw) {
#pragma unroll
    for (int k = 0; k < raw.count; ++k) words[k] = raw.words[k];
  }
  __device__ __forceinline__ void unpack_group(raw_chunk<Format> const& raw, int j) {
    auto const pair = raw.scales[j];
    if constexpr (sizeof(typename Format::scale) == 2) {
      scales[j][0] = __low2float(pair), scales[j][1] = __high2float(pair);
    } else {
      scales[j][0] = pair.x, scales[j][1] = pair.y;
    }
    if constexpr (Format::has_zero_point && Format::bits == 8) {
      zeros[j][0] = raw.zeros[j].x, zeros[j][1] = raw.zeros[j].y;
    } else if constexpr (Format::has_zero_point) {
      zeros[j][0] = raw.zeros[j] & 15u, zeros[j][1] = raw.zeros[j] >> 4;
    } else {
      zeros[j][0] = zeros[j][1] = 0;
    }
  }
  __device__ __forceinline__ void load(char const* codes, char const* group_scales, char const* group_zeros,
                                       int lane) {
    raw_chunk<Format> raw;
    raw.load(codes, group_scales, group_zeros, lane, [](auto const* p) { return *p; });
    unpack(raw);
  }
  __device__ __forceinline__ void load(char const* slot, int lane) {
    load(slot, slot + s::code_bytes, slot + s::code_bytes + s::scale_bytes, lane);
  }

  /// Fragment F: the A operand of mma, code - zero.
  template <class T, int F>
  __device__ __forceinline__ void decode(std::uint32_t (&a)[4]) const {
    constexpr int j = F / (8 / s::groups);
    std::uint32_t const zero[2] = {twice(zeros[j][0]), twice(zeros[j][1])};
    a[0] = decoded<Format, T, 4 * F>(words, zero[0]);
    a[1] = decoded<Format, T, 4 * F + 1>(words, zero[1]);
    a[2] = decoded<Format, T, 4 * F + 2>(words, zero[0]);
    a[3] = decoded<Format, T, 4 * F + 3>(words, zero[1]);
  }
  /// Fragment F as bare_code() has it.
  template <int F>
  __device__ __forceinline__ void bare(std::uint32_t (&a)[4]) const {
    a[0] = bare_code<Format::bits, 4 * F>(words);
    a[1] = bare_code<Format::bits, 4 * F + 1>(words);
    a[2] = bare_code<Format::bits, 4 * F + 2>(words);
    a[3] = bare_code<Format::bits, 4 * F + 3>(words);
  }
};

/// f.template operator()<I>() for I = First..Last-1, unrolled.
template <int First, int Last, class F>
__device__ __forceinline__ void unrolled(F&& f) {
  if constexpr (First < Last) {
    f.template operator()<First>();
    unrolled<First + 1, Last>(f);
  }
}

/// Lets the next kernel of the stream start, and waits for the one before: see launch_config::overlap.
__device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// The warps' sums of a token in a row, added up; `sums` are the first warp's, with Parts columns a token.
template <int Warps, int Parts>
__device__ __forceinline__ float add_warps(float const* sums, int warp_stride, int column_stride) {
  float sum = 0.0F;
#pragma unroll
  for (int warp = 0; warp < Warps; ++warp) {
#pragma unroll
    for (int part = 0; part < Parts; ++part) sum += sums[warp * warp_stride + part * column_stride];
  }
  return sum;
}

/// Transposes an 8 x 8 matrix of 16-bit numbers, of which lane 4g + t has 2t and 2t+1 of row g.
__device__ __forceinline__ std::uint32_t transposed(std::uint32_t pair) {
  std::uint32_t d;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(pair));
  return d;
}

template <class T>
__device__ __forceinline__ std::uint32_t paired(T lower, T upper) {
  std::uint32_t word;
  T const both[2] = {lower, upper};
  std::memcpy(&word, both, sizeof(word));
  return word;
}

/// What store_sums() does with 16-bit results of whole row tiles: a lane stores four rows of a column at
/// once, so that what is written are whole sectors of the cache.
template <class Results, int ColumnTiles>
__device__ __forceinline__ void store_in_fours(float const (&sums)[ColumnTiles][4], index_t first_row,
                                               int first_column, int columns, Results const& y) {
  int const lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < ColumnTiles; ++n) {
    int const column = first_column + 8 * n;
    typename Results::number values[4] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (column + 2 * t + k % 2 < columns) {
        values[k] = y.finished(column + 2 * t + k % 2, first_row + g + 8 * (k / 2), sums[n][k]);
      }
    }
    // Now of column g, rows 2t and 2t+1, and 8 more.
    std::uint32_t const lower = transposed(paired(values[0], values[1])),
                        upper = transposed(paired(values[2], values[3]));
    std::uint32_t words[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int const from = 4 * g + 2 * (t % 2) + i;
      std::uint32_t const of_lower = __shfl_sync(0xffffffff, lower, from),
                          of_upper = __shfl_sync(0xffffffff, upper, from);
      words[i] = t < 2 ? of_lower : of_upper;
    }
    if (column + g < columns) {
      *reinterpret_cast<uint2*>(y.data + index_t{column + g} * y.stride + first_row + 4 * t) =
          make_uint2(words[0], words[1]);
    }
  }
}

/// Stores what a warp has of a row tile, of columns first_column and on, as accumulators of multiply(): in y,
/// or in partial[column, row] where that is not null.
template <class Results, int ColumnTiles>
__device__ __forceinline__ void store_sums(float const (&sums)[ColumnTiles][4], index_t first_row,
                                           index_t rows, int first_column, int columns, Results const& y,
                                           float* partial) {
  if constexpr (sizeof(typename Results::number) == 2) {
    if (partial == nullptr && first_row + tile_rows <= rows && y.in_fours()) {
      return store_in_fours(sums, first_row, first_column, columns, y);
    }
  }
  int const lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < ColumnTiles; ++n) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      index_t const row = first_row + lane / 4 + 8 * (k / 2);
      index_t const column = first_column + 8 * n + 2 * (lane % 4) + k % 2;
      if (row >= rows || column >= columns) continue;
      if (partial == nullptr) {
        y.store(column, row, sums[n][k]);
      } else {
        partial[column * rows + row] = sums[n][k];
      }
    }
  }
}

}  // namespace gptq::cuda::detail
