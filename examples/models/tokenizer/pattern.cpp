#include "pattern.hpp"

#include <gptq/error.hpp>

#include "utf8.hpp"

namespace lm::tokenizers {

std::optional<match> pattern::first(std::string_view in, std::size_t from) const {
  if (expression_) return expression_->search(in, from);
  std::size_t const begin = in.find(text_, from);
  if (begin == std::string_view::npos) return std::nullopt;
  return match{begin, begin + text_.size()};
}

std::optional<match> pattern::search::next() {
  while (from_ <= in_.size()) {
    auto const found = for_->first(in_, from_);
    if (!found) break;
    if (found->begin == found->end && last_end_ == found->end) {
      from_ += from_ < in_.size() ? first_character(in_.substr(from_)).size : 1;
      continue;
    }
    from_ = found->end;
    last_end_ = found->end;
    return found;
  }
  from_ = in_.size() + 1;
  return std::nullopt;
}

std::string pattern::replaced(std::string_view text, std::string_view content) const {
  std::string result;
  std::size_t copied = 0;
  search matches(*this, text);
  while (auto const found = matches.next()) {
    result += text.substr(copied, found->begin - copied);
    result += content;
    copied = found->end;
  }
  result += text.substr(copied);
  return result;
}

pattern read_pattern(node const& description) {
  description.expect_only({"String", "Regex"});
  if (auto const text = description.find("String")) return pattern(text->string());
  node const expression = description.at("Regex");
  try {
    return pattern(regex(expression.string()));
  } catch (gptq::error const& e) {
    expression.fail(e.what());
  }
}

}  // namespace lm::tokenizers
