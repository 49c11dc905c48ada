// What reader and writer have to agree about.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace gptq::checkpoint::detail {

inline constexpr std::string_view gguf_magic = "GGUF";
inline constexpr std::uint32_t gguf_version = 3;  ///< that is written
inline constexpr std::size_t gguf_alignment = 32;
inline constexpr std::string_view gguf_alignment_key = "general.alignment";
inline constexpr std::size_t max_gguf_name = 63;
inline constexpr std::size_t max_gguf_key = 65535;
inline constexpr std::size_t max_gguf_rank = 4;

inline std::size_t aligned(std::size_t position, std::size_t alignment) {
  return (position + alignment - 1) / alignment * alignment;
}

/// The bytes that bring a tensor of `bytes` bytes to the next multiple of the alignment.
inline std::span<std::byte const> padding_after(std::size_t bytes) {
  static constexpr std::array<std::byte, gguf_alignment> zeros{};
  return std::span(zeros).first(aligned(bytes, gguf_alignment) - bytes);
}

}  // namespace gptq::checkpoint::detail
