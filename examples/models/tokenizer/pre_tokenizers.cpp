#include "pre_tokenizers.hpp"

#include <array>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "byte_level.hpp"
#include "cuts.hpp"
#include "pattern.hpp"
#include "utf8.hpp"

namespace lm::tokenizers {
namespace {

/// Splits at matches of a pattern, or between them.
class split final : public pre_tokenizer {
  pattern sought_;
  cut_behavior behavior_;
  bool invert_;

 public:
  split(pattern sought, cut_behavior behavior, bool invert)
      : sought_(std::move(sought)), behavior_(behavior), invert_(invert) {}

  void cut(piece whole, piece_sink sink) const override {
    cutter out(whole, behavior_, sink);
    pattern::search matches(sought_, whole.text);
    std::size_t between = 0;
    while (auto const found = matches.next()) {
      if (between < found->begin) out.add(between, found->begin, invert_);
      out.add(found->begin, found->end, !invert_);
      between = found->end;
    }
    if (between < whole.text.size()) out.add(between, whole.text.size(), invert_);
    out.finish();
  }
};

/// Words as GPT-2 has them, each byte as a printable character.
class byte_level final : public pre_tokenizer {
  bool add_prefix_space_;
  std::unique_ptr<split const> words_;  // none: as they come

  static void write(piece word, piece_sink sink) {
    std::array<char, 256> few;
    if (2 * word.text.size() <= few.size()) {
      sink({{few.data(), write_byte_level(few.data(), word.text)}, word.is_first});
    } else {
      sink({to_byte_level(word.text), word.is_first});
    }
  }

 public:
  byte_level(bool add_prefix_space, bool use_regex) : add_prefix_space_(add_prefix_space) {
    if (!use_regex) return;
    regex const gpt2(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)");
    words_ = std::make_unique<split const>(pattern(gpt2), cut_behavior::isolated, false);
  }

  void cut(piece whole, piece_sink sink) const override {
    std::string prefixed;
    if (add_prefix_space_ && !whole.text.starts_with(' ')) {
      prefixed = " ";
      prefixed += whole.text;
      whole.text = prefixed;
    }
    if (!words_) return write(whole, sink);
    words_->cut(whole, [&](piece word) { write(word, sink); });
  }
};

/// Spaces as a visible character, which begins the words.
class metaspace final : public pre_tokenizer {
 public:
  enum class prepend { never, first, always };

 private:
  std::string space_;
  char32_t code_;
  prepend prepend_;
  bool split_;

 public:
  metaspace(char32_t code, prepend scheme, bool splits) : code_(code), prepend_(scheme), split_(splits) {
    append(space_, code);
  }

  void cut(piece whole, piece_sink sink) const override {
    std::string text;
    text.reserve(whole.text.size() * 3 / 2 + space_.size());
    bool const is_prepended = !whole.text.starts_with(' ') && !whole.text.starts_with(space_) &&
                              (prepend_ == prepend::always || (prepend_ == prepend::first && whole.is_first));
    if (is_prepended) text += space_;
    for (char const c : whole.text) {
      if (c == ' ') {
        text += space_;
      } else {
        text += c;
      }
    }
    piece const replaced{text, whole.is_first};
    if (!split_) return sink(replaced);
    cut_at_characters(replaced, cut_behavior::merged_with_next, sink,
                      [&](char32_t code) { return code == code_; });
  }
};

/// \w+|[^\w\s]+, where a joiner is part of a word.
class words_and_symbols final : public pre_tokenizer {
  enum class kind { space, word, symbol };
  static kind classify(char32_t code) {
    return is_white_space(code) ? kind::space : is_word(code) ? kind::word : kind::symbol;
  }

 public:
  void cut(piece whole, piece_sink sink) const override {
    std::string_view const text = whole.text;
    std::size_t begin = 0;
    kind held = kind::space;
    auto const hand_on = [&](std::size_t end) {
      if (held != kind::space) sink({text.substr(begin, end - begin), whole.is_first && begin == 0});
      begin = end;
    };
    for (std::size_t at = 0; at < text.size();) {
      character const c = first_character(text.substr(at));
      kind const next = classify(c.code);
      if (next != held) hand_on(at);
      held = next;
      at += c.size;
    }
    hand_on(text.size());
  }
};

/// Cuts at characters of a kind.
template <class Predicate>
class character_splitter final : public pre_tokenizer {
  Predicate holds_;
  cut_behavior behavior_;

