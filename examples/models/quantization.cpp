#include "quantization.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <gptq/error.hpp>
#include <gptq/hessian.hpp>
#include <gptq/input_error.hpp>

#include "device_layer.hpp"
#include "forward.hpp"
#include "packed_model.hpp"
#include "threads.hpp"

namespace lm {
namespace {

using Eigen::Index;

/// At most `most` of `count` things, spread evenly and yet at no fixed distance: windows have a rhythm.
std::vector<std::ptrdiff_t> spread(std::ptrdiff_t count, std::ptrdiff_t most) {
  std::ptrdiff_t const taken = std::min(count, most);
  std::vector<std::ptrdiff_t> chosen;
  for (std::ptrdiff_t i = 0; i < taken; ++i) {
    double const within = std::fmod(static_cast<double>(i) * 0.6180339887498949, 1.0);  // the golden ratio's
    chosen.push_back(static_cast<std::ptrdiff_t>((static_cast<double>(i) + within) *
                                                 static_cast<double>(count) / static_cast<double>(taken)));
  }
  return chosen;
}

quantiles quantiles_of(matrix const& values) {
  std::vector<float> sample;
  for (std::ptrdiff_t const i : spread(values.size(), 65536)) sample.push_back(values.data()[i]);
  std::sort(sample.begin(), sample.end());
  quantiles result{};
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i] = sample[static_cast<std::size_t>(quantile_shares[i] * static_cast<double>(sample.size() - 1))];
  }
  return result;
}

/// Some of the tokens of all windows, on which to measure what a Hessian cannot tell.
class token_sample {
 public:
  static constexpr std::ptrdiff_t tokens = 1024;

  token_sample(std::size_t windows, std::size_t length)
      : length_(static_cast<std::ptrdiff_t>(length)),
        chosen_(spread(static_cast<std::ptrdiff_t>(windows) * length_, tokens)) {}

  /// Appends the chosen rows of windows first, first + 1, ... to `rows`.
  void append(matrix& rows, std::vector<matrix> const& windows, std::size_t first) const {
    auto const begin = static_cast<std::ptrdiff_t>(first) * length_;
    auto const end = begin + static_cast<std::ptrdiff_t>(windows.size()) * length_;
    Index next = rows.rows();
    auto const from = std::lower_bound(chosen_.begin(), chosen_.end(), begin);
    auto const to = std::lower_bound(chosen_.begin(), chosen_.end(), end);
    rows.conservativeResize(next + (to - from), windows.front().cols());
    for (auto at = from; at != to; ++at) {
      rows.row(next++) =
          windows[static_cast<std::size_t>((*at - begin) / length_)].row((*at - begin) % length_);
    }
  }

 private:
  std::ptrdiff_t length_;
  std::vector<std::ptrdiff_t> chosen_;  ///< counted over all windows, in order
};

