#include "regex.hpp"

#include <array>
#include <charconv>
#include <vector>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <fmt/format.h>

#include <gptq/error.hpp>

#include "utf8.hpp"

namespace lm::tokenizers {
namespace {

constexpr std::string_view white_space = "\\p{White_Space}";
constexpr std::string_view word_parts = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";

std::string message_for(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<char const*>(text.data());
}

struct delete_code {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
using unique_code = std::unique_ptr<pcre2_code, delete_code>;

/// @param expression  PCRE2's
unique_code compile(std::string const& expression, int& error, std::size_t& position) {
  struct context {
    pcre2_compile_context* value = pcre2_compile_context_create(nullptr);
    context() { pcre2_set_newline(value, PCRE2_NEWLINE_LF); }
    context(context const&) = delete;
    context& operator=(context const&) = delete;
    ~context() { pcre2_compile_context_free(value); }
  };
  static context const lines_end_with_lf;
  return unique_code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_UTF_CHECK, &error,
                                   &position, lines_end_with_lf.value));
}

bool compiles(std::string const& expression) {
  int error;
  std::size_t position;
  return compile(expression, error, position) != nullptr;
}

/// Reads an expression from its first character to its last and writes it anew.
class translator {
  std::string_view from_;
  std::size_t at_ = 0;
  std::string to_;

  [[noreturn]] void fail(std::size_t begin, std::size_t end) const {
    throw gptq::error(fmt::format("regular expression '{}': '{}' at {} is not understood", from_,
                                  from_.substr(begin, end - begin), begin));
  }
  bool done() const { return at_ == from_.size(); }
  bool next_is(std::string_view text) const { return from_.substr(at_).starts_with(text); }
  bool skip(std::string_view text) {
    if (!next_is(text)) return false;
    at_ += text.size();
    return true;
  }

  /// \p{…}: script names mean the script itself, not its extensions.
  void property(std::size_t begin) {
    std::size_t const close = from_.find('}', at_);
    if (!next_is("{") || close == std::string_view::npos) fail(begin, std::min(at_ + 1, from_.size()));
    std::string name(from_.substr(at_ + 1, close - at_ - 1));
    bool const is_negated = from_[begin + 1] == 'P';
    at_ = close + 1;
    std::string_view const negation = name.starts_with('^') ? "^" : "";
    name.erase(0, negation.size());
    std::string const script = fmt::format("\\p{{sc:{}}}", name);
    bool const is_script = name.size() > 2 && compiles(script);
    if (!is_script && !compiles(fmt::format("\\p{{{}}}", name))) fail(begin, at_);
    to_ += fmt::format("\\{}{{{}{}{}}}", is_negated ? 'P' : 'p', negation, is_script ? "sc:" : "", name);
  }

  /// \x41, \x{10ffff}, ぁ
  void hexadecimal(std::size_t begin, bool is_short) {
    bool const braces = is_short && skip("{");
    std::size_t const most = braces ? 8 : is_short ? 2 : 4;
    std::size_t size = 0;
    while (size < most && at_ + size < from_.size() &&
           std::string_view("0123456789abcdefABCDEF").find(from_[at_ + size]) != std::string_view::npos) {
      ++size;
    }
    std::uint32_t code = 0;
    std::from_chars(from_.data() + at_, from_.data() + at_ + size, code, 16);
    at_ += size;
    bool const is_scalar = code < 0xd800 || (code > 0xdfff && code < 0x110000);
    // \x80 and above would be bytes there.
    if (size == 0 || (!is_short && size < 4) || (braces && !skip("}")) || !is_scalar ||
        (is_short && !braces && code >= 0x80)) {
      fail(begin, std::min(at_ + 1, from_.size()));
    }
    to_ += fmt::format("\\x{{{:x}}}", code);
  }

