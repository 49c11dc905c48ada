#include "quantization.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <gptq/error.hpp>
#include <gptq/hessian.hpp>
#include <gptq/input_error.hpp>

#include "device/programs.hpp"
#include "device_layer.hpp"
#include "forward.hpp"
#include "packed_model.hpp"
#include "threads.hpp"

namespace lm {
namespace {

using Eigen::Index;

quantiles quantiles_of(matrix const& values) {
  std::vector<float> sample;
  for (std::ptrdiff_t const i : spread(values.size(), sampled_values)) sample.push_back(values.data()[i]);
  return find_quantiles(std::move(sample));
}

/// Some of the tokens of all windows, on which to measure what a Hessian cannot tell.
class token_sample {
 public:
  static constexpr std::ptrdiff_t tokens = sampled_tokens;

  token_sample(std::size_t windows, std::size_t length)
      : length_(static_cast<std::ptrdiff_t>(length)),
        chosen_(spread(static_cast<std::ptrdiff_t>(windows) * length_, tokens)) {}

  /// Appends the chosen rows of windows first, first + 1, ... to `rows`.
  void append(matrix& rows, std::vector<matrix const*> const& windows, std::size_t first) const {
    auto const begin = static_cast<std::ptrdiff_t>(first) * length_;
    auto const end = begin + static_cast<std::ptrdiff_t>(windows.size()) * length_;
    Index next = rows.rows();
    auto const from = std::lower_bound(chosen_.begin(), chosen_.end(), begin);
    auto const to = std::lower_bound(chosen_.begin(), chosen_.end(), end);
    rows.conservativeResize(next + (to - from), windows.front()->cols());
    for (auto at = from; at != to; ++at) {
      rows.row(next++) =
          windows[static_cast<std::size_t>((*at - begin) / length_)]->row((*at - begin) % length_);
    }
  }

 private:
  std::ptrdiff_t length_;
  std::vector<std::ptrdiff_t> chosen_;  ///< counted over all windows, in order
};

/// Adds some windows, those that have tokens, on a GPU.
void add_on(gpu& device, std::span<matrix const* const> windows, gptq::hessian& h) {
  Index tokens = 0, sequences = 0, in = h.in_features();
  for (matrix const* const sequence : windows) {
    if (sequence->rows() == 0) continue;
    device.add_to_hessian(sequence->data(), sequence->rows(), in);
    tokens += sequence->rows();
    ++sequences;
  }
  if (sequences == 0) return;
  std::vector<float> const sum = device.take_hessian();
  h.merge(gptq::hessian::from_sum(Eigen::Map<Eigen::MatrixXf const>(sum.data(), in, in),
                                  static_cast<double>(tokens), sequences));
}

/// What some windows have brought to a stage.
struct collected_inputs {
  std::shared_ptr<gptq::hessian> h;
  std::optional<gptq::input_error> error;  ///< nothing unless errors are propagated
};

/// A stage's inputs as its linear layers need to know them.
struct stage_inputs {
  collected_inputs calibration;
  std::optional<collected_inputs> held_out;
  matrix sample;  ///< [tokens, in]
  /// Calibration tokens, of an expert: without those that all experts share; -1: not of an expert.
  double tokens = -1.0;

