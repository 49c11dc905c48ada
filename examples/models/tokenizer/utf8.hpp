// UTF-8, and what Unicode says about characters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lm::tokenizers {

/// A character of a text, and how many bytes it takes there.
struct character {
  char32_t code;
  std::size_t size;
};

/// The character that `text`, valid UTF-8 and not empty, begins with.
inline character first_character(std::string_view text) {
  auto const byte = [&](std::size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[i])); };
  char32_t const lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xe0) return {(lead & 0x1f) << 6 | (byte(1) & 0x3f), 2};
  if (lead < 0xf0) return {(lead & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f), 4};
}

/// Whether this byte of valid UTF-8 continues a character.
constexpr bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

/// The character that `text`, valid UTF-8 and not empty, ends with.
inline character last_character(std::string_view text) {
  std::size_t begin = text.size() - 1;
  while (is_continuation(text[begin])) --begin;
  return first_character(text.substr(begin));
}

/// @param code  a Unicode scalar value
void append(std::string& text, char32_t code);

/// The position of the first byte that makes `text` invalid UTF-8.
std::optional<std::size_t> invalid_utf8(std::string_view text);

/// The next piece of bytes that are perhaps UTF-8.
struct utf8_part {
  std::size_t size;
  enum { valid, invalid, unfinished } state;  ///< unfinished: more bytes may make it a character
};

/// The character, or the longest beginning of one, that `bytes`, not empty, begin with: what decoders that
/// put U+FFFD in place of invalid bytes count as one (Unicode 15, section 3.9, "maximal subpart").
utf8_part first_part(std::string_view bytes);

bool is_ascii(std::string_view text);

/// Unicode's White_Space.
bool is_white_space(char32_t code);
/// Where the white space that begins `text` ends.
std::size_t white_space_at_start(std::string_view text);
/// Where the white space that ends `text` begins.
std::size_t white_space_at_end(std::string_view text);
/// General category N.
bool is_number(char32_t code);
/// General category P, and what ASCII has besides: $+<=>^`|~
bool is_punctuation(char32_t code);
/// General category M.
bool is_mark(char32_t code);
/// What regular expressions call \w: alphabetic, a mark, a decimal digit, a connector or a joiner.
bool is_word(char32_t code);

}  // namespace lm::tokenizers