  void escape(bool in_class) {
    std::size_t const begin = at_++;
    if (done()) fail(begin, at_);
    char const c = from_[at_++];
    auto const set = [&](std::string_view parts) {
      to_ += in_class ? std::string(parts) : fmt::format("[{}]", parts);
    };
    switch (c) {
      case 's':
        to_ += white_space;
        return;
      case 'S':
        to_ += "\\P{White_Space}";
        return;
      case 'd':
        to_ += "\\p{Nd}";
        return;
      case 'D':
        to_ += "\\P{Nd}";
        return;
      case 'h':
        set("0-9a-fA-F");
        return;
      case 'w':
        set(word_parts);
        return;
      case 'W':
        if (in_class) fail(begin, at_);
        to_ += fmt::format("[^{}]", word_parts);
        return;
      case 'p':
      case 'P':
        property(begin);
        return;
      case 'x':
      case 'u':
        hexadecimal(begin, c == 'x');
        return;
      case 'n':
      case 'r':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        to_ += '\\';
        to_ += c;
        return;
      case 'v':
        to_ += "\\x0b";
        return;
      case 'A':
      case 'z':
        if (in_class) fail(begin, at_);
        to_ += '\\';
        to_ += c;
        return;
      default:
        break;
    }
    auto const code = static_cast<unsigned char>(c);
    if (code >= 0x80 || !is_punctuation(code)) {
      if (c != ' ') fail(begin, at_);
    }
    to_ += '\\';
    to_ += c;
  }

  void character_class() {
    std::size_t const begin = at_++;
    to_ += '[';
    if (skip("^")) to_ += '^';
    if (next_is("]")) fail(begin, at_ + 1);  // empty, or a bracket: that differs
    int depth = 1;
    while (depth > 0) {
      if (done()) fail(begin, at_);
      if (next_is("&&")) fail(at_, at_ + 2);  // what both have
      if (next_is("[")) {
        // What a class in a class has is the outer one's; but for others than those that list characters, and
        // at the ends of ranges.
        bool const lists = !next_is("[^") && !next_is("[:") && !next_is("[]") && !to_.ends_with('-');
        if (!lists) fail(at_, std::min(at_ + 2, from_.size()));
        ++depth;
        ++at_;
        continue;
      }
      if (skip("]")) {
        --depth;
        if (depth > 0 && next_is("-")) fail(at_, at_ + 1);
        continue;
      }
      if (next_is("\\")) {
        escape(true);
      } else {
        to_ += from_[at_++];
      }
    }
    to_ += ']';
  }

  /// What '(' begins.
  void open_group() {
    std::size_t const begin = at_++;
    if (!skip("?")) {
      to_ += "(?:";  // nobody asks for what a group has matched
      return;
    }
    for (std::string_view const kind : {":", "=", "!", ">", "<=", "<!", "i:", "-i:"}) {
      if (skip(kind)) {
        to_ += fmt::format("(?{}", kind);
        return;
      }
    }
    if (skip("i)") && to_.empty()) {
      to_ += "(?i)";  // to the end; elsewhere the two differ about alternatives
      return;
    }
    fail(begin, std::min(at_ + 1, from_.size()));
  }

  /// {n}, {n,}, {,m} and {n,m}: nothing if these braces are only characters.
  std::optional<std::string> count() {
    std::size_t const close = from_.find('}', at_);
    if (close == std::string_view::npos) return std::nullopt;
    std::string_view const inside = from_.substr(at_ + 1, close - at_ - 1);
    std::size_t const comma = inside.find(',');
    auto const is_count = [](std::string_view text) {
      return text.find_first_not_of("0123456789") == std::string_view::npos && text.size() < 6;
    };
    std::string_view const least = inside.substr(0, comma);
    std::string_view const most = comma == std::string_view::npos ? least : inside.substr(comma + 1);
    if (!is_count(least) || !is_count(most) || (least.empty() && most.empty())) return std::nullopt;
    at_ = close + 1;
    return comma == std::string_view::npos ? fmt::format("{{{}}}", least)
                                           : fmt::format("{{{},{}}}", least.empty() ? "0" : least, most);
  }