  /// Null when no held-out token came here.
  gptq::hessian const* held_out_hessian() const {
    return held_out && held_out->h->tokens() > 0.0 ? held_out->h.get() : nullptr;
  }
};

/// What a whole run keeps.
struct run_state {
  model& m;
  quantization const& how;
  context const& ctx;
  quantization_events const& events;
  token_sample const& sample;
  std::size_t calibration_windows;               ///< those after them are held out
  gptq::observer* observer;                      ///< null: none
  unfinished_run const* saved;                   ///< null: nowhere
  std::map<std::string, linear_report> reports;  ///< of what is observed, by name
};

/// Rows of `windows`, at most so many, spread evenly over them.
matrix sample_rows(std::vector<matrix> const& windows, std::ptrdiff_t most) {
  std::vector<std::pair<std::size_t, Index>> all;
  for (std::size_t w = 0; w < windows.size(); ++w) {
    for (Index t = 0; t < windows[w].rows(); ++t) all.emplace_back(w, t);
  }
  auto const chosen = spread(static_cast<std::ptrdiff_t>(all.size()), most);
  matrix rows(static_cast<Index>(chosen.size()), windows.front().cols());
  for (Index i = 0; i < rows.rows(); ++i) {
    auto const [w, t] = all[static_cast<std::size_t>(chosen[static_cast<std::size_t>(i)])];
    rows.row(i) = windows[w].row(t);
  }
  return rows;
}

/// Those rows of a window that its `like` routes to an expert.
matrix rows_for(stage_input const& like, matrix const& x, std::int64_t expert) {
  auto const& rows = like.experts[static_cast<std::size_t>(expert)].rows;
  matrix gathered(static_cast<Index>(rows.size()), x.cols());
  for (std::size_t i = 0; i < rows.size(); ++i) gathered.row(static_cast<Index>(i)) = x.row(rows[i]);
  return gathered;
}

/// A decoder layer on its way from float32 to packed.
class decoder_quantizer {
 public:
  decoder_quantizer(run_state& run, std::int64_t layer)
      : run_(run),
        index_(layer),
        description_(run.m.config().layer(layer)),
        weights_(run.m.load(layer, run.how.threads)) {
    if (gpu* const device = run.how.quantize.device.get()) on_device_.emplace(*device, weights_);
    if (run.saved != nullptr) saved_ = run.saved->load(layer, description_);
  }

  /// x becomes the decoder layer's output, when that is quantized, and `exact`, unless it is empty, from the
  /// unquantized model's residual its output.
  void run(std::vector<matrix>& x, std::vector<matrix>& exact) {
    if (saved_ && run_.observer == nullptr) {
      take_saved(x, exact);
    } else if (run_.how.true_sequential) {
      run_sequentially(x, exact);
    } else {
      run_at_once(x, exact);
    }
    if (run_.saved != nullptr && !saved_) keep();
  }

 private:
  /// Stage by stage: each sees the stages before it quantized. x becomes the decoder layer's output.
  void run_sequentially(std::vector<matrix>& x, std::vector<matrix>& exact) {
    std::optional<float_layer> original;
    std::optional<device_layer> original_on_device;
    if (!exact.empty()) {
      original_on_device = on_device_;
      if (!on_device_) original = weights_;
    }
    decoder_layer const& exact_decoder = either(original_on_device, original ? *original : weights_);
    std::vector<stage_input> input(x.size());
    std::vector<stage_input> exact_input(exact.size());
    for (stage const s : stages) {
      for_each_window(x, [&](std::size_t w) { run_stage(run_.ctx, decoder(), s, x[w], input[w]); });
      for_each_window(
          exact, [&](std::size_t w) { run_stage(run_.ctx, exact_decoder, s, exact[w], exact_input[w]); });
      if (is_of_experts(s)) {
        if (s == stage::gate_up) quantize_experts(input, exact_input, exact_decoder);
        continue;
      }
      stage_inputs inputs = new_inputs(s);
      add(inputs, s, input, exact_input, 0);
      quantize(description_.linears_of(s), inputs);
    }
    for_each_window(exact, [&](std::size_t w) { finish(run_.ctx, exact_decoder, exact[w], exact_input[w]); });
    for_each_window(x, [&](std::size_t w) {
      finish(run_.ctx, decoder(), x[w], input[w]);
      run_.events.advance();
    });
  }

