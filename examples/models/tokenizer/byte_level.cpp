#include "byte_level.hpp"

#include <array>
#include <cstdint>

#include "utf8.hpp"

namespace lm::tokenizers {
namespace {

struct written_byte {
  char text[2];
  std::uint8_t size;
};

struct tables {
  std::array<written_byte, 256> characters{};
  std::array<std::int16_t, 0x144> bytes{};  // by character; -1: none

  tables() {
    bytes.fill(-1);
    char32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      bool const printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
      char32_t const code = printable ? byte : next++;
      std::string text;
      append(text, code);
      characters[byte] = {{text.front(), text.back()}, static_cast<std::uint8_t>(text.size())};
      bytes[code] = static_cast<std::int16_t>(byte);
    }
  }
};

tables const& byte_tables() {
  static tables const result;
  return result;
}

}  // namespace

std::size_t write_byte_level(char* to, std::string_view bytes) {
  auto const& characters = byte_tables().characters;
  char* out = to;
  for (char const byte : bytes) {
    written_byte const& written = characters[static_cast<unsigned char>(byte)];
    out[0] = written.text[0];
    out[1] = written.text[1];
    out += written.size;
  }
  return static_cast<std::size_t>(out - to);
}

std::string to_byte_level(std::string_view bytes) {
  std::string text(2 * bytes.size(), '\0');
  text.resize(write_byte_level(text.data(), bytes));
  return text;
}

std::optional<std::string> bytes_from_byte_level(std::string_view text) {
  auto const& bytes = byte_tables().bytes;
  std::string result;
  while (!text.empty()) {
    character const c = first_character(text);
    if (c.code >= bytes.size() || bytes[c.code] < 0) return std::nullopt;
    result += static_cast<char>(bytes[c.code]);
    text.remove_prefix(c.size);
  }
  return result;
}

}  // namespace lm::tokenizers
