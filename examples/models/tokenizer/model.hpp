// What turns the pieces of a text into tokens: "model" in tokenizer.json.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "document.hpp"
#include "function_ref.hpp"
#include "tokenizer.hpp"

namespace lm::tokenizers {

/// Tokens by their text and the other way round.
class vocabulary {
  struct hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  std::unordered_map<std::string, token_id, hash, std::equal_to<>> ids_;
  std::unordered_map<token_id, std::string const*> texts_;
  token_id end_ = 0;

 public:
  void reserve(std::size_t tokens);
  /// A text that is there already gets this id.
  void insert(std::string text, token_id id);
  std::optional<token_id> id(std::string_view text) const;
  /// nullptr for an id that is not there.
  std::string const* text(token_id id) const;
  token_id end_of_ids() const { return end_; }  ///< one more than the highest
};

class model {
 public:
  virtual ~model() = default;
  virtual vocabulary const& tokens() const = 0;

  /// Appends the tokens of a piece, valid UTF-8 and not empty. Throws gptq::error for what no token stands
  /// for, if the model has none for the unknown.
  virtual void append_tokens(std::string_view piece, std::vector<token_id>& to) const = 0;

  /// Calls `part` with parts of a piece, in order, whose tokens are those of the piece: the shorter they are,
  /// the more often one comes again.
  virtual void cut(std::string_view piece, function_ref<void(std::string_view)> part) const { part(piece); }
};

/// The name of the token for a byte that no other token stands for: "<0x0A>".
std::string byte_token(unsigned char byte);

/// Throws gptq::error for a type or a key that is not known, and for a vocabulary that contradicts itself.
std::unique_ptr<model const> read_model(node const& description);

}  // namespace lm::tokenizers