  /// All inputs from the unquantized layer, then all of it quantized, then run again: x becomes its output.
  void run_at_once(std::vector<matrix>& x, std::vector<matrix>& exact) {
    std::vector<stage_inputs> inputs;
    for (stage const s : stages) inputs.push_back(is_of_experts(s) ? stage_inputs{} : new_inputs(s));
    std::vector<stage_input> of_experts, exact_of_experts;  // what they all choose from, of every window

    // A few windows at a time: what the stages leave behind is as large as all activations otherwise.
    constexpr std::size_t batch_bytes = std::size_t{256} << 20;
    auto const threads = static_cast<std::size_t>(gptq::linalg::thread_count(run_.how.threads));
    auto const window_bytes =
        static_cast<std::size_t>(x.front().rows() * run_.m.config().intermediate_size) * 4;
    auto const batch = std::clamp(batch_bytes / window_bytes, threads, 4 * threads);
    for (std::size_t first = 0; first < x.size(); first += batch) {
      std::vector<matrix> copies(x.begin() + static_cast<std::ptrdiff_t>(first),
                                 x.begin() + static_cast<std::ptrdiff_t>(std::min(first + batch, x.size())));
      std::vector<stage_input> input(copies.size());
      std::vector<stage_input> exact_input(exact.empty() ? 0 : copies.size());
      for (stage const s : stages) {
        for_each_window(copies,
                        [&](std::size_t w) { run_stage(run_.ctx, decoder(), s, copies[w], input[w]); });
        for_each_window(exact_input, [&](std::size_t w) {
          run_stage(run_.ctx, decoder(), s, exact[first + w], exact_input[w]);
        });
        if (!is_of_experts(s)) add(inputs[static_cast<std::size_t>(s)], s, input, exact_input, first);
      }
      for_each_window(exact_input,
                      [&](std::size_t w) { finish(run_.ctx, decoder(), exact[first + w], exact_input[w]); });
      if (is_of_experts(stage::down)) {
        std::move(input.begin(), input.end(), std::back_inserter(of_experts));
        std::move(exact_input.begin(), exact_input.end(), std::back_inserter(exact_of_experts));
      }
    }
    for (stage const s : stages) {
      if (!is_of_experts(s)) quantize(description_.linears_of(s), inputs[static_cast<std::size_t>(s)]);
    }
    if (!of_experts.empty()) quantize_experts(of_experts, exact_of_experts, decoder());
    of_experts.clear();
    exact_of_experts.clear();
    for_each_window(x, [&](std::size_t w) {
      run_layer(run_.ctx, decoder(), x[w]);
      run_.events.advance();
    });
  }

  /// All of it is there already.
  void take_saved(std::vector<matrix>& x, std::vector<matrix>& exact) {
    for_each_window(exact, [&](std::size_t w) { run_layer(run_.ctx, decoder(), exact[w]); });
    for (std::size_t place = 0; place < description_.linears.size(); ++place) take_saved(place);
    for_each_window(x, [&](std::size_t w) {
      run_layer(run_.ctx, decoder(), x[w]);
      run_.events.advance();
    });
  }

  /// Writes the decoder layer, and has the model use it from the file: then it takes no memory.
  void keep() {
    run_.saved->save(index_, run_.m, reports_);
    auto written = run_.saved->load(index_, description_);
    for (std::size_t place = 0; place < written->packed.size(); ++place) {
      run_.m.replace(index_, place, std::move(written->packed[place]));
    }
  }

  static decoder_layer const& either(std::optional<device_layer> const& on_device, float_layer const& layer) {
    if (on_device) return *on_device;
    return layer;
  }
  /// With what is quantized so far.
  decoder_layer const& decoder() const { return either(on_device_, weights_); }

  linear_report const& take_saved(std::size_t place) {
    auto& packed = saved_->packed[place];
    linear_report const& report = saved_->reports[place];
    packed->dequantize(weights_.weights[place].data());
    if (on_device_) on_device_->replace(place, weights_.weights[place]);
    run_.m.replace(index_, place, std::move(packed));
    run_.events.done(report);
    return report;
  }

  bool is_of_experts(stage s) const {
    return description_.experts && (s == stage::gate_up || s == stage::down);
  }

  template <class Windows, class Piece>
  void for_each_window(Windows const& windows, Piece&& piece) const {
    for_each(static_cast<std::ptrdiff_t>(windows.size()), run_.how.threads,
             [&](std::ptrdiff_t w) { piece(static_cast<std::size_t>(w)); });
  }

  stage_inputs new_inputs(stage s) const {
    auto const none = [&] {
      auto const in = description_.input_size(s);
      collected_inputs empty{std::make_shared<gptq::hessian>(in, run_.how.threads), std::nullopt};
      if (run_.how.propagate) empty.error.emplace(in, run_.how.threads);
      return empty;
    };
    stage_inputs inputs{none(), std::nullopt, {}, -1.0};
    if (run_.how.held_out_windows > 0) inputs.held_out = none();
    return inputs;
  }

