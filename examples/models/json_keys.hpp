// The keys of a JSON object that somebody else has written: each is checked as it is read, and what nobody
// has read can be told.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace lm {

/// Throws gptq::error when this is a link to a file that is not there, as an unfinished download leaves them.
void check_link(std::filesystem::path const& path);

/// Contents of a JSON file. Throws gptq::error, naming the file, when it cannot be opened or is not JSON.
nlohmann::json parse_json(std::filesystem::path const& path);

/// One JSON object. A key that is null counts as missing, as it does in transformers. Every function that
/// reads throws gptq::error, naming the file and the key, when the value is not what it should be. Copies
/// share what has been read.
class json_keys {
 public:
  /// @param object  has to outlive this
  /// @param where   the beginning of every error
  json_keys(nlohmann::json const& object, std::string where);

  /// Null when it is missing.
  nlohmann::json const* find(std::string const& key) const;
  nlohmann::json const& at(std::string const& key) const;
  bool has(std::string const& key) const { return find(key) != nullptr; }
  /// Throws gptq::error: KEY is VALUE: `why`.
  [[noreturn]] void refuse(std::string const& key, std::string const& why) const;

  /// A whole number between 1 and 2^24.
  std::int64_t size(std::string const& key) const;
  std::int64_t size(std::string const& key, std::int64_t missing) const;
  int integer(std::string const& key) const;
  double positive(std::string const& key) const;
  double positive(std::string const& key, double missing) const;
  bool flag(std::string const& key, bool missing) const;
  std::string text(std::string const& key, std::string const& missing) const;
  /// One token id, or a list of them; none when missing.
  std::vector<std::int32_t> tokens(std::string const& key, std::int64_t vocab_size) const;
  /// A list of `count` positive numbers.
  std::vector<double> positives(std::string const& key, std::size_t count) const;
  json_keys object(std::string const& key) const;
  nlohmann::json const& members() const { return *object_; }

  /// Throws gptq::error, naming the key, unless KEY is missing or has this value.
  void require(std::string const& key, nlohmann::json const& value) const;
  /// Counts a key as read.
  void ignore(std::string const& key) const { read_->insert(key); }
  /// The first key that is not null and that nobody has read.
  std::optional<std::string> unread() const;
  std::string const& where() const { return where_; }

 private:
  nlohmann::json const* object_;
  std::string where_;
  std::shared_ptr<std::set<std::string>> read_;
};

}  // namespace lm
