#include "document.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <gptq/error.hpp>

#include "utf8.hpp"

namespace lm::tokenizers {
namespace {

/// Of something deeper, reading would need as deep a stack.
constexpr std::size_t longest_way = 4096;

/// A member's way after that of what it is in, which ends in ": " for a document itself.
std::string way_to(std::string const& from, std::string const& key) {
  return from.ends_with(": ") ? from + key : from + "." + key;
}

}  // namespace

void node::fail(std::string const& message) const {
  throw gptq::error(way_.ends_with(": ") ? way_ + message : way_ + ": " + message);
}

bool node::has(std::string const& key) const { return find(key).has_value(); }

std::optional<node> node::find(std::string const& key) const {
  if (!value_->is_object()) fail("is not an object");
  auto const found = value_->find(key);
  if (found == value_->end() || found->is_null()) return std::nullopt;
  return node(*found, way_to(way_, key));
}

node node::at(std::string const& key) const {
  auto found = find(key);
  if (!found) fail(fmt::format("'{}' is missing", key));
  return *found;
}

std::string node::string() const {
  if (!value_->is_string()) fail("is not a string");
  return value_->get<std::string>();
}

bool node::boolean() const {
  if (!value_->is_boolean()) fail("is not true or false");
  return value_->get<bool>();
}

bool node::boolean(std::string const& key, bool otherwise) const {
  auto const found = find(key);
  return found ? found->boolean() : otherwise;
}

std::int32_t node::token_id() const {
  constexpr auto most = std::int32_t{1} << 30;  // far above any, and far below where counting them overflows
  if (!value_->is_number_unsigned() || value_->get<std::uint64_t>() > static_cast<std::uint64_t>(most)) {
    fail("is not the id of a token");
  }
  return value_->get<std::int32_t>();
}

std::vector<node> node::elements() const {
  if (way_.size() > longest_way) fail("is nested too deeply");
  if (!value_->is_array()) fail("is not an array");
  std::vector<node> result;
  result.reserve(value_->size());
  for (auto const& element : *value_)
    result.emplace_back(element, fmt::format("{}[{}]", way_, result.size()));
  return result;
}

std::vector<std::pair<std::string, node>> node::members() const {
  if (!value_->is_object()) fail("is not an object");
  std::vector<std::pair<std::string, node>> result;
  result.reserve(value_->size());
  for (auto const& [key, value] : value_->items()) result.emplace_back(key, node(value, way_to(way_, key)));
  return result;
}

char32_t node::single_character(std::string const& key) const {
  node const member = at(key);
  std::string const text = member.string();
  if (text.empty() || first_character(text).size != text.size()) member.fail("is not one character");
  return first_character(text).code;
}

void node::expect_only(std::initializer_list<std::string_view> keys) const {
  if (!value_->is_object()) fail("is not an object");
  for (auto const& [key, value] : value_->items()) {
    if (value.is_null()) continue;
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
      fail(fmt::format("'{}' is not understood", key));
    }
  }
}

}  // namespace lm::tokenizers
