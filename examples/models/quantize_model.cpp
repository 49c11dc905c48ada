// quantize_model: reads a model, quantizes its linear layers, and says what that cost.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <gptq/error.hpp>

#include "command_line.hpp"
#include "device/from_model.hpp"
#include "device/programs.hpp"
#include "evaluate.hpp"
#include "generation.hpp"
#include "interrupt.hpp"
#include "model.hpp"
#include "output_files.hpp"
#include "packed_model.hpp"
#include "progress.hpp"
#include "quant_directory.hpp"
#include "quantization.hpp"
#include "ranks.hpp"
#include "report.hpp"
#include "shared_layers.hpp"
#include "tokens.hpp"
#include "tuning.hpp"
#include "written_model.hpp"

namespace {

using lm::command_line;
using lm::linear_report;
using lm::text;

double measure_perplexity(lm::model const& m, std::span<lm::token_window const> windows,
                          command_line const& args, char const* what) {
  auto const steps = static_cast<std::ptrdiff_t>(windows.size()) * (m.config().num_hidden_layers + 1);
  lm::progress bar(what, steps);
  auto const advance = [&] {
    lm::check_interrupt();
    bar.advance();
  };
  if (args.how.accelerator != nullptr) {
    return lm::device::perplexity(*args.how.accelerator, args.how.activations, m, windows, args.how.threads,
                                  advance);
  }
  return lm::perplexity(m, windows, lm::arithmetic::float32, args.how.threads, advance,
                        args.how.quantize.device.get());
}

/// The same with the windows shared out over all ranks.
double measure_perplexity(lm::model const& m, text const& evaluation, command_line const& args,
                          char const* what) {
  lm::ranks& world = *args.how.world;
  std::span const all(evaluation.windows);
  if (world.size() == 1) return measure_perplexity(m, all, args, what);
  auto const [first, count] = lm::window_shares(static_cast<std::ptrdiff_t>(all.size()), world, false).mine();
  auto const mine = all.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
  double loss = 0.0;
  lm::agree(world, [&] {
    if (!mine.empty()) {
      loss = std::log(measure_perplexity(m, mine, args, what)) * static_cast<double>(mine.size());
    }
  });
  return std::exp(lm::sum(world, loss) / static_cast<double>(all.size()));
}

constexpr char const* table_row = "{:<34} {:>12} {:>11} {:>10} {:>6} {:>6} {:>8} {:>8}\n";

/// A cell of the table; "-" for what there is nothing to measure by.
std::string cell(char const* format, double value) {
  return std::isfinite(value) ? fmt::format(fmt::runtime(format), value) : "-";
}

std::string name_of(gptq::format_spec const& f) {
  return fmt::format(
      "{} bits, {}", f.bits,
      f.group_size == gptq::whole_row ? "one group a row" : fmt::format("groups of {}", f.group_size));
}

/// What the observer tried on a layer; the line it took is marked.
void print(gptq::refinement const& r) {
  fmt::print("{}\n", r.name);
  for (std::size_t i = 0; i < r.attempts.size(); ++i) {
    gptq::attempt const& a = r.attempts[i];
    fmt::print("  {} {:<24} {:>11} {:>7} {:>12} {:>8.3f}\n", i == r.chosen ? '>' : ' ', name_of(a.format),
               cell("{:.5g}", a.loss), cell("{:.2f}", a.loss / r.before().loss), a.bytes - r.before().bytes,
               a.seconds);
  }
}

std::vector<linear_report> quantize(lm::model& m, text const& calibration, command_line const& args,
                                    lm::unfinished_run const* saved, lm::run_log& log) {
  fmt::print("\n{:<34} {:>12} {:>11} {:>10} {:>6} {:>6} {:>8} {:>8}\n", "linear layer", "out x in", "loss",
             "rel. error", "SNR dB", "int8", "damping", "seconds");
  std::vector<linear_report> reports;
  lm::progress bar("quantizing ", lm::find_own_windows(calibration.windows.size(), args.how).count() *
                                      m.config().num_hidden_layers);
  lm::quantization_events events;
  events.done = [&](linear_report const& r) {
    lm::check_interrupt();
    bar.clear();
    auto const& quality = r.quality;
    fmt::print(table_row, r.name, fmt::format("{} x {}", r.out, r.in), cell("{:.5g}", quality.loss),
               cell("{:.3e}", quality.output_error), cell("{:.2f}", quality.snr_db),
               cell("{:.2f}", r.int8_snr_db), cell("{:.3g}", quality.damping),
               cell("{:.3f}", quality.seconds));
    std::fflush(stdout);
    log.write("layer", json_of(r));
    reports.push_back(r);
  };
  bool first = true;
  events.refined = [&](gptq::refinement const& r, linear_report const& after) {
    lm::check_interrupt();
    bar.clear();
    if (std::exchange(first, false)) {
      fmt::print("\n{:<28} {:>11} {:>7} {:>12} {:>8}\n", "the worst layers again", "loss", "ratio",
                 "more bytes", "seconds");
    }
    print(r);
    std::fflush(stdout);
    log.write("observed", lm::json_of(r));
    for (linear_report& report : reports) {
      if (report.name == after.name) report = after;
    }
  };
  events.advance = [&] {
    lm::check_interrupt();
    bar.advance();
  };
  std::string device_times;
  events.timed = [&](lm::device::time_account const& times) { device_times = to_string(times); };
  lm::quantize_model(m, calibration.windows, args.how, events, saved);
  if (!device_times.empty()) {
    bar.clear();
    fmt::print("\ndevice       {}\n", device_times);
  }
  return reports;
}

/// Tunes the quantized model, if that is asked for.
void tune(lm::model& m, text const& calibration, command_line const& args, lm::run_log& log) {
  if (!args.tune) return;
  constexpr std::ptrdiff_t parts = 1000;
  lm::progress bar("tuning      ", parts);
  std::ptrdiff_t done = 0;
  lm::tuning_events events;
  events.advance = [&](double share) {
    lm::check_interrupt();
    auto const now = static_cast<std::ptrdiff_t>(share * static_cast<double>(parts));
    bar.advance(now - std::exchange(done, now));
  };
  bool first = true;
  events.done = [&](lm::tuning_report const& r) {
    bar.clear();
    if (std::exchange(first, false)) {
      fmt::print("\n{:<34} {:>12} {:>11} {:>10} {:>6} {:>8}\n", "tuned", "held out", "tuned", "steps", "kept",
                 "seconds");
    }
    fmt::print("{:<34} {:>12.5g} {:>11.5g} {:>10} {:>6} {:>8.1f}\n",
               r.layer < 0 ? "model" : fmt::format("model.layers.{}", r.layer), r.before, r.after, r.steps,
               r.kept, r.seconds);
    std::fflush(stdout);
    log.write("tuned", lm::json_of(r));
  };
  lm::tune_model(m, calibration.windows, args.how.held_out_windows, *args.tune, events);
}

/// What the model is asked to continue.
struct prompt {
  lm::tokenizer words;
  std::vector<lm::token> tokens;
};

prompt read_prompt(lm::config const& c, command_line const& args) {
  prompt p{lm::make_tokenizer(args.model, c), {}};
  p.tokens = lm::prompt_tokens(p.words, args.prompt);
  lm::check_prompt(c, p.tokens, args.generate_tokens);
  return p;
}

std::string continue_text(lm::model const& m, prompt const& p, command_line const& args) {
  lm::execution const run{m.has_kernels() ? lm::arithmetic::int8 : lm::arithmetic::float32, args.how.threads,
                          false};
  auto const more = lm::generate(m, p.tokens, args.generate_tokens, args.sampling, run).tokens;
  std::vector<lm::token> all = p.tokens;
  all.insert(all.end(), more.begin(), more.end());
  return lm::printable(p.words.decode(all));
}

/// All that the packed model depends on, for the log and for a run that goes on with another.
nlohmann::ordered_json settings_of(lm::model const& m, text const& calibration, command_line const& args) {
  gptq::quantize_options const& options = args.how.quantize.options;
  std::size_t const used = calibration.windows.size() * static_cast<std::size_t>(args.window);
  nlohmann::ordered_json settings{
      {"model", lm::valid_utf8(args.model.filename().string())},
      {"weights", m.fingerprint()},
      {"calibration", lm::fingerprint(std::as_bytes(std::span(calibration.tokens).first(used)))},
      {"windows", calibration.windows.size()},
      {"window", args.window},
      {"method", args.how.quantize.round_to_nearest ? "rtn" : "gptq"},
      {"grid", lm::name_of(options.grid)},
      {"mse", options.mse},
      {"act_order", options.act_order},
      {"static_groups", options.static_groups},
      {"true_sequential", args.how.true_sequential},
      {"held_out_windows", args.how.held_out_windows},
      {"propagate", lm::number(args.how.propagate.value_or(0.0))},
      {"damping", options.damping},
      {"block_size", options.block_size},
      {"quality", lm::name_of(options.quality)},
      {"quantile_shares", lm::quantile_shares}};
  if (args.how.quantize.device != nullptr || args.how.accelerator != nullptr) settings["device"] = "cuda";
  if (args.how.accelerator != nullptr) settings["activations"] = name_of(args.how.activations);
  settings.update(lm::json_of(args.how.quantize.format));
  if (args.how.deterministic_reduction) settings["reduction"] = "deterministic";
  settings["tune"] = args.tune ? lm::json_of(*args.tune) : nlohmann::ordered_json();
  return settings;
}

/// Settles where activations live; returns why a GPU does not hold them, if one is to be used.
std::string choose_device(lm::model const& m, command_line& args) {
  if (args.how.accelerator == nullptr) return "";
  std::string part = lm::device::unsupported_part(m.config(), args.how);
  if (part.empty() && args.how.propagate && args.resume) part = "--resume with --propagate";
  if (part.empty()) {
    args.how.activations = args.activations.value_or(lm::device::exact_activations(m));
    return "";
  }
  if (args.activations) throw gptq::error("--activations: with " + part + ", they are float32");
  args.how.accelerator.reset();
  args.how.quantize.device = std::make_shared<lm::gpu>();
  return part;
}

/// Ranks that read different things would come to different calls, and wait for each other forever.
void compare_settings(lm::ranks& world, nlohmann::ordered_json const& settings) {
  auto const all = gather(world, settings.dump());
  for (std::size_t r = 1; r < all.size(); ++r) {
    if (all[r] == all[0]) continue;
    std::string differs = "other settings than rank 0";
    auto const first = nlohmann::ordered_json::parse(all[0]), other = nlohmann::ordered_json::parse(all[r]);
    for (auto const& [key, value] : first.items()) {
      auto const its_own = other.value(key, nlohmann::ordered_json());
      if (its_own != value) differs = fmt::format("{} {}, rank 0 {}", key, its_own.dump(), value.dump());
    }
    throw lm::agreed_failure(fmt::format("rank {} has {}: all need the same files and options", r, differs),
                             2);
  }
}

/// Who solves what, for each kind of decoder layer.
void print_plan(lm::model const& m, lm::quantization const& how) {
  lm::ranks const& world = *how.world;
  fmt::print("ranks        {}, {} thread{} each; sums {}\n", world.size(), how.threads,
             how.threads == 1 ? "" : "s",
             how.deterministic_reduction ? "as for any number of ranks" : "in the order of the ranks");
  std::vector<std::string> seen;
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
    lm::decoder_description const& d = m.config().layer(i);
    lm::solving_plan const plan = lm::make_plan(d, how);
    double const total = std::accumulate(plan.cost.begin(), plan.cost.end(), 0.0);
    std::vector<std::string> lines;
    for (int r = 0; r < world.size(); ++r) {
      std::string names;
      std::set<std::int64_t> experts;
      for (std::size_t place = 0; place < d.linears.size(); ++place) {
        if (plan.owner[place] != r) continue;
        if (d.linears[place].expert != lm::no_expert) {
          experts.insert(d.linears[place].expert);
        } else {
          names += (names.empty() ? "" : ", ") +
                   d.linears[place].name.substr(d.linears[place].name.rfind('.') + 1);
        }
      }
      if (!experts.empty()) names += fmt::format("{}{} experts", names.empty() ? "" : ", ", experts.size());
      lines.push_back(fmt::format("rank {} solves {:.0f} %: {}", r,
                                  100.0 * plan.cost[static_cast<std::size_t>(r)] / total,
                                  names.empty() ? "nothing" : names));
    }
    std::string const text = fmt::format("{}", fmt::join(lines, "\n             "));
    if (std::find(seen.begin(), seen.end(), text) != seen.end()) continue;
    fmt::print("plan         {}\n", text);
    seen.push_back(text);
  }
}