  /// Counts the inputs of a stage's linear layers, one matrix a sequence, of windows `first` and on; `exact`,
  /// unless it is empty, are those of the unquantized model.
  void add(stage_inputs& inputs, stage s, std::vector<stage_input> const& windows,
           std::vector<stage_input> const& exact, std::size_t first) const {
    std::vector<matrix const*> rows, exact_rows;
    for (stage_input const& window : windows) rows.push_back(&window.x);
    for (stage_input const& window : exact) exact_rows.push_back(&window.x);
    add(inputs, description_.linears[description_.linears_of(s).front()].name, rows, exact_rows, first);
    run_.sample.append(inputs.sample, rows, first);
  }

  void add(stage_inputs& inputs, std::string const& name, std::vector<matrix const*> const& windows,
           std::vector<matrix const*> const& exact, std::size_t first) const {
    try {
      std::size_t const calibrating =
          std::min(windows.size(), std::max(first, run_.calibration_windows) - first);
      std::span const all(windows);
      if (gpu* const device = run_.how.quantize.device.get()) {
        add_on(*device, all.first(calibrating), *inputs.calibration.h);
        if (calibrating < all.size()) add_on(*device, all.subspan(calibrating), *inputs.held_out->h);
      }
      for (std::size_t w = 0; w < windows.size(); ++w) {
        if (windows[w]->rows() == 0) continue;
        collected_inputs& to = w < calibrating ? inputs.calibration : *inputs.held_out;
        if (!run_.how.quantize.device) to.h->add(*windows[w]);
        if (to.error) to.error->add(*exact[w], *windows[w]);
      }
    } catch (gptq::error const& e) {
      throw gptq::error("input of " + name + ": " + e.what());
    }
  }

  /// An expert's share of a stage's inputs, and where they are fewer tokens than the layer has columns, all
  /// tokens besides, with so small a weight that together they make up the difference.
  /// @param rows, exact  of each window, those that are routed to the expert
  /// @param all(w)       the same input for every token of a window
  template <class All>
  stage_inputs inputs_of_expert(stage s, std::size_t place, std::vector<matrix> const& rows,
                                std::vector<matrix> const& exact, All const& all) const {
    stage_inputs inputs = new_inputs(s);
    std::vector<matrix const*> each, exact_each;
    for (matrix const& window : rows) each.push_back(&window);
    for (matrix const& window : exact) exact_each.push_back(&window);
    std::string const& name = description_.linears[place].name;
    add(inputs, name, each, exact_each, 0);
    inputs.tokens = inputs.calibration.h->tokens();
    auto const columns = static_cast<double>(description_.linears[place].in);
    if (inputs.tokens >= columns) {
      inputs.sample = sample_rows(rows, token_sample::tokens);
      return inputs;
    }
    std::vector<matrix> every(run_.calibration_windows);
    for (std::size_t w = 0; w < every.size(); ++w) every[w] = all(w);
    double const total = static_cast<double>(every.size()) * static_cast<double>(every.front().rows());
    auto const weight = static_cast<float>((columns - inputs.tokens) / total);
    try {
      for (matrix const& window : every) {
        std::vector<float> const weights(static_cast<std::size_t>(window.rows()), weight);
        inputs.calibration.h->add(window, weights);
      }
    } catch (gptq::error const& e) {
      throw gptq::error("input of " + name + ": " + e.what());
    }
    inputs.sample = sample_rows(every, token_sample::tokens);
    return inputs;
  }

