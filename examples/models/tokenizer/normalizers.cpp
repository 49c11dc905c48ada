#include "normalizers.hpp"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <utf8proc.h>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <gptq/error.hpp>

#include "byte_level.hpp"
#include "charsmap.hpp"
#include "pattern.hpp"
#include "utf8.hpp"

namespace lm::tokenizers {
namespace {

/// A normalizer whose work is one call of a function object.
template <class Function>
class function_normalizer final : public normalizer {
  Function function_;

 public:
  explicit function_normalizer(Function function) : function_(std::move(function)) {}
  void normalize(normal_text& text) const override { function_(text); }
};

template <class Function>
std::unique_ptr<normalizer const> from_function(Function function) {
  return std::make_unique<function_normalizer<Function>>(std::move(function));
}

/// Whether NFC leaves a text alone that has only such characters: starters that decompose to nothing else and
/// do not combine with one another. Not all of these, but those that most texts consist of.
bool is_composed(std::string_view text) {
  static constexpr std::pair<char32_t, char32_t> ranges[] = {
      {0x0, 0x2ff},     {0x400, 0x482},   {0x48a, 0x52f},     {0x5d0, 0x5ea},   {0x621, 0x64a},
      {0x2010, 0x2027}, {0x3000, 0x3029}, {0x3041, 0x3096},   {0x30a1, 0x30fa}, {0x4e00, 0x9fff},
      {0xac00, 0xd7a3}, {0xff01, 0xff60}, {0x1f300, 0x1f64f},
  };
  while (!text.empty()) {
    character const c = first_character(text);
    auto const holds = [&](auto const& range) { return c.code >= range.first && c.code <= range.second; };
    if (c.code > 0x7f && std::none_of(std::begin(ranges), std::end(ranges), holds)) return false;
    text.remove_prefix(c.size);
  }
  return true;
}

/// NFC, NFD, NFKC or NFKD, which leave ASCII as it is.
std::string unicode_form(std::string text, int options) {
  if (is_ascii(text) || (options == UTF8PROC_COMPOSE && is_composed(text))) return text;
  utf8proc_uint8_t* made = nullptr;
  auto const size = utf8proc_map(reinterpret_cast<utf8proc_uint8_t const*>(text.data()),
                                 static_cast<utf8proc_ssize_t>(text.size()), &made,
                                 static_cast<utf8proc_option_t>(UTF8PROC_STABLE | options));
  std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> const owner(made, &std::free);
  if (size < 0) throw gptq::error(fmt::format("utf8proc: {}", utf8proc_errmsg(size)));
  return {reinterpret_cast<char const*>(made), static_cast<std::size_t>(size)};
}

/// Calls `f(code, out)` for each character.
template <class Function>
void by_character(normal_text& text, Function f) {
  std::string result;
  result.reserve(text.text.size());
  std::string_view rest = text.text;
  while (!rest.empty()) {
    character const c = first_character(rest);
    f(c.code, result);
    if (rest.size() == text.text.size() && result.empty()) text.keeps_beginning = false;
    rest.remove_prefix(c.size);
  }
  text.text = std::move(result);
}

void append_lower(char32_t code, std::string& to) {
  if (code == 0x130) {
    to += "i\u0307";  // the one character whose lower case is two, whatever is around it
    return;
  }
  append(to, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))));
}

/// As Nmt of sentencepiece: no control characters, and a space for what else looks like one.
void append_nmt(char32_t code, std::string& to) {
  if ((code >= 1 && code <= 8) || code == 0xb || (code >= 0xe && code <= 0x1f) || code == 0x7f ||
      code == 0x8f || code == 0x9f) {
    return;
  }
  bool const is_space = code == 9 || code == 0xa || code == 0xc || code == 0xd || code == 0x1680 ||
                        (code >= 0x200b && code <= 0x200f) || code == 0x2028 || code == 0x2029 ||
                        code == 0x2581 || code == 0xfeff || code == 0xfffd;
  append(to, is_space ? U' ' : code);
}

void strip(normal_text& text, bool left, bool right) {
  std::string_view const all = text.text;
  std::size_t const begin = left ? white_space_at_start(all) : 0;
  std::size_t const end = right ? white_space_at_end(all) : all.size();
  if (begin > 0) text.keeps_beginning = false;
  text.text = begin < end ? text.text.substr(begin, end - begin) : "";
}

}  // namespace

std::string normalizer::normalized(std::string text) const {
  normal_text result{std::move(text)};
  normalize(result);
  return std::move(result.text);
}

std::unique_ptr<normalizer const> read_normalizer(node const& description) {
  std::string const type = description.string("type");
  auto const no_more = [&](std::initializer_list<std::string_view> keys) { description.expect_only(keys); };

  static std::pair<std::string_view, int> const forms[] = {
      {"NFC", UTF8PROC_COMPOSE},
      {"NFD", UTF8PROC_DECOMPOSE},
      {"NFKC", UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
      {"NFKD", UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT},
  };
  for (auto const& [name, form] : forms) {
    if (type != name) continue;
    no_more({"type"});
    return from_function(
        [options = form](normal_text& text) { text.text = unicode_form(std::move(text.text), options); });
  }
  if (type == "Sequence") {
    no_more({"type", "normalizers"});
    std::vector<std::unique_ptr<normalizer const>> steps;
    for (node const& step : description.at("normalizers").elements()) steps.push_back(read_normalizer(step));
    return from_function([all = std::move(steps)](normal_text& text) {
      for (auto const& step : all) step->normalize(text);
    });
  }
  if (type == "Prepend") {
    no_more({"type", "prepend"});
    return from_function([prefix = description.string("prepend")](normal_text& text) {
      if (!text.text.empty()) text.text.insert(0, prefix);
    });
  }
  if (type == "Replace") {
    no_more({"type", "pattern", "content"});
    return from_function([sought = read_pattern(description.at("pattern")),
                          content = description.string("content")](normal_text& text) {
      if (content.empty()) {
        auto const first = pattern::search(sought, text.text).next();
        if (first && first->begin == 0 && first->end > 0) text.keeps_beginning = false;
      }
      text.text = sought.replaced(text.text, content);
    });
  }
  if (type == "Lowercase") {
    no_more({"type"});
    return from_function([](normal_text& text) { by_character(text, append_lower); });
  }
  if (type == "Strip") {
    no_more({"type", "strip_left", "strip_right"});
    return from_function(
        [left = description.at("strip_left").boolean(),
         right = description.at("strip_right").boolean()](normal_text& text) { strip(text, left, right); });
  }
  if (type == "StripAccents") {
    no_more({"type"});
    return from_function([](normal_text& text) {
      by_character(text, [](char32_t code, std::string& to) {
        if (!is_mark(code)) append(to, code);
      });
    });
  }
  if (type == "Nmt") {
    no_more({"type"});
    return from_function([](normal_text& text) { by_character(text, append_nmt); });
  }
  if (type == "ByteLevel") {
    no_more({"type"});
    return from_function([](normal_text& text) { text.text = to_byte_level(text.text); });
  }
  if (type == "Precompiled") {
    no_more({"type", "precompiled_charsmap"});
    return from_function([map = charsmap(description.at("precompiled_charsmap"))](normal_text& text) {
      text.text = map.normalized(text.text);
    });
  }
  description.fail(fmt::format("a normalizer of type '{}' is not understood", type));
}

}  // namespace lm::tokenizers
