// quantize_llama: reads a Hugging Face LLaMA directory, quantizes its linear layers, and says what that cost.
#include <chrono>
#include <cmath>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/resource.h>

#include <gptq/error.hpp>

#include "command_line.hpp"
#include "evaluate.hpp"
#include "generate.hpp"
#include "model.hpp"
#include "progress.hpp"
#include "quantize_model.hpp"
#include "tokens.hpp"

namespace {

using llama::command_line;
using llama::linear_report;
using nlohmann::ordered_json;

/// Tokens and the windows that they are cut into.
struct text {
  std::vector<llama::token> tokens;
  std::vector<llama::token_window> windows;
};

text read_text(std::filesystem::path const& file, command_line const& args, llama::config const& c,
               std::int64_t most) {
  text result;
  result.tokens = llama::read_tokens(file, args.model, c);
  result.windows = llama::cut_windows(result.tokens, args.window, most);
  if (result.windows.empty()) {
    throw gptq::error(fmt::format("{}: {} tokens do not fill a window of {}", file.string(),
                                  result.tokens.size(), args.window));
  }
  return result;
}

double measure_perplexity(llama::model const& m, text const& evaluation, command_line const& args,
                          char const* what) {
  auto const steps =
      static_cast<std::ptrdiff_t>(evaluation.windows.size()) * (m.config().num_hidden_layers + 1);
  llama::progress bar(what, steps);
  return llama::perplexity(m, evaluation.windows, args.how.threads, [&] { bar.advance(); });
}

constexpr char const* table_row = "{:<34} {:>12} {:>12.5g} {:>11.4g} {:>10.3e} {:>6.2f} {:>8.3g} {:>8.3f}\n";

std::vector<linear_report> quantize(llama::model& m, text const& calibration, command_line const& args) {
  fmt::print("\n{:<34} {:>12} {:>12} {:>11} {:>10} {:>6} {:>8} {:>8}\n", "linear layer", "out x in", "loss",
             "loss/token", "rel. error", "SNR dB", "damping", "seconds");
  std::vector<linear_report> reports;
  llama::progress bar("quantizing ",
                      static_cast<std::ptrdiff_t>(calibration.windows.size()) * m.config().num_hidden_layers);
  auto const print_row = [&](linear_report const& r) {
    bar.clear();
    fmt::print(table_row, r.name, fmt::format("{} x {}", r.out, r.in), r.quality.loss,
               r.quality.loss_per_token, r.quality.output_error, r.quality.snr_db, r.quality.damping,
               r.quality.seconds);
    std::fflush(stdout);
    reports.push_back(r);
  };
  llama::quantize_model(m, calibration.windows, args.how, print_row, [&] { bar.advance(); });
  return reports;
}

/// What the table adds up to.
struct summary {
  double loss = 0.0;
  linear_report const* worst = nullptr;  ///< the largest loss
  double bits_per_weight = 0.0;
  std::int64_t raised_damping = 0;  ///< layers whose Hessian needed more damping than asked for
};

summary summarize(std::vector<linear_report> const& reports) {
  summary s;
  double weights = 0.0;
  for (linear_report const& r : reports) {
    s.loss += r.quality.loss;
    if (s.worst == nullptr || r.quality.loss > s.worst->quality.loss) s.worst = &r;
    s.bits_per_weight += 8.0 * static_cast<double>(r.packed_bytes);
    weights += static_cast<double>(r.out * r.in);
    s.raised_damping += r.quality.damping_raised > 0 ? 1 : 0;
  }
  s.bits_per_weight /= weights;
  return s;
}

/// Tokens as text that can be shown: what is not printable becomes '?'.
std::string printable(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = c == '\n' || c == '\t' ? ' ' : '?';
  }
  return text;
}

/// What the model is asked to continue.
struct prompt {
  llama::tokenizer words;
  std::vector<llama::token> tokens;
};

prompt read_prompt(llama::config const& c, command_line const& args) {
  prompt p{llama::make_tokenizer(args.model, c), {}};
  p.tokens = p.words.encode(args.prompt);
  if (p.words.wants_bos && c.bos_token_id) p.tokens.insert(p.tokens.begin(), *c.bos_token_id);
  llama::check_prompt(c, p.tokens, args.generate_tokens);
  return p;
}

std::string continue_text(llama::model const& m, prompt const& p, command_line const& args) {
  auto const more = llama::generate(m, p.tokens, args.generate_tokens, args.sampling, args.how.threads);
  std::vector<llama::token> text = p.tokens;
  text.insert(text.end(), more.begin(), more.end());
  return printable(p.words.decode(text));
}

double peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return 1024.0 * static_cast<double>(usage.ru_maxrss);
}

/// JSON has no NaN: what was not measured is null.
ordered_json number(double value) { return std::isfinite(value) ? ordered_json(value) : ordered_json(); }

