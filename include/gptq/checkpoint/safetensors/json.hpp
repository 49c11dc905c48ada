// JSON of files that are not trusted.
#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/error.hpp>

namespace gptq::checkpoint::detail {

/// Parses JSON that has no business being deep or saying anything twice.
/// @param source  what it is, for errors
inline nlohmann::json parse_json(std::string_view text, std::string const& source, int max_depth) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open, outermost first
  using event_t = nlohmann::json::parse_event_t;
  auto const check = [&](int depth, event_t event, nlohmann::json& value) {
    bool const opens = event == event_t::object_start || event == event_t::array_start;
    if (opens && depth >= max_depth) {
      throw error(source + ": nested deeper than " + std::to_string(max_depth) + " levels");
    }
    if (event == event_t::object_start) keys.emplace_back();
    if (event == event_t::object_end) keys.pop_back();
    if (event == event_t::key && !keys.back().insert(value.get<std::string>()).second) {
      throw error(source + ": '" + value.get<std::string>() + "' appears twice");
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, check);
  } catch (nlohmann::json::exception const& e) {
    throw error(source + ": not valid JSON: " + e.what());
  }
}

/// The unsigned integers of an object's array.
inline std::vector<std::size_t> integers(nlohmann::json const& object, char const* field,
                                         std::string const& source) {
  auto const found = object.find(field);
  if (found == object.end() || !found->is_array()) throw error(source + ": has no array '" + field + "'");
  std::vector<std::size_t> values;
  for (auto const& value : *found) {
    if (!value.is_number_unsigned()) {
      throw error(source + ": '" + field + "' holds " + value.dump() + ", which is not a size");
    }
    values.push_back(value.get<std::size_t>());
  }
  return values;
}

}  // namespace gptq::checkpoint::detail
