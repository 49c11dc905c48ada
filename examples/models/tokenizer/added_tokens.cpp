#include "added_tokens.hpp"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include <fmt/format.h>

#include "utf8.hpp"

namespace lm::tokenizers {
namespace {

added_token read_added_token(node const& description) {
  description.expect_only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
  return {description.at("id").token_id(),           description.string("content"),
          description.boolean("single_word", false), description.boolean("lstrip", false),
          description.boolean("rstrip", false),      description.boolean("normalized", true),
          description.boolean("special", false)};
}

bool is_single_word(std::string_view whole, match found) {
  std::string_view const before = whole.substr(0, found.begin);
  std::string_view const after = whole.substr(found.end);
  return (before.empty() || !is_word(last_character(before).code)) &&
         (after.empty() || !is_word(first_character(after).code));
}

}  // namespace

added_tokens::added_tokens(std::vector<node> const& descriptions, model const& m, normalizer const* n) {
  std::unordered_set<std::string> contents;
  for (node const& description : descriptions) {
    added_token token = read_added_token(description);
    if (token.content.empty()) continue;  // is nowhere to be found
    auto const known = m.tokens().id(token.content);
    auto const* const taken = m.tokens().text(token.id);
    if ((known && known != token.id) || (taken && *taken != token.content)) {
      description.fail(
          fmt::format("'{}' with id {} contradicts the model's vocabulary", token.content, token.id));
    }
    if (!contents.insert(token.content).second || positions_.contains(token.id)) {
      description.fail(fmt::format("'{}' with id {} is there twice", token.content, token.id));
    }
    auto const position = tokens_.size();
    std::string sought = token.content;
    if (token.normalized && n) {
      sought = n->normalized(std::move(sought));
      if (sought != token.content) decoded_.emplace(token.id, sought);
    }
    if (!sought.empty()) {
      sought_tokens& in = token.normalized ? normalized_ : raw_;
      in.words.insert(sought, static_cast<std::int32_t>(position));
      in.first_bytes[static_cast<unsigned char>(sought.front())] = true;
    }
    positions_.emplace(token.id, position);
    if (token.special) special_.insert(token.content);
    tokens_.push_back(std::move(token));
  }
}

added_token const* added_tokens::find(token_id id) const {
  auto const found = positions_.find(id);
  return found == positions_.end() ? nullptr : &tokens_[found->second];
}

std::string const* added_tokens::decoded(token_id id) const {
  if (auto const other = decoded_.find(id); other != decoded_.end()) return &other->second;
  auto const* const token = find(id);
  return token ? &token->content : nullptr;
}

void added_tokens::split(std::string_view whole, bool after_normalization,
                         function_ref<void(std::string_view, std::size_t)> text,
                         function_ref<void(token_id)> token) const {
  sought_tokens const& sought = after_normalization ? normalized_ : raw_;
  std::size_t done = 0;
  for (std::size_t at = 0; at < whole.size();) {
    if (!sought.first_bytes[static_cast<unsigned char>(whole[at])]) {
      ++at;
      continue;
    }
    // The longest that begins here.
    std::int32_t longest = -1;
    match found{at, at};
    std::uint32_t place = trie::root;
    for (std::size_t end = at; end < whole.size();) {
      place = sought.words.next(place, whole[end++]);
      if (place == trie::root) break;
      if (sought.words.value(place) < 0) continue;
      longest = sought.words.value(place);
      found.end = end;
    }
    if (longest < 0) {
      ++at;
      continue;
    }
    at = found.end;
    added_token const& t = tokens_[static_cast<std::size_t>(longest)];
    if (t.single_word && !is_single_word(whole, found)) continue;
    if (t.lstrip) found.begin = std::max(white_space_at_end(whole.substr(0, found.begin)), done);
    if (t.rstrip) found.end += white_space_at_start(whole.substr(found.end));
    if (done < found.begin) text(whole.substr(done, found.begin - done), done);
    token(t.id);
    done = found.end;
  }
  if (done < whole.size()) text(whole.substr(done), done);
}

}  // namespace lm::tokenizers