  /// Expert by expert: the inputs of all of them at once would take as much memory as there are experts.
  /// @param windows  as stage gate_up has left them
  /// @param exact    likewise of the unquantized model, whose decoder layer is `exact_decoder`; may be empty
  void quantize_experts(std::vector<stage_input> const& windows, std::vector<stage_input> const& exact,
                        decoder_layer const& exact_decoder) {
    for (std::int64_t e = 0; e < run_.m.config().num_experts; ++e) {
      auto const of_gate = description_.linears_of(stage::gate_up, e);
      auto const of_down = description_.linears_of(stage::down, e);
      std::vector<matrix> rows(windows.size()), exact_rows(exact.size());
      std::vector<matrix> hidden(windows.size()), exact_hidden(exact.size());
      for_each_window(windows, [&](std::size_t w) { rows[w] = expert_input(windows[w], e); });
      for_each_window(exact, [&](std::size_t w) { exact_rows[w] = rows_for(windows[w], exact[w].x, e); });
      auto const make_hidden = [&] {
        for_each_window(windows,
                        [&](std::size_t w) { hidden[w] = expert_hidden(run_.ctx, decoder(), e, rows[w]); });
      };
      for_each_window(exact, [&](std::size_t w) {
        exact_hidden[w] = expert_hidden(run_.ctx, exact_decoder, e, exact_rows[w]);
      });
      auto const hidden_of_all = [&](std::size_t w) {
        return expert_hidden(run_.ctx, decoder(), e, windows[w].x);
      };
      stage_inputs const gate_inputs = inputs_of_expert(stage::gate_up, of_gate.front(), rows, exact_rows,
                                                        [&](std::size_t w) { return windows[w].x; });
      std::optional<stage_inputs> down_inputs;
      auto const collect_down = [&] {
        make_hidden();
        down_inputs = inputs_of_expert(stage::down, of_down.front(), hidden, exact_hidden, hidden_of_all);
      };
      if (!run_.how.true_sequential) collect_down();
      quantize(of_gate, gate_inputs);
      if (run_.how.true_sequential) collect_down();
      quantize(of_down, *down_inputs);
    }
  }

  /// Quantizes linear layers with the same inputs and puts what was packed in their place.
  void quantize(std::vector<std::size_t> const& places, stage_inputs const& inputs) {
    quantiles const of_inputs = quantiles_of(inputs.sample);
    for (std::size_t const place : places) {
      if (saved_) {
        observe(place, inputs, take_saved(place));
        continue;
      }
      matrix& weight = weights_.weights[place];
      linear_report report;
      report.name = description_.linears[place].name;
      report.out = weight.rows();
      report.in = weight.cols();
      report.weights = quantiles_of(weight);
      report.inputs = of_inputs;
      report.expert_tokens = inputs.tokens;
      try {
        if (run_.how.propagate) report.propagated = compensate(weight, inputs);
        matrix const exact = weights_.multiply_by(place, inputs.sample);
        gptq::hessian const* const held_out = inputs.held_out_hessian();
        auto result = run_.how.quantize(std::move(weight), *inputs.calibration.h, held_out);
        report.format = result.packed->format();
        report.packed_bytes = result.bytes;
        report.quality = result.report;
        weight.resize(report.out, report.in);
        result.packed->dequantize(weight.data());
        if (on_device_) on_device_->replace(place, weight);
        measure_int8(report, place, inputs.sample, exact, result.packed->parts().order);
        run_.m.replace(index_, place, std::move(result.packed));
        observe(place, inputs, report);
      } catch (gptq::error const& e) {
        throw gptq::error(report.name + ": " + e.what());
      }
      run_.events.done(report);
      reports_.push_back(report);
    }
  }

  /// Has a weight make up for what became of its inputs; returns the strength.
  double compensate(matrix& weight, stage_inputs const& inputs) const {
    // The error is known on the tokens of its own alone.
    if (inputs.tokens >= 0.0 && inputs.tokens < static_cast<double>(weight.cols())) return 0.0;
    gptq::compensate_options const options{*run_.how.propagate, run_.how.quantize.options.damping,
                                           run_.how.threads};
    auto const with = [&](gptq::held_out_inputs const* held_out) {
      auto compensated = gptq::compensate(std::move(weight), *inputs.calibration.h, *inputs.calibration.error,
                                          options, held_out);
      weight = std::move(compensated.weight);
      return compensated.strength;
    };
    if (inputs.held_out_hessian() == nullptr) return with(nullptr);
    gptq::held_out_inputs const held_out{*inputs.held_out->h, *inputs.held_out->error};
    return with(&held_out);
  }

