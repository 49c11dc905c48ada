#include "bpe.hpp"

#include <array>
#include <string>
#include <unordered_set>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "merges.hpp"
#include "utf8.hpp"

namespace lm::tokenizers {
namespace {

constexpr char32_t space_mark = 0x2581;  // how Metaspace and normalizers like it write a space

class bpe final : public model {
  vocabulary tokens_;
  merge_table merges_;
  std::array<token_id, 0x180> characters_;  // of one character with so small a code; -1: none
  std::array<token_id, 256> bytes_;         // -1 all of them: no byte fallback, or not for every byte
  token_id unknown_ = -1;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;
  std::unordered_set<char32_t> before_space_mark_;  // merges join these with one that follows
  bool has_space_mark_ = false;

  void read_vocabulary(node const& description);
  void read_merges(node const& description);
  void read_unknown(node const& description);

  token_id id(std::string_view one_character, char32_t code) const {
    if (code < characters_.size()) return characters_[code];
    return tokens_.id(one_character).value_or(-1);
  }
  bool append_bytes(std::string_view one_character, std::vector<token_id>& to) const;

 public:
  explicit bpe(node const& description);
  vocabulary const& tokens() const override { return tokens_; }
  void append_tokens(std::string_view piece, std::vector<token_id>& to) const override;
  void cut(std::string_view piece, function_ref<void(std::string_view)> part) const override;
};

void bpe::read_vocabulary(node const& description) {
  node const vocab = description.at("vocab");
  if (!vocab.value().is_object()) vocab.fail("is not an object");
  tokens_.reserve(vocab.value().size());
  for (auto const& [text, id] : vocab.value().items()) {
    // A way to the value only where there is something to say about it: there are many.
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= std::uint64_t{1} << 30) {
      vocab.fail(fmt::format("'{}' has no id", text));
    }
    auto const number = id.get<token_id>();
    if (auto const* other = tokens_.text(number)) {
      vocab.fail(fmt::format("'{}' and '{}' both have id {}", *other, text, number));
    }
    tokens_.insert(text, number);
  }
  characters_.fill(-1);
  for (char32_t code = 0; code < characters_.size(); ++code) {
    std::string text;
    append(text, code);
    characters_[code] = tokens_.id(text).value_or(-1);
  }
  std::string mark;
  append(mark, space_mark);
  has_space_mark_ = tokens_.id(mark).has_value();
}

void bpe::read_merges(node const& description) {
  node const merges = description.at("merges");
  if (!merges.value().is_array()) merges.fail("is not an array");
  merges_ = merge_table(merges.value().size());
  std::uint32_t rank = 0;
  for (auto const& merge : merges.value()) {
    auto const fail = [&](std::string const& message) {
      node(merge, fmt::format("{}[{}]", merges.way(), rank)).fail(message);
    };
    std::string left, right;
    if (merge.is_string()) {
      auto const& text = merge.get_ref<std::string const&>();
      std::size_t const space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
        fail(fmt::format("'{}' is not two tokens", text));
      }
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    } else {
      fail("is not two tokens");
    }
    auto const known = [&](std::string const& text) {
      auto const found = tokens_.id(text);
      if (!found) fail(fmt::format("'{}' is not in the vocabulary", text));
      return *found;
    };
    merges_.insert(known(left), known(right), rank, known(left + right));
    if (!left.empty() && !right.empty() && first_character(right).code == space_mark) {
      before_space_mark_.insert(last_character(left).code);
    }
    ++rank;
  }
}

void bpe::read_unknown(node const& description) {
  fuse_unknown_ = description.boolean("fuse_unk", false);
  if (auto const unknown = description.find("unk_token")) {
    auto const found = tokens_.id(unknown->string());
    if (!found) unknown->fail(fmt::format("'{}' is not in the vocabulary", unknown->string()));
    unknown_ = *found;
  }
  bytes_.fill(-1);
  if (!description.boolean("byte_fallback", false)) return;
  for (unsigned byte = 0; byte < bytes_.size(); ++byte) {
    bytes_[byte] = tokens_.id(byte_token(static_cast<unsigned char>(byte))).value_or(-1);
  }
}

bpe::bpe(node const& description) {
  description.expect_only({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                           "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  for (char const* const affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    auto const text = description.find(affix);
    if (text && !text->string().empty()) text->fail(fmt::format("'{}' is not understood", text->string()));
  }
  if (auto const dropout = description.find("dropout"); dropout && dropout->value() != 0.0) {
    dropout->fail("leaves the tokens of a text to chance");
  }
  ignore_merges_ = description.boolean("ignore_merges", false);
  read_vocabulary(description);
  read_merges(description);
  read_unknown(description);
}

bool bpe::append_bytes(std::string_view one_character, std::vector<token_id>& to) const {
  std::size_t const before = to.size();
  for (char const byte : one_character) {
    token_id const token = bytes_[static_cast<unsigned char>(byte)];
    if (token < 0) {
      to.resize(before);
      return false;
    }
    to.push_back(token);
  }
  return true;
}

void bpe::append_tokens(std::string_view piece, std::vector<token_id>& to) const {
  if (ignore_merges_) {
    if (auto const whole = tokens_.id(piece)) {
      to.push_back(*whole);
      return;
    }
  }
  std::size_t const from = to.size();
  bool unknown_waits = false;  // comes before the next token of the vocabulary
  while (!piece.empty()) {
    character const c = first_character(piece);
    std::string_view const text = piece.substr(0, c.size);
    piece.remove_prefix(c.size);
    if (token_id const token = id(text, c.code); token >= 0) {
      if (unknown_waits) to.push_back(unknown_);
      unknown_waits = false;
      to.push_back(token);
    } else if (!append_bytes(text, to) && unknown_ >= 0) {
      if (unknown_waits && !fuse_unknown_) to.push_back(unknown_);
      unknown_waits = true;
    }
  }
  if (unknown_waits) to.push_back(unknown_);
  merges_.merge(to, from);
}

/// Before a space, where no merge joins the two characters: what is left of it and what is right then never
/// become one token. Both have to be in the vocabulary, as others become tokens that may be merged, or fused.
void bpe::cut(std::string_view piece, function_ref<void(std::string_view)> part) const {
  constexpr std::size_t worth_it = 32;
  if (ignore_merges_ || !has_space_mark_ || piece.size() < worth_it) return part(piece);
  std::size_t begin = 0;
  for (std::size_t at = 1; at < piece.size(); ++at) {
    at = piece.find("\xe2\x96\x81", at);
    if (at == std::string_view::npos) break;
    char32_t const before = last_character(piece.substr(0, at)).code;
    std::string text;
    append(text, before);
    if (before_space_mark_.contains(before) || id(text, before) < 0) continue;
    part(piece.substr(begin, at - begin));
    begin = at;
  }
  part(piece.substr(begin));
}

}  // namespace

std::unique_ptr<model const> read_bpe(node const& description) { return std::make_unique<bpe>(description); }

}  // namespace lm::tokenizers
