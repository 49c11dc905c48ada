// What this machine can do at best, measured in the run that uses it: these limits move with the neighbours
// of a shared machine, so a figure from another day is no yardstick. Reading is here, products in sgemm.hpp.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace roofline {

inline double seconds_of(auto&& work) {
  auto const start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Reads memory and does nothing with it.
using reader = void (*)(std::uint8_t const* first, std::uint8_t const* last);

#if defined(__AVX512F__)
inline constexpr int widest_load = 64;
#elif defined(__AVX__)
inline constexpr int widest_load = 32;
#else
inline constexpr int widest_load = 16;
#endif

/// Into eight registers, as `Streams` streams that advance side by side; with `Ahead` each cache line is
/// asked for that many bytes before it is due, otherwise that is the processor's affair. No reader is the
/// fastest on every machine: take the best. Isa keeps those compiled with different flags apart.
template <class Isa, int Streams, int Ahead>
void read(std::uint8_t const* first, std::uint8_t const* last) {
  typedef std::uint64_t vector __attribute__((vector_size(widest_load), aligned(1), may_alias));
  constexpr int registers = 8;
  constexpr std::ptrdiff_t step = registers / Streams * widest_load;
  vector sums[registers] = {};
  std::ptrdiff_t const stream = (last - first) / (Streams * step) * step;
  std::uint8_t const* const end = first + stream;
  for (; first != end; first += step) {
#pragma GCC unroll 8
    for (int r = 0; r < registers; ++r) {
      std::uint8_t const* const p = first + r % Streams * stream + r / Streams * widest_load;
      if constexpr (Ahead != 0) {
        if (r * widest_load % 64 == 0) __builtin_prefetch(p + Ahead, 0, 2);
      }
      sums[r] |= *reinterpret_cast<vector const*>(p);
    }
  }
  for (vector& sum : sums) asm volatile("" ::"m"(sum));
}

template <class Isa>
inline constexpr reader readers[] = {read<Isa, 1, 0>, read<Isa, 1, 4096>, read<Isa, 2, 0>};

}  // namespace roofline
