// Regular expressions as tokenizer.json has them, which are Oniguruma's with Ruby's syntax, matched by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace lm::tokenizers {

/// The same expression for PCRE2 with its UTF option, where \s, \d and \w are not what Unicode and Oniguruma
/// say. Throws gptq::error, with the part and its position, for what may mean something else there.
std::string to_pcre2(std::string_view expression);

struct match {
  std::size_t begin;
  std::size_t end;
};

/// May be used by several threads at a time.
class regex {
  struct compiled;
  std::shared_ptr<compiled const> code_;

 public:
  /// Throws gptq::error for an expression that is wrong, or of which to_pcre2() does not know the meaning.
  explicit regex(std::string_view expression);

  /// The first match in `text`, valid UTF-8, that begins at `from`, where a character begins, or after it.
  /// Throws gptq::error when there is no telling within a bounded number of steps.
  std::optional<match> search(std::string_view text, std::size_t from) const;
};

}  // namespace lm::tokenizers
