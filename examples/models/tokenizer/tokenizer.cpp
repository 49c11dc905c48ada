#include "tokenizer.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <mutex>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <gptq/error.hpp>

#include "added_tokens.hpp"
#include "decoders.hpp"
#include "document.hpp"
#include "function_ref.hpp"
#include "model.hpp"
#include "normalizers.hpp"
#include "piece_cache.hpp"
#include "post_processors.hpp"
#include "pre_tokenizers.hpp"
#include "utf8.hpp"

namespace lm::tokenizers {

struct tokenizer::parts {
  std::unique_ptr<normalizer const> normalize;  // may be nullptr
  std::unique_ptr<pre_tokenizer const> pre;     // may be nullptr
  std::unique_ptr<model const> words;
  std::unique_ptr<added_tokens const> added;
  surroundings around;
  std::unique_ptr<decoder const> decode;
  token_id size = 0;

  mutable std::mutex cache_mutex;
  mutable piece_cache cache;

  explicit parts(node const& document);
  /// Calls these with the pieces that a text is cut into and the added tokens between them.
  void cut(std::string_view text, piece_sink piece_found, function_ref<void(token_id)> token_found) const;
  void encode(std::string_view text, piece_cache& seen, std::vector<token_id>& ids) const;
};

tokenizer::parts::parts(node const& document) {
  document.expect_only({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                        "post_processor", "decoder", "model"});
  if (auto const version = document.find("version"); version && version->string() != "1.0") {
    version->fail(fmt::format("'{}' is not understood", version->string()));
  }
  if (auto const found = document.find("normalizer")) normalize = read_normalizer(*found);
  if (auto const found = document.find("pre_tokenizer")) pre = read_pre_tokenizer(*found);
  if (auto const found = document.find("post_processor")) around = read_post_processor(*found);
  auto const found_decoder = document.find("decoder");
  decode = found_decoder ? read_decoder(*found_decoder) : decoder_with_spaces();
  words = read_model(document.at("model"));
  auto const found_added = document.find("added_tokens");
  added = std::make_unique<added_tokens>(found_added ? found_added->elements() : std::vector<node>(), *words,
                                         normalize.get());
  size = words->tokens().end_of_ids();
  for (added_token const& token : added->all()) size = std::max(size, token.id + 1);
  for (auto const* const ids : {&around.before, &around.after}) {
    for (token_id const id : *ids) {
      if (!added->find(id) && !words->tokens().text(id)) {
        document.at("post_processor").fail(fmt::format("there is no token {}", id));
      }
    }
  }
}

void tokenizer::parts::cut(std::string_view text, piece_sink piece_found,
                           function_ref<void(token_id)> token_found) const {
  if (auto const position = invalid_utf8(text)) {
    throw gptq::error(fmt::format("text is not valid UTF-8: byte {} is 0x{:02x}", *position,
                                  static_cast<unsigned char>(text[*position])));
  }
  if (text.size() >= std::size_t{1} << 31) throw gptq::error("text of 2 GiB or more");
  auto const cut_raw = [&](std::string_view raw, std::size_t raw_begin) {
    normal_text normalized;
    if (normalize) {
      normalized.text = raw;
      normalize->normalize(normalized);
      raw = normalized.text;
    }
    bool const begins_text = raw_begin == 0 && normalized.keeps_beginning;
    auto const cut_normalized = [&](std::string_view part, std::size_t begin) {
      piece const whole{part, begins_text && begin == 0};
      if (pre) {
        pre->cut(whole, piece_found);
      } else {
        piece_found(whole);
      }
    };
    added->split(raw, true, cut_normalized, token_found);
  };
  added->split(text, false, cut_raw, token_found);
}

void tokenizer::parts::encode(std::string_view text, piece_cache& seen, std::vector<token_id>& ids) const {
  auto const encode_part = [&](std::string_view part) {
    std::uint64_t const hash = piece_cache::hash(part);
    if (auto const known = seen.find(part, hash); !known.empty()) {
      ids.insert(ids.end(), known.begin(), known.end());
      return;
    }
    std::size_t const from = ids.size();
    words->append_tokens(part, ids);
    seen.insert(part, hash, std::span(ids).subspan(from));
  };
  cut(
      text, [&](piece p) { words->cut(p.text, encode_part); }, [&](token_id id) { ids.push_back(id); });
}

tokenizer::tokenizer(std::shared_ptr<parts const> p) : parts_(std::move(p)) {}

tokenizer tokenizer::load(std::filesystem::path const& directory) {
  auto const path = directory / "tokenizer.json";
  std::ifstream in(path, std::ios::binary);
  if (!in || std::filesystem::is_directory(path)) throw gptq::error(path.string() + ": cannot be opened");
  std::string const contents{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  return parse(contents, path.string());
}

tokenizer tokenizer::parse(std::string_view json, std::string const& name) {
  nlohmann::json document;
  try {
    document = nlohmann::json::parse(json);
  } catch (nlohmann::json::exception const& e) {
    throw gptq::error(fmt::format("{}: not valid JSON: {}", name, e.what()));
  }
  return tokenizer(std::make_shared<parts const>(node(document, name + ": ")));
}

std::vector<token_id> tokenizer::encode(std::string_view text, surround s) const {
  std::vector<token_id> ids;
  if (s == surround::yes) ids = before();
  if (std::unique_lock const lock(parts_->cache_mutex, std::try_to_lock); lock) {
    parts_->encode(text, parts_->cache, ids);
  } else {
    piece_cache fresh;
    parts_->encode(text, fresh, ids);
  }
  if (s == surround::yes) ids.insert(ids.end(), after().begin(), after().end());
  return ids;
}

std::vector<std::string> tokenizer::pieces(std::string_view text) const {
  std::vector<std::string> result;
  parts_->cut(
      text, [&](piece p) { result.emplace_back(p.text); },
      [&](token_id id) { result.push_back(*this->text(id)); });
  return result;
}

struct tokenizer::stream::state {
  std::shared_ptr<parts const> of;
  skip_special skip;
  std::unique_ptr<decoding> at_work;
};

tokenizer::stream::stream(std::shared_ptr<state> s) : state_(std::move(s)) {}

std::string tokenizer::stream::add(token_id id) {
  parts const& p = *state_->of;
  std::string result;
  auto const* text = p.added->decoded(id);
  if (!text) text = p.words->tokens().text(id);
  if (!text || (state_->skip == skip_special::yes && p.added->is_special(*text))) return result;
  state_->at_work->add(*text, [&](std::string_view part) { result += part; });
  return result;
}

std::string tokenizer::stream::finish() {
  std::string result;
  state_->at_work->finish([&](std::string_view part) { result += part; });
  return result;
}

tokenizer::stream tokenizer::start_decoding(skip_special s) const {
  return stream(std::make_shared<stream::state>(stream::state{parts_, s, parts_->decode->start()}));
}

std::string tokenizer::decode(std::span<token_id const> ids, skip_special s) const {
  stream text = start_decoding(s);
  std::string result;
  for (token_id const id : ids) result += text.add(id);
  return result + text.finish();
}

std::vector<token_id> const& tokenizer::before() const { return parts_->around.before; }
std::vector<token_id> const& tokenizer::after() const { return parts_->around.after; }

token_id tokenizer::size() const { return parts_->size; }

std::optional<token_id> tokenizer::find(std::string_view text) const {
  auto const& added = parts_->added->all();
  auto const found =
      std::find_if(added.begin(), added.end(), [&](auto const& t) { return t.content == text; });
  return found == added.end() ? parts_->words->tokens().id(text) : found->id;
}

std::string const* tokenizer::text(token_id id) const {
  auto const* const added = parts_->added->find(id);
  return added ? &added->content : parts_->words->tokens().text(id);
}

bool tokenizer::is_special(token_id id) const {
  auto const* const added = parts_->added->find(id);
  return added && added->special;
}

}  // namespace lm::tokenizers
