// What the kernels are made of: codes to operands of the tensor cores, products, copies into shared memory.
#pragma once

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <gptq/cuda/prepack.cuh>

namespace gptq::cuda::detail {

/// Two numbers of 16 bits in a register, each the value of a code, less the middle 2^(Bits-1): an integer,
/// and exact in both types. Bit patterns of T: one, and 2^m for the m bits of its fraction.
template <class T>
struct number;
template <>
struct number<__half> {
  static constexpr int fraction = 10;
  static constexpr std::uint32_t one = 0x3c00u, magic = 0x6400u;
  /// a * b + c on both halves.
  __device__ static std::uint32_t fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
    std::uint32_t d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }
  GPTQ_HOST_DEVICE static constexpr std::uint32_t bits(float value) { return float16(value).bits; }
};
template <>
struct number<__nv_bfloat16> {
  static constexpr int fraction = 7;
  static constexpr std::uint32_t one = 0x3f80u, magic = 0x4300u;
  __device__ static std::uint32_t fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
    std::uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }
  GPTQ_HOST_DEVICE static constexpr std::uint32_t bits(float value) { return bfloat16(value).bits; }
};

GPTQ_HOST_DEVICE constexpr std::uint32_t twice(std::uint32_t half) { return half | half << 16; }

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

/// Register p % 4 of fragment p / 4 from the words of a lane: code - 2^(Bits-1), twice. The codes become the
/// low bits of the fraction of 2^m (at bit `at`, so scaled by 2^at), which one fma takes off again.
template <int Bits, class T, int P>
__device__ __forceinline__ std::uint32_t decoded(std::uint32_t const* words) {
  using n = number<T>;
  constexpr code_place place = place_of<Bits>(P, 0);
  if constexpr (Bits == 8 && n::fraction < 8) {
    // 2^7 + the lower seven bits, less 2^7 where the top bit is set and 2^8 where it is not.
    std::uint32_t const codes = words[place.word] >> place.bit;
    constexpr std::uint32_t minus_one = twice(n::one | 0x8000u);
    return n::fma(masked_or<twice(0x80)>(~codes, twice(n::magic)), minus_one,
                  masked_or<twice(0x7f)>(codes, twice(n::magic)));
  } else {
    constexpr int reach = n::fraction - Bits;  // the highest bit at which a code may start
    constexpr int width = Bits == 3 ? 2 : Bits;
    constexpr int step = reach / width * width + width;
    constexpr int shift = place.bit / step * step;
    constexpr int at = place.bit - shift;
    constexpr float scale = 1.0F / static_cast<float>(1 << at);
    constexpr float zero = static_cast<float>(1 << n::fraction) * scale + static_cast<float>(1 << (Bits - 1));
    constexpr std::uint32_t mask = twice(((1u << width) - 1u) << at);
    constexpr std::uint32_t factor = twice(n::bits(scale)), offset = twice(n::bits(-zero));
    std::uint32_t value = masked_or<mask>(words[place.word] >> shift, twice(n::magic));
    if constexpr (Bits == 3) {
      constexpr code_place top = top_place_of(P, 0);
      value = masked_or<twice(4u << at)>(shifted<top.bit - (at + 2)>(words[top.word]), value);
    }
    return n::fma(value, factor, offset);
  }
}

