// Stores past the caches, for what is written once and read much later.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace gptq::checkpoint::detail {

/// Writes 64 bytes. At a multiple of 16 this does not read the line of memory first, as ordinary stores do.
/// Other threads see them after streaming_store_fence().
inline void streaming_store(std::uint8_t* to, std::uint32_t const* from) {
#ifdef __SSE2__
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof(__m128i) == 0) {
    for (int i = 0; i < 4; ++i) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i,
                       _mm_loadu_si128(reinterpret_cast<__m128i const*>(from) + i));
    }
    return;
  }
#endif
  std::memcpy(to, from, 64);
}

inline void streaming_store_fence() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

}  // namespace gptq::checkpoint::detail
