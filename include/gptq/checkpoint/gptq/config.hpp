// The configuration of a GPTQ checkpoint out of JSON and into it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <optional>
#include <regex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/gptq/tensors.hpp>
#include <gptq/error.hpp>

namespace gptq::checkpoint {

/// What the tensors of a layer hold.
struct gptq_layer_config {
  int bits = 4;            ///< 2, 3, 4 or 8
  int group_size = 128;    ///< columns that share a scale; -1: whole rows
  bool symmetric = true;   ///< "sym": fixed_zero; otherwise asymmetric
  bool act_order = false;  ///< "desc_act"; g_idx says the same
  bool operator==(gptq_layer_config const&) const = default;
};

/// An entry of "dynamic": layers whose names match are different from others, or not quantized.
struct gptq_rule {
  std::string pattern;  ///< a regular expression (ECMAScript) that a name begins with
  std::optional<gptq_layer_config> config = std::nullopt;  ///< nothing: not quantized
};

/// A whole checkpoint's.
struct gptq_config {
  gptq_layer_config layers;  ///< of all layers that no rule matches
  gptq_version version = gptq_version::v1;
  std::vector<gptq_rule> rules = {};  ///< the first that matches counts
};

namespace detail {

using nlohmann::ordered_json;

/// A pattern that only this name matches.
inline std::string pattern_for(std::string_view name) {
  std::string pattern = "^";
  for (char const c : name) {
    if (std::string_view("\\^$.|?*+()[]{}").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern + "$";
}

/// Compiles a pattern that comes from a file, in time that does not explode with it.
inline std::regex compile_pattern(std::string const& pattern, std::string const& source) {
  auto options = std::regex::ECMAScript | std::regex::optimize;
#ifdef __GLIBCXX__
  options |= std::regex_constants::__polynomial;
#endif
  try {
    return std::regex(pattern, options);
  } catch (std::regex_error const&) {
    throw error(source + ": '" + pattern + "' is not a regular expression that can be read");
  }
}

/// Of an object of JSON, for errors that name the key.
class config_reader {
 public:
  config_reader(ordered_json const& object, std::string name) : object_(object), name_(std::move(name)) {
    if (!object.is_object()) throw error(name_ + " is not an object");
  }

  ordered_json const* find(char const* key) const {
    auto const found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  [[noreturn]] void refuse(std::string const& key, std::string const& reason) const {
    auto const found = object_.find(key);
    throw error(name_ + ": '" + key + "' is " + (found == object_.end() ? "missing" : found->dump()) + ": " +
                reason);
  }
  int integer(char const* key, std::optional<int> otherwise) const {
    auto const* const value = find(key);
    if (value == nullptr && otherwise) return *otherwise;
    if (value == nullptr || !value->is_number_integer()) refuse(key, "not a whole number");
    auto const number = value->get<double>();
    if (!(number >= -1.0 && number <= 1e9)) refuse(key, "out of range");
    return value->get<int>();
  }
  bool flag(char const* key, bool otherwise) const {
    auto const* const value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) refuse(key, "neither true nor false");
    return value->get<bool>();
  }
  std::optional<std::string> text(char const* key) const {
    auto const* const value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) refuse(key, "not a string");
    return value->get<std::string>();
  }
  ordered_json const& members() const { return object_; }
  std::string const& name() const { return name_; }

 private:
  ordered_json const& object_;
  std::string name_;
};

inline gptq_layer_config read_layer_config(config_reader const& in, gptq_layer_config const* otherwise) {
  auto const missing = [&](int gptq_layer_config::*member) {
    return otherwise != nullptr ? std::optional(otherwise->*member) : std::nullopt;
  };
  gptq_layer_config config;
  config.bits = in.integer("bits", missing(&gptq_layer_config::bits));
  if (config.bits != 2 && config.bits != 3 && config.bits != 4 && config.bits != 8) {
    in.refuse("bits", "not 2, 3, 4 or 8");
  }
  config.group_size = in.integer("group_size", missing(&gptq_layer_config::group_size));
  if (config.group_size != -1 && config.group_size < 1) in.refuse("group_size", "neither -1 nor positive");
  config.symmetric = in.flag("sym", otherwise == nullptr || otherwise->symmetric);
  config.act_order = in.flag("desc_act", otherwise != nullptr && otherwise->act_order);
  return config;
}

/// "checkpoint_format" and "format" are the same key by two names.
inline gptq_version read_version(config_reader const& in) {
  std::optional<gptq_version> version;
  for (auto const* const key : {"checkpoint_format", "format"}) {
    auto const text = in.text(key);
    if (!text) continue;
    if (*text != "gptq" && *text != "gptq_v2") in.refuse(key, "only gptq and gptq_v2 can be read");
    auto const given = *text == "gptq" ? gptq_version::v1 : gptq_version::v2;
    if (version && *version != given) in.refuse(key, "\"checkpoint_format\" says something else");
    version = given;
  }
  return version.value_or(gptq_version::v1);
}

// Keys of an entry of "dynamic" that say how a layer was quantized, and nothing of what its tensors hold.
inline constexpr std::array<std::string_view, 10> harmless_keys{
    "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "mse", "act_group_aware",
    "hyb_act",      "mock_quantization",   "fail_safe",     "lm_head"};

inline gptq_rule read_rule(std::string const& key, ordered_json const& value, gptq_layer_config const& layers,
                           std::string const& source) {
  constexpr std::size_t most = 2000;
  if (key.size() > most)
    throw error(source + ": dynamic: a pattern of " + std::to_string(key.size()) + " bytes");
  std::string const name = source + ": dynamic '" + key + "'";
  bool const excludes = key.starts_with("-:");
  std::string const pattern = excludes || key.starts_with("+:") ? key.substr(2) : key;
  compile_pattern(pattern, name);
  if (excludes) return {pattern};
  config_reader const in(value, name);
  for (auto const& [member, _] : value.items()) {
    bool const is_read =
        member == "bits" || member == "group_size" || member == "sym" || member == "desc_act";
    if (!is_read && std::find(harmless_keys.begin(), harmless_keys.end(), member) == harmless_keys.end()) {
      in.refuse(member, "not known");
    }
  }
  return {pattern, read_layer_config(in, &layers)};
}

inline gptq_config read_config(ordered_json const& json, std::string const& source) {
  config_reader const in(json, source);
  for (auto const* const key : {"quant_method", "method"}) {
    if (auto const method = in.text(key); method && *method != "gptq")
      in.refuse(key, "only gptq can be read");
  }
  if (in.flag("is_marlin_format", false)) in.refuse("is_marlin_format", "only gptq and gptq_v2 can be read");
  if (auto const type = in.text("pack_dtype"); type && *type != "int32") {
    in.refuse("pack_dtype", "only int32 can be read");
  }
  for (auto const* const key : {"rotation", "adapter"}) {
    if (in.find(key) != nullptr) in.refuse(key, "changes what layers compute, and is not implemented");
  }
  gptq_config config;
  config.layers = read_layer_config(in, nullptr);
  config.version = read_version(in);
  if (auto const* const dynamic = in.find("dynamic")) {
    config_reader const rules(*dynamic, source + ": dynamic");
    for (auto const& [key, value] : rules.members().items()) {
      config.rules.push_back(read_rule(key, value, config.layers, source));
    }
  }
  return config;
}

inline ordered_json write_config(gptq_config const& config) {
  auto const& layers = config.layers;
  char const* const version = config.version == gptq_version::v1 ? "gptq" : "gptq_v2";
  ordered_json json{{"quant_method", "gptq"},
                    {"bits", layers.bits},
                    {"group_size", layers.group_size},
                    {"desc_act", layers.act_order},
                    {"sym", layers.symmetric},
                    {"checkpoint_format", version},
                    {"format", version},
                    {"pack_dtype", "int32"}};
  for (gptq_rule const& rule : config.rules) {
    std::string const key = (rule.config ? "+:" : "-:") + rule.pattern;
    if (json.contains("dynamic") && json["dynamic"].contains(key)) continue;  // the first one counts
    ordered_json value = ordered_json::object();
    if (rule.config && rule.config->bits != layers.bits) value["bits"] = rule.config->bits;
    if (rule.config && rule.config->group_size != layers.group_size) {
      value["group_size"] = rule.config->group_size;
    }
    if (rule.config && rule.config->act_order != layers.act_order) value["desc_act"] = rule.config->act_order;
    if (rule.config && rule.config->symmetric != layers.symmetric) value["sym"] = rule.config->symmetric;
    json["dynamic"][key] = value;
  }
  return json;
}

inline std::map<std::string, std::optional<gptq_layer_config>> find_layer_configs(
    gptq_config const& config, std::vector<std::string> const& layers) {
  std::vector<std::regex> patterns;
  for (gptq_rule const& rule : config.rules) {
    patterns.push_back(compile_pattern(rule.pattern, "GPTQ configuration"));
  }
  std::map<std::string, std::optional<gptq_layer_config>> found;
  for (std::string const& layer : layers) {
    auto const matches = [&](std::regex const& pattern) {
      return std::regex_search(layer, pattern, std::regex_constants::match_continuous);
    };
    auto const first = std::find_if(patterns.begin(), patterns.end(), matches) - patterns.begin();
    auto const rule = static_cast<std::size_t>(first);
    found[layer] = rule == patterns.size() ? config.layers : config.rules[rule].config;
  }
  return found;
}

inline std::optional<gptq_layer_config> find_layer_config(gptq_config const& config,
                                                          std::string const& layer) {
  return find_layer_configs(config, {layer}).at(layer);
}

inline gptq_config summarize(std::map<std::string, std::optional<gptq_layer_config>> const& layers,
                             gptq_version version) {
  std::vector<std::pair<gptq_layer_config, std::size_t>> counts;
  for (auto const& layer : layers) {
    auto const& config = layer.second;
    if (!config) continue;
    auto const same = [&](auto const& entry) { return entry.first == *config; };
    auto const found = std::find_if(counts.begin(), counts.end(), same);
    if (found == counts.end()) {
      counts.emplace_back(*config, 1);
    } else {
      ++found->second;
    }
  }
  if (counts.empty()) throw error("GPTQ configuration: no layer is quantized");
  auto const fewer = [](auto const& a, auto const& b) { return a.second < b.second; };
  gptq_config summary{std::max_element(counts.begin(), counts.end(), fewer)->first, version};
  for (auto const& [name, config] : layers) {
    if (config != summary.layers) summary.rules.push_back({pattern_for(name), config});
  }
  return summary;
}

}  // namespace detail
}  // namespace gptq::checkpoint
