// convert: a quantized model in another format, with the same weights.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <gptq/error.hpp>

#include "cli.hpp"
#include "gguf_layers.hpp"
#include "model.hpp"
#include "packed_model.hpp"
#include "written_model.hpp"

namespace {

namespace fs = std::filesystem;

struct arguments {
  fs::path model;
  fs::path output;
  lm::output_format format = lm::output_format::packed;
  std::optional<gptq::checkpoint::ggml_type> embeddings;
  std::optional<std::size_t> shard_bytes;
};

std::optional<arguments> parse(int argc, char** argv) {
  arguments args;
  CLI::App app(
      "Writes a quantized model in another format. Nothing is quantized again: every weight of its linear\n"
      "layers stays the number that it is, and what the other format cannot hold is refused.\n",
      "convert");
  app.get_formatter()->column_width(30);
  app.add_option("MODEL", args.model,
                 "Packed model, GPTQ, AWQ or compressed-tensors checkpoint, or GGUF file")
      ->required()
      ->type_name("");
  app.add_option("OUTPUT", args.output, "Directory to make")->required()->type_name("");
  app.add_option("--format", args.format,
                 "What to write: packed, gptq, gptq_v2, awq, compressed-tensors or gguf\n[packed]")
      ->transform(CLI::CheckedTransformer(lm::output_formats).description(""))
      ->type_name("NAME");
  app.add_option("--embeddings", args.embeddings,
                 "Embeddings and output layer of a GGUF file: f32, f16, bf16, q8_0\n[as they are]")
      ->transform(CLI::CheckedTransformer(lm::embedding_types).description(""))
      ->type_name("TYPE");
  app.add_option("--shard-size", args.shard_bytes,
                 "Split the weights of a checkpoint into files of at most N bytes;\n500M, 2G ... [5 * 10^9]")
      ->transform(CLI::AsSizeValue(false).description(""))
      ->type_name("N");
  if (!lm::parse_options(app, argc, argv)) return std::nullopt;
  lm::check_options(args.format, args.embeddings, args.shard_bytes);
  return args;
}

std::size_t packed_bytes(lm::model const& m) {
  std::size_t sum = 0;
  m.for_each_packed(
      [&](lm::linear_layer const&, lm::packed_linear const& packed) { sum += packed.parts().bytes(); });
  return sum;
}

void run(arguments const& args) {
  lm::model m(args.model);
  if (lm::is_gguf(args.model)) {
    lm::pack_blocks(m);
  } else if (!m.config().quantized()) {
    throw gptq::error(args.model.string() + ": the model is not quantized; quantize_model does that");
  }
  if (m.has_quantized_output()) {
    throw gptq::error(fmt::format("{}: its output layer, {}, is quantized: that is not written yet",
                                  args.model.string(), m.config().output_name));
  }
  std::int64_t layers = 0;
  std::optional<gptq::format_spec> checked;
  m.for_each_packed([&](lm::linear_layer const& layer, lm::packed_linear const& packed) {
    ++layers;
    auto const format = packed.format();
    // GGUF's types depend on the weights, not on the format alone: they are chosen when the file is written.
    if (args.format == lm::output_format::gguf || (checked && to_string(*checked) == to_string(format)))
      return;
    try {
      lm::check_output(args.format, m, args.model, format, args.embeddings);
    } catch (gptq::error const& e) {
      throw gptq::error(layer.name + ": " + e.what());
    }
    checked = format;
  });
  lm::check_no_model(args.output);
  lm::output_options options;
  options.embeddings = args.embeddings;
  options.blocks = lm::gguf_blocks::exact;
  options.shard_bytes = args.shard_bytes.value_or(lm::default_shard_bytes);
  lm::write_model(args.output, m, args.model, args.format, options);
  fmt::print("{} linear layers, {:.1f} MB of codes and scales, written to {}\n", layers,
             static_cast<double>(packed_bytes(m)) * 1e-6, args.output.string());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    auto const args = parse(argc, argv);
    if (args) run(*args);
    return 0;
  } catch (gptq::error const& e) {
    fmt::print(stderr, "convert: {}\n", e.what());
    return 2;
  } catch (std::exception const& e) {
    fmt::print(stderr, "convert: {}\n", e.what());
    return 1;
  }
}
