// Bytes written as printable characters, as byte-level BPE has them in its vocabulary: those that are
// printable in Latin-1 as themselves, the others from U+0100 on (Radford et al. 2019, encoder.py of GPT-2).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace lm::tokenizers {

/// Writes the characters for these bytes, up to two bytes for each.
/// @param to  room for that
/// @return how many bytes were written
std::size_t write_byte_level(char* to, std::string_view bytes);
std::string to_byte_level(std::string_view bytes);

/// The bytes that `text`, valid UTF-8, stands for; nothing if it has a character that stands for none.
std::optional<std::string> bytes_from_byte_level(std::string_view text);

}  // namespace lm::tokenizers
