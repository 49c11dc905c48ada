#include "command_line.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <gptq/error.hpp>

#include "cli.hpp"
#include "gguf_model.hpp"
#include "report.hpp"

namespace lm {
namespace {

std::map<std::string, gptq::grid_rule> const grid_rules{{"published", gptq::grid_rule::published},
                                                        {"amax", gptq::grid_rule::amax},
                                                        {"signed_amax", gptq::grid_rule::signed_amax}};

struct observer_options {
  bool observe = false;
  observation values;
};

constexpr auto no_limit = std::numeric_limits<std::int64_t>::max();

// The checks of CLI11, without what they add to the help.
CLI::Validator between(auto low, auto high) { return CLI::Range(low, high).description(""); }

template <class Value>
CLI::Validator one_of(std::initializer_list<Value> values) {
  return CLI::IsMember(values).description("");
}

template <class Value>
CLI::Validator translate(std::map<std::string, Value> names) {
  return CLI::CheckedTransformer(std::move(names)).description("");
}

void add_text_options(CLI::App& app, command_line& args) {
  app.add_option("--calibration", args.calibration,
                 "What the model typically reads: token ids as int32 (NAME.i32) or\n"
                 "text, as bytes for a vocabulary of 256, otherwise through the\n"
                 "directory's tokenizer.model")
      ->required()
      ->type_name("FILE");
  app.add_option("--evaluation", args.evaluation,
                 "Held-out text to measure the perplexity on, before and after;\n"
                 "without it, none is measured")
      ->type_name("FILE");
  app.add_option("--window", args.window, "Tokens in a sequence [the model's maximum, at most 2048]")
      ->check(between(std::int64_t{2}, no_limit))
      ->type_name("N");
  app.add_option("--samples", args.samples, "Calibrate on the first N windows")
      ->check(between(std::int64_t{1}, std::int64_t{1} << 40))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--eval-windows", args.eval_windows, "Evaluate on the first N windows [all]")
      ->check(between(std::int64_t{1}, no_limit))
      ->type_name("N");
}

void add_format_options(CLI::App& app, gptq::format_spec& format) {
  app.add_option("--scheme", format.scheme,
                 "What a code means: asymmetric (a zero point a group) or, without a\n"
                 "zero point, symmetric (-7..7 at 4 bits), fixed_zero (-8..7),\n"
                 "half_step (-7.5..7.5)")
      ->check(one_of({"asymmetric", "symmetric", "fixed_zero", "half_step"}))
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--bits", format.bits, "Width of a code: 2, 3, 4 or 8")
      ->check(one_of({2, 3, 4, 8}))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--group-size", format.group_size,
                 "Weights that share a scale: 32, 64, 128, or -1 for a whole row")
      ->check(one_of({32, 64, 128, gptq::whole_row}))
      ->type_name("N")
      ->capture_default_str();
}

void add_method_options(CLI::App& app, quantization& how) {
  gptq::quantize_options& options = how.quantize.options;
  app.add_flag("--rtn", how.quantize.round_to_nearest, "Round to nearest instead of GPTQ");
  app.add_flag("--act-order", options.act_order, "Quantize the inputs that matter most first");
  app.add_flag("--static-groups", options.static_groups,
               "Find all scales before the first column is quantized");
  app.add_flag("--true-sequential", how.true_sequential,
               "Within a decoder layer, calibrate on what is quantized already");
  app.add_option("--held-out", how.held_out_windows,
                 "Keep N windows that follow the --samples for what is chosen: plain\n"
                 "GPTQ where it is better, the damping of --quality best, --propagate")
      ->check(between(std::size_t{0}, std::size_t{1} << 40))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--propagate", how.propagate,
                 "Make up for what the quantized layers before change, with this\n"
                 "strength, 0..1; with --held-out the best up to it is taken")
      ->check(between(0.0, 1.0))
      ->type_name("X");
  app.add_option("--grid", options.grid, "How a scale is found: published, amax, signed_amax [published]")
      ->transform(translate(grid_rules))
      ->type_name("RULE");
  app.add_flag("--mse", options.mse, "Search for the range of least error, not the weights' own");
  app.add_option("--damping", options.damping, "Added to the Hessian's diagonal: a fraction of its mean")
      ->check(between(0.0, 1.0))
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--block-size", options.block_size,
                 "Columns between two large updates; changes rounding only")
      ->check(between(1, 1 << 16))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--quality", options.quality,
                 "Work put into the codes: reference (the published arithmetic with\n"
                 "its defects, implies --scale float32), plain, fast, best [fast]")
      ->transform(translate(qualities))
      ->type_name("NAME");
}

