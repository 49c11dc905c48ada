#include "unigram.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <gptq/error.hpp>

#include "trie.hpp"
#include "utf8.hpp"

namespace lm::tokenizers {
namespace {

/// How much less likely than the least likely token a character is that no token stands for.
constexpr double unknown_penalty = 10.0;

/// A number as the library `tokenizers` reads it from JSON: the digits as an integer, rounded to a double,
/// times or by a power of ten, rounded again. The last bit decides between ways to cut a text that are
/// equally likely.
double rounded_twice(double value) {
  std::array<char, 32> text;  // "7.90625e+00", as few digits as tell it from other numbers
  auto const text_end =
      std::to_chars(text.data(), text.data() + text.size(), std::abs(value), std::chars_format::scientific)
          .ptr;
  auto const* const e = std::find(text.data(), text_end, 'e');
  int exponent = 0;
  std::from_chars(e + (e[1] == '+' ? 2 : 1), text_end, exponent);
  std::uint64_t digits = 0;
  for (auto const* c = text.data(); c != e; ++c) {
    if (*c == '.') {
      exponent -= static_cast<int>(e - c - 1);
    } else {
      digits = 10 * digits + static_cast<std::uint64_t>(*c - '0');
    }
  }
  double power = 1.0;
  std::string const power_text = fmt::format("1e{}", std::abs(exponent));
  if (std::from_chars(power_text.data(), power_text.data() + power_text.size(), power).ec != std::errc())
    return value;
  auto const rounded = static_cast<double>(digits);
  return std::copysign(exponent < 0 ? rounded / power : rounded * power, value);
}

/// Kudo 2018, https://arxiv.org/abs/1804.10959, without sampling.
class unigram final : public model {
  vocabulary tokens_;
  std::vector<double> scores_;  // by id
  trie words_;
  std::array<token_id, 256> bytes_;  // -1 all of them: no byte fallback
  token_id unknown_ = -1;
  double unknown_score_ = 0.0;

  void append_unknown(std::string_view text, std::vector<token_id>& to) const;

 public:
  explicit unigram(node const& description);
  vocabulary const& tokens() const override { return tokens_; }
  void append_tokens(std::string_view piece, std::vector<token_id>& to) const override;
};

unigram::unigram(node const& description) {
  description.expect_only({"type", "unk_id", "vocab", "byte_fallback"});
  node const vocab = description.at("vocab");
  if (!vocab.value().is_array() || vocab.value().empty())
    vocab.fail("is not an array of tokens with their scores");
  tokens_.reserve(vocab.value().size());
  double least = std::numeric_limits<double>::infinity();
  for (auto const& entry : vocab.value()) {
    auto const id = static_cast<token_id>(scores_.size());
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number()) {
      vocab.fail(fmt::format("element {} is not a token with its score", id));
    }
    auto const& text = entry[0].get_ref<std::string const&>();
    scores_.push_back(rounded_twice(entry[1].get<double>()));
    least = std::min(least, scores_.back());
    tokens_.insert(text, id);
    if (!text.empty()) words_.insert(text, id);
  }
  unknown_score_ = least - unknown_penalty;
  if (auto const unknown = description.find("unk_id")) {
    unknown_ = unknown->token_id();
    if (static_cast<std::size_t>(unknown_) >= scores_.size()) {
      unknown->fail(fmt::format("{} is outside the vocabulary of {}", unknown_, scores_.size()));
    }
  }
  bytes_.fill(-1);
  if (!description.boolean("byte_fallback", false)) return;
  for (unsigned byte = 0; byte < bytes_.size(); ++byte) {
    bytes_[byte] = tokens_.id(byte_token(static_cast<unsigned char>(byte))).value_or(-1);
  }
}

/// Characters in a row that are unknown, together.
void unigram::append_unknown(std::string_view text, std::vector<token_id>& to) const {
  if (auto const known = tokens_.id(text)) {
    to.push_back(*known);
    return;
  }
  std::size_t const before = to.size();
  for (char const byte : text) {
    token_id const token = bytes_[static_cast<unsigned char>(byte)];
    if (token < 0) {
      to.resize(before);
      to.push_back(unknown_);
      return;
    }
    to.push_back(token);
  }
}

void unigram::append_tokens(std::string_view piece, std::vector<token_id>& to) const {
  constexpr std::size_t nowhere = ~std::size_t{0};
  struct best_end {
    double score = 0.0;
    std::size_t begin = nowhere;  // of the last token
    token_id token = 0;
  };
  std::vector<best_end> best(piece.size() + 1);  // of the text up to each byte
  auto const offer = [&](std::size_t begin, std::size_t end, double score, token_id token) {
    double const total = score + best[begin].score;
    if (best[end].begin == nowhere || total > best[end].score) best[end] = {total, begin, token};
  };
  for (std::size_t begin = 0; begin < piece.size();) {
    std::size_t const size = first_character(piece.substr(begin)).size;
    bool is_single_known = false;
    std::uint32_t at = trie::root;
    for (std::size_t end = begin; end < piece.size();) {
      at = words_.next(at, piece[end++]);
      if (at == trie::root) break;
      token_id const token = words_.value(at);
      if (token < 0) continue;
      offer(begin, end, scores_[static_cast<std::size_t>(token)], token);
      is_single_known = is_single_known || end - begin == size;
    }
    if (!is_single_known) {
      if (unknown_ < 0) {
        throw gptq::error(fmt::format("no token stands for '{}', and there is none for the unknown",
                                      piece.substr(begin, size)));
      }
      offer(begin, begin + size, unknown_score_, unknown_);
    }
    begin += size;
  }
  // From the end to the beginning.
  std::size_t const from = to.size();
  std::vector<std::string_view> texts;
  for (std::size_t end = piece.size(); end > 0;) {
    best_end const& last = best[end];
    bool const is_unknown = last.token == unknown_;
    if (is_unknown && to.size() > from && to.back() == unknown_) {
      texts.back() = piece.substr(last.begin, texts.back().size() + (end - last.begin));
    } else {
      to.push_back(last.token);
      texts.push_back(piece.substr(last.begin, end - last.begin));
    }
    end = last.begin;
  }
  std::vector<token_id> const reversed(to.begin() + static_cast<std::ptrdiff_t>(from), to.end());
  to.resize(from);
  for (std::size_t i = reversed.size(); i-- > 0;) {
    if (reversed[i] == unknown_) {
      append_unknown(texts[i], to);
    } else {
      to.push_back(reversed[i]);
    }
  }
}

}  // namespace

std::unique_ptr<model const> read_unigram(node const& description) {
  return std::make_unique<unigram>(description);
}

}  // namespace lm::tokenizers
