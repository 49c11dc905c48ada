#include "tokens.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>

#include <fmt/format.h>

#include <gptq/error.hpp>

#include "gguf_model.hpp"
#include "gguf_tokenizer.hpp"
#include "json_keys.hpp"
#include "tokenizer/tokenizer.hpp"

#ifdef GPTQ_WITH_SENTENCEPIECE
#include <sentencepiece_processor.h>
#endif

namespace lm {
namespace {

std::string read_file(std::filesystem::path const& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in || std::filesystem::is_directory(path)) throw gptq::error(path.string() + ": cannot be opened");
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

tokenizer byte_tokenizer() {
  return {[](std::string_view text) {
            std::vector<token> ids;
            ids.reserve(text.size());
            for (char const c : text) ids.push_back(static_cast<unsigned char>(c));
            return ids;
          },
          [](std::span<token const> ids) {
            std::string text;
            for (token const id : ids) text += static_cast<char>(id);
            return text;
          },
          {}};
}

/// "add_bos_token" of tokenizer_config.json, if it is there.
std::optional<bool> add_bos_token(std::filesystem::path const& directory) {
  auto const path = directory / "tokenizer_config.json";
  if (!std::filesystem::exists(path)) return std::nullopt;
  nlohmann::json const document = parse_json(path);
  json_keys const keys(document, path.string());
  return keys.has("add_bos_token") ? std::optional(keys.flag("add_bos_token", false)) : std::nullopt;
}

/// @param directory  whose tokenizer_config.json may know better what a text starts with; may be empty
tokenizer tokenizer_of(tokenizers::tokenizer const& words, config const& c,
                       std::filesystem::path const& directory, std::string const& name) {
  if (words.size() > c.vocab_size) {
    // Tokens that pad the vocabulary are never made; others may not be there.
    for (token id = static_cast<token>(c.vocab_size); id < words.size(); ++id) {
      if (words.text(id) == nullptr || words.is_special(id)) continue;
      throw gptq::error(
          fmt::format("{}: token {} is outside the model's vocabulary of {}", name, id, c.vocab_size));
    }
  }
  std::vector<token> before = words.before();
  auto const flag = directory.empty() ? std::nullopt : add_bos_token(directory);
  if (flag && !*flag) before.clear();
  if (flag && *flag && before.empty() && c.bos_token_id) before = {*c.bos_token_id};
  return {[words, name, size = c.vocab_size](std::string_view text) {
            auto ids = words.encode(text, tokenizers::surround::no);
            for (token const id : ids) {
              if (id >= size)
                throw gptq::error(fmt::format("{}: token {} is outside the model's vocabulary", name, id));
            }
            return ids;
          },
          [words](std::span<token const> ids) { return words.decode(ids); }, before, true};
}

#ifdef GPTQ_WITH_SENTENCEPIECE
tokenizer sentencepiece_tokenizer(std::filesystem::path const& path, config const& c) {
  auto const model = std::make_shared<sentencepiece::SentencePieceProcessor>();
  if (auto const status = model->Load(path.string()); !status.ok()) {
    throw gptq::error(path.string() + ": sentencepiece: " + status.ToString());
  }
  if (model->GetPieceSize() > c.vocab_size) {
    throw gptq::error(fmt::format("{}: {} pieces, more than the model's vocabulary of {}", path.string(),
                                  model->GetPieceSize(), c.vocab_size));
  }
  std::vector<token> before;
  if (c.bos_token_id && add_bos_token(path.parent_path()).value_or(true)) before = {*c.bos_token_id};
  return {[model](std::string_view text) {
            std::vector<int> ids;
            if (auto const status = model->Encode({text.data(), text.size()}, &ids); !status.ok()) {
              throw gptq::error("sentencepiece: " + status.ToString());
            }
            return std::vector<token>(ids.begin(), ids.end());
          },
          [model](std::span<token const> ids) {
            std::vector<int> known;
            std::copy_if(ids.begin(), ids.end(), std::back_inserter(known),
                         [&](token id) { return id < model->GetPieceSize(); });
            std::string text;
            if (auto const status = model->Decode(known, &text); !status.ok()) {
              throw gptq::error("sentencepiece: " + status.ToString());
            }
            return text;
          },
          before};
}
#else
tokenizer sentencepiece_tokenizer(std::filesystem::path const& path, config const&) {
  throw gptq::error(path.string() + ": this program was built without sentencepiece; give token ids (.i32)");
}
#endif

}  // namespace

tokenizer make_tokenizer(std::filesystem::path const& model, config const& c) {
  auto const directory = directory_of(model);
  if (std::filesystem::exists(directory / "tokenizer.json")) {
    return tokenizer_of(tokenizers::tokenizer::load(directory), c, directory,
                        (directory / "tokenizer.json").string());
  }
  if (auto const path = directory / "tokenizer.model"; std::filesystem::exists(path)) {
    return sentencepiece_tokenizer(path, c);
  }
  if (is_gguf(model)) {
    gptq::checkpoint::gguf_file const file(model);
    if (auto const json = tokenizer_json_in(file, model.string())) {
      return tokenizer_of(tokenizers::tokenizer::parse(*json, model.string()), c, {}, model.string());
    }
  }
  if (c.vocab_size == 256) return byte_tokenizer();
  throw gptq::error(directory.string() +
                    ": text needs a tokenizer.json or tokenizer.model; give token ids (.i32)");
}

std::vector<token> read_tokens(std::filesystem::path const& file, std::filesystem::path const& directory,
                               config const& c) {
  std::string const contents = read_file(file);
  if (file.extension() != ".i32") return make_tokenizer(directory, c).encode(contents);

  if (contents.size() % sizeof(token) != 0) {
    throw gptq::error(
        fmt::format("{}: {} bytes are not a whole number of int32", file.string(), contents.size()));
  }
  std::vector<token> ids(contents.size() / sizeof(token));
  std::memcpy(ids.data(), contents.data(), contents.size());
  auto const bad =
      std::find_if(ids.begin(), ids.end(), [&](token id) { return id < 0 || id >= c.vocab_size; });
  if (bad != ids.end()) {
    throw gptq::error(fmt::format("{}: token {} is {}, outside the model's vocabulary of {}", file.string(),
                                  bad - ids.begin(), *bad, c.vocab_size));
  }
  return ids;
}

std::vector<token_window> cut_windows(std::span<token const> tokens, std::int64_t length, std::int64_t most) {
  auto const size = static_cast<std::size_t>(length);
  std::size_t count = tokens.size() / size;
  if (most > 0) count = std::min(count, static_cast<std::size_t>(most));
  std::vector<token_window> windows;
  for (std::size_t w = 0; w < count; ++w) windows.push_back(tokens.subspan(w * size, size));
  return windows;
}

std::vector<token> prompt_tokens(tokenizer const& words, std::string_view text) {
  std::vector<token> tokens = words.before;
  auto const more = words.encode(text);
  tokens.insert(tokens.end(), more.begin(), more.end());
  return tokens;
}

std::string printable(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = c == '\n' || c == '\t' ? ' ' : '?';
  }
  return text;
}

std::string fingerprint(std::span<std::byte const> bytes) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (std::byte const b : bytes) hash = (hash ^ std::to_integer<std::uint64_t>(b)) * 0x100000001b3;
  return fmt::format("{:016x}", hash);
}

text read_text(std::filesystem::path const& file, std::filesystem::path const& directory, config const& c,
               std::int64_t window, std::int64_t most) {
  text result;
  result.tokens = read_tokens(file, directory, c);
  result.windows = cut_windows(result.tokens, window, most);
  if (result.windows.empty()) {
    throw gptq::error(
        fmt::format("{}: {} tokens do not fill a window of {}", file.string(), result.tokens.size(), window));
  }
  return result;
}

std::int64_t window_length(config const& c, std::int64_t asked_for) {
  if (asked_for == 0) return std::min<std::int64_t>(c.max_position_embeddings, 2048);
  if (asked_for > c.positions()) {
    throw gptq::error(fmt::format("--window {}: the model has {} positions", asked_for, c.positions()));
  }
  return asked_for;
}

}  // namespace lm