/// The Hessian of some windows, from a GPU.
gptq::hessian sum_on(gpu& device, std::span<matrix const> windows) {
  Index tokens = 0;
  Index const in = windows.front().cols();
  for (matrix const& sequence : windows) {
    device.add_to_hessian(sequence.data(), sequence.rows(), in);
    tokens += sequence.rows();
  }
  std::vector<float> const sum = device.take_hessian();
  auto const sequences = static_cast<Index>(windows.size());
  return gptq::hessian::from_matrix(
      Eigen::Map<Eigen::MatrixXf const>(sum.data(), in, in) * (2.0F / static_cast<float>(sequences)), tokens,
      sequences);
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

/// A decoder layer on its way from float32 to packed.
class decoder_quantizer {
 public:
  decoder_quantizer(run_state& run, std::int64_t layer)
      : run_(run), index_(layer), weights_(run.m.load(layer, run.how.threads)) {
    if (gpu* const device = run.how.quantize.device.get()) on_device_.emplace(*device, weights_);
    if (run.saved != nullptr) saved_ = run.saved->load(layer);
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
    std::vector<matrix> input(x.size());
    std::vector<matrix> exact_input(exact.size());
    for (stage const s : stages) {
      for_each_window(x, [&](std::size_t w) { run_stage(run_.ctx, decoder(), s, x[w], input[w]); });
      for_each_window(
          exact, [&](std::size_t w) { run_stage(run_.ctx, exact_decoder, s, exact[w], exact_input[w]); });
      stage_inputs inputs = new_inputs(s);
      add(inputs, s, input, exact_input, 0);
      quantize(s, inputs);
    }
    for_each_window(exact, [&](std::size_t w) { finish(exact_decoder, exact[w], exact_input[w]); });
    for_each_window(x, [&](std::size_t w) {
      finish(decoder(), x[w], input[w]);
      run_.events.advance();
    });
  }

  /// All inputs from the unquantized layer, then all of it quantized, then run again: x becomes its output.
  void run_at_once(std::vector<matrix>& x, std::vector<matrix>& exact) {
    std::vector<stage_inputs> inputs;
    for (stage const s : stages) inputs.push_back(new_inputs(s));

    // A few windows at a time: what the stages leave behind is as large as all activations otherwise.
    constexpr std::size_t batch_bytes = std::size_t{256} << 20;
    auto const threads = static_cast<std::size_t>(gptq::linalg::thread_count(run_.how.threads));
    auto const window_bytes =
        static_cast<std::size_t>(x.front().rows() * run_.m.config().intermediate_size) * 4;
    auto const batch = std::clamp(batch_bytes / window_bytes, threads, 4 * threads);
    for (std::size_t first = 0; first < x.size(); first += batch) {
      std::vector<matrix> copies(x.begin() + static_cast<std::ptrdiff_t>(first),
                                 x.begin() + static_cast<std::ptrdiff_t>(std::min(first + batch, x.size())));
      std::vector<matrix> input(copies.size());
      std::vector<matrix> exact_input(exact.empty() ? 0 : copies.size());
      for (stage const s : stages) {
        for_each_window(copies,
                        [&](std::size_t w) { run_stage(run_.ctx, decoder(), s, copies[w], input[w]); });
        for_each_window(exact_input, [&](std::size_t w) {
          run_stage(run_.ctx, decoder(), s, exact[first + w], exact_input[w]);
        });
        add(inputs[static_cast<std::size_t>(s)], s, input, exact_input, first);
      }
      for_each_window(exact_input,
                      [&](std::size_t w) { finish(decoder(), exact[first + w], exact_input[w]); });
    }
    for (stage const s : stages) quantize(s, inputs[static_cast<std::size_t>(s)]);
    for_each_window(x, [&](std::size_t w) {
      run_layer(run_.ctx, decoder(), x[w]);
      run_.events.advance();
    });
  }

  /// All of it is there already.
  void take_saved(std::vector<matrix>& x, std::vector<matrix>& exact) {
    for_each_window(exact, [&](std::size_t w) { run_layer(run_.ctx, decoder(), exact[w]); });
    for (stage const s : stages) {
      for (linear const l : linears_of(s)) take_saved(l);
    }
    for_each_window(x, [&](std::size_t w) {
      run_layer(run_.ctx, decoder(), x[w]);
      run_.events.advance();
    });
  }

  /// Writes the decoder layer, and has the model use it from the file: then it takes no memory.
  void keep() {
    run_.saved->save(index_, run_.m, reports_);
    auto written = run_.saved->load(index_);
    for (std::size_t l = 0; l < linears; ++l) {
      run_.m.replace(index_, linear(l), std::move(written->packed[l]));
    }
  }

  static decoder_layer const& either(std::optional<device_layer> const& on_device, float_layer const& layer) {
    if (on_device) return *on_device;
    return layer;
  }
  /// With what is quantized so far.
  decoder_layer const& decoder() const { return either(on_device_, weights_); }

  linear_report const& take_saved(linear l) {
    auto& packed = saved_->packed[static_cast<std::size_t>(l)];
    linear_report const& report = saved_->reports[static_cast<std::size_t>(l)];
    packed->dequantize(weights_[l].data());
    if (on_device_) on_device_->replace(l, weights_[l]);
    run_.m.replace(index_, l, std::move(packed));
    run_.events.done(report);
    return report;
  }

  template <class Piece>
  void for_each_window(std::vector<matrix> const& windows, Piece&& piece) const {
    for_each(static_cast<std::ptrdiff_t>(windows.size()), run_.how.threads,
             [&](std::ptrdiff_t w) { piece(static_cast<std::size_t>(w)); });
  }

  stage_inputs new_inputs(stage s) const {
    auto const none = [&] {
      auto const in = input_size(run_.m.config(), s);
      collected_inputs empty{std::make_shared<gptq::hessian>(in, run_.how.threads), std::nullopt};
      if (run_.how.propagate) empty.error.emplace(in, run_.how.threads);
      return empty;
    };
    stage_inputs inputs{none(), std::nullopt, {}};
    if (run_.how.held_out_windows > 0) inputs.held_out = none();
    return inputs;
  }

  /// Counts the inputs of a stage's linear layers, one matrix a sequence, of windows `first` and on; `exact`,
  /// unless it is empty, are those of the unquantized model.
  void add(stage_inputs& inputs, stage s, std::vector<matrix> const& windows,
           std::vector<matrix> const& exact, std::size_t first) const {
    try {
      std::size_t const calibrating =
          std::min(windows.size(), std::max(first, run_.calibration_windows) - first);
      std::span const all(windows);
      if (gpu* const device = run_.how.quantize.device.get()) {
        if (calibrating > 0) inputs.calibration.h->merge(sum_on(*device, all.first(calibrating)));
        if (calibrating < all.size()) inputs.held_out->h->merge(sum_on(*device, all.subspan(calibrating)));
      }
      for (std::size_t w = 0; w < windows.size(); ++w) {
        collected_inputs& to = w < calibrating ? inputs.calibration : *inputs.held_out;
        if (!run_.how.quantize.device) to.h->add(windows[w]);
        if (to.error) to.error->add(exact[w], windows[w]);
      }
    } catch (gptq::error const& e) {
      throw gptq::error("input of " + full_name(index_, linears_of(s).front()) + ": " + e.what());
    }
    run_.sample.append(inputs.sample, windows, first);
  }

  /// Quantizes a stage's linear layers and puts what was packed in their place.
  void quantize(stage s, stage_inputs const& inputs) {
    quantiles const of_inputs = quantiles_of(inputs.sample);
    for (linear const l : linears_of(s)) {
      if (saved_) {
        observe(l, inputs, take_saved(l));
        continue;
      }
      linear_report report;
      report.name = full_name(index_, l);
      report.out = weights_[l].rows();
      report.in = weights_[l].cols();
      report.weights = quantiles_of(weights_[l]);
      report.inputs = of_inputs;
      try {
        if (run_.how.propagate) report.propagated = compensate(weights_[l], inputs);
        matrix const exact = weights_.multiply(l, inputs.sample);
        auto result = run_.how.quantize(std::move(weights_[l]), *inputs.calibration.h,
                                        inputs.held_out ? inputs.held_out->h.get() : nullptr);
        report.format = result.packed->format();
        report.packed_bytes = result.bytes;
        report.quality = result.report;
        weights_[l].resize(report.out, report.in);
        result.packed->dequantize(weights_[l].data());
        if (on_device_) on_device_->replace(l, weights_[l]);
        measure_int8(report, l, inputs.sample, exact, result.packed->parts().order);
        run_.m.replace(index_, l, std::move(result.packed));
        observe(l, inputs, report);
      } catch (gptq::error const& e) {
        throw gptq::error(report.name + ": " + e.what());
      }
      run_.events.done(report);
      reports_.push_back(report);
    }
  }

  /// Has a weight make up for what became of its inputs; returns the strength.
  double compensate(matrix& weight, stage_inputs const& inputs) const {
    gptq::compensate_options const options{*run_.how.propagate, run_.how.quantize.options.damping,
                                           run_.how.threads};
    auto const with = [&](gptq::held_out_inputs const* held_out) {
      auto compensated = gptq::compensate(std::move(weight), *inputs.calibration.h, *inputs.calibration.error,
                                          options, held_out);
      weight = std::move(compensated.weight);
      return compensated.strength;
    };
    if (!inputs.held_out) return with(nullptr);
    gptq::held_out_inputs const held_out{*inputs.held_out->h, *inputs.held_out->error};
    return with(&held_out);
  }

  /// What int8 inputs add, as a ratio: the sample's own error varies more than that.
  void measure_int8(linear_report& report, linear l, matrix const& sample, matrix const& exact,
                    std::span<std::int32_t const> order) const {
    auto const squared_error = [&](matrix const& x) {
      return (weights_.multiply(l, x) - exact).cast<double>().squaredNorm();
    };
    matrix rounded = sample;
    auto const group = report.format.group_size;
    for (Index t = 0; t < rounded.rows(); ++t) {
      round_to_int8({rounded.row(t).data(), static_cast<std::size_t>(report.in)},
                    group == gptq::whole_row ? report.in : group, order);
    }
    double const in_float = squared_error(sample);
    double const in_int8 = squared_error(rounded);
    report.int8_error = in_float > 0.0 ? report.quality.output_error * in_int8 / in_float
                                       : in_int8 / exact.cast<double>().squaredNorm();
    report.int8_snr_db = -10.0 * std::log10(report.int8_error);
  }

  void observe(linear l, stage_inputs const& inputs, linear_report const& report) {
    if (run_.observer == nullptr || !run_.observer->wants(report.quality.loss)) return;
    run_.observer->offer({report.name, [&m = run_.m, i = index_, l] { return m.original(i, l); },
                          inputs.calibration.h, report.format, report.quality.loss, report.packed_bytes});
    run_.reports[report.name] = report;
  }

  run_state& run_;
  std::int64_t index_;
  float_layer weights_;
  std::optional<device_layer> on_device_;  ///< the same, where a GPU makes the products of whole windows
  std::optional<unfinished_run::saved_layer> saved_;
  std::vector<linear_report> reports_;
};

/// Quantizes again what was observed.
void refine(run_state& run) {
  std::map<std::string, std::pair<std::int64_t, linear>> places;
  for (std::int64_t i = 0; i < run.m.config().num_hidden_layers; ++i) {
    for (std::size_t l = 0; l < linears; ++l) places[full_name(i, linear(l))] = {i, linear(l)};
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
    auto const [layer, l] = places.at(name);
    run.m.replace(layer, l, std::move(result.packed));
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
