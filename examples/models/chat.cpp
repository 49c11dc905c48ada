#include "chat.hpp"

#include <array>

namespace lm {
namespace {

struct recognized {
  char const* mark;   ///< is in the template
  char const* other;  ///< so is this; null: nothing else
  chat_format format;
  char const* absent = nullptr;  ///< is not in it; null: nothing is asked
};

constexpr std::string_view end_mark = "{end}";  // where a format has the model's own end token

// The first whose marks are there.
constexpr std::array<recognized, 9> formats{{
    {"<|im_start|>",
     "<|im_sep|>",
     {"phi-4",
      "",
      {"<|im_start|>system<|im_sep|>", "<|im_end|>"},
      {"<|im_start|>user<|im_sep|>", "<|im_end|>"},
      {"<|im_start|>assistant<|im_sep|>", "<|im_end|>"},
      false,
      nullptr}},
    {"<|im_start|>",
     "You are a helpful AI assistant named SmolLM",
     {"chatml",
      "",
      {"<|im_start|>system\n", "<|im_end|>\n"},
      {"<|im_start|>user\n", "<|im_end|>\n"},
      {"<|im_start|>assistant\n", "<|im_end|>\n"},
      false,
      "You are a helpful AI assistant named SmolLM, trained by Hugging Face"}},
    {"<|im_start|>",
     nullptr,
     {"chatml",
      "",
      {"<|im_start|>system\n", "<|im_end|>\n"},
      {"<|im_start|>user\n", "<|im_end|>\n"},
      {"<|im_start|>assistant\n", "<|im_end|>\n"},
      false,
      nullptr}},
    {"<|start_header_id|>",
     nullptr,
     {"llama-3",
      "",
      {"<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"},
      {"<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"},
      {"<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"},
      false,
      nullptr}},
    {"<start_of_turn>",
     nullptr,
     {"gemma",
      "",
      {"", "\n\n"},
      {"<start_of_turn>user\n", "<end_of_turn>\n"},
      {"<start_of_turn>model\n", "<end_of_turn>\n"},
      true,
      nullptr}},
    {"<|assistant|>",
     "<|end|>",
     {"phi-3",
      "",
      {"<|system|>\n", "<|end|>\n"},
      {"<|user|>\n", "<|end|>\n"},
      {"<|assistant|>\n", "<|end|>\n"},
      false,
      nullptr}},
    // Others end what the assistant says alone with a token.
    {"<|assistant|>",
     "message['content'] + eos_token",
     {"zephyr",
      "",
      {"<|system|>\n", "{end}\n"},
      {"<|user|>\n", "{end}\n"},
      {"<|assistant|>\n", "{end}\n"},
      false,
      nullptr},
     "message['content'] + '"},
    {"[INST]",
     "<<SYS>>",
     {"llama-2",
      "",
      {"<<SYS>>\n", "\n<</SYS>>\n\n"},
      {"[INST] ", " [/INST]"},
      {"", " </s><s>"},
      true,
      nullptr}},
    {"[INST]", nullptr, {"mistral", "", {"", "\n\n"}, {"[INST] ", " [/INST]"}, {"", "</s>"}, true, nullptr}},
}};

}  // namespace

chat_format const* find_chat_format(std::string_view chat_template) {
  for (recognized const& r : formats) {
    if (chat_template.find(r.mark) == std::string_view::npos) continue;
    if (r.absent != nullptr && chat_template.find(r.absent) != std::string_view::npos) continue;
    if (r.other == nullptr || chat_template.find(r.other) != std::string_view::npos) return &r.format;
  }
  return nullptr;
}

std::string chat_format_names() {
  std::string names;
  for (recognized const& r : formats) {
    std::string const name = r.format.name;
    if (names.find(name) != std::string::npos) continue;
    names += (names.empty() ? "" : ", ") + name;
  }
  return names;
}

std::string write_chat(chat_format const& format, std::vector<chat_message> const& messages,
                       std::string_view end_token) {
  auto const with_end = [&](std::string text) {
    std::size_t const at = text.find(end_mark);
    return at == std::string::npos ? text : text.replace(at, end_mark.size(), end_token);
  };
  using speaker = chat_message::speaker;
  std::string text = format.begin;
  std::string waiting;  // the system's words, until the user speaks
  bool const starts_with_system = !messages.empty() && messages.front().from == speaker::system;
  if (!starts_with_system && format.otherwise != nullptr) {
    text += format.system[0] + std::string(format.otherwise) + with_end(format.system[1]);
  }
  for (chat_message const& message : messages) {
    switch (message.from) {
      case speaker::system:
        (format.system_in_user ? waiting : text) +=
            format.system[0] + message.text + with_end(format.system[1]);
        break;
      case speaker::user:
        text += format.user[0] + waiting + message.text + with_end(format.user[1]);
        waiting.clear();
        break;
      case speaker::assistant:
        text += format.assistant[0] + message.text + with_end(format.assistant[1]);
        break;
    }
  }
  return text + format.assistant[0];
}

}  // namespace lm
