// sentencepiece's table of what characters are replaced by: "precompiled_charsmap" in tokenizer.json.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "document.hpp"

namespace lm::tokenizers {

/// A trie over what is replaced, as the double array of Darts (https://github.com/s-yata/darts-clone), whose
/// values are offsets of replacements, each ended by a 0.
class charsmap {
  std::vector<std::uint32_t> units_;
  std::string replacements_;

  /// What replaces `text`: that of the shortest of its beginnings that has one.
  std::optional<std::string_view> replacement(std::string_view text) const;

 public:
  /// @param base64  size of the trie in bytes, the trie, the replacements. Throws gptq::error when it is not
  /// that.
  explicit charsmap(node const& base64);

  /// Replaces grapheme clusters of less than 6 bytes, and otherwise single characters.
  std::string normalized(std::string_view text) const;
};

}  // namespace lm::tokenizers