void add_observer_options(CLI::App& app, observer_options& options) {
  app.add_flag("--observe", options.observe,
               "Keep the layers with the largest loss and quantize them again in the\n"
               "end: smaller groups, down to 32, then twice the bits, until the loss\n"
               "has halved");
  app.add_option("--topk", options.values.top_k, "How many layers to keep")
      ->check(between(std::size_t{1}, std::size_t{1} << 20))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--extra-bytes", options.values.extra_bytes,
                 "Spend at most N bytes on them, where they remove most loss, instead\n"
                 "of halving each one's; 4096, 64K, 2M ...")
      ->transform(CLI::AsSizeValue(false).description(""))
      ->type_name("N");
  app.add_option("--spill", options.values.spill_directory,
                 "Keep their Hessians in this directory, not in memory")
      ->check(CLI::ExistingDirectory.description(""))
      ->type_name("DIR");
}

struct tuning_options {
  std::optional<tuning_scope> scope;
  std::optional<double> minutes;
  tuning values;
};

void add_tuning_options(CLI::App& app, tuning_options& options) {
  app.add_option("--tune", options.scope,
                 "When all is quantized, move scales so that what is computed comes closer\n"
                 "to the float32 model: by the distribution of the whole model, or by the\n"
                 "output of one decoder layer after the other. Needs --held-out: what is\n"
                 "kept is best on those windows. Not for layers of experts")
      ->transform(translate<tuning_scope>({{"model", tuning_scope::model}, {"layer", tuning_scope::layer}}))
      ->type_name("SCOPE");
  app.add_option("--tune-minutes", options.minutes, "For so long [5]")
      ->check(between(1e-3, 1e6))
      ->type_name("X");
  app.add_option("--tune-steps", options.values.steps,
                 "Or for so many steps, of each decoder layer with --tune layer: then\n"
                 "the result is the same every time")
      ->check(between(std::int64_t{1}, std::int64_t{1} << 40))
      ->type_name("N");
  app.add_option("--tune-batch", options.values.batch, "Windows a step")
      ->check(between(std::size_t{1}, std::size_t{1} << 20))
      ->type_name("N")
      ->capture_default_str();
}

void add_writing_options(CLI::App& app, command_line& args) {
  app.add_option("--generate", args.prompt, "Continue this text")->type_name("PROMPT");
  app.add_option("--generate-tokens", args.generate_tokens, "At most N new tokens")
      ->check(between(std::int64_t{1}, no_limit))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--temperature", args.sampling.temperature,
                 "0: always the likeliest token; 1: by the model's probabilities")
      ->check(between(0.0, 1e3))
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--top-p", args.sampling.top_p,
                 "Draw among the likeliest tokens that have this probability\n"
                 "together")
      ->check(between(0.0, 1.0))
      ->type_name("X")
      ->capture_default_str();
  app.add_option("--seed", args.sampling.seed, "Of the random numbers")
      ->type_name("N")
      ->capture_default_str();
}

/// Those of the formats; what a model of a format cannot hold depends on the model.
void check_format(command_line const& args) {
  check_options(args.written, args.embeddings, args.shard_bytes);
  if (args.written == output_format::packed || !args.output.empty()) return;
  for (auto const& [name, format] : output_formats) {
    if (format == args.written) throw gptq::error(fmt::format("--format {} needs an --output", name));
  }
}

/// Whether a run may end with columns in another order than they were in.
bool may_reorder(command_line const& args) {
  gptq::quantize_options const& options = args.how.quantize.options;
  bool const may_be_plain = options.quality == gptq::quality::plain ||
                            options.quality == gptq::quality::reference || args.how.held_out_windows > 0;
  return options.act_order && may_be_plain && !options.static_groups;
}

