#include "decoders.hpp"

#include <charconv>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "byte_level.hpp"
#include "pattern.hpp"
#include "utf8.hpp"

namespace lm::tokenizers {
namespace {

constexpr std::string_view replacement_character = "\xef\xbf\xbd";

/// A decoder that begins with a copy of `State` for each row of tokens.
template <class State>
class decoder_from final : public decoder {
  State initial_;

 public:
  explicit decoder_from(State initial) : initial_(std::move(initial)) {}
  std::unique_ptr<decoding> start() const override { return std::make_unique<State>(initial_); }
};

template <class State>
std::unique_ptr<decoder const> from_state(State initial) {
  return std::make_unique<decoder_from<State>>(std::move(initial));
}

/// Bytes as printable characters back to bytes; for those that are not UTF-8, U+FFFD.
class byte_level final : public decoding {
  std::string held_;  // perhaps the beginning of a character

 public:
  void add(std::string_view text, text_sink sink) override {
    // A token that has another character is text already.
    held_ += bytes_from_byte_level(text).value_or(std::string(text));
    hand_on(sink, false);
  }
  void finish(text_sink sink) override { hand_on(sink, true); }

 private:
  void hand_on(text_sink sink, bool is_end) {
    std::string text;
    std::string_view rest = held_;
    while (!rest.empty()) {
      utf8_part const part = first_part(rest);
      if (part.state == utf8_part::unfinished && !is_end) break;
      text += part.state == utf8_part::valid ? rest.substr(0, part.size) : replacement_character;
      rest.remove_prefix(part.size);
    }
    held_ = std::string(rest);
    if (!text.empty()) sink(text);
  }
};

/// Byte tokens in a row are one text, or U+FFFD for each of them.
class byte_fallback final : public decoding {
  std::string held_;

  static std::optional<unsigned char> byte(std::string_view text) {
    if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return std::nullopt;
    unsigned char value = 0;
    auto const [end, failure] = std::from_chars(text.data() + 3, text.data() + 5, value, 16);
    return failure == std::errc() && end == text.data() + 5 ? std::optional(value) : std::nullopt;
  }

 public:
  void add(std::string_view text, text_sink sink) override {
    if (auto const value = byte(text)) {
      held_ += static_cast<char>(*value);
      return;
    }
    finish(sink);
    sink(text);
  }
  void finish(text_sink sink) override {
    if (held_.empty()) return;
    if (!invalid_utf8(held_)) {
      sink(held_);
    } else {
      for (std::size_t i = 0; i < held_.size(); ++i) sink(replacement_character);
    }
    held_.clear();
  }
};

class replace final : public decoding {
  pattern sought_;
  std::string content_;

 public:
  replace(pattern sought, std::string content) : sought_(std::move(sought)), content_(std::move(content)) {}
  void add(std::string_view text, text_sink sink) override { sink(sought_.replaced(text, content_)); }
};

/// Tokens become one text.
class fuse final : public decoding {
 public:
  void add(std::string_view text, text_sink sink) override { sink(text); }
};

/// Takes up to so many of a character from the beginning and the end of each token.
class strip_tokens final : public decoding {
  std::string content_;
  std::size_t start_;
  std::size_t stop_;

 public:
  strip_tokens(std::string content, std::size_t start, std::size_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}

  void add(std::string_view text, text_sink sink) override {
    for (std::size_t i = 0; i < start_ && text.starts_with(content_); ++i)
      text.remove_prefix(content_.size());
    for (std::size_t i = 0; i < stop_ && text.ends_with(content_); ++i) text.remove_suffix(content_.size());
    sink(text);
  }
};

/// The same for a text that arrives in parts.
class strip_text final : public decoding {
  std::string content_;
  std::size_t start_;  // still to be taken from the beginning
  std::size_t stop_;
  std::string held_;  // of the end

 public:
  strip_text(std::string content, std::size_t start, std::size_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}

  void add(std::string_view text, text_sink sink) override {
    while (start_ > 0 && text.starts_with(content_)) {
      text.remove_prefix(content_.size());
      --start_;
    }
    if (text.empty()) return;
    start_ = 0;
    held_ += text;
    std::size_t keep = 0;
    while (keep < stop_ &&
           std::string_view(held_).substr(0, held_.size() - keep * content_.size()).ends_with(content_)) {
      ++keep;
    }
    std::size_t const size = held_.size() - keep * content_.size();
    if (size > 0) sink(std::string_view(held_).substr(0, size));
    held_.erase(0, size);
  }
};

/// Visible spaces back to spaces, but not those that begin the first token.
class metaspace final : public decoding {
  char32_t space_;
  bool is_prepended_;
  bool is_first_ = true;

