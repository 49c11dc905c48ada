// Tensors cut from the bytes of an input.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <vector>

namespace fuzz {

/// Count tensors, one after the other in `bytes`, zeros where these end. Each has memory of its own that ends
/// with it, so that reading beyond it is seen, and begins at an odd address.
template <std::size_t Count>
class tensors {
 public:
  /// @param damage  two bits a tensor: 1 half of it, 2 nothing
  tensors(std::span<std::byte const> bytes, std::array<std::size_t, Count> const& sizes, unsigned damage) {
    for (std::size_t i = 0; i < Count; ++i) {
      std::size_t const given = std::min(sizes[i], bytes.size());
      unsigned const its = damage >> (2 * i) & 3;
      memory_[i].resize(1 + (its == 1 ? sizes[i] / 2 : its == 2 ? 0 : sizes[i]));
      std::copy_n(bytes.begin(), std::min(given, memory_[i].size() - 1), memory_[i].begin() + 1);
      bytes = bytes.subspan(given);
    }
  }

  std::span<std::byte const> operator[](std::size_t i) const { return std::span(memory_[i]).subspan(1); }

 private:
  std::array<std::vector<std::byte>, Count> memory_;
};

/// Entry `i` of an LSB-first stream of numbers of `bits` bits, bit by bit.
inline int entry(std::span<std::byte const> stream, std::size_t i, std::size_t bits) {
  int value = 0;
  for (std::size_t b = 0; b < bits; ++b) {
    std::size_t const at = i * bits + b;
    value |= static_cast<int>(stream[at / 8] >> (at % 8) & std::byte{1}) << b;
  }
  return value;
}

}  // namespace fuzz