/// Fragment F of a chunk: the A operand of mma.
template <int Bits, class T, int F>
__device__ __forceinline__ void decode_fragment(std::uint32_t const* words, std::uint32_t (&a)[4]) {
  a[0] = decoded<Bits, T, 4 * F>(words);
  a[1] = decoded<Bits, T, 4 * F + 1>(words);
  a[2] = decoded<Bits, T, 4 * F + 2>(words);
  a[3] = decoded<Bits, T, 4 * F + 3>(words);
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

/// What is left of the zero point when the middle 2^(Bits-1) has been taken off every code: a term for each
/// group, times the sum of its activations.
template <class Format>
inline constexpr float constant_correction =
    Format::has_zero_point ? 0.0F : static_cast<float>(1 << (Format::bits - 1)) - Format::levels.zero;
template <class Format>
inline constexpr bool has_correction = Format::has_zero_point || constant_correction<Format> != 0.0F;

/// A (row tile, chunk) pair in shared memory, as a warp copies it there: codes, scales, zeros.
template <device_format Format>
struct staged {
  using layout = prepacked_layout<Format>;
  using scale = typename Format::scale;
  static constexpr int groups = layout::chunk_groups;
  static constexpr int code_bytes = 4 * layout::chunk_words;
  static constexpr int scale_bytes = groups * tile_rows * int{sizeof(scale)};
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
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Left>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

/// Starts copying a (row tile, chunk) pair to `slot`.
template <device_format Format>
__device__ __forceinline__ void stage(char* slot, prepacked_view<Format> const& w, index_t tile,
                                      index_t chunk, int lane) {
  using s = staged<Format>;
  auto const layout = w.layout();
  std::uint32_t const* const codes = w.codes + (tile * layout.chunks() + chunk) * layout.chunk_words;
#pragma unroll
  for (int part = 0; part < layout.lane_words / 4; ++part) {
    copy_async<16>(slot + 512 * part + 16 * lane, codes + 128 * part + 4 * lane);
  }
  if constexpr (layout.lane_words % 4 != 0) copy_async<8>(slot + 512 + 8 * lane, codes + 128 + 2 * lane);
  index_t const group = tile * layout.groups() + layout.group_of(chunk);
  constexpr int pair = 2 * int{sizeof(typename Format::scale)};
  if (lane < 8 * s::groups) {
    copy_async<pair>(slot + s::code_bytes + pair * lane, w.scales + group * tile_rows + 2 * lane);
  }
  if constexpr (Format::has_zero_point) {
    if (lane < s::zero_bytes / 4) {
      copy_async<4>(slot + s::code_bytes + s::scale_bytes + 4 * lane,
                    w.zeros + group * layout.zero_bytes + 4 * lane);
    }
  }
}

/// A chunk of a row tile in registers: the words of this lane, and for each group the scales of rows g and
/// g+8 and what their zero points are short of the middle.
template <device_format Format>
struct lane_chunk {
  std::uint32_t words[prepacked_layout<Format>::lane_words];
  float scales[staged<Format>::groups][2];
  float corrections[staged<Format>::groups][2];

  __device__ __forceinline__ void load(char const* slot, int lane) {
    using s = staged<Format>;
    constexpr int count = prepacked_layout<Format>::lane_words;
#pragma unroll
    for (int part = 0; part < count / 4; ++part) {
      auto const v = *reinterpret_cast<uint4 const*>(slot + 512 * part + 16 * lane);
      words[4 * part] = v.x, words[4 * part + 1] = v.y, words[4 * part + 2] = v.z, words[4 * part + 3] = v.w;
    }
    if constexpr (count % 4 != 0) {
      auto const v = *reinterpret_cast<uint2 const*>(slot + 512 + 8 * lane);
      words[4] = v.x, words[5] = v.y;
    }
#pragma unroll
    for (int j = 0; j < s::groups; ++j) {
      int const g = lane / 4;
      if constexpr (sizeof(typename Format::scale) == 2) {
        auto const pair = *reinterpret_cast<__half2 const*>(slot + s::code_bytes + 4 * (8 * j + g));
        scales[j][0] = __low2float(pair), scales[j][1] = __high2float(pair);
      } else {
        auto const pair = *reinterpret_cast<float2 const*>(slot + s::code_bytes + 8 * (8 * j + g));
        scales[j][0] = pair.x, scales[j][1] = pair.y;
      }
      if constexpr (Format::has_zero_point) {
        char const* const zeros = slot + s::code_bytes + s::scale_bytes;
        constexpr int middle = 1 << (Format::bits - 1);
        int lower, upper;
        if constexpr (Format::bits == 8) {
          auto const pair = *reinterpret_cast<uchar2 const*>(zeros + 2 * (8 * j + g));
          lower = pair.x, upper = pair.y;
        } else {
          int const pair = *reinterpret_cast<unsigned char const*>(zeros + 8 * j + g);
          lower = pair & 15, upper = pair >> 4;
        }
        corrections[j][0] = static_cast<float>(middle - lower);
        corrections[j][1] = static_cast<float>(middle - upper);
      }
    }
  }

  /// The term for row g (0) or g+8 (1) of group j.
  __device__ __forceinline__ float correction(int j, int upper) const {
    return Format::has_zero_point ? corrections[j][upper] : constant_correction<Format>;
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

template <class T>
__device__ __forceinline__ T to(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else if constexpr (number<T>::fraction == 10) {
    return __float2half_rn(value);
  } else {
    return __float2bfloat16_rn(value);
  }
}

}  // namespace gptq::cuda::detail
