// What Split and Replace look for: {"String": …} or {"Regex": …}.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "document.hpp"
#include "regex.hpp"

namespace lm::tokenizers {

class pattern {
  std::string text_;
  std::shared_ptr<regex const> expression_;  // nullptr: the text

  std::optional<match> first(std::string_view in, std::size_t from) const;

 public:
  explicit pattern(std::string text) : text_(std::move(text)) {}
  explicit pattern(regex const& expression) : expression_(std::make_shared<regex const>(expression)) {}

  /// Finds the matches in a text, one after the other.
  class search {
    pattern const* for_;
    std::string_view in_;
    std::size_t from_ = 0;
    std::optional<std::size_t> last_end_;

   public:
    search(pattern const& sought, std::string_view text) : for_(&sought), in_(text) {}
    /// An empty match only where no match has just ended.
    std::optional<match> next();
  };

  std::string replaced(std::string_view text, std::string_view content) const;
};

/// @param description  the object {"String": …} or {"Regex": …}
pattern read_pattern(node const& description);

}  // namespace lm::tokenizers