  /// Repetitions of what stands in the result from `atom` on.
  void quantifiers(std::size_t atom) {
    while (!done()) {
      if (next_is("{")) {
        std::size_t const begin = at_;
        auto const repeated = count();
        if (!repeated) return;  // a brace as it is
        to_ += *repeated;
        if (skip("?")) {
          // {n}? is "n times or none" there.
          if (repeated->find(',') == std::string::npos) fail(begin, at_);
          to_ += '?';
        }
        // A '+' after braces repeats, and does not make them possessive.
      } else if (next_is("*") || next_is("+") || next_is("?")) {
        to_ += from_[at_++];
        if (next_is("+") || next_is("?")) to_ += from_[at_++];
      } else {
        return;
      }
      if (next_is("*") || next_is("+") || next_is("?") || next_is("{")) {
        to_.insert(atom, "(?:");
        to_ += ')';
      }
    }
  }

 public:
  explicit translator(std::string_view expression) : from_(expression) {}

  std::string run() {
    std::vector<std::size_t> groups;  // where the open ones begin
    while (!done()) {
      std::size_t atom = to_.size();
      char const c = from_[at_];
      switch (c) {
        case '\\':
          escape(false);
          break;
        case '[':
          character_class();
          break;
        case '(':
          open_group();
          if (!to_.ends_with("(?i)")) groups.push_back(atom);
          continue;
        case ')':
          if (groups.empty()) fail(at_, at_ + 1);
          atom = groups.back();
          groups.pop_back();
          to_ += c;
          ++at_;
          break;
        case '|':
        case '^':
        case '$':
          to_ += c;
          ++at_;
          continue;
        case '*':
        case '+':
        case '?':
          fail(at_, at_ + 1);
        case '{':
        case '}':
        case ']':
          to_ += '\\';
          to_ += c;
          ++at_;
          break;
        default: {
          std::size_t const size = first_character(from_.substr(at_)).size;
          to_ += from_.substr(at_, size);
          at_ += size;
        }
      }
      quantifiers(atom);
    }
    if (!groups.empty()) fail(from_.size(), from_.size());
    return to_;
  }
};

/// What matching needs of each thread, for one match at a time.
struct workspace {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, 16 << 20, nullptr);

  workspace() {
    pcre2_jit_stack_assign(context, nullptr, stack);
    pcre2_set_match_limit(context, 20'000'000);
    pcre2_set_heap_limit(context, 64 << 10);  // KiB
  }
  workspace(workspace const&) = delete;
  workspace& operator=(workspace const&) = delete;
  ~workspace() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
};

workspace& workspace_here() {
  thread_local workspace result;
  return result;
}

}  // namespace

std::string to_pcre2(std::string_view expression) { return translator(expression).run(); }

struct regex::compiled {
  unique_code code;
  std::string expression;
  bool is_jit = false;
};

regex::regex(std::string_view expression) {
  std::string const translated = to_pcre2(expression);
  int error = 0;
  std::size_t position = 0;
  auto made = std::make_shared<compiled>();
  made->expression = expression;
  made->code = compile(translated, error, position);
  if (!made->code) {
    throw gptq::error(fmt::format("regular expression '{}': {}", expression, message_for(error)));
  }
  made->is_jit = pcre2_jit_compile(made->code.get(), PCRE2_JIT_COMPLETE) == 0;
  code_ = std::move(made);
}

std::optional<match> regex::search(std::string_view text, std::size_t from) const {
  workspace& w = workspace_here();
  auto const* const subject = reinterpret_cast<PCRE2_SPTR>(text.empty() ? "" : text.data());
  auto* const code = code_->code.get();
  int found = code_->is_jit
                  ? pcre2_jit_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK, w.data, w.context)
                  : PCRE2_ERROR_JIT_STACKLIMIT;
  if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
    found =
        pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, w.data, w.context);
  }
  if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (found < 0) {
    throw gptq::error(fmt::format("regular expression '{}': {}", code_->expression, message_for(found)));
  }
  auto const* const ends = pcre2_get_ovector_pointer(w.data);
  return match{ends[0], ends[1]};
}

}  // namespace lm::tokenizers
