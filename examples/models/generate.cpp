// generate: continues a text with a packed model, straight from its codes, or with a float32 one, and says
// how fast.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <gptq/error.hpp>

#include "chat.hpp"
#include "cli.hpp"
#include "device/from_model.hpp"
#include "device/programs.hpp"
#include "generation.hpp"
#include "gguf_tokenizer.hpp"
#include "model.hpp"
#include "report.hpp"
#include "tokens.hpp"

namespace {

namespace fs = std::filesystem;

struct arguments {
  std::filesystem::path model;
  std::string prompt;
  std::int64_t tokens = 128;
  lm::sampling sampling;
  std::optional<lm::arithmetic> how;
  std::filesystem::path beside;
  int threads = 0;
  std::shared_ptr<lm::device::accelerator> accelerator;
  bool chat = false;
  std::string system;
};

std::optional<arguments> parse(int argc, char** argv) {
  arguments args;
  CLI::App app(
      "Continues a text with a model that quantize_model --output has written, through this library's\n"
      "kernels, or with an unquantized one in float32.\n",
      "generate");
  app.get_formatter()->column_width(30);
  app.add_option("MODEL", args.model, "Directory of the model, or GGUF file")->required()->type_name("");
  app.add_option("PROMPT", args.prompt, "Text to continue, or a file of token ids (NAME.i32)")
      ->required()
      ->type_name("");
  app.add_option("--tokens", args.tokens, "At most N new tokens")
      ->check(CLI::PositiveNumber.description(""))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--temperature", args.sampling.temperature,
                 "0: always the likeliest token; 1: by the model's probabilities")
      ->check(CLI::Range(0.0, 1e3).description(""))
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--top-p", args.sampling.top_p,
                 "Draw among the likeliest tokens that have this probability\n"
                 "together")
      ->check(CLI::Range(0.0, 1.0).description(""))
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--seed", args.sampling.seed, "Of the random numbers")
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--arithmetic", args.how,
                 "int8, int15: packed codes with activations in so many bits; float32:\n"
                 "decoded first [int8, or float32 where there are no kernels]")
      ->transform(CLI::CheckedTransformer(lm::arithmetic_names).description(""))
      ->type_name("NAME");
  app.add_option("--beside", args.beside, "Let this model continue the text, too, in float32")
      ->type_name("DIR");
  auto* const chat = app.add_flag("--chat", args.chat,
                                  "PROMPT is what a user says: write it as the model's chat template\n"
                                  "does, for templates that are known");
  app.add_option("--system", args.system, "What the model is told before, with --chat")
      ->type_name("TEXT")
      ->needs(chat);
  lm::add_threads_option(app, args.threads);
  std::string device = "cpu";
  app.add_option("--device", device,
                 "cpu or cuda: there activations, keys and values are float16, and linear\n"
                 "layers packed, or float16 where there are no kernels")
      ->check(CLI::IsMember({"cpu", "cuda"}).description(""))
      ->type_name("NAME")
      ->capture_default_str();
  if (!lm::parse_options(app, argc, argv)) return std::nullopt;
  if (device == "cuda") {
    if (args.how) throw gptq::error("--arithmetic is the cpu's: leave it out with --device cuda");
    args.accelerator = lm::device::make_cuda_accelerator();
  }
  return args;
}

/// Token ids in place of words, for models whose tokenizer cannot be read here.
lm::tokenizer numbers() {
  return {[](std::string_view) { return std::vector<lm::token>(); },
          [](std::span<lm::token const> ids) {
            std::string text;
            for (lm::token const id : ids) text += fmt::format("{} ", id);
            return text;
          },
          {}};
}