 public:
  character_splitter(Predicate holds, cut_behavior behavior) : holds_(holds), behavior_(behavior) {}
  void cut(piece whole, piece_sink sink) const override { cut_at_characters(whole, behavior_, sink, holds_); }
};

template <class Predicate>
std::unique_ptr<pre_tokenizer const> at_characters(cut_behavior behavior, Predicate holds) {
  return std::make_unique<character_splitter<Predicate>>(holds, behavior);
}

class sequence final : public pre_tokenizer {
  std::vector<std::unique_ptr<pre_tokenizer const>> steps_;

  void cut_from(std::size_t step, piece whole, piece_sink sink) const {
    if (step == steps_.size()) return sink(whole);
    if (step + 1 == steps_.size()) return steps_[step]->cut(whole, sink);
    steps_[step]->cut(whole, [&, step](piece part) { cut_from(step + 1, part, sink); });
  }

 public:
  explicit sequence(std::vector<std::unique_ptr<pre_tokenizer const>> steps) : steps_(std::move(steps)) {}
  void cut(piece whole, piece_sink sink) const override { cut_from(0, whole, sink); }
};

metaspace::prepend read_prepend(node const& description) {
  auto const scheme = description.find("prepend_scheme");
  std::string const name = scheme ? scheme->string() : "always";
  // Older files have only this one.
  bool const add_prefix_space = description.boolean("add_prefix_space", true);
  if (!add_prefix_space) {
    if (scheme && name != "never") {
      description.fail(fmt::format("add_prefix_space is false, and prepend_scheme '{}'", name));
    }
    return metaspace::prepend::never;
  }
  if (name == "always") return metaspace::prepend::always;
  if (name == "first") return metaspace::prepend::first;
  if (name == "never") return metaspace::prepend::never;
  scheme->fail(fmt::format("'{}' is not understood", name));
}

}  // namespace

cut_behavior read_behavior(node const& description, cut_behavior otherwise) {
  static constexpr std::pair<std::string_view, cut_behavior> names[] = {
      {"Removed", cut_behavior::removed},
      {"Isolated", cut_behavior::isolated},
      {"MergedWithPrevious", cut_behavior::merged_with_previous},
      {"MergedWithNext", cut_behavior::merged_with_next},
      {"Contiguous", cut_behavior::contiguous},
  };
  auto const behavior = description.find("behavior");
  if (!behavior) return otherwise;
  for (auto const& [name, value] : names) {
    if (behavior->string() == name) return value;
  }
  behavior->fail(fmt::format("'{}' is not understood", behavior->string()));
}

std::unique_ptr<pre_tokenizer const> read_pre_tokenizer(node const& description) {
  std::string const type = description.string("type");
  auto const no_more = [&](std::initializer_list<std::string_view> keys) { description.expect_only(keys); };
  if (type == "Sequence") {
    no_more({"type", "pretokenizers"});
    std::vector<std::unique_ptr<pre_tokenizer const>> steps;
    for (node const& step : description.at("pretokenizers").elements())
      steps.push_back(read_pre_tokenizer(step));
    return std::make_unique<sequence>(std::move(steps));
  }
  if (type == "Split") {
    no_more({"type", "pattern", "behavior", "invert"});
    description.at("behavior");
    return std::make_unique<split>(read_pattern(description.at("pattern")),
                                   read_behavior(description, cut_behavior::isolated),
                                   description.boolean("invert", false));
  }
  if (type == "ByteLevel") {
    // trim_offsets is about where a token lies in the text, which nobody asks for here.
    no_more({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    return std::make_unique<byte_level>(description.at("add_prefix_space").boolean(),
                                        description.boolean("use_regex", true));
  }
  if (type == "Metaspace") {
    no_more({"type", "replacement", "prepend_scheme", "add_prefix_space", "split", "str_rep"});
    return std::make_unique<metaspace>(description.single_character("replacement"), read_prepend(description),
                                       description.boolean("split", true));
  }
  if (type == "Digits") {
    no_more({"type", "individual_digits"});
    bool const each = description.at("individual_digits").boolean();
    return at_characters(each ? cut_behavior::isolated : cut_behavior::contiguous, is_number);
  }
  if (type == "Punctuation") {
    no_more({"type", "behavior"});
    return at_characters(read_behavior(description, cut_behavior::isolated), is_punctuation);
  }
  if (type == "Whitespace") {
    no_more({"type"});
    return std::make_unique<words_and_symbols>();
  }
  if (type == "WhitespaceSplit") {
    no_more({"type"});
    return at_characters(cut_behavior::removed, is_white_space);
  }
  if (type == "CharDelimiterSplit") {
    no_more({"type", "delimiter"});
    return at_characters(cut_behavior::removed, [delimiter = description.single_character("delimiter")](
                                                    char32_t code) { return code == delimiter; });
  }
  description.fail(fmt::format("a pre-tokenizer of type '{}' is not understood", type));
}

}  // namespace lm::tokenizers
