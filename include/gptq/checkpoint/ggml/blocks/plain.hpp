// F32, F16, BF16: numbers one by one.
#pragma once

#include <cstddef>
#include <cstring>

namespace gptq::checkpoint::detail {

template <class Stored>
struct plain_block {
  static constexpr std::size_t size = 1;
  static constexpr std::size_t bytes = sizeof(Stored);
  static void decode(std::byte const* p, float* y) {
    Stored value;
    std::memcpy(&value, p, bytes);
    *y = static_cast<float>(value);
  }
};

}  // namespace gptq::checkpoint::detail
