// perplexity: of a model, packed or not, on a text; packed ones decoded to float32 and through the kernels.
#include <chrono>
#include <optional>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <gptq/error.hpp>

#include "cli.hpp"
#include "device/from_model.hpp"
#include "device/programs.hpp"
#include "evaluate.hpp"
#include "model.hpp"
#include "progress.hpp"
#include "quant_directory.hpp"
#include "tokens.hpp"

namespace {

struct arguments {
  std::filesystem::path model;
  std::filesystem::path evaluation;
  std::filesystem::path quant_directory;
  std::vector<lm::arithmetic> how;
  std::int64_t window = 0;
  std::int64_t eval_windows = 0;
  int threads = 0;
  std::shared_ptr<lm::device::accelerator> accelerator;
  std::optional<lm::device::number> activations;
  bool packed = false;  ///< on the accelerator
};

std::optional<arguments> parse(int argc, char** argv) {
  arguments args;
  CLI::App app("Measures the perplexity of a model, packed or not, on a text.\n", "perplexity");
  app.get_formatter()->column_width(30);
  app.add_option("MODEL", args.model, "Directory of the model, or GGUF file")->required()->type_name("");
  app.add_option("EVALUATION", args.evaluation, "Text or token ids, as for quantize_model")
      ->required()
      ->type_name("");
  app.add_option("--arithmetic", args.how,
                 "One or more of float32, int15, int8 [what there is for the model]")
      ->transform(CLI::CheckedTransformer(lm::arithmetic_names).description(""))
      ->type_name("NAME");
  app.add_option("--window", args.window, "Tokens in a sequence [the model's maximum, at most 2048]")
      ->check(CLI::Range(2, 1 << 30).description(""))
      ->type_name("N");
  app.add_option("--eval-windows", args.eval_windows, "Evaluate on the first N windows [all]")
      ->check(CLI::PositiveNumber.description(""))
      ->type_name("N");
  app.add_option("--quant-directory", args.quant_directory,
                 "Round the linear layers of a float32 model to the grids of this export of\n"
                 "quantize_model or GPTQ-for-LLaMa")
      ->type_name("DIR");
  lm::add_threads_option(app, args.threads);
  std::string device = "cpu";
  app.add_option("--device", device, "Where arithmetic float32 is computed: cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}).description(""))
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--activations", args.activations,
                 "On cuda: float32, float16 or bfloat16 [the type of the weights]; with\n"
                 "float16, linear layers that are packed are multiplied as they are")
      ->transform(
          CLI::CheckedTransformer(std::map<std::string, lm::device::number>(lm::device::number_names.begin(),
                                                                            lm::device::number_names.end()))
              .description(""))
      ->type_name("TYPE");
  if (!lm::parse_options(app, argc, argv)) return std::nullopt;
  if (device == "cuda") {
    args.accelerator = lm::device::make_cuda_accelerator();
    if (args.how.empty()) args.how = {lm::arithmetic::float32};
    if (args.how != std::vector{lm::arithmetic::float32}) {
      throw gptq::error("int15 and int8 are the cpu's: --device cuda computes --arithmetic float32");
    }
  } else if (args.activations) {
    throw gptq::error("--activations is about --device cuda");
  }
  return args;
}

void run(arguments args) {
  lm::model m(args.model);
  if (!args.quant_directory.empty()) m.round_to(lm::read_quant_directory(args.quant_directory));
  args.window = lm::window_length(m.config(), args.window);
  auto const text = lm::read_text(args.evaluation, args.model, m.config(), args.window, args.eval_windows);
  if (args.how.empty()) {
    args.how = {lm::arithmetic::float32};
    if (m.has_kernels()) args.how.insert(args.how.end(), {lm::arithmetic::int15, lm::arithmetic::int8});
  }
  lm::device::number activations{};
  if (args.accelerator != nullptr) {
    activations = args.activations.value_or(lm::device::exact_activations(m));
    args.packed = activations == lm::device::number::float16 && m.config().quantized() &&
                  lm::device::unsupported_packed_part(m.config()).empty();
  }
  fmt::print("{}: {} windows of {} tokens\n", args.model.string(), text.windows.size(), args.window);
  for (lm::arithmetic const how : args.how) {
    auto const start = std::chrono::steady_clock::now();
    lm::progress bar(lm::name_of(how),
                     static_cast<std::ptrdiff_t>(text.windows.size()) * (m.config().num_hidden_layers + 1));
    auto const advance = [&] { bar.advance(); };
    double const value =
        args.packed ? lm::device::packed_perplexity(*args.accelerator, m, text.windows, args.threads, advance)
        : args.accelerator != nullptr
            ? lm::device::perplexity(*args.accelerator, activations, m, text.windows, args.threads, advance)
            : lm::perplexity(m, text.windows, how, args.threads, advance);
    bar.clear();
    double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::string const name = args.packed                   ? "packed"
                             : args.accelerator != nullptr ? lm::device::name_of(activations)
                                                           : lm::name_of(how);
    fmt::print("{:<8} {:.5f}   {:.1f} s\n", name, value, seconds);
    std::fflush(stdout);
  }
}

}  // namespace

/// 0: done; 2: something in the arguments or files is wrong; 1: anything else.
int main(int argc, char** argv) {
  try {
    if (auto const args = parse(argc, argv)) run(*args);
    return 0;
  } catch (gptq::error const& e) {
    fmt::print(stderr, "perplexity: {}\n", e.what());
    return 2;
  } catch (std::exception const& e) {
    fmt::print(stderr, "perplexity: {}\n", e.what());
    return 1;
  }
}