ordered_json to_json(std::vector<linear_report> const& reports) {
  ordered_json rows = ordered_json::array();
  for (linear_report const& r : reports) {
    rows.push_back({{"name", r.name},
                    {"shape", {r.out, r.in}},
                    {"loss", number(r.quality.loss)},
                    {"loss_per_token", number(r.quality.loss_per_token)},
                    {"output_error", number(r.quality.output_error)},
                    {"snr_db", number(r.quality.snr_db)},
                    {"damping", number(r.quality.damping)},
                    {"packed_bytes", r.packed_bytes},
                    {"seconds", number(r.quality.seconds)}});
  }
  return rows;
}

void run(command_line args) {
  auto const start = std::chrono::steady_clock::now();
  llama::model m(args.model);
  llama::config const& c = m.config();
  if (args.window == 0) args.window = std::min<std::int64_t>(c.max_position_embeddings, 2048);
  if (args.window > c.max_position_embeddings) {
    throw gptq::error(
        fmt::format("--window {}: the model has {} positions", args.window, c.max_position_embeddings));
  }
  text const calibration = read_text(args.calibration, args, c, args.samples);
  std::optional<text> evaluation;
  if (!args.evaluation.empty()) evaluation = read_text(args.evaluation, args, c, args.eval_windows);
  std::optional<prompt> writing;
  if (!args.prompt.empty()) writing = read_prompt(c, args);
  // Before the long part: that the answer can be written.
  std::ofstream json;
  if (!args.json.empty()) json.open(args.json);
  if (!args.json.empty() && !json) throw gptq::error(args.json.string() + ": cannot be written");

  fmt::print("model        {}: {} decoder layers, hidden size {}, {:.1f} million parameters\n",
             args.model.string(), c.num_hidden_layers, c.hidden_size,
             static_cast<double>(m.parameters()) * 1e-6);
  fmt::print("method       {}{}\n", args.how.quantize.round_to_nearest ? "round to nearest" : "GPTQ",
             args.how.quantize.options.quality == gptq::quality::reference ? ", as published" : "");
  fmt::print("format       {}\n", to_string(args.how.quantize.format));
  fmt::print("calibration  {} windows of {} tokens\n", calibration.windows.size(), args.window);
  if (evaluation)
    fmt::print("evaluation   {} windows of {} tokens\n", evaluation->windows.size(), args.window);
  std::fflush(stdout);

  auto const not_measured = gptq::quantize_report::not_measured;
  double before = not_measured;
  double after = not_measured;
  std::string text_before;
  std::string text_after;
  if (!args.no_float_baseline) {
    if (evaluation) before = measure_perplexity(m, *evaluation, args, "float32    ");
    if (writing) text_before = continue_text(m, *writing, args);
  }
  std::vector<linear_report> const reports = quantize(m, calibration, args);
  if (evaluation) after = measure_perplexity(m, *evaluation, args, "evaluating ");
  if (writing) text_after = continue_text(m, *writing, args);

  summary const s = summarize(reports);
  double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  fmt::print("\nloss         {:.6g} in total; the largest is {:.5g} in {}\n", s.loss, s.worst->quality.loss,
             s.worst->name);
  if (s.raised_damping > 0) fmt::print("damping      had to be raised in {} layers\n", s.raised_damping);
  fmt::print("size         {:.3f} bits a weight in the linear layers\n", s.bits_per_weight);
  if (std::isfinite(before)) fmt::print("perplexity   {:.4f} float32\n", before);
  if (std::isfinite(after)) fmt::print("perplexity   {:.4f} quantized\n", after);
  fmt::print("time         {:.1f} s\n", seconds);
  fmt::print("memory       {:.0f} MB at most, mapped files included\n", peak_memory_bytes() * 1e-6);
  if (!text_before.empty()) fmt::print("float32      {}\n", text_before);
  if (!text_after.empty()) fmt::print("quantized    {}\n", text_after);

  if (json.is_open()) {
    gptq::format_spec const& format = args.how.quantize.format;
    ordered_json const document{{"model", args.model.string()},
                                {"scheme", format.scheme},
                                {"bits", format.bits},
                                {"group_size", format.group_size},
                                {"float32_perplexity", number(before)},
                                {"perplexity", number(after)},
                                {"loss", number(s.loss)},
                                {"bits_per_weight", s.bits_per_weight},
                                {"seconds", seconds},
                                {"peak_memory_bytes", peak_memory_bytes()},
                                {"layers", to_json(reports)}};
    json << document.dump(1, ' ', false, ordered_json::error_handler_t::replace) << '\n';
    if (!json.flush()) throw gptq::error(args.json.string() + ": cannot be written");
  }
}

}  // namespace

/// 0: done; 2: something in the arguments or files is wrong; 1: anything else.
int main(int argc, char** argv) {
  try {
    if (auto const args = llama::parse_command_line(argc, argv)) run(*args);
    return 0;
  } catch (gptq::error const& e) {
    fmt::print(stderr, "quantize_llama: {}\n", e.what());
    return 2;
  } catch (std::exception const& e) {
    fmt::print(stderr, "quantize_llama: {}\n", e.what());
    return 1;
  }
}
