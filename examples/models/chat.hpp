// Conversations as the models that are trained for them have them written down.
//
// A model comes with a template in Jinja, a language of its own, which is not read here: a template is
// recognized by the tokens that it puts around what is said, and of these there is a list.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lm {

struct chat_message {
  enum class speaker { system, user, assistant };
  speaker from = speaker::user;
  std::string text;
};

/// How a conversation is written: what stands before and after what each says; "{end}" is the model's end token.
struct chat_format {
  char const* name;       ///< "chatml"
  char const* begin;      ///< of the whole text, after the tokenizer's own
  char const* system[2];  ///< before and after
  char const* user[2];
  char const* assistant[2];
  bool system_in_user;    ///< the system's words stand before the user's first ones, there
  char const* otherwise;  ///< the system's words where there are none; may be null
};

/// The format of a model's chat template; null when it is none of those known: chatml (Qwen, SmolLM 2),
/// llama-3, gemma, phi-3, phi-4, zephyr, mistral and llama-2.
chat_format const* find_chat_format(std::string_view chat_template);

/// The names of all formats, for an error: "chatml, llama-3, ..."
std::string chat_format_names();

/// The text that a model is to continue as the assistant.
/// @param end_token  of the model, for formats that end with it what each says
std::string write_chat(chat_format const& format, std::vector<chat_message> const& messages,
                       std::string_view end_token);

}  // namespace lm