 public:
  metaspace(char32_t space, bool is_prepended) : space_(space), is_prepended_(is_prepended) {}
  void add(std::string_view text, text_sink sink) override {
    std::string result;
    while (!text.empty()) {
      character const c = first_character(text);
      if (c.code != space_) {
        result += text.substr(0, c.size);
      } else if (!is_first_ || !is_prepended_) {
        result += ' ';
      }
      text.remove_prefix(c.size);
    }
    is_first_ = false;
    sink(result);
  }
};

class spaces_between final : public decoding {
  bool is_first_ = true;

 public:
  void add(std::string_view text, text_sink sink) override {
    if (!is_first_) sink(" ");
    is_first_ = false;
    sink(text);
  }
};

class sequence_decoding final : public decoding {
  std::vector<std::unique_ptr<decoding>> steps_;

  void add_from(std::size_t step, std::string_view text, text_sink sink) {
    if (step == steps_.size()) return sink(text);
    steps_[step]->add(text, [&, step](std::string_view part) { add_from(step + 1, part, sink); });
  }

 public:
  explicit sequence_decoding(std::vector<std::unique_ptr<decoding>> steps) : steps_(std::move(steps)) {}
  void add(std::string_view text, text_sink sink) override { add_from(0, text, sink); }
  void finish(text_sink sink) override {
    for (std::size_t step = 0; step < steps_.size(); ++step) {
      steps_[step]->finish([&, step](std::string_view part) { add_from(step + 1, part, sink); });
    }
  }
};

class sequence final : public decoder {
  std::vector<std::unique_ptr<decoder const>> steps_;

 public:
  explicit sequence(std::vector<std::unique_ptr<decoder const>> steps) : steps_(std::move(steps)) {}
  std::unique_ptr<decoding> start() const override {
    std::vector<std::unique_ptr<decoding>> started;
    for (auto const& step : steps_) started.push_back(step->start());
    return std::make_unique<sequence_decoding>(std::move(started));
  }
};

std::size_t read_count(node const& description) {
  if (!description.value().is_number_unsigned() || description.value().get<std::uint64_t>() > 1000) {
    description.fail("is not a small number");
  }
  return description.value().get<std::size_t>();
}

/// @param is_fused  whether tokens have become one text before this step; set when they do in it
std::unique_ptr<decoder const> read_step(node const& description, bool& is_fused) {
  std::string const type = description.string("type");
  auto const no_more = [&](std::initializer_list<std::string_view> keys) { description.expect_only(keys); };
  auto const expect_tokens = [&] {
    if (is_fused)
      description.fail(fmt::format("'{}' after tokens have become one text is not understood", type));
  };
  if (type == "Sequence") {
    no_more({"type", "decoders"});
    std::vector<std::unique_ptr<decoder const>> steps;
    for (node const& step : description.at("decoders").elements()) steps.push_back(read_step(step, is_fused));
    return std::make_unique<sequence>(std::move(steps));
  }
  if (type == "ByteLevel") {
    expect_tokens();
    no_more({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    is_fused = true;
    return from_state(byte_level());
  }
  if (type == "ByteFallback") {
    expect_tokens();
    no_more({"type"});
    return from_state(byte_fallback());
  }
  if (type == "Fuse") {
    no_more({"type"});
    is_fused = true;
    return from_state(fuse());
  }
  if (type == "Replace") {
    expect_tokens();
    no_more({"type", "pattern", "content"});
    return from_state(replace(read_pattern(description.at("pattern")), description.string("content")));
  }
  if (type == "Strip") {
    no_more({"type", "content", "start", "stop"});
    std::string content;
    append(content, description.single_character("content"));
    std::size_t const start = read_count(description.at("start"));
    std::size_t const stop = read_count(description.at("stop"));
    if (is_fused) return from_state(strip_text(content, start, stop));
    return from_state(strip_tokens(content, start, stop));
  }
  if (type == "Metaspace") {
    expect_tokens();
    no_more({"type", "replacement", "prepend_scheme", "add_prefix_space", "split", "str_rep"});
    auto const scheme = description.find("prepend_scheme");
    bool const is_prepended =
        description.boolean("add_prefix_space", true) && !(scheme && scheme->string() == "never");
    return from_state(metaspace(description.single_character("replacement"), is_prepended));
  }
  description.fail(fmt::format("a decoder of type '{}' is not understood", type));
}

}  // namespace

std::unique_ptr<decoder const> read_decoder(node const& description) {
  bool is_fused = false;
  return read_step(description, is_fused);
}

std::unique_ptr<decoder const> decoder_with_spaces() { return from_state(spaces_between()); }

}  // namespace lm::tokenizers
