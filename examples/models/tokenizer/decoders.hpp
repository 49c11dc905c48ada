// What turns the texts of tokens into the text that they stand for: "decoder" in tokenizer.json.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "document.hpp"
#include "function_ref.hpp"

namespace lm::tokenizers {

/// Where decoded text goes.
using text_sink = function_ref<void(std::string_view)>;

/// A decoder at work on one row of tokens. Text is handed on as soon as no later token can change it.
class decoding {
 public:
  virtual ~decoding() = default;
  /// @param text  of the next token, or the next part of text that is no longer cut into tokens; valid UTF-8
  virtual void add(std::string_view text, text_sink sink) = 0;
  /// Hands on what is held back for tokens that do not come.
  virtual void finish(text_sink) {}
};

class decoder {
 public:
  virtual ~decoder() = default;
  virtual std::unique_ptr<decoding> start() const = 0;
};

/// Throws gptq::error for a type or a key that is not known, and for steps in an order that cannot be done
/// while tokens arrive.
std::unique_ptr<decoder const> read_decoder(node const& description);

/// For a tokenizer without one: tokens with spaces between them.
std::unique_ptr<decoder const> decoder_with_spaces();

}  // namespace lm::tokenizers
