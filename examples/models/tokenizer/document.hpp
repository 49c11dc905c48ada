// A JSON file, read with errors that name the file and the key.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace lm::tokenizers {

/// A value in a JSON document that outlives this, and the way to it: "tokenizer.json: model.vocab". What it
/// holds is not what was asked for: gptq::error with that way.
class node {
  nlohmann::json const* value_;
  std::string way_;

 public:
  node(nlohmann::json const& value, std::string way) : value_(&value), way_(std::move(way)) {}

  nlohmann::json const& value() const { return *value_; }
  std::string const& way() const { return way_; }

  bool has(std::string const& key) const;                  ///< with a value that is not null
  node at(std::string const& key) const;                   ///< must be there
  std::optional<node> find(std::string const& key) const;  ///< nothing for null

  std::string string() const;
  std::string string(std::string const& key) const { return at(key).string(); }
  bool boolean() const;
  bool boolean(std::string const& key, bool otherwise) const;
  std::int32_t token_id() const;  ///< not negative
  std::vector<node> elements() const;
  std::vector<std::pair<std::string, node>> members() const;

  /// What is written here decides how something is read: one character.
  char32_t single_character(std::string const& key) const;

  /// Throws unless every key of this object is one of these, or null: what is not known may change the
  /// result.
  void expect_only(std::initializer_list<std::string_view> keys) const;

  [[noreturn]] void fail(std::string const& message) const;
};

}  // namespace lm::tokenizers
