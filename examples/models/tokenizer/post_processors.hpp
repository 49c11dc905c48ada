// Tokens that are put around those of a text: "post_processor" in tokenizer.json.
#pragma once

#include <vector>

#include "document.hpp"
#include "model.hpp"

namespace lm::tokenizers {

/// What stands before a text and after it.
struct surroundings {
  std::vector<token_id> before;
  std::vector<token_id> after;
};

/// Throws gptq::error for a type or a key that is not known, and for a template without the text.
surroundings read_post_processor(node const& description);

}  // namespace lm::tokenizers
