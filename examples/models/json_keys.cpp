#include "json_keys.hpp"

#include <cmath>
#include <fstream>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include <gptq/error.hpp>

namespace lm {

using nlohmann::json;

void check_link(std::filesystem::path const& path) {
  std::error_code failure;
  if (!std::filesystem::is_symlink(path, failure) || std::filesystem::exists(path, failure)) return;
  throw gptq::error(path.string() + ": the file it points to is not there");
}

json parse_json(std::filesystem::path const& path) {
  check_link(path);
  std::ifstream in(path, std::ios::binary);
  if (!in) throw gptq::error(path.string() + ": cannot be opened");
  try {
    return json::parse(in);
  } catch (json::exception const& e) {
    throw gptq::error(path.string() + ": not valid JSON: " + e.what());
  }
}

json_keys::json_keys(json const& object, std::string where)
    : object_(&object), where_(std::move(where)), read_(std::make_shared<std::set<std::string>>()) {
  if (!object.is_object()) throw gptq::error(where_ + ": is not a JSON object");
}

json const* json_keys::find(std::string const& key) const {
  read_->insert(key);
  auto const found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

json const& json_keys::at(std::string const& key) const {
  auto const* const value = find(key);
  if (value == nullptr) throw gptq::error(fmt::format("{}: has no '{}'", where_, key));
  return *value;
}

void json_keys::refuse(std::string const& key, std::string const& why) const {
  throw gptq::error(fmt::format("{}: '{}' is {}: {}", where_, key, at(key).dump(), why));
}

std::int64_t json_keys::size(std::string const& key) const {
  constexpr std::int64_t limit = std::int64_t{1} << 24;
  json const& value = at(key);
  if (!value.is_number_integer() || value < 1 || value > limit) {
    refuse(key, fmt::format("not a whole number between 1 and {}", limit));
  }
  return value.get<std::int64_t>();
}

std::int64_t json_keys::size(std::string const& key, std::int64_t missing) const {
  return has(key) ? size(key) : missing;
}

int json_keys::integer(std::string const& key) const {
  json const& value = at(key);
  if (!value.is_number_integer() || value < -(1 << 30) || value > (1 << 30)) {
    refuse(key, "not a whole number");
  }
  return value.get<int>();
}

double json_keys::positive(std::string const& key) const {
  json const& value = at(key);
  if (!value.is_number() || !(value.get<double>() > 0.0) || !std::isfinite(value.get<double>())) {
    refuse(key, "not a positive number");
  }
  return value.get<double>();
}

double json_keys::positive(std::string const& key, double missing) const {
  return has(key) ? positive(key) : missing;
}

bool json_keys::flag(std::string const& key, bool missing) const {
  if (!has(key)) return missing;
  if (!at(key).is_boolean()) refuse(key, "neither true nor false");
  return at(key).get<bool>();
}

std::string json_keys::text(std::string const& key, std::string const& missing) const {
  if (!has(key)) return missing;
  if (!at(key).is_string()) refuse(key, "not a string");
  return at(key).get<std::string>();
}

std::vector<std::int32_t> json_keys::tokens(std::string const& key, std::int64_t vocab_size) const {
  std::vector<std::int32_t> ids;
  auto const* const value = find(key);
  if (value == nullptr) return ids;
  for (json const& id : value->is_array() ? *value : json::array({*value})) {
    if (!id.is_number_integer() || id < 0 || id >= vocab_size) refuse(key, "not a token of the vocabulary");
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

std::vector<double> json_keys::positives(std::string const& key, std::size_t count) const {
  json const& value = at(key);
  std::vector<double> numbers;
  if (value.is_array()) {
    for (json const& number : value) {
      if (number.is_number() && number.get<double>() > 0.0) numbers.push_back(number.get<double>());
    }
  }
  if (!value.is_array() || numbers.size() != value.size() || numbers.size() != count) {
    refuse(key, fmt::format("not a list of {} positive numbers", count));
  }
  return numbers;
}

json_keys json_keys::object(std::string const& key) const {
  return {at(key), fmt::format("{}: '{}'", where_, key)};
}

void json_keys::require(std::string const& key, json const& value) const {
  if (has(key) && at(key) != value) refuse(key, fmt::format("only {} is implemented", value.dump()));
}

std::optional<std::string> json_keys::unread() const {
  for (auto const& [key, value] : object_->items()) {
    if (!value.is_null() && !read_->contains(key)) return key;
  }
  return std::nullopt;
}

}  // namespace lm
