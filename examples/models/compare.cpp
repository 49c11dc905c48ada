// compare: one model, one calibration, several ways to quantize it, and what each of them costs.
#include <chrono>
#include <cmath>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <gptq/error.hpp>

#include "cli.hpp"
#include "evaluate.hpp"
#include "model.hpp"
#include "progress.hpp"
#include "quantization.hpp"
#include "report.hpp"
#include "tokens.hpp"

namespace {

struct arguments {
  std::filesystem::path model;
  std::filesystem::path calibration;
  std::filesystem::path evaluation;
  std::filesystem::path log;
  std::filesystem::path published;
  std::int64_t window = 0;
  std::int64_t samples = 128;
  std::int64_t eval_windows = 0;
  int bits = 4;
  int group_size = 128;
  std::size_t top_k = 32;
  bool no_act_order = false;
  bool true_sequential = false;
  gptq::quality quality = gptq::quality::fast;
  bool reference() const { return quality == gptq::quality::reference; }
  int threads = 0;
};

/// A row of the table.
struct setting {
  char const* name;
  char const* scheme;
  char const* published;  ///< as "method" of the published figures; null: they have none
  bool observe = false;
};

// The question of 2023, and its answers: the first is what the others are compared with.
constexpr setting settings[] = {
    {"asymmetric, 0..15", "asymmetric", "gptq asym act-order"},
    {"symmetric, -7..7", "symmetric", "gptq -7..7 act-order"},
    {"symmetric, observed", "symmetric", nullptr, true},
    {"fixed zero, -8..7", "fixed_zero", "gptq sym act-order"},
    {"half step, -7.5..7.5", "half_step", "gptq half-step act-order"},
};

std::optional<arguments> parse(int argc, char** argv) {
  arguments args;
  CLI::App app(
      "Quantizes a model with a zero point, and in four ways without, on the same calibration text, and\n"
      "prints what each costs: the largest loss of a layer, all losses, perplexity and size.\n",
      "compare");
  app.get_formatter()->column_width(30);
  auto const positive = CLI::PositiveNumber.description("");
  auto const member = [](auto... values) { return CLI::IsMember({values...}).description(""); };
  app.add_option("MODEL", args.model, "Hugging Face directory, or GGUF file")->required()->type_name("");
  app.add_option("--calibration", args.calibration, "Text or token ids, as for quantize_model")
      ->required()
      ->type_name("FILE");
  app.add_option("--evaluation", args.evaluation, "Held-out text for the perplexity; without it, none")
      ->type_name("FILE");
  app.add_option("--window", args.window, "Tokens in a sequence [the model's maximum, at most 2048]")
      ->check(CLI::Range(2, 1 << 30).description(""))
      ->type_name("N");
  app.add_option("--samples", args.samples, "Calibrate on the first N windows")
      ->check(positive)
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--eval-windows", args.eval_windows, "Evaluate on the first N windows [all]")
      ->check(positive)
      ->type_name("N");
  app.add_option("--bits", args.bits, "Width of a code: 2, 3, 4 or 8")
      ->check(member(2, 3, 4, 8))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--group-size", args.group_size, "32, 64, 128, or -1 for a whole row")
      ->check(member(32, 64, 128, gptq::whole_row))
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--topk", args.top_k, "Layers to quantize again where that is done")
      ->check(positive)
      ->type_name("N")
      ->capture_default_str();
  app.add_flag("--no-act-order", args.no_act_order, "Quantize columns in their own order");
  app.add_flag("--true-sequential", args.true_sequential,
               "Within a decoder layer, calibrate on what is quantized already");
  app.add_option("--quality", args.quality,
                 "Work put into the codes: reference (the published arithmetic, with\n"
                 "float32 scales), plain, fast, best [fast]")
      ->transform(CLI::CheckedTransformer(lm::qualities).description(""))
      ->type_name("NAME");
  app.add_option("--published", args.published,
                 "Figures of the published code to check --quality reference against: a\n"
                 "JSON list of runs with method, bits, group_size, loss_sum, loss_max,\n"
                 "ppl; exits with 3 when a loss is off by more than 2 %")
      ->check(CLI::ExistingFile.description(""))
      ->type_name("FILE");
  app.add_option("--log", args.log, "Write all of it to this file, too, as JSON lines")->type_name("FILE");
  lm::add_threads_option(app, args.threads);
  if (!lm::parse_options(app, argc, argv)) return std::nullopt;
  if (!args.published.empty() && (!args.reference() || args.no_act_order || !args.true_sequential)) {
    throw gptq::error("--published is about --quality reference --true-sequential, with act-order");
  }
  return args;
}

struct outcome {
  lm::summary sums;
  double perplexity = gptq::quantize_report::not_measured;
  double seconds = 0.0;
};

outcome run_setting(setting const& s, lm::text const& calibration, std::optional<lm::text> const& evaluation,
                    arguments const& args, lm::run_log& log) {
  auto const start = std::chrono::steady_clock::now();
  lm::model m(args.model);
  lm::quantization how;
  how.quantize.format = {s.scheme, args.bits, args.group_size,
                         args.reference() ? gptq::scale_type::float32 : gptq::scale_type::float16};
  how.quantize.options.act_order = !args.no_act_order;
  how.quantize.options.quality = args.quality;
  how.quantize.options.threads = how.threads = args.threads;
  how.true_sequential = args.true_sequential;
  if (s.observe) how.observe = lm::observation{args.top_k, {}, std::nullopt};

  std::vector<lm::linear_report> reports;
  auto const in_setting = [&](nlohmann::ordered_json values) {
    values["setting"] = s.name;
    return values;
  };
  lm::progress bar(s.name,
                   static_cast<std::ptrdiff_t>(calibration.windows.size()) * m.config().num_hidden_layers);
  lm::quantization_events events;
  events.done = [&](lm::linear_report const& r) {
    log.write("layer", in_setting(json_of(r)));
    reports.push_back(r);
  };
  events.refined = [&](gptq::refinement const& r, lm::linear_report const& after) {
    log.write("observed", in_setting(lm::json_of(r)));
    for (lm::linear_report& report : reports) {
      if (report.name == after.name) report = after;
    }
  };
  events.advance = [&] { bar.advance(); };
  lm::quantize_model(m, calibration.windows, how, events);
  outcome result{lm::summarize(reports)};
  if (evaluation) {
    result.perplexity = lm::perplexity(m, evaluation->windows, lm::arithmetic::float32, args.threads);
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  auto total = in_setting(json_of(result.sums));
  total.update({{"perplexity", lm::number(result.perplexity)}, {"seconds", result.seconds}});
  log.write("summary", total);
  return result;
}

/// The published run that a setting has to agree with, or null.
nlohmann::json const* find_published(nlohmann::json const& runs, setting const& s, arguments const& args) {
  for (auto const& run : runs) {
    if (s.published != nullptr && run.at("method") == s.published && run.at("bits") == args.bits &&
        run.at("group_size") == args.group_size) {
      return &run;
    }
  }
  return nullptr;
}

nlohmann::json read_published(std::filesystem::path const& path) {
  if (path.empty()) return nlohmann::json::array();
  try {
    return nlohmann::json::parse(std::ifstream(path));
  } catch (nlohmann::json::exception const& e) {
    throw gptq::error(path.string() + ": not valid JSON: " + e.what());
  }
}

/// Whether the losses agree with the published ones where there are any.
bool run(arguments args) {
  lm::model const m(args.model);
  m.require_unquantized();
  args.window = lm::window_length(m.config(), args.window);
  auto const calibration = lm::read_text(args.calibration, args.model, m.config(), args.window, args.samples);
  std::optional<lm::text> evaluation;
  if (!args.evaluation.empty()) {
    evaluation = lm::read_text(args.evaluation, args.model, m.config(), args.window, args.eval_windows);
  }
  auto const published = read_published(args.published);
  lm::run_log log(args.log);

  fmt::print(
      "{}: {} bits, {}, {}, quality {}; {} windows of {} tokens\n\n", args.model.string(), args.bits,
      args.group_size == gptq::whole_row ? "one group a row" : fmt::format("groups of {}", args.group_size),
      args.no_act_order ? "columns in order" : "act-order", lm::name_of(args.quality),
      calibration.windows.size(), args.window);
  fmt::print("{:<22} {:>9} {:>7}  {:<22} {:>9} {:>7} {:>10} {:>6}", "", "max loss", "", "in", "sum", "",
             "perplexity", "bits");
  fmt::print("{}\n", args.published.empty() ? "" : "  published max, sum");
  if (evaluation) {
    fmt::print("{:<22} {:>9} {:>7}  {:<22} {:>9} {:>7} {:>10.4f} {:>6}\n", "float32", "", "", "", "", "",
               lm::perplexity(m, evaluation->windows, lm::arithmetic::float32, args.threads), 32);
  }
  std::optional<lm::summary> baseline;
  bool agree = true;
  for (setting const& s : settings) {
    outcome const o = run_setting(s, calibration, evaluation, args, log);
    if (!baseline) baseline = o.sums;
    std::size_t const prefix = o.sums.largest.find("layers.") + std::string_view("layers.").size();
    auto const change = [](double value, double of) {
      return of == 0.0 ? std::string("-") : fmt::format("{:+.0f} %", 100.0 * (value / of - 1.0));
    };
    fmt::print("{:<22} {:>9.1f} {:>7}  {:<22} {:>9.1f} {:>7} {:>10} {:>6.3f}", s.name, o.sums.largest_loss,
               change(o.sums.largest_loss, baseline->largest_loss), o.sums.largest.substr(prefix),
               o.sums.loss, change(o.sums.loss, baseline->loss),
               std::isfinite(o.perplexity) ? fmt::format("{:.4f}", o.perplexity) : "",
               o.sums.bits_per_weight);
    if (auto const* const p = find_published(published, s, args)) {
      double const max = p->at("loss_max").get<double>();
      double const sum = p->at("loss_sum").get<double>();
      bool const close =
          std::abs(o.sums.largest_loss / max - 1.0) <= 0.02 && std::abs(o.sums.loss / sum - 1.0) <= 0.02;
      fmt::print("  {:.1f}, {:.1f}{}", max, sum, close ? "" : "  <- off by more than 2 %");
      agree = agree && close;
    }
    fmt::print("\n");
    std::fflush(stdout);
  }
  return agree;
}

}  // namespace

/// 0: done; 2: something in the arguments or files is wrong; 3: not as published; 1: anything else.
int main(int argc, char** argv) {
  try {
    auto const args = parse(argc, argv);
    return !args || run(*args) ? 0 : 3;
  } catch (gptq::error const& e) {
    fmt::print(stderr, "compare: {}\n", e.what());
    return 2;
  } catch (std::exception const& e) {
    fmt::print(stderr, "compare: {}\n", e.what());
    return 1;
  }
}
