// UTF-8, which names and keys have to be.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace gptq::checkpoint::detail {

/// Whether a text is UTF-8: no stray or missing continuation, no overlong form, surrogate or code above
/// 0x10ffff.
inline bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    auto const lead = static_cast<unsigned char>(text[i++]);
    if (lead < 0x80) continue;
    int const more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4 || text.size() - i < static_cast<std::size_t>(more)) return false;
    std::uint32_t code = lead & (0x3fU >> more);
    for (int k = 0; k < more; ++k) {
      auto const next = static_cast<unsigned char>(text[i++]);
      if ((next & 0xc0) != 0x80) return false;
      code = code << 6 | (next & 0x3fU);
    }
    constexpr std::array<std::uint32_t, 4> least{0, 0x80, 0x800, 0x10000};
    if (code < least[static_cast<std::size_t>(more)] || code > 0x10ffff ||
        (code >= 0xd800 && code < 0xe000)) {
      return false;
    }
  }
  return true;
}

}  // namespace gptq::checkpoint::detail
