#include "utf8.hpp"

#include <algorithm>
#include <cstring>
#include <utf8proc.h>

namespace lm::tokenizers {
namespace {

unsigned char byte_at(std::string_view text, std::size_t i) { return static_cast<unsigned char>(text[i]); }

utf8proc_category_t category(char32_t code) { return utf8proc_category(static_cast<utf8proc_int32_t>(code)); }

constexpr bool is_ascii_alphanumeric(char32_t code) {
  return (code >= '0' && code <= '9') || (code >= 'A' && code <= 'Z') || (code >= 'a' && code <= 'z');
}

}  // namespace

void append(std::string& text, char32_t code) {
  auto const put = [&](char32_t byte) { text += static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6);
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

utf8_part first_part(std::string_view bytes) {
  unsigned char const lead = byte_at(bytes, 0);
  if (lead < 0x80) return {1, utf8_part::valid};
  if (lead < 0xc2 || lead > 0xf4) return {1, utf8_part::invalid};
  std::size_t const size = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // Of the second byte, some values would make a longer form, a surrogate or too large a code.
  unsigned char const least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  unsigned char const most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (std::size_t i = 1; i < size; ++i) {
    if (i == bytes.size()) return {i, utf8_part::unfinished};
    unsigned char const byte = byte_at(bytes, i);
    bool const fits = i == 1 ? byte >= least && byte <= most : byte >= 0x80 && byte <= 0xbf;
    if (!fits) return {i, utf8_part::invalid};
  }
  return {size, utf8_part::valid};
}

std::optional<std::size_t> invalid_utf8(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    if (at + 8 <= text.size()) {
      std::uint64_t word;
      std::memcpy(&word, text.data() + at, sizeof(word));
      if ((word & 0x8080808080808080) == 0) {
        at += 8;
        continue;
      }
    }
    utf8_part const part = first_part(text.substr(at));
    if (part.state != utf8_part::valid) return at;
    at += part.size;
  }
  return std::nullopt;
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

bool is_white_space(char32_t code) {
  if (code < 0x80) return code == ' ' || (code >= '\t' && code <= '\r');
  return code == 0x85 || code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) ||
         code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

std::size_t white_space_at_start(std::string_view text) {
  std::size_t size = 0;
  while (size < text.size()) {
    character const c = first_character(text.substr(size));
    if (!is_white_space(c.code)) break;
    size += c.size;
  }
  return size;
}

std::size_t white_space_at_end(std::string_view text) {
  while (!text.empty()) {
    std::size_t begin = text.size() - 1;
    while (is_continuation(text[begin])) --begin;
    if (!is_white_space(first_character(text.substr(begin)).code)) break;
    text = text.substr(0, begin);
  }
  return text.size();
}

bool is_number(char32_t code) {
  if (code < 0x80) return code >= '0' && code <= '9';
  auto const c = category(code);
  return c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t code) {
  if (code < 0x80) return code > ' ' && code < 0x7f && !is_ascii_alphanumeric(code);
  auto const c = category(code);
  return c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO;
}

bool is_mark(char32_t code) {
  auto const c = category(code);
  return c >= UTF8PROC_CATEGORY_MN && c <= UTF8PROC_CATEGORY_ME;
}

bool is_word(char32_t code) {
  if (code < 0x80) return code == '_' || is_ascii_alphanumeric(code);
  if (code == 0x200c || code == 0x200d) return true;  // joiners
  // Other_Alphabetic symbols: letters in circles and squares.
  if ((code >= 0x24b6 && code <= 0x24e9) || (code >= 0x1f130 && code <= 0x1f149) ||
      (code >= 0x1f150 && code <= 0x1f169) || (code >= 0x1f170 && code <= 0x1f189)) {
    return true;
  }
  switch (category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

}  // namespace lm::tokenizers
