// Floats of a chunk to digits, their sums and a scale (activations.hpp), once for all ISAs.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <gptq/activations.hpp>
#include <gptq/isa/all.hpp>
#include <gptq/kernels/chunk_walk.hpp>
#include <gptq/kernels/operations.hpp>

namespace gptq::detail {

/// The largest digit sum d0 + 256 d1 + 65536 d2 in use: no digit leaves -128..127, however the product with
/// the reciprocal of the scale rounds.
template <int Planes>
inline constexpr float largest_digits = Planes == 1   ? 127.0F
                                        : Planes == 2 ? 127.0F * 256.0F
                                                      : 127.0F * 65536.0F;

/// Digits, sums and scale of one chunk. values[stride], the ones beyond the chunk 0.
template <class Ops, int Planes>
GPTQ_INLINE void prepare_chunk(float const* values, index_t stride, std::int8_t* digits, digit_sums* sums,
                               float* scale) {
  // Magnitudes compare as the integers they look like, infinity and NaN above all others.
  auto top = Ops::magnitudes(Ops::load(values));
  for (index_t c = 16; c < stride; c += 16) top = Ops::max(top, Ops::magnitudes(Ops::load(values + c)));
  std::int32_t const amax_bits = Ops::largest(top);
  bool const finite = amax_bits < 0x7f800000;
  float const amax = bit_cast<float>(amax_bits);
  bool const counts = finite && amax >= 0x1p-100F;
  *scale = counts ? amax / largest_digits<Planes> : finite ? 0.0F : bit_cast<float>(0x7fc00000u);
  for (int p = 0; p < Planes; ++p) sums[p] = {};
  if (!counts) {
    std::memset(digits, 0, static_cast<std::size_t>(Planes * stride));
    return;
  }
  auto const steps = Ops::broadcast(largest_digits<Planes> / amax);
  for (index_t first = 0; first < stride; first += 64) {
    typename Ops::words sum[Planes];  // of the columns that are the same modulo 16
    unrolled<Planes>([&]<int P>() __attribute__((always_inline)) { sum[P] = Ops::broadcast_words(0); });
    for (index_t c = first; c < stride && c < first + 64; c += 16) {
      auto whole = Ops::round(Ops::multiply(Ops::load(values + c), steps));
      unrolled<Planes>([&]<int P>() __attribute__((always_inline)) {
        auto digit = whole;
        if constexpr (P + 1 < Planes) {
          digit = Ops::template shift_words<24>(Ops::template shift_words<-24>(whole));
          whole = Ops::template shift_words<8>(Ops::subtract(whole, digit));
        }
        sum[P] = Ops::add(sum[P], digit);
        Ops::store_bytes(digits + P * stride + c, digit);
      });
    }
    unrolled<Planes>([&]<int P>() __attribute__((always_inline)) {
      std::int32_t pairs[2];
      Ops::sum_pairs(sum[P], pairs);
      for (int s = 0; s < 2; ++s) {
        sums[P].of_pairs[first / 64][s] = static_cast<std::int16_t>(-pairs[s]);
        sums[P].all -= pairs[s];
      }
    });
  }
}

/// Chunks first_chunk..last_chunk-1 of some tokens of x[token, in], x_stride apart, laid out as chunk 0, 1, ... of `a`,
/// whose other parts are what activations_at() made of the workspace.
template <class Isa, precision Precision, class T>
[[gnu::noinline]] void prepare_chunks(activations<Precision> const& a, T const* x, index_t x_stride,
                                      index_t in, std::int32_t const* order, index_t first_chunk,
                                      index_t last_chunk, token_range tokens) noexcept {
  index_t const stride = a.chunks.stride();
  for (index_t token = tokens.first; token < tokens.last; ++token) {
    T const* const row = x + token * x_stride;
    chunk_walk walk(a.chunks, first_chunk);
    for (index_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
      index_t const cell = (chunk - first_chunk) * a.tokens + token;
      index_t const first = in - walk.row_left;
      index_t const columns = walk.columns();
      walk.next(columns);
      alignas(64) float buffer[max_chunk_columns] = {};
      float* values = buffer;
      if constexpr (Precision == precision::float32) values = const_cast<float*>(a.values) + cell * stride;
      if (order != nullptr) {
        for (index_t c = 0; c < columns; ++c) {
          T element;
          std::memcpy(&element, row + order[first + c], sizeof(T));
          values[c] = static_cast<float>(element);
        }
      } else if constexpr (std::is_same_v<T, float>) {
        std::memcpy(values, row + first, static_cast<std::size_t>(columns) * sizeof(float));
      } else {
        for (index_t c = 0; c < columns; ++c) {
          T element;
          std::memcpy(&element, row + first + c, sizeof(T));
          values[c] = static_cast<float>(element);
        }
      }
      if constexpr (Precision == precision::float32) {
        for (index_t c = columns; c < stride; ++c) values[c] = 0.0F;
      } else {
        constexpr int planes = digit_planes(Precision);
        prepare_chunk<operations_for<Isa>, planes>(
            values, stride, const_cast<std::int8_t*>(a.digits) + cell * planes * stride,
            const_cast<digit_sums*>(a.sums) + cell * planes, const_cast<float*>(a.scales) + cell);
      }
    }
  }
}

}  // namespace gptq::detail
