// How good the codes are: the error of quantized layers on tokens that no method has seen, and what it does
// to a model's predictions, every method beside the published ones in the same run.
//
//   bench_accuracy --model examples/data/kjv-bytes --format fixed_zero:4:128 --format asymmetric:4:128
//   bench_accuracy --synthetic
//
// E of a layer is tr(D H D') / tr(W H W') for D = W - Q, Q decoded from the packed bytes and H the undamped
// Hessian of held-out tokens as the unquantized model computes them. Calibration is repeated on random
// subsets of the calibration windows; what is left of these is for methods that choose by tokens of their
// own.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <gptq/error.hpp>
#include <gptq/quantize.hpp>

#include "accuracy_divergence.hpp"
#include "accuracy_layers.hpp"
#include "accuracy_methods.hpp"
#include "accuracy_whole.hpp"
#include "threads.hpp"

namespace {

using accuracy::layer;
using accuracy::method;
using gptq::hessian;
using gptq::matrix;

struct arguments {
  std::filesystem::path model;
  std::filesystem::path calibration;  ///< empty: calibration.i32 or .txt of the model
  std::filesystem::path evaluation;
  bool synthetic = false;
  bool whole = false;
  std::vector<std::string> formats{"fixed_zero:4:128", "asymmetric:4:128"};
  std::vector<std::string> methods;
  std::int64_t window = 0;
  std::int64_t samples = 128;
  std::int64_t subsets = 5;
  std::int64_t held_out_windows = 128;
  std::int64_t eval_windows = 32;
  std::filesystem::path json;
  int threads = 0;
};

/// Layers, and for every subset of the calibration tokens the Hessians of their inputs.
struct subject {
  std::string name;
  std::vector<layer> layers;
  struct subset {
    std::vector<hessian> calibration;
    std::vector<hessian> validation;  ///< of other calibration tokens
  };
  std::vector<subset> subsets;
  std::vector<hessian> held_out;
};

/// A model whose linear layers can be replaced, and the predictions of the one it came from.
struct judged_model {
  lm::model* m;
  std::vector<lm::token_window> windows;
  std::unique_ptr<accuracy::predictions> exact;
  accuracy::window_scores exact_scores;
};

/// Decoded weights in the place of a model's own, which is then run in float32.
class decoded_linear final : public lm::packed_linear {
 public:
  explicit decoded_linear(matrix weight) : weight_(std::move(weight)) {}
  gptq::format_spec format() const override { return {}; }
  lm::packed_parts parts() const override {  // the shape alone
    lm::packed_parts shape;
    shape.out = weight_.rows();
    shape.in = weight_.cols();
    return shape;
  }
  void dequantize(gptq::row_range rows, float* weight) const override {
    auto const part = weight_.middleRows(rows.first, rows.last - rows.first);
    std::copy(part.data(), part.data() + part.size(), weight);
  }

