#include "gguf_tokenizer.hpp"

#include <algorithm>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <gptq/error.hpp>

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

json parse(fs::path const& path) {
  try {
    return json::parse(std::ifstream(path, std::ios::binary));
  } catch (json::exception const& e) {
    throw gptq::error(path.string() + ": not valid JSON: " + e.what());
  }
}

void add_special_tokens(gguf_metadata& metadata, config const& c) {
  if (c.bos_token_id) {
    metadata.add("tokenizer.ggml.bos_token_id", static_cast<std::uint32_t>(*c.bos_token_id));
  }
  if (!c.eos_token_id.empty()) {
    metadata.add("tokenizer.ggml.eos_token_id", static_cast<std::uint32_t>(c.eos_token_id.front()));
  }
}

/// Vocabularies that merge pieces by their scores.
void add_scored(gguf_metadata& metadata, vocabulary const& v, config const& c) {
  metadata.add("tokenizer.ggml.model", "llama");
  metadata.add("tokenizer.ggml.pre", "default");
  metadata.add("tokenizer.ggml.tokens", v.tokens);
  metadata.add("tokenizer.ggml.scores", v.scores);
  metadata.add("tokenizer.ggml.token_type", v.types);
  auto const unknown = std::find(v.types.begin(), v.types.end(), std::int32_t(token_type::unknown));
  if (unknown != v.types.end()) {
    metadata.add("tokenizer.ggml.unknown_token_id", static_cast<std::uint32_t>(unknown - v.types.begin()));
  }
  add_special_tokens(metadata, c);
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
  if (auto const added = path.parent_path() / "added_tokens.json"; fs::exists(added)) {
    json const ids = parse(added);
    for (auto const& [text, id] : ids.items()) {
      if (!id.is_number_integer()) throw gptq::error(fmt::format("{}: '{}' has no id", added.string(), text));
      v.set(id.get<std::int64_t>(), text, no_score, token_type::user_defined, added.string());
    }
  }
  add_scored(metadata, v, c);
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

/// llama.cpp's name for the way in which a byte-level tokenizer cuts text into words.
std::optional<std::string> pre_tokenizer_of(json const& pre) {
  // The ones that LLaMA models come with, by what sets them apart.
  std::string const text = pre.dump();
  if (text.find("\\\\p{N}{1,3}") != std::string::npos) return "llama-bpe";
  if (text.find("\"Digits\"") != std::string::npos) return "smollm";
  if (pre.is_object() && pre.value("type", "") == "ByteLevel") return "gpt-2";
  return std::nullopt;
}

void add_tokenizer_json(gguf_metadata& metadata, fs::path const& path, config const& c) {
  json const document = parse(path);
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
    for (json const& token : document.value("added_tokens", json::array())) {
      v.set(token.at("id").get<std::int64_t>(), token.at("content").get<std::string>(), no_score,
            token.value("special", false) ? token_type::control : token_type::user_defined, path.string());
    }
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
      add_scored(metadata, v, c);
      return;
    }
    auto const pre = pre_tokenizer_of(document.value("pre_tokenizer", json()));
    if (!pre) {
      throw gptq::error(path.string() + ": its pre-tokenizer is none of GPT-2's, Llama 3's and SmolLM's");
    }
    metadata.add("tokenizer.ggml.model", "gpt2");
    metadata.add("tokenizer.ggml.pre", *pre);
    metadata.add("tokenizer.ggml.tokens", v.tokens);
    metadata.add("tokenizer.ggml.token_type", v.types);
    metadata.add("tokenizer.ggml.merges", merges);
    add_special_tokens(metadata, c);
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
  add_special_tokens(metadata, c);
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
  if (auto const path = directory / "tokenizer_config.json"; fs::exists(path)) {
    json const document = parse(path);
    if (document.is_object() && document.contains("chat_template") && document["chat_template"].is_string()) {
      metadata.add("tokenizer.chat_template", document["chat_template"].get<std::string>());
    }
  }
}

}  // namespace lm
