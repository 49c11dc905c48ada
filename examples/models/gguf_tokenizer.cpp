#include "gguf_tokenizer.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <gptq/error.hpp>

#include "gguf_model.hpp"
#include "json_keys.hpp"
#include "pre_tokenizers.hpp"
#include "tokenizer/tokenizer.hpp"

#ifdef GPTQ_WITH_SENTENCEPIECE
#include <sentencepiece_processor.h>
#endif

namespace lm {
namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::gguf_metadata;
using nlohmann::json;

/// What a token is, as llama.cpp numbers it.
enum class token_type : std::int32_t { normal = 1, unknown, control, user_defined, unused, byte };

/// Score of a token that no merge makes: llama.cpp then merges to it last.
constexpr float no_score = -1e6F;

struct vocabulary {
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<std::int32_t> types;

  explicit vocabulary(config const& c) {
    auto const size = static_cast<std::size_t>(c.vocab_size);
    for (std::size_t i = 0; i < size; ++i) tokens.push_back(fmt::format("[PAD{}]", i));
    scores.assign(size, no_score);
    types.assign(size, static_cast<std::int32_t>(token_type::unused));
  }
  /// @param id  as some file has it, for which an error is the reader's
  void set(std::int64_t id, std::string text, float score, token_type type, std::string const& where) {
    if (id < 0 || id >= static_cast<std::int64_t>(tokens.size())) {
      throw gptq::error(
          fmt::format("{}: token {} is outside the model's vocabulary of {}", where, id, tokens.size()));
    }
    auto const at = static_cast<std::size_t>(id);
    tokens[at] = std::move(text);
    scores[at] = score;
    types[at] = static_cast<std::int32_t>(type);
  }
};

/// tokenizer_config.json, or an empty object.
json tokenizer_config_in(fs::path const& directory) {
  auto const path = directory / "tokenizer_config.json";
  if (!fs::exists(path)) return json::object();
  json document = parse_json(path);
  if (!document.is_object()) throw gptq::error(path.string() + ": is not a JSON object");
  return document;
}

/// The text of a token that tokenizer_config.json names: a string, or an object with "content".
std::optional<std::string> text_of(json const& config, char const* key) {
  auto const found = config.find(key);
  if (found == config.end()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (found->is_object() && found->contains("content") && (*found)["content"].is_string()) {
    return (*found)["content"].get<std::string>();
  }
  return std::nullopt;
}

std::optional<bool> flag_of(json const& config, char const* key) {
  auto const found = config.find(key);
  if (found == config.end() || !found->is_boolean()) return std::nullopt;
  return found->get<bool>();
}

/// @param puts_bos  whether the tokenizer puts it before a text, unless tokenizer_config.json says otherwise
void add_special_tokens(gguf_metadata& metadata, vocabulary const& v, config const& c,
                        fs::path const& directory, bool puts_bos) {
  json const settings = tokenizer_config_in(directory);
  auto const id_of = [&](char const* key, std::optional<std::int32_t> otherwise) {
    if (auto const text = text_of(settings, key)) {
      auto const found = std::find(v.tokens.begin(), v.tokens.end(), *text);
      if (found != v.tokens.end()) return std::optional(static_cast<std::int32_t>(found - v.tokens.begin()));
    }
    return otherwise;
  };
  auto const add = [&](char const* key, std::optional<std::int32_t> id) {
    if (id) metadata.add(key, static_cast<std::uint32_t>(*id));
  };
  add("tokenizer.ggml.bos_token_id", id_of("bos_token", c.bos_token_id));
  add("tokenizer.ggml.eos_token_id",
      id_of("eos_token", c.eos_token_id.empty() ? std::nullopt : std::optional(c.eos_token_id.front())));
  add("tokenizer.ggml.padding_token_id", id_of("pad_token", std::nullopt));
  metadata.add("tokenizer.ggml.add_bos_token", flag_of(settings, "add_bos_token").value_or(puts_bos));
  metadata.add("tokenizer.ggml.add_eos_token", flag_of(settings, "add_eos_token").value_or(false));
}

/// Tokens that files beside the vocabulary add to it. Those past the model's vocabulary, which pad it, are
/// left out: the model has no row for them.
/// @param added  objects with "id", "content" and "special"
void add_to(vocabulary& v, json const& added, std::string const& where) {
  for (json const& token : added) {
    std::int64_t const id = token.at("id").get<std::int64_t>();
    if (id >= static_cast<std::int64_t>(v.tokens.size())) continue;
    bool const special = token.value("special", false);
    v.set(id, token.at("content").get<std::string>(), no_score,
          special ? token_type::control : token_type::user_defined, where);
  }
}

/// Vocabularies that merge pieces by their scores.
/// @param space_before  whether a text gets a space before its first word
void add_scored(gguf_metadata& metadata, vocabulary const& v, config const& c, fs::path const& directory,
                bool space_before, bool puts_bos) {
  metadata.add("tokenizer.ggml.model", "llama");
  metadata.add("tokenizer.ggml.pre", "default");
  metadata.add("tokenizer.ggml.tokens", v.tokens);
  metadata.add("tokenizer.ggml.scores", v.scores);
  metadata.add("tokenizer.ggml.token_type", v.types);
  auto const unknown = std::find(v.types.begin(), v.types.end(), std::int32_t(token_type::unknown));
  if (unknown != v.types.end()) {
    metadata.add("tokenizer.ggml.unknown_token_id", static_cast<std::uint32_t>(unknown - v.types.begin()));
  }
  metadata.add("tokenizer.ggml.add_space_prefix", space_before);
  add_special_tokens(metadata, v, c, directory, puts_bos);
}

/// Appends "added_tokens" of a tokenizer.json, if there is one.
void json_added_tokens(fs::path const& path, json& added) {
  if (!fs::exists(path)) return;
  json const document = parse_json(path);
  for (json const& token : document.value("added_tokens", json::array())) added.push_back(token);
}

#ifdef GPTQ_WITH_SENTENCEPIECE
void add_sentencepiece(gguf_metadata& metadata, fs::path const& path, config const& c) {
  sentencepiece::SentencePieceProcessor model;
  if (auto const status = model.Load(path.string()); !status.ok()) {
    throw gptq::error(path.string() + ": sentencepiece: " + status.ToString());
  }
  vocabulary v(c);
  for (int id = 0; id < model.GetPieceSize(); ++id) {
    token_type const type = model.IsUnknown(id)   ? token_type::unknown
                            : model.IsControl(id) ? token_type::control
                            : model.IsUnused(id)  ? token_type::unused
                            : model.IsByte(id)    ? token_type::byte
                                                  : token_type::normal;
    v.set(id, model.IdToPiece(id), model.GetScore(id), type, path.string());
  }
  // Tokens that were added to the model afterwards.
  auto const directory = path.parent_path();
  if (auto const file = directory / "added_tokens.json"; fs::exists(file)) {
    json const ids = parse_json(file);
    json added = json::array();
    for (auto const& [text, id] : ids.items()) {
      if (!id.is_number_integer()) throw gptq::error(fmt::format("{}: '{}' has no id", file.string(), text));
      added.push_back({{"id", id}, {"content", text}});
    }
    add_to(v, added, file.string());
  }
  try {
    json added = json::array();
    json const settings = tokenizer_config_in(directory);
    json const by_id = settings.value("added_tokens_decoder", json::object());
    for (auto const& [id, token] : by_id.items()) {
      json entry = token;
      entry["id"] = std::stoll(id);
      added.push_back(entry);
    }
    json_added_tokens(directory / "tokenizer.json", added);
    for (json const& token : added) {
      // What sentencepiece has, it knows better.
      std::int64_t const id = token.at("id").get<std::int64_t>();
      if (id >= model.GetPieceSize()) add_to(v, json::array({token}), directory.string());
    }
  } catch (std::exception const& e) {
    throw gptq::error(fmt::format("{}: tokens that are added to it: {}", directory.string(), e.what()));
  }
  std::string const probe = "a";
  std::vector<int> ids;
  bool const space_before = model.Encode(probe, &ids).ok() && !ids.empty() &&
                            model.IdToPiece(ids.front()).starts_with("\xe2\x96\x81");
  add_scored(metadata, v, c, directory, space_before, true);
}
#else
void add_sentencepiece(gguf_metadata&, fs::path const& path, config const&) {
  throw gptq::error(path.string() + ": this program was built without sentencepiece");
}
#endif

/// "a b", as merges are written; newer files have them as pairs.
std::string merge_of(json const& merge) {
  if (merge.is_string()) return merge.get<std::string>();
  return merge.at(0).get<std::string>() + " " + merge.at(1).get<std::string>();
}

/// Whether a text's first word gets the space that others have before them.
bool puts_space_before(json const& document) {
  auto const says = [](json const& step) {
    std::string const type = step.is_object() ? step.value("type", "") : "";
    if (type == "Prepend") return true;
    return type == "Metaspace" &&
           step.value("prepend_scheme", step.value("add_prefix_space", true) ? "always" : "never") !=
               std::string("never");
  };
  for (auto const& [key, list] :
       {std::pair{"normalizer", "normalizers"}, std::pair{"pre_tokenizer", "pretokenizers"}}) {
    json const whole = document.value(key, json());
    if (says(whole)) return true;
    if (!whole.is_object()) continue;
    for (json const& step : whole.value(list, json::array())) {
      if (says(step)) return true;
    }
  }
  return false;
}

/// Whether the post-processor puts the first token of all before a text.
bool puts_bos(json const& document, fs::path const& path, config const& c) {
  if (document.value("post_processor", json()).is_null()) return false;
  auto const before = tokenizers::tokenizer::parse(document.dump(), path.string()).before();
  return !before.empty() && c.bos_token_id && before.front() == *c.bos_token_id;
}

void add_tokenizer_json(gguf_metadata& metadata, fs::path const& path, config const& c) {
  json const document = parse_json(path);
  try {
    json const& model = document.at("model");
    if (model.value("type", "BPE") != "BPE") {
      throw gptq::error(fmt::format("{}: its model is {}: only BPE can be written", path.string(),
                                    model.at("type").dump()));
    }
    bool const byte_fallback = model.value("byte_fallback", false);
    vocabulary v(c);
    for (auto const& [text, id] : model.at("vocab").items()) {
      bool const byte = byte_fallback && text.size() == 6 && text.starts_with("<0x") && text.ends_with(">");
      v.set(id.get<std::int64_t>(), text, no_score, byte ? token_type::byte : token_type::normal,
            path.string());
    }
    std::vector<std::string> merges;
    for (json const& merge : model.at("merges")) merges.push_back(merge_of(merge));
    add_to(v, document.value("added_tokens", json::array()), path.string());
    if (byte_fallback) {
      // The earliest merge first is the same as the best score of what it makes.
      json const& ids = model.at("vocab");
      for (std::size_t rank = 0; rank < merges.size(); ++rank) {
        std::string made = merges[rank];
        std::size_t const space = made.find(' ');
        if (space == std::string::npos) {
          throw gptq::error(fmt::format("{}: merge '{}' is not two pieces", path.string(), made));
        }
        made.erase(space, 1);
        auto const id = ids.find(made);
        if (id == ids.end()) continue;
        float& score = v.scores[id->get<std::size_t>()];
        if (score == no_score) score = -static_cast<float>(rank);
      }
      if (auto const unknown = model.find("unk_token"); unknown != model.end() && unknown->is_string()) {
        v.types[ids.at(unknown->get<std::string>()).get<std::size_t>()] =
            static_cast<std::int32_t>(token_type::unknown);
      }
      add_scored(metadata, v, c, path.parent_path(), puts_space_before(document),
                 puts_bos(document, path, c));
      return;
    }
    std::string const pre = identify_pre_tokenizer(document, path.string());
    metadata.add("tokenizer.ggml.model", "gpt2");
    metadata.add("tokenizer.ggml.pre", pre);
    metadata.add("tokenizer.ggml.tokens", v.tokens);
    metadata.add("tokenizer.ggml.token_type", v.types);
    metadata.add("tokenizer.ggml.merges", merges);
    add_special_tokens(metadata, v, c, path.parent_path(), puts_bos(document, path, c));
  } catch (json::exception const& e) {
    throw gptq::error(path.string() + ": not a tokenizer: " + e.what());
  }
}

/// Bytes as byte-level BPE writes them: printable Latin-1 as itself, the others from U+0100 on.
void add_bytes(gguf_metadata& metadata, config const& c) {
  std::vector<std::string> tokens;
  unsigned next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    bool const printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
    unsigned const code = printable ? byte : next++;
    std::string text;
    if (code < 0x80) {
      text += static_cast<char>(code);
    } else {
      text += static_cast<char>(0xc0 | code >> 6);
      text += static_cast<char>(0x80 | (code & 0x3f));
    }
    tokens.push_back(text);
  }
  metadata.add("tokenizer.ggml.model", "gpt2");
  metadata.add("tokenizer.ggml.pre", "gpt-2");
  metadata.add("tokenizer.ggml.tokens", tokens);
  metadata.add("tokenizer.ggml.token_type", std::vector<std::int32_t>(256, std::int32_t(token_type::normal)));
  metadata.add("tokenizer.ggml.merges", std::vector<std::string>());
  if (c.bos_token_id)
    metadata.add("tokenizer.ggml.bos_token_id", static_cast<std::uint32_t>(*c.bos_token_id));
  if (!c.eos_token_id.empty()) {
    metadata.add("tokenizer.ggml.eos_token_id", static_cast<std::uint32_t>(c.eos_token_id.front()));
  }
  metadata.add("tokenizer.ggml.add_bos_token", false);
}

}  // namespace

