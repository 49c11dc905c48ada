// How a text is cut into the pieces that no token crosses: "pre_tokenizer" in tokenizer.json.
#pragma once

#include <memory>
#include <string_view>

#include "document.hpp"
#include "function_ref.hpp"

namespace lm::tokenizers {

struct piece {
  std::string_view text;  ///< valid UTF-8
  bool is_first;          ///< what it stands for begins where the whole text does
};

/// What comes after a pre-tokenizer: takes its pieces, none of them empty, whose text is there during the
/// call.
using piece_sink = function_ref<void(piece)>;

class pre_tokenizer {
 public:
  virtual ~pre_tokenizer() = default;
  virtual void cut(piece whole, piece_sink sink) const = 0;
};

/// Throws gptq::error for a type or a key that is not known.
std::unique_ptr<pre_tokenizer const> read_pre_tokenizer(node const& description);

}  // namespace lm::tokenizers