/// The prompt as the model's chat template writes it.
std::string chat_text(fs::path const& model, lm::config const& c, lm::tokenizer const& words,
                      arguments const& args) {
  if (!words.knows_special) {
    throw gptq::error(model.string() +
                      ": --chat needs a tokenizer that knows special tokens: a tokenizer.json");
  }
  auto const chat_template = lm::chat_template_of(model);
  if (!chat_template) throw gptq::error(model.string() + ": has no chat template, which --chat needs");
  auto const* const format = lm::find_chat_format(*chat_template);
  if (format == nullptr) {
    throw gptq::error(
        fmt::format("{}: its chat template is none of {}: write the prompt as it wants it, without --chat",
                    model.string(), lm::chat_format_names()));
  }
  std::vector<lm::chat_message> messages;
  if (!args.system.empty()) messages.push_back({lm::chat_message::speaker::system, args.system});
  messages.push_back({lm::chat_message::speaker::user, args.prompt});
  std::string const end = c.eos_token_id.empty() ? "" : words.decode(std::span(c.eos_token_id).first(1));
  return lm::write_chat(*format, messages, end);
}

/// A text without the replacement characters (U+FFFD) at its end: tokens to come may make characters of these bytes.
std::string without_unfinished(std::string text) {
  constexpr std::string_view replacement = "\xEF\xBF\xBD";
  while (std::string_view(text).ends_with(replacement)) text.resize(text.size() - replacement.size());
  return text;
}

/// Prints the text as it grows, whole characters at a time.
/// @param on  a device, or null
void run(std::filesystem::path const& directory, std::optional<lm::arithmetic> how, arguments const& args,
         lm::device::accelerator* on) {
  lm::model const m(directory);
  if (on != nullptr) {
    if (auto const part = lm::device::unsupported_packed_part(m.config()); !part.empty()) {
      throw gptq::error("--device cuda does not compute " + part + ": leave it out");
    }
  }
  bool const ids = fs::path(args.prompt).extension() == ".i32";
  auto const words = ids ? numbers() : lm::make_tokenizer(directory, m.config());
  std::string const text_to_continue =
      args.chat ? chat_text(directory, m.config(), words, args) : args.prompt;
  std::vector<lm::token> all =
      ids ? lm::read_tokens(args.prompt, directory, m.config()) : lm::prompt_tokens(words, text_to_continue);
  auto const prompt = all;
  lm::execution const execution{
      how.value_or(m.has_kernels() ? lm::arithmetic::int8 : lm::arithmetic::float32), args.threads, true};
  std::size_t shown = 0;  // bytes of the text so far
  auto const show = [&](std::string const& text) {
    fmt::print("{}", text.substr(std::min(shown, text.size())));
    std::fflush(stdout);
    shown = text.size();
  };
  auto const next = [&](lm::token token) {
    all.push_back(token);
    show(without_unfinished(lm::printable(words.decode(all))));
  };
  lm::check_prompt(m.config(), prompt, args.tokens);
  show(without_unfinished(lm::printable(words.decode(prompt))));
  auto const text = on != nullptr
                        ? lm::device::generate(*on, m, prompt, args.tokens, args.sampling, args.threads, next)
                        : lm::generate(m, prompt, args.tokens, args.sampling, execution, next);
  show(lm::printable(words.decode(all)));
  fmt::print(
      "\n\n{}, {}: prompt of {} tokens {:.3f} s, {} tokens at {:.1f} a second; {:.2f} MB a token, {:.2f} "
      "GB/s\n",
      directory.string(), on != nullptr ? on->name() : lm::name_of(execution.how), prompt.size(),
      text.prompt_seconds, text.tokens.size(), text.tokens_a_second(), text.bytes_a_token * 1e-6,
      text.bytes_a_token * text.tokens_a_second() * 1e-9);
}

}  // namespace

/// 0: done; 2: something in the arguments or files is wrong; 1: anything else.
int main(int argc, char** argv) {
  try {
    auto const args = parse(argc, argv);
    if (!args) return 0;
    run(args->model, args->how, *args, args->accelerator.get());
    if (!args->beside.empty()) {
      fmt::print("\n");
      run(args->beside, lm::arithmetic::float32, *args, nullptr);
    }
    return 0;
  } catch (gptq::error const& e) {
    fmt::print(stderr, "generate: {}\n", e.what());
    return 2;
  } catch (std::exception const& e) {
    fmt::print(stderr, "generate: {}\n", e.what());
    return 1;
  }
}