/// AWQ and compressed-tensors have one format for all layers, and AWQ has no order of columns.
void check_one_format(command_line const& args) {
  if (args.written != output_format::awq && args.written != output_format::compressed_tensors) return;
  if (args.how.observe) {
    throw gptq::error("--observe makes layers of other formats: --format packed, gptq and gguf hold them");
  }
  if (args.written == output_format::awq && may_reorder(args)) {
    throw gptq::error("AWQ keeps columns in their order: --act-order needs --static-groups with it");
  }
}

/// What a GGUF file cannot hold is refused before hours of work on it.
void check_gguf(command_line const& args) {
  if (args.written != output_format::gguf) return;
  if (may_reorder(args)) {
    throw gptq::error("GGUF keeps columns in their order: --act-order needs --static-groups with it");
  }
  gptq::format_spec finer = args.how.quantize.format;
  gguf_type_of(finer);
  if (args.how.observe && finer.bits < 8) {
    finer.bits *= 2;  // what the worst layers may become
    try {
      gguf_type_of(finer);
    } catch (gptq::error const& e) {
      throw gptq::error(fmt::format("--observe may double the bits of a layer: {}", e.what()));
    }
  }
}

}  // namespace

std::string name_of(gptq::grid_rule rule) {
  return std::find_if(grid_rules.begin(), grid_rules.end(),
                      [&](auto const& entry) { return entry.second == rule; })
      ->first;
}

