// What is done to a text before it is cut: "normalizer" in tokenizer.json.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "document.hpp"

namespace lm::tokenizers {

struct normal_text {
  std::string text;             ///< valid UTF-8
  bool keeps_beginning = true;  ///< whether it begins with what the text before normalization began with
};

class normalizer {
 public:
  virtual ~normalizer() = default;
  virtual void normalize(normal_text& text) const = 0;
  std::string normalized(std::string text) const;
};

/// Throws gptq::error for a type or a key that is not known.
std::unique_ptr<normalizer const> read_normalizer(node const& description);

}  // namespace lm::tokenizers