/// The most that a rank has used, as text for the first one to print.
std::string memory_of(lm::ranks& world) {
  std::string text;
  for (std::string const& bytes : gather(world, fmt::format("{:.0f}", lm::peak_memory_bytes() * 1e-6))) {
    text += (text.empty() ? "" : ", ") + bytes;
  }
  return text;
}

/// What follows when all is quantized: tunes the model, and writes it.
void write(lm::model& m, text const& calibration, command_line const& args, lm::unfinished_run const* saved,
           lm::run_log& log) {
  tune(m, calibration, args, log);
  if (!args.quant_directory.empty()) lm::write_quant_directory(args.quant_directory, m);
  if (saved != nullptr) {
    lm::output_options written;
    written.embeddings = args.embeddings;
    written.shard_bytes = args.shard_bytes.value_or(lm::default_shard_bytes);
    written.method = {{"damp_percent", args.how.quantize.options.damping},
                      {"static_groups", args.how.quantize.options.static_groups},
                      {"true_sequential", args.how.true_sequential}};
    lm::write_model(args.output, m, args.model, args.written, written);
    saved->remove();
  }
}

void run(command_line args) {
  auto const start = std::chrono::steady_clock::now();
  lm::ranks& world = *args.how.world;
  bool const first = world.rank() == 0;
  std::optional<lm::model> loaded;
  text calibration;
  std::size_t calibrating = 0;
  std::optional<text> evaluation;
  std::optional<prompt> writing;
  std::optional<lm::run_log> opened;
  std::string on_host;
  nlohmann::ordered_json settings;
  lm::agree(world, [&] {
    lm::model& m = loaded.emplace(args.model);
    m.require_unquantized();
    lm::config const& c = m.config();
    if (!args.output.empty())
      lm::check_output(args.written, m, args.model, args.how.quantize.format, args.embeddings);
    if (args.tune) lm::check_tuning(c);
    on_host = choose_device(m, args);
    args.window = lm::window_length(c, args.window);
    calibration = lm::read_text(args.calibration, args.model, c, args.window,
                                args.samples + static_cast<std::int64_t>(args.how.held_out_windows));
    calibrating = lm::calibration_windows(calibration.windows.size(), args.how);
    if (!args.evaluation.empty()) {
      evaluation = lm::read_text(args.evaluation, args.model, c, args.window, args.eval_windows);
    }
    if (!args.prompt.empty()) writing = read_prompt(c, args);
    opened.emplace(first ? args.log : "");  // before the long part: that the answer can be written
    if (first && !args.quant_directory.empty())
      lm::prepare_quant_directory(args.quant_directory, args.resume);
    settings = settings_of(m, calibration, args);
  });
  compare_settings(world, settings);
  lm::model& m = *loaded;
  lm::config const& c = m.config();
  lm::run_log& log = *opened;

  fmt::print("model        {}: {} decoder layers, hidden size {}, {:.1f} million parameters\n",
             args.model.string(), c.num_hidden_layers, c.hidden_size,
             static_cast<double>(m.parameters()) * 1e-6);
  fmt::print("method       {}\n", args.how.quantize.round_to_nearest
                                      ? "round to nearest"
                                      : "GPTQ, quality " + lm::name_of(args.how.quantize.options.quality));
  fmt::print("format       {}\n", to_string(args.how.quantize.format));
  if (args.how.accelerator != nullptr) {
    fmt::print("device       {}, activations in {}\n", args.how.accelerator->name(),
               name_of(args.how.activations));
  } else if (!on_host.empty()) {
    fmt::print("device       cuda for products; activations on the host because of {}\n", on_host);
  }
  fmt::print("calibration  {} windows of {} tokens\n", calibrating, args.window);
  if (args.how.held_out_windows > 0) {
    fmt::print("held out     {} windows of {} tokens\n", args.how.held_out_windows, args.window);
  }
  if (evaluation)
    fmt::print("evaluation   {} windows of {} tokens\n", evaluation->windows.size(), args.window);
  if (world.size() > 1) print_plan(m, args.how);
  std::fflush(stdout);
  std::optional<lm::unfinished_run> saved;
  lm::agree(world, [&] {
    if (first && !args.output.empty()) saved.emplace(args.output, settings, args.resume);
  });
  if (saved && saved->finished() > 0) {
    fmt::print("resumed      after {} decoder layers\n", saved->finished());
  }
  log.write("settings", settings);

  auto const not_measured = gptq::quantize_report::not_measured;
  double before = not_measured;
  double after = not_measured;
  std::string text_before;
  std::string text_after;
  if (!args.no_float_baseline) {
    if (evaluation) before = measure_perplexity(m, *evaluation, args, "float32    ");
    lm::agree(world, [&] {
      if (first && writing) text_before = continue_text(m, *writing, args);
    });
  }
  std::vector<linear_report> const reports = quantize(m, calibration, args, saved ? &*saved : nullptr, log);
  lm::agree(world, [&] {
    if (first) write(m, calibration, args, saved ? &*saved : nullptr, log);
  });
  if (evaluation) lm::broadcast_packed(world, m);
  if (evaluation) after = measure_perplexity(m, *evaluation, args, "evaluating ");
  lm::agree(world, [&] {
    if (first && writing) text_after = continue_text(m, *writing, args);
  });

  std::string const memory = memory_of(world);
  lm::summary const s = lm::summarize(reports);
  double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  fmt::print("\nloss         {:.6g} in total; the largest is {:.5g} in {}\n", s.loss, s.largest_loss,
             s.largest);
  if (s.raised_damping > 0) fmt::print("damping      had to be raised in {} layers\n", s.raised_damping);
  if (s.of_experts > 0) {
    fmt::print(
        "experts      the linear layers of experts saw {:.0f} tokens at least; {} of {} fewer than their "
        "columns: all\n"
        "             tokens of their decoder layer made up for that, weighted\n",
        s.fewest_tokens, s.starved, s.of_experts);
  }
  fmt::print("size         {:.3f} bits a weight in the linear layers\n", s.bits_per_weight);
  if (std::isfinite(before)) fmt::print("perplexity   {:.4f} float32\n", before);
  if (std::isfinite(after)) fmt::print("perplexity   {:.4f} quantized\n", after);
  fmt::print("time         {:.1f} s\n", seconds);
  fmt::print("memory       {} MB at most, mapped files included\n", memory);
  if (!text_before.empty()) fmt::print("float32      {}\n", text_before);
  if (!text_after.empty()) fmt::print("quantized    {}\n", text_after);

  auto total = json_of(s);
  total.update({{"float32_perplexity", lm::number(before)},
                {"perplexity", lm::number(after)},
                {"seconds", seconds},
                {"peak_memory_bytes", lm::peak_memory_bytes()}});
  log.write("summary", total);
}

}  // namespace

/// 0: done; 2: something in the arguments or files is wrong; 130, 143: interrupted; 1: anything else.
int main(int argc, char** argv) {
  lm::catch_interrupts();
  std::shared_ptr<lm::ranks> world = lm::alone();
  std::optional<command_line> args;
  try {
    world = lm::join_ranks(argc, argv);
    auto const host = lm::find_host_share(*world);
    lm::agree(*world, [&] { args = lm::parse_command_line(argc, argv, host); });
    if (args) {
      args->how.world = world;
      run(*args);
    }
    return 0;
  } catch (std::exception const& e) {
    bool const agreed = dynamic_cast<lm::agreed_failure const*>(&e) != nullptr;
    lm::failure const f = lm::describe(std::current_exception());
    bool const interrupted = f.status > 128;
    if (world->rank() == 0 || !(agreed || interrupted)) {
      bool const kept = interrupted && args && !args->output.empty();
      fmt::print(stderr, "quantize_model: {}{}\n", f.message,
                 kept ? "; what is finished is kept, and --resume goes on with it" : "");
    }
    if (!agreed && world->size() > 1) world->abort(f.status);  // the others wait for this rank
    return f.status;
  }
}