std::optional<command_line> parse_command_line(int argc, char** argv, host_share const& host) {
  command_line args;
  gptq::format_spec& format = args.how.quantize.format;
  gptq::quantize_options& options = args.how.quantize.options;
  format.scheme = "asymmetric";
  std::optional<gptq::scale_type> scales;
  observer_options observer;
  tuning_options tuned;

  CLI::App app(
      "Quantizes the linear layers of a model by GPTQ and measures what that costs: the loss of every\n"
      "layer, and the perplexity before and after on text that the quantizer has not seen.\n\n"
      "  quantize_model MODEL --calibration some.txt --evaluation other.txt\n",
      "quantize_model");
  app.get_formatter()->column_width(30);
  app.add_option("MODEL", args.model,
                 "Hugging Face directory: config.json and safetensors, sharded or not;\n"
                 "or a GGUF file")
      ->required()
      ->type_name("");
  auto const group = [&](char const* name) { app.option_defaults()->group(name); };
  group("Text and how much of it");
  add_text_options(app, args);
  group("Format");
  add_format_options(app, format);
  app.add_option("--scale", scales, "How scales are stored: float16 or float32 [float16]")
      ->transform(translate<gptq::scale_type>(
          {{"float16", gptq::scale_type::float16}, {"float32", gptq::scale_type::float32}}))
      ->type_name("TYPE");
  group("Method");
  add_method_options(app, args.how);
  group("The worst layers again");
  add_observer_options(app, observer);
  group("Tuning what is quantized");
  add_tuning_options(app, tuned);
  group("A text from the model, before and after");
  add_writing_options(app, args);
  group("Other");
  app.add_flag("--no-float-baseline", args.no_float_baseline,
               "Do not run the unquantized model for comparison");
  app.add_option("--output", args.output,
                 "Write the quantized model to this directory; decoder layers are kept\n"
                 "there as they are finished")
      ->type_name("DIR");
  app.add_option("--format", args.written,
                 "What to write: packed, for generate and perplexity; gguf, a file for\n"
                 "llama.cpp (4 bits as Q4_0 or Q4_1, 8 bits as Q8_0); or a checkpoint for\n"
                 "Transformers or vLLM: gptq, gptq_v2, awq or compressed-tensors [packed]")
      ->transform(translate(output_formats))
      ->type_name("NAME");
  app.add_option("--embeddings", args.embeddings,
                 "Embeddings and output layer of a GGUF file: f32, f16, bf16, q8_0\n"
                 "[as they are]")
      ->transform(translate(embedding_types))
      ->type_name("TYPE");
  app.add_option("--shard-size", args.shard_bytes,
                 "Split the weights of a checkpoint into files of at most N bytes;\n"
                 "500M, 2G ... [5 * 10^9]")
      ->transform(CLI::AsSizeValue(false).description(""))
      ->check(between(std::size_t{1}, std::size_t{1} << 60))
      ->type_name("N");
  app.add_option("--quant-directory", args.quant_directory,
                 "Export scales, zero points and groups alone to this directory, as\n"
                 "GPTQ-for-LLaMa does: quant.toml and .npy files")
      ->type_name("DIR");
  app.add_flag("--resume", args.resume, "Go on with the run in --output that was interrupted");
  app.add_option("--log", args.log, "Write all of it to this file, too, as JSON lines")->type_name("FILE");
  add_threads_option(app, args.how.threads);
  std::string device = "cpu";
  app.add_option("--device", device,
                 "Where all of it is computed: cpu, or cuda (any quality but reference).\n"
                 "Each decoder layer runs twice there, as on the cpu, but once with\n"
                 "--true-sequential; and once more with --propagate. For layers of\n"
                 "experts, --rtn and --observe activations stay in the host's memory,\n"
                 "which is slower")
      ->check(one_of({"cpu", "cuda"}))
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--activations", args.activations,
                 "On cuda, what activations are rounded to between products: float32,\n"
                 "float16 or bfloat16; sums and what layers add up are float32 [the type\n"
                 "of the weights]")
      ->transform(translate(
          std::map<std::string, device::number>(device::number_names.begin(), device::number_names.end())))
      ->type_name("TYPE");
  app.add_flag("--deterministic-reduction", args.how.deterministic_reduction,
               "Add up Hessians so that any number of ranks (mpirun -n N) makes the same\n"
               "bytes; takes the memory of a Hessian for each of 16 shares of the windows")
      ->group("Other");
  if (!parse_options(app, argc, argv)) return std::nullopt;
  if (args.how.threads == 0) args.how.threads = host.threads;
  if (device == "cuda") {
    if (options.quality == gptq::quality::reference) {
      throw gptq::error("--quality reference is the CPU's: it cannot go with --device cuda");
    }
    args.how.accelerator = device::make_cuda_accelerator();
  }
  if (args.activations && device != "cuda") throw gptq::error("--activations is about --device cuda");
  bool const reference = options.quality == gptq::quality::reference;
  if (reference && scales == gptq::scale_type::float16) {
    throw gptq::error("--quality reference does not round scales: it cannot go with --scale float16");
  }
  format.scales = scales.value_or(reference ? gptq::scale_type::float32 : gptq::scale_type::float16);
  options.threads = args.how.threads;
  if (observer.observe && args.how.propagate) {
    throw gptq::error(
        "--observe quantizes again from the model's own weights: it cannot go with --propagate");
  }
  if (args.resume && args.output.empty()) throw gptq::error("--resume needs the --output of that run");
  if (observer.observe) args.how.observe = observer.values;
  if (!observer.observe && (observer.values.extra_bytes || !observer.values.spill_directory.empty())) {
    throw gptq::error("--extra-bytes and --spill are about what --observe keeps");
  }
  if (tuned.scope) {
    if (args.how.held_out_windows == 0) throw gptq::error("--tune needs --held-out: windows to be judged by");
    if (tuned.minutes && tuned.values.steps) {
      throw gptq::error("--tune-minutes and --tune-steps are two budgets: give one");
    }
    args.tune = tuned.values;
    args.tune->scope = *tuned.scope;
    args.tune->minutes = tuned.minutes.value_or(args.tune->minutes);
    args.tune->seed = static_cast<std::uint32_t>(args.sampling.seed);
    args.tune->threads = args.how.threads;
  } else if (app.count("--tune-minutes") + app.count("--tune-steps") + app.count("--tune-batch") > 0) {
    throw gptq::error("--tune-minutes, --tune-steps and --tune-batch are about --tune");
  }
  check_format(args);
  check_gguf(args);
  check_one_format(args);
  return args;
}

}  // namespace lm