  /// What int8 inputs add, as a ratio: the sample's own error varies more than that.
  void measure_int8(linear_report& report, std::size_t place, matrix const& sample, matrix const& exact,
                    std::span<std::int32_t const> order) const {
    auto const squared_error = [&](matrix const& x) {
      return (weights_.multiply_by(place, x) - exact).cast<double>().squaredNorm();
    };
    matrix rounded = sample;
    auto const group = report.format.group_size;
    for (Index t = 0; t < rounded.rows(); ++t) {
      round_to_int8({rounded.row(t).data(), static_cast<std::size_t>(report.in)},
                    group == gptq::whole_row ? report.in : group, order);
    }
    double const in_float = squared_error(sample);
    double const in_int8 = squared_error(rounded);
    double const signal = exact.cast<double>().squaredNorm();
    if (in_float == 0.0 && signal == 0.0) return;  // nothing to measure it by
    report.int8_error = in_float > 0.0 ? report.quality.output_error * in_int8 / in_float : in_int8 / signal;
    report.int8_snr_db = -10.0 * std::log10(report.int8_error);
  }

  void observe(std::size_t place, stage_inputs const& inputs, linear_report const& report) {
    if (run_.observer == nullptr || !run_.observer->wants(report.quality.loss)) return;
    run_.observer->offer({report.name, [&m = run_.m, i = index_, place] { return m.original(i, place); },
                          inputs.calibration.h, report.format, report.quality.loss, report.packed_bytes});
    run_.reports[report.name] = report;
  }

  run_state& run_;
  std::int64_t index_;
  decoder_description const& description_;
  float_layer weights_;
  std::optional<device_layer> on_device_;  ///< the same, where a GPU makes the products of whole windows
  std::optional<unfinished_run::saved_layer> saved_;
  std::vector<linear_report> reports_;
};

/// Quantizes again what was observed.
void refine(run_state& run) {
  std::map<std::string, std::pair<std::int64_t, std::size_t>> places;
  for (std::int64_t i = 0; i < run.m.config().num_hidden_layers; ++i) {
    auto const& linears = run.m.config().layer(i).linears;
    for (std::size_t place = 0; place < linears.size(); ++place) places[linears[place].name] = {i, place};
  }
  auto const quantize = [&](matrix&& weight, gptq::hessian const& h, gptq::format_spec const& format) {
    quantizer finer = run.how.quantize;
    finer.format = format;
    return finer(std::move(weight), h);
  };
  auto const accept = [&](std::string const& name, quantizer::result&& result) {
    linear_report& report = run.reports[name];
    report.format = result.packed->format();
    report.packed_bytes = result.bytes;
    report.quality = result.report;
    report.int8_error = report.int8_snr_db = gptq::quantize_report::not_measured;
    auto const [layer, place] = places.at(name);
    run.m.replace(layer, place, std::move(result.packed));
  };
  auto const& budget = run.how.observe->extra_bytes;
  auto const table =
      budget ? run.observer->spend(*budget, quantize, accept) : run.observer->refine(quantize, accept);
  for (gptq::refinement const& r : table) run.events.refined(r, run.reports[r.name]);
}

}  // namespace

std::size_t calibration_windows(std::size_t windows, quantization const& how) {
  if (how.held_out_windows < windows) return windows - how.held_out_windows;
  throw gptq::error(fmt::format("{} windows, {} of them to be held out: none is left to calibrate on",
                                windows, how.held_out_windows));
}

void quantize_model(model& m, std::span<token_window const> windows, quantization const& how,
                    quantization_events const& events, unfinished_run const* saved) {
  if (how.accelerator != nullptr) {
    device::quantize_model(*how.accelerator, how.activations, m, windows, how, events, saved);
    return;
  }
  std::size_t const calibrating = calibration_windows(windows.size(), how);
  set_blas_threads(how.threads);
  auto const length = windows.front().size();
  auto const angles = make_rotations(m.config(), static_cast<std::int64_t>(length));
  context const ctx{m.config(), angles};
  token_sample const sample(calibrating, length);
  std::optional<gptq::observer> observer;
  if (how.observe) observer.emplace(how.observe->top_k, how.observe->spill_directory);
  run_state run{m, how, ctx, events, sample, calibrating, observer ? &*observer : nullptr, saved, {}};

  std::vector<matrix> x;
  for (token_window const window : windows) x.push_back(m.embed(window));
  std::vector<matrix> exact;
  if (how.propagate) exact = x;
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) decoder_quantizer(run, i).run(x, exact);
  exact.clear();
  x.clear();
  if (observer) refine(run);
}

}  // namespace lm