void add_tokenizer(gguf_metadata& metadata, fs::path const& directory, config const& c) {
  if (auto const path = directory / "tokenizer.model"; fs::exists(path)) {
    add_sentencepiece(metadata, path, c);
  } else if (auto const json_path = directory / "tokenizer.json"; fs::exists(json_path)) {
    add_tokenizer_json(metadata, json_path, c);
  } else if (c.vocab_size == 256) {
    add_bytes(metadata, c);
  } else {
    metadata.add("tokenizer.ggml.model", "none");
  }
  if (auto const chat = chat_template_in(directory)) metadata.add("tokenizer.chat_template", *chat);
}

std::optional<std::string> chat_template_in(fs::path const& directory) {
  if (auto const path = directory / "chat_template.jinja"; fs::exists(path)) {
    std::ifstream in(path, std::ios::binary);
    return std::string{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }
  json const chat = tokenizer_config_in(directory).value("chat_template", json());
  if (chat.is_string()) return chat.get<std::string>();
  if (!chat.is_array()) return std::nullopt;
  for (json const& entry : chat) {
    if (entry.is_object() && entry.value("name", "") == "default" && entry.contains("template") &&
        entry["template"].is_string()) {
      return entry["template"].get<std::string>();
    }
  }
  return std::nullopt;
}

std::optional<std::string> chat_template_of(fs::path const& model) {
  if (!is_gguf(model)) return chat_template_in(model);
  gptq::checkpoint::gguf_file const file(model);
  auto const text = file.get<std::string_view>("tokenizer.chat_template");
  return text ? std::optional(std::string(*text)) : std::nullopt;
}

std::optional<std::string> tokenizer_json_in(gptq::checkpoint::gguf_file const& file,
                                             std::string const& name) {
  auto const kind = file.get<std::string_view>("tokenizer.ggml.model");
  if (!kind || *kind == "none") return std::nullopt;
  if (*kind != "gpt2") {
    throw gptq::error(
        fmt::format("{}: its tokenizer is {}: only gpt2, byte-level BPE, can be used without the files "
                    "tokenizer.json or tokenizer.model beside it",
                    name, *kind));
  }
  auto const pre_name = file.get<std::string_view>("tokenizer.ggml.pre").value_or("gpt-2");
  auto const pre = find_pre_tokenizer(pre_name == "default" ? "gpt-2" : pre_name);
  if (!pre)
    throw gptq::error(fmt::format("{}: its pre-tokenizer is {}, which is not known here", name, pre_name));
  auto const tokens = file.at<std::vector<std::string_view>>("tokenizer.ggml.tokens");
  auto const types = file.at<std::vector<std::int64_t>>("tokenizer.ggml.token_type");
  if (types.size() != tokens.size()) {
    throw gptq::error(fmt::format("{}: has {} tokens, but types of {}", name, tokens.size(), types.size()));
  }
  json vocabulary = json::object();
  json added = json::array();
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    auto const type = token_type(types[id]);
    if (type == token_type::unused) continue;
    vocabulary[std::string(tokens[id])] = id;
    if (type != token_type::control && type != token_type::user_defined) continue;
    added.push_back({{"id", id},
                     {"content", tokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", type == token_type::control}});
  }
  json post = nullptr;
  auto const bos = file.get<std::int64_t>("tokenizer.ggml.bos_token_id");
  if (bos && *bos >= 0 && static_cast<std::size_t>(*bos) < tokens.size() &&
      file.get<bool>("tokenizer.ggml.add_bos_token").value_or(pre->ignore_merges)) {
    std::string const text(tokens[static_cast<std::size_t>(*bos)]);
    json const first{{"SpecialToken", {{"id", text}, {"type_id", 0}}}};
    json const sequence{{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
    post = {{"type", "TemplateProcessing"},
            {"single", {first, sequence}},
            {"pair", {first, sequence}},
            {"special_tokens", {{text, {{"id", text}, {"ids", {*bos}}, {"tokens", {text}}}}}}};
  }
  json const document{
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer", pre->description},
      {"post_processor", post},
      {"decoder",
       {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", pre->ignore_merges},
        {"vocab", vocabulary},
        {"merges", file.at<std::vector<std::string_view>>("tokenizer.ggml.merges")}}}};
  return document.dump();
}

}  // namespace lm
