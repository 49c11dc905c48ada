#include "charsmap.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utf8proc.h>

#include "utf8.hpp"

namespace lm::tokenizers {
namespace {

std::optional<std::string> from_base64(std::string_view text) {
  static constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  while (text.ends_with('=')) text.remove_suffix(1);
  std::string result;
  std::uint32_t bits = 0;
  int held = 0;
  for (char const c : text) {
    std::size_t const digit = digits.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    held += 6;
    if (held >= 8) {
      held -= 8;
      result += static_cast<char>(bits >> held & 0xff);
    }
  }
  return result;
}

/// The unit of a double array: a label, whether a value hangs below, and the way to the children.
constexpr std::uint32_t label(std::uint32_t unit) { return unit & 0x800000ff; }
constexpr bool has_value(std::uint32_t unit) { return (unit >> 8 & 1) != 0; }
constexpr std::uint32_t value(std::uint32_t unit) { return unit & 0x7fffffff; }
constexpr std::uint32_t offset(std::uint32_t unit) { return unit >> 10 << ((unit & 0x200) >> 6); }

}  // namespace

charsmap::charsmap(node const& base64) {
  static_assert(std::endian::native == std::endian::little);
  auto const bytes = from_base64(base64.string());
  std::uint32_t trie_bytes = 0;
  if (!bytes) base64.fail("is not base64");
  if (bytes->size() >= sizeof(trie_bytes)) std::memcpy(&trie_bytes, bytes->data(), sizeof(trie_bytes));
  std::size_t const rest = bytes->size() - std::min(bytes->size(), sizeof(trie_bytes));
  if (trie_bytes == 0 || trie_bytes % sizeof(std::uint32_t) != 0 || trie_bytes > rest) {
    base64.fail("is not a table of characters as sentencepiece writes it");
  }
  units_.resize(trie_bytes / sizeof(std::uint32_t));
  std::memcpy(units_.data(), bytes->data() + sizeof(trie_bytes), trie_bytes);
  replacements_ = bytes->substr(sizeof(trie_bytes) + trie_bytes);
  if (invalid_utf8(replacements_)) base64.fail("has replacements that are not UTF-8");
}

std::optional<std::string_view> charsmap::replacement(std::string_view text) const {
  std::uint32_t at = offset(units_[0]);
  for (char const c : text) {
    auto const byte = static_cast<unsigned char>(c);
    if (byte == 0) return std::nullopt;
    at ^= byte;
    if (at >= units_.size() || label(units_[at]) != byte) return std::nullopt;
    std::uint32_t const unit = units_[at];
    at ^= offset(unit);
    if (!has_value(unit)) continue;
    if (at >= units_.size()) return std::nullopt;
    std::size_t const begin = value(units_[at]);
    // In the middle of a character, the result would not be UTF-8.
    if (begin > replacements_.size() ||
        (begin < replacements_.size() && is_continuation(replacements_[begin]))) {
      return std::nullopt;
    }
    std::string_view const from = std::string_view(replacements_).substr(begin);
    return from.substr(0, from.find('\0'));
  }
  return std::nullopt;
}

std::string charsmap::normalized(std::string_view text) const {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    // The next grapheme cluster.
    character const first = first_character(text);
    std::size_t size = first.size;
    utf8proc_int32_t state = 0;
    auto before = static_cast<utf8proc_int32_t>(first.code);
    while (size < text.size()) {
      character const next = first_character(text.substr(size));
      auto const code = static_cast<utf8proc_int32_t>(next.code);
      if (utf8proc_grapheme_break_stateful(before, code, &state)) break;
      size += next.size;
      before = code;
    }
    std::string_view cluster = text.substr(0, size);
    text.remove_prefix(size);
    if (cluster.size() < 6) {
      if (auto const found = replacement(cluster)) {
        result += *found;
        continue;
      }
    }
    while (!cluster.empty()) {
      std::size_t const bytes = first_character(cluster).size;
      std::string_view const part = cluster.substr(0, bytes);
      result += replacement(part).value_or(part);
      cluster.remove_prefix(bytes);
    }
  }
  return result;
}

}  // namespace lm::tokenizers
