// Where tokens come from: a file of token ids, or text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config.hpp"

namespace lm {

using token = std::int32_t;
using token_window = std::span<token const>;

/// Turns text into a model's tokens and back.
struct tokenizer {
  std::function<std::vector<token>(std::string_view)> encode;  ///< adds no token of its own
  std::function<std::string(std::span<token const>)> decode;
  std::vector<token> before;  ///< what a text starts with
  /// Whether encode() takes the text of special tokens, such as "<|im_start|>", for these tokens.
  bool knows_special = false;
};

/// From the model's directory, or that of its GGUF file: tokenizer.json; or tokenizer.model through
/// sentencepiece; or what a GGUF file has itself; or the bytes themselves for a vocabulary of 256 (a
/// byte-level model). Throws gptq::error, naming the file, when there is none of these, it has more tokens
/// than the model, or this program was built without sentencepiece.
tokenizer make_tokenizer(std::filesystem::path const& model, config const& c);

/// Reads a file of tokens: NAME.i32 holds ids as little-endian int32, anything else is text for
/// make_tokenizer(). Throws gptq::error for a file that cannot be read and for ids outside the vocabulary,
/// with their position.
std::vector<token> read_tokens(std::filesystem::path const& file, std::filesystem::path const& directory,
                               config const& c);

/// Cuts tokens into whole windows of `length`, without overlap, at most `most` of them (0: all).
std::vector<token_window> cut_windows(std::span<token const> tokens, std::int64_t length, std::int64_t most);

/// The tokens of a text to continue: after those that the tokenizer puts before a text.
std::vector<token> prompt_tokens(tokenizer const& words, std::string_view text);

/// Text that can be shown: a control character becomes '?', a line break or tab a space.
std::string printable(std::string text);

/// 64-bit FNV-1a, in hexadecimal: tells texts and models apart where nobody means harm.
std::string fingerprint(std::span<std::byte const> bytes);

/// Tokens and the windows that they are cut into.
struct text {
  std::vector<token> tokens;
  std::vector<token_window> windows;
};

/// read_tokens() and cut_windows(); throws gptq::error as well when the tokens do not fill one window.
text read_text(std::filesystem::path const& file, std::filesystem::path const& directory, config const& c,
               std::int64_t window, std::int64_t most);

/// The window asked for, or the model's maximum, at most 2048, for 0. Throws gptq::error when the model has
/// fewer positions.
std::int64_t window_length(config const& c, std::int64_t asked_for);

}  // namespace lm
