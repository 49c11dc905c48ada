// Conversations, as chat templates write them.
#include "chat.hpp"

#include <string>
#include <vector>

#include "catch.hpp"

namespace {

using lm::chat_message;
using speaker = lm::chat_message::speaker;

/// What transformers' apply_chat_template() makes of these with the models' own templates, but for the token that the
/// tokenizer puts before a text.
std::vector<chat_message> const conversation{
    {speaker::user, "Hi"}, {speaker::assistant, "Hello!"}, {speaker::user, "Why?"}};

std::string written(char const* chat_template, std::vector<chat_message> const& messages) {
  auto const* const format = lm::find_chat_format(chat_template);
  REQUIRE(format != nullptr);
  return lm::write_chat(*format, messages, "</s>");
}

}  // namespace

TEST_CASE("conversations are written as the models' templates do") {
  CHECK(written("{{'<|im_start|>' + message['role']}}", conversation) ==
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nWhy?<|im_"
        "end|>\n"
        "<|im_start|>assistant\n");
  CHECK(written("<|start_header_id|>", conversation) ==
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|"
        ">\n\n"
        "Hello!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n");
  CHECK(written("<start_of_turn>", {{speaker::system, "Be brief."}, {speaker::user, "Hi"}}) ==
        "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n");
  CHECK(written("<|assistant|> <|end|>", {{speaker::system, "S"}, {speaker::user, "Hi"}}) ==
        "<|system|>\nS<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n");
  CHECK(written("<|im_start|> <|im_sep|>", {{speaker::user, "Hi"}}) ==
        "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>");
  CHECK(written(
            "{{ '<|user|>\n' + message['content'] + eos_token }}\n{{ '<|assistant|>\n'  + message['content'] "
            "+ eos_token }}",
            {{speaker::system, "S"},
             {speaker::user, "Hi"},
             {speaker::assistant, "Yes"},
             {speaker::user, "?"}}) ==
        "<|system|>\nS</s>\n<|user|>\nHi</s>\n<|assistant|>\nYes</s>\n<|user|>\n?</s>\n<|assistant|>\n");
  CHECK(written("[INST] <<SYS>>", {{speaker::system, "S"}, {speaker::user, "Hi"}}) ==
        "[INST] <<SYS>>\nS\n<</SYS>>\n\nHi [/INST]");
  CHECK(written("[INST]", {{speaker::user, "Hi"}}) == "[INST] Hi [/INST]");
}

TEST_CASE("SmolLM 2 has words of its own for the system where there are none") {
  char const* const own =
      "'<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>";
  CHECK(written(own, {{speaker::user, "Hi"}}) ==
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  CHECK(written(own, {{speaker::system, "S"}, {speaker::user, "Hi"}}) ==
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("other templates are not taken for one of these") {
  CHECK(lm::find_chat_format("") == nullptr);
  CHECK(lm::find_chat_format("{{ bos_token }}<|role_start|>") == nullptr);
  CHECK(lm::find_chat_format("<|assistant|>") == nullptr);
  // Like Zephyr's, but only the assistant's words end with a token.
  CHECK(lm::find_chat_format(
            "'<|user|>\n' + message['content'] + '\n' '<|assistant|>\n' + message['content'] + "
            "eos_token + '\n'") == nullptr);
  CHECK(lm::chat_format_names() == "phi-4, chatml, llama-3, gemma, phi-3, zephyr, llama-2, mistral");
}