 private:
  matrix weight_;
};

/// What a method made of all layers on one subset.
struct outcome {
  std::vector<double> errors;  ///< E, one a layer
  accuracy::window_scores scores;
  std::vector<double> room;  ///< 1 - least_loss / loss, one a layer
  double seconds = 0.0;
};

gptq::format_spec parse_format(std::string const& text) {
  auto const first = text.find(':');
  auto const second = text.find(':', first + 1);
  auto const third = std::min(text.find(':', second + 1), text.size());
  try {
    if (second == std::string::npos) throw std::invalid_argument("");
    gptq::format_spec spec;
    spec.scheme = text.substr(0, first);
    spec.bits = std::stoi(text.substr(first + 1, second - first - 1));
    spec.group_size = std::stoi(text.substr(second + 1, third - second - 1));
    if (third == text.size()) return spec;
    for (auto const type : {gptq::scale_type::float16, gptq::scale_type::float32, gptq::scale_type::e8m0,
                            gptq::scale_type::e4m3}) {
      spec.scales = type;
      if (text.substr(third + 1) == to_string(type)) return spec;
    }
    throw std::invalid_argument("");
  } catch (std::logic_error const&) {
    throw gptq::error(
        fmt::format("--format {}: not SCHEME:BITS:GROUP_SIZE or SCHEME:BITS:GROUP_SIZE:SCALES, as in "
                    "fixed_zero:4:128 and "
                    "e2m1:4:32:e8m0",
                    text));
  }
}

// ---- statistics ----

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  std::size_t const n = values.size();
  return n % 2 == 1 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

/// A mean and the half width of its 95 % confidence interval; NaN of a single value.
struct estimate {
  double mean = 0.0;
  double half_width = std::numeric_limits<double>::quiet_NaN();
};

estimate estimate_of(std::vector<double> const& values) {
  // Student's t at 97.5 % for 1, 2, ... degrees of freedom; beyond that the normal distribution's.
  static constexpr double student[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                                       2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086};
  auto const n = static_cast<double>(values.size());
  double const mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  if (values.size() < 2) return {mean};
  double sum = 0.0;
  for (double const v : values) sum += (v - mean) * (v - mean);
  std::size_t const freedom = values.size() - 1;
  double const t = freedom <= std::size(student) ? student[freedom - 1] : 1.96 + 2.4 / (n - 1.0);
  return {mean, t * std::sqrt(sum / (n - 1.0) / n)};
}

// ---- subjects ----

std::filesystem::path text_of(std::filesystem::path const& given, std::filesystem::path const& model,
                              char const* name) {
  if (!given.empty()) return given;
  auto const ids = model / (std::string(name) + ".i32");
  return std::filesystem::exists(ids) ? ids : model / (std::string(name) + ".txt");
}

/// Random windows of a text: most to calibrate on, then some that methods may choose by.
struct window_subset {
  std::vector<lm::token_window> all;
  std::size_t used;
  std::span<lm::token_window const> calibration() const { return std::span(all).first(used); }
  std::span<lm::token_window const> validation() const { return std::span(all).subspan(used); }
};

std::vector<window_subset> subsets_of(std::span<lm::token const> calibration, std::int64_t window,
                                      arguments const& args) {
  auto windows = lm::cut_windows(calibration, window, 0);
  auto const used = std::min<std::size_t>(static_cast<std::size_t>(args.samples), windows.size() * 3 / 4);
  if (used == 0) throw gptq::error("too few calibration windows");
  auto const others = std::max<std::size_t>(1, std::min(windows.size() - used, used / 3));
  std::vector<window_subset> subsets;
  for (std::int64_t i = 0; i < args.subsets; ++i) {
    std::mt19937 random(static_cast<std::uint32_t>(i + 1));
    for (std::size_t w = windows.size() - 1; w > 0; --w) std::swap(windows[w], windows[random() % (w + 1)]);
    subsets.push_back(
        {{windows.begin(), windows.begin() + static_cast<std::ptrdiff_t>(used + others)}, used});
  }
  return subsets;
}

subject subject_of(lm::model const& m, arguments const& args, std::int64_t window,
                   std::span<lm::token const> calibration,
                   std::span<lm::token_window const> held_out_windows) {
  subject s{args.model.filename().string(), accuracy::layers_of(m, args.threads), {}, {}};
  for (window_subset const& windows : subsets_of(calibration, window, args)) {
    s.subsets.push_back({accuracy::hessians_of(m, windows.calibration(), args.threads),
                         accuracy::hessians_of(m, windows.validation(), args.threads)});
  }
  s.held_out = accuracy::hessians_of(m, held_out_windows, args.threads);
  return s;
}

subject synthetic_subject(arguments const& args) {
  subject s{"synthetic layers", {}, {}, {}};
  std::vector<accuracy::synthetic_layer> const kinds{{.decay = 0.5F},
                                                     {.decay = 1.5F},
                                                     {.decay = 0.5F, .outlier = 100.0F},
                                                     {.decay = 1.5F, .outlier = 100.0F},
                                                     {.out = 128, .in = 1024, .decay = 1.0F}};
  for (std::size_t k = 0; k < kinds.size(); ++k) {
    s.layers.push_back({kinds[k].name(), kinds[k].weight(static_cast<std::uint32_t>(100 + k)), k});
    s.held_out.push_back(kinds[k].inputs(16384, 99));
  }
  for (std::int64_t i = 0; i < args.subsets; ++i) {
    auto& subset = s.subsets.emplace_back();
    for (auto const& kind : kinds) {
      auto const seed = static_cast<std::uint32_t>(1000 + 2 * i);
      subset.calibration.push_back(kind.inputs(8 * kind.in, seed));
      subset.validation.push_back(kind.inputs(4 * kind.in, seed + 1));
    }
  }
  return s;
}

// ---- measuring ----

outcome measure(subject const& s, std::size_t subset, gptq::format_spec const& format, method const& how,
                judged_model* judged, int threads) {
  outcome result;
  result.errors.resize(s.layers.size());
  result.room.resize(s.layers.size());
  std::vector<double> seconds(s.layers.size());
  method one_thread = how;
  one_thread.options.threads = 1;
  lm::for_each(static_cast<std::ptrdiff_t>(s.layers.size()), threads, [&](std::ptrdiff_t i) {
    auto const at = static_cast<std::size_t>(i);
    layer const& l = s.layers[at];
    auto quantized = accuracy::quantize(format, one_thread, l.weight, s.subsets[subset].calibration[l.input],
                                        &s.subsets[subset].validation[l.input]);
    result.errors[at] = gptq::output_error(l.weight, quantized.decoded, s.held_out[l.input], 1);
    result.room[at] = 1.0 - quantized.least_loss / quantized.report.loss;
    seconds[at] = quantized.report.seconds_factorization + quantized.report.seconds_columns;
    if (judged != nullptr) {
      // Decoder layers that all have the same linear layers, in their order.
      std::size_t const linears = judged->m->config().layers.front().linears.size();
      judged->m->replace(static_cast<std::int64_t>(at / linears), at % linears,
                         std::make_unique<decoded_linear>(std::move(quantized.decoded)));
    }
  });
  result.seconds = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  if (judged != nullptr) {
    result.scores = accuracy::predictions(*judged->m, judged->windows, threads).against(*judged->exact);
  }
  return result;
}

/// Outcomes of one method on every subset.
using outcomes = std::vector<outcome>;

double sum_of(outcome const& o) { return std::accumulate(o.errors.begin(), o.errors.end(), 0.0); }

/// How the errors of `ours` compare with those of a baseline, subset by subset.
struct comparison {
  estimate sum;          ///< of the sums over layers: ratio - 1
  estimate median;       ///< of the median over layers of the ratio, minus 1
  double worst = 0.0;    ///< of any layer on any subset: ratio - 1
  int worse_layers = 0;  ///< of all layers on all subsets
};

comparison compare(outcomes const& ours, outcomes const& baseline) {
  comparison c;
  c.worst = -1.0;
  std::vector<double> sums;
  std::vector<double> medians;
  for (std::size_t s = 0; s < ours.size(); ++s) {
    std::vector<double> ratios;
    for (std::size_t l = 0; l < ours[s].errors.size(); ++l) {
      ratios.push_back(ours[s].errors[l] / baseline[s].errors[l] - 1.0);
      c.worst = std::max(c.worst, ratios.back());
      c.worse_layers += ratios.back() > 0.0 ? 1 : 0;
    }
    sums.push_back(sum_of(ours[s]) / sum_of(baseline[s]) - 1.0);
    medians.push_back(median(ratios));
  }
  c.sum = estimate_of(sums);
  c.median = estimate_of(medians);
  return c;
}

std::string percent(estimate const& e) {
  return std::isnan(e.half_width) ? fmt::format("{:+6.1f}", 100.0 * e.mean)
                                  : fmt::format("{:+6.1f} ±{:4.1f}", 100.0 * e.mean, 100.0 * e.half_width);
}

/// Means over subsets of a score of every window.
std::vector<double> by_window(outcomes const& all, std::vector<double> accuracy::window_scores::*score) {
  std::vector<double> means((all.front().scores.*score).size());
  for (outcome const& o : all) {
    for (std::size_t w = 0; w < means.size(); ++w) {
      means[w] += (o.scores.*score)[w] / static_cast<double>(all.size());
    }
  }
  return means;
}

std::vector<double> differences(std::vector<double> a, std::vector<double> const& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

nlohmann::ordered_json to_json(estimate const& e) {
  return {{"mean", e.mean},
          {"half_width_95",
           std::isnan(e.half_width) ? nlohmann::ordered_json() : nlohmann::ordered_json(e.half_width)}};
}

constexpr char const* scores_header = " {:>10} {:>17} {:>8} {:>22}";

/// The part of a method's line that is about predictions.
void report_scores(outcomes const& ours, outcomes const& baseline,
                   accuracy::window_scores const& exact_scores, nlohmann::ordered_json& row) {
  using accuracy::window_scores;
  auto const likelihood = by_window(ours, &window_scores::negative_log_likelihood);
  auto const divergence = estimate_of(by_window(ours, &window_scores::divergence));
  auto const likelihood_a = by_window(baseline, &window_scores::negative_log_likelihood);
  auto const better = estimate_of(differences(likelihood, likelihood_a));
  double const perplexity = std::exp(estimate_of(likelihood).mean);
  double const exact = std::exp(estimate_of(exact_scores.negative_log_likelihood).mean);
  double const closed = 1.0 - (perplexity - exact) / (std::exp(estimate_of(likelihood_a).mean) - exact);
  auto const divergence_a = estimate_of(by_window(baseline, &window_scores::divergence));
  fmt::print(" {:>10.4f} {:>8.5f} ±{:.5f} {:>+7.1f}% {:>+9.5f} ±{:.5f} {:>+6.1f}% closed", perplexity,
             divergence.mean, divergence.half_width, 100.0 * (divergence.mean / divergence_a.mean - 1.0),
             better.mean, better.half_width, 100.0 * closed);
  row["perplexity"] = perplexity;
  row["float32_perplexity"] = exact;
  row["gap_closed"] = closed;
  row["divergence"] = to_json(divergence);
  row["log_likelihood_over_a"] = to_json(better);
}

void report(std::string const& format, std::vector<std::string> const& names,
            std::vector<outcomes> const& results, judged_model const* judged, nlohmann::ordered_json& rows) {
  fmt::print("\n{}\n{:<14} {:>11} {:>13} {:>13} {:>7} {:>13} {:>13} {:>7} {:>6} {:>8}", format, "method",
             "sum of E", "sum vs A, %", "median vs A", "worst", "sum vs B, %", "median vs B", "worst", "room",
             "seconds");
  if (judged != nullptr) {
    fmt::print(scores_header, "perplexity", "KL to float32", "of A's", "log-likelihood - A's");
  }
  fmt::print("\n");
  for (std::size_t m = 0; m < names.size(); ++m) {
    outcomes const& ours = results[m];
    std::vector<double> sums;
    std::vector<double> room;
    double seconds = 0.0;
    for (outcome const& o : ours) {
      sums.push_back(sum_of(o));
      room.insert(room.end(), o.room.begin(), o.room.end());
      seconds += o.seconds / static_cast<double>(ours.size());
    }
    comparison const a = compare(ours, results[0]);
    comparison const b = compare(ours, results[1]);
    nlohmann::ordered_json row{{"format", format},
                               {"method", names[m]},
                               {"sum", to_json(estimate_of(sums))},
                               {"room", median(room)},
                               {"seconds", seconds}};
    for (outcome const& o : ours) row["errors"].push_back(o.errors);  // [subset][layer]
    for (auto const& [name, c] : {std::pair("against_a", &a), std::pair("against_b", &b)}) {
      row[name] = {{"sum", to_json(c->sum)},
                   {"median", to_json(c->median)},
                   {"worst", c->worst},
                   {"worse_layers", c->worse_layers}};
    }
    fmt::print("{:<14} {:>11.4e} {:>13} {:>13} {:>+7.1f} {:>13} {:>13} {:>+7.1f} {:>6.1f} {:>8.2f}", names[m],
               estimate_of(sums).mean, percent(a.sum), percent(a.median), 100.0 * a.worst, percent(b.sum),
               percent(b.median), 100.0 * b.worst, 100.0 * median(room), seconds);
    if (judged != nullptr) {
      report_scores(ours, results[0], judged->exact_scores, row);
    }
    fmt::print("\n");
    rows.push_back(std::move(row));
  }
  std::fflush(stdout);
}

/// The baselines, and of the others those that are asked for.
template <class Method>
std::vector<Method> chosen_methods(std::span<Method const> all, arguments const& args) {
  std::vector<Method> chosen;
  for (Method const& m : all) {
    bool const baseline = chosen.size() < 2;
    if (baseline || args.methods.empty() ||
        std::count(args.methods.begin(), args.methods.end(), m.name) > 0) {
      chosen.push_back(m);
    }
  }
  for (std::string const& name : args.methods) {
    if (std::none_of(chosen.begin(), chosen.end(), [&](Method const& m) { return m.name == name; })) {
      std::string known;
      for (Method const& m : all) known += fmt::format("\n  {:<12} {}", m.name, m.what);
      throw gptq::error(fmt::format("--method {}: there are{}", name, known));
    }
  }
  return chosen;
}

/// @param about  what goes before the rows
void write_json(arguments const& args, nlohmann::ordered_json about, nlohmann::ordered_json const& rows) {
  if (args.json.empty()) return;
  about["rows"] = rows;
  std::ofstream out(args.json);
  out << about.dump(1) << '\n';
  if (!out.flush()) throw gptq::error(args.json.string() + ": cannot be written");
}

/// Whole models, each layer quantized on what the quantized ones before it leave of the tokens.
void run_whole(arguments const& args, judged_model const& judged, std::span<lm::token const> calibration,
               std::int64_t window) {
  auto const chosen = chosen_methods(accuracy::whole_methods(), args);
  auto const subsets = subsets_of(calibration, window, args);
  fmt::print("{}, whole: {} calibration subsets, float32 perplexity {:.4f} on {} windows\n",
             args.model.filename().string(), subsets.size(),
             std::exp(estimate_of(judged.exact_scores.negative_log_likelihood).mean), judged.windows.size());
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (std::string const& text : args.formats) {
    fmt::print("\n{}\n{:<14}", text, "method");
    fmt::print(scores_header, "perplexity", "KL to float32", "of A's", "log-likelihood - A's");
    fmt::print("\n");
    outcomes baseline;
    for (accuracy::whole_method const& how : chosen) {
      outcomes ours(subsets.size());
      for (std::size_t i = 0; i < subsets.size(); ++i) {
        window_subset const& of = subsets[i];
        ours[i].scores = accuracy::quantize_whole(
            args.model, parse_format(text), how, how.held_out ? std::span(of.all) : of.calibration(),
            of.validation().size(), judged.windows, *judged.exact, args.threads);
      }
      if (baseline.empty()) baseline = ours;
      nlohmann::ordered_json row{{"format", text}, {"method", how.name}};
      fmt::print("{:<14}", how.name);
      report_scores(ours, baseline, judged.exact_scores, row);
      fmt::print("\n");
      std::fflush(stdout);
      rows.push_back(std::move(row));
    }
  }
  write_json(args, {{"subject", args.model.filename().string()}}, rows);
}

void run(subject const& s, arguments const& args, judged_model* judged) {
  auto const chosen = chosen_methods(accuracy::methods(), args);
  std::vector<std::string> names;
  for (method const& m : chosen) names.push_back(m.name);
  fmt::print("{}: {} linear layers, {} calibration subsets\n", s.name, s.layers.size(), s.subsets.size());
  if (judged != nullptr) {
    fmt::print("float32 perplexity {:.4f} on {} windows\n",
               std::exp(estimate_of(judged->exact_scores.negative_log_likelihood).mean),
               judged->windows.size());
  }
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (std::string const& text : args.formats) {
    gptq::format_spec const format = parse_format(text);
    std::vector<outcomes> results(chosen.size());
    for (std::size_t m = 0; m < chosen.size(); ++m) {
      for (std::size_t i = 0; i < s.subsets.size(); ++i) {
        results[m].push_back(measure(s, i, format, chosen[m], judged, args.threads));
      }
    }
    report(text, names, results, judged, rows);
  }
  nlohmann::ordered_json about{{"subject", s.name}};
  for (layer const& l : s.layers) about["layers"].push_back(l.name);
  write_json(args, std::move(about), rows);
}

void run_model(arguments const& args) {
  lm::model m(args.model);
  lm::config const& c = m.config();
  std::int64_t const window =
      args.window == 0 ? std::min<std::int64_t>(c.max_position_embeddings, 2048) : args.window;
  auto const calibration =
      lm::read_tokens(text_of(args.calibration, args.model, "calibration"), args.model, c);
  auto const evaluation = lm::read_tokens(text_of(args.evaluation, args.model, "evaluation"), args.model, c);
  auto const held_out = lm::cut_windows(evaluation, window, args.held_out_windows);
  if (held_out.empty()) throw gptq::error("the evaluation text does not fill a window");
  if (args.eval_windows == 0) {
    if (args.whole) throw gptq::error("--whole is about predictions: it needs --eval-windows");
    return run(subject_of(m, args, window, calibration, held_out), args, nullptr);
  }
  judged_model judged{&m, lm::cut_windows(evaluation, window, args.eval_windows), nullptr, {}};
  judged.exact = std::make_unique<accuracy::predictions>(m, judged.windows, args.threads);
  judged.exact_scores = judged.exact->against(*judged.exact);
  if (args.whole) return run_whole(args, judged, calibration, window);
  run(subject_of(m, args, window, calibration, held_out), args, &judged);
}

}  // namespace

int main(int argc, char** argv) {
  arguments args;
  CLI::App app(
      "Held-out error of quantized layers, and what it does to a model, beside the published methods.",
      "bench_accuracy");
  auto* const model = app.add_option("--model", args.model, "Hugging Face directory of a LLaMA");
  app.add_flag("--synthetic", args.synthetic, "Made-up layers with outlier channels instead")
      ->excludes(model);
  app.add_flag("--whole", args.whole, "Quantize layer after layer as quantize_model does; predictions only")
      ->needs(model);
  app.add_option("--calibration", args.calibration, "As quantize_model's [MODEL/calibration.i32 or .txt]");
  app.add_option("--evaluation", args.evaluation, "Held-out text [MODEL/evaluation.i32 or .txt]");
  app.add_option("--window", args.window, "Tokens in a sequence [the model's maximum, at most 2048]");
  app.add_option("--format", args.formats,
                 "SCHEME:BITS:GROUP_SIZE, with :SCALES if these are no float16, any number of them")
      ->capture_default_str();
  app.add_option("--method", args.methods, "Besides the baselines, any number of them [all]");
  app.add_option("--subsets", args.subsets, "Random calibration subsets")->capture_default_str();
  app.add_option("--samples", args.samples, "Calibration windows a subset, at most 3/4 of what there are")
      ->capture_default_str();
  app.add_option("--held-out-windows", args.held_out_windows, "For E")->capture_default_str();
  app.add_option("--eval-windows", args.eval_windows, "For perplexity and divergence; 0: neither")
      ->capture_default_str();
  app.add_option("--json", args.json, "Write the tables to this file, too");
  app.add_option("--threads", args.threads, "[one a core]");
  CLI11_PARSE(app, argc, argv);
  try {
    if (args.synthetic) {
      run(synthetic_subject(args), args, nullptr);
    } else if (!args.model.empty()) {
      run_model(args);
    } else {
      throw gptq::error("--model or --synthetic is needed");
    }
    return 0;
  } catch (std::exception const& e) {
    fmt::print(stderr, "bench_accuracy: {}\n", e.what());
    return 2;
  }
}
