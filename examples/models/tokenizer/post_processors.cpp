#include "post_processors.hpp"

#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace lm::tokenizers {
namespace {

/// [{"SpecialToken": {"id": "<s>", …}}, {"Sequence": {"id": "A", …}}, …]
surroundings read_template(node const& description) {
  description.expect_only({"type", "single", "pair", "special_tokens"});
  surroundings result;
  bool has_text = false;
  for (node const& part : description.at("single").elements()) {
    part.expect_only({"SpecialToken", "Sequence"});
    if (auto const special = part.find("SpecialToken")) {
      auto& to = has_text ? result.after : result.before;
      std::string const name = special->string("id");
      node const entry = description.at("special_tokens").at(name);
      for (node const& id : entry.at("ids").elements()) to.push_back(id.token_id());
      continue;
    }
    node const sequence = part.at("Sequence");
    if (has_text || sequence.string("id") != "A") sequence.fail("is not the one text");
    has_text = true;
  }
  if (!has_text) description.at("single").fail("has no place for the text");
  return result;
}

/// ["</s>", 2]
token_id read_token(node const& description) {
  auto const parts = description.elements();
  if (parts.size() != 2) description.fail("is not a token and its id");
  return parts[1].token_id();
}

}  // namespace

surroundings read_post_processor(node const& description) {
  std::string const type = description.string("type");
  if (type == "TemplateProcessing") return read_template(description);
  if (type == "ByteLevel") {
    // About where tokens lie in the text.
    description.expect_only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    return {};
  }
  if (type == "RobertaProcessing" || type == "BertProcessing") {
    description.expect_only({"type", "sep", "cls", "trim_offsets", "add_prefix_space"});
    return {{read_token(description.at("cls"))}, {read_token(description.at("sep"))}};
  }
  if (type == "Sequence") {
    description.expect_only({"type", "processors"});
    surroundings result;
    for (node const& step : description.at("processors").elements()) {
      surroundings const more = read_post_processor(step);
      result.before.insert(result.before.begin(), more.before.begin(), more.before.end());
      result.after.insert(result.after.end(), more.after.begin(), more.after.end());
    }
    return result;
  }
  description.fail(fmt::format("a post-processor of type '{}' is not understood", type));
}

}  // namespace lm::tokenizers
