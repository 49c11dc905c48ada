// Tokens that are found in a text before it is cut: "added_tokens" in tokenizer.json.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "document.hpp"
#include "function_ref.hpp"
#include "model.hpp"
#include "normalizers.hpp"
#include "regex.hpp"
#include "trie.hpp"

namespace lm::tokenizers {

struct added_token {
  token_id id;
  std::string content;
  bool single_word;  ///< only between characters that are no part of a word
  bool lstrip;       ///< takes the white space before it along
  bool rstrip;       ///< takes the white space after it along
  bool normalized;   ///< sought after normalization, in its own normalized form
  bool special;      ///< such as the begin of a text; can be left out of decoded text
};

class added_tokens {
  /// Those that are sought at the same time.
  struct sought_tokens {
    trie words;  // of their positions in tokens_
    std::vector<bool> first_bytes = std::vector<bool>(256);
  };
  std::vector<added_token> tokens_;
  std::unordered_map<token_id, std::size_t> positions_;  // in tokens_
  std::unordered_map<token_id, std::string> decoded_;    // of those whose normalized form is another one
  std::set<std::string, std::less<>> special_;
  sought_tokens raw_;
  sought_tokens normalized_;

 public:
  /// Throws gptq::error where these contradict each other or the vocabulary of the model.
  /// @param n  of the tokenizer; may be nullptr
  added_tokens(std::vector<node> const& descriptions, model const& m, normalizer const* n);

  std::vector<added_token> const& all() const { return tokens_; }
  added_token const* find(token_id id) const;
  bool is_special(std::string_view content) const { return special_.contains(content); }
  /// What a decoder gets for this token, or nullptr.
  std::string const* decoded(token_id id) const;

  /// Splits a text: `text` is called with what is between the tokens, and with where that begins, `token`
  /// with the tokens. Where two begin at the same place, the longest is taken.
  /// @param after_normalization  whether to look for those that are sought in normalized text, or for the
  /// others
  void split(std::string_view whole, bool after_normalization,
             function_ref<void(std::string_view, std::size_t)> text,
             function_ref<void(token_id)> token) const;
};

}  // namespace lm::tokenizers
