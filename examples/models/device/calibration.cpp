#include "calibration.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <future>
#include <limits>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include <gptq/error.hpp>

namespace lm::device {
namespace {

constexpr std::array all_stages{stage::query_key_value, stage::output, stage::gate_up, stage::down};

/// The residual of all windows, from the embeddings on.
class residual {
 public:
  residual(accelerator& on, model_source const& model, token_windows const& windows)
      : hidden_(model.hidden), length_(windows.length) {
    auto const tokens = static_cast<index_t>(windows.tokens.size());
    auto const bytes = static_cast<std::size_t>(tokens * hidden_) * sizeof(float) + model.embedding.bytes();
    if (bytes > on.free_bytes()) {
      throw gptq::error(fmt::format(
          "the activations of {} windows take {:.1f} GB, of which the device has {:.1f}: "
          "fewer windows, or shorter ones",
          windows.count(), 1e-9 * static_cast<double>(bytes), 1e-9 * static_cast<double>(on.free_bytes())));
    }
    x_ = array<float>(on, tokens * hidden_);
    array<std::int32_t> const ids(on, windows.tokens);
    number_array const table(on, model.embedding.rows * hidden_, model.embedding.type);
    on.upload(numbers(table).data, model.embedding.data, model.embedding.bytes());
    on.embed(x_.data(), table, ids.data(), tokens, hidden_, model.embedding_multiplier);
  }

  float* of(index_t window) const { return x_.data() + window * length_ * hidden_; }

 private:
  index_t hidden_;
  index_t length_;
  array<float> x_;
};

/// Calls visit(first, count) for runs of at most `most` of `windows` windows.
template <class Visit>
void for_each_batch(index_t windows, index_t most, Visit&& visit) {
  for (index_t first = 0; first < windows; first += most) visit(first, std::min(most, windows - first));
}

/// What is done with results on other threads: work side by side, then deliveries in order.
class background {
 public:
  ~background() {
    for (auto const& task : tasks_) task.wait();
  }
  /// Waits where `most` tasks are running already. Throws what an earlier one threw; those after it are not
  /// delivered.
  template <class Work, class Deliver>
  void add(Work work, Deliver deliver, std::size_t most) {
    while (tasks_.size() >= most) take();
    std::shared_future<void> const before = tasks_.empty() ? std::shared_future<void>() : tasks_.back();
    tasks_.push_back(std::async(std::launch::async, [before, work = std::move(work), deliver]() mutable {
      auto result = work();
      if (before.valid()) before.get();
      deliver(std::move(result));
    }));
  }
  void finish() {
    while (!tasks_.empty()) take();
  }

 private:
  void take() {
    auto const first = tasks_.front();
    tasks_.erase(tasks_.begin());
    first.get();
  }

  std::vector<std::shared_future<void>> tasks_;
};

/// What the windows bring to a stage.
struct stage_inputs {
  std::unique_ptr<hessian> calibration;
  std::unique_ptr<hessian> held_out;  ///< null: none is
  array<float> sample;                ///< [tokens, in]
  index_t sampled = 0;
};

class calibrator {
 public:
  calibrator(accelerator& on, model_source const& model, token_windows const& windows, calibration const& how)
      : on_(on),
        model_(model),
        how_(how),
        windows_(windows.count()),
        length_(windows.length),
        pass_(on, how.activations, windows.length, model.ropes),
        x_(on, model, windows) {}

  void run() {
    layer_stream layers(on_, how_.activations, model_.layers, model_.load);
    for (index_t i = 0; i < model_.layers; ++i) {
      layer_ = &layers.next();
      index_ = i;
      batch_ = std::min(windows_, pass_.windows_at_a_time(layer_->arithmetic(), how_.batch_bytes));
      if (layer_->source().finished) {
        run_whole_layer();
      } else if (how_.true_sequential) {
        run_sequentially();
      } else {
        run_at_once();
      }
    }
    results_.finish();
  }

 private:
  void run_sequentially() {
    number_array input;
    for (stage const s : all_stages) {
      index_t const in = layer_->arithmetic().in(s);
      index_t const before =
          s == stage::query_key_value ? 0 : layer_->arithmetic().in(stage(static_cast<int>(s) - 1));
      number_array next(on_, windows_ * length_ * in, how_.activations);
      stage_inputs inputs = new_inputs(s);
      for_each_batch(windows_, batch_, [&](index_t first, index_t count) {
        numbers const to = next.from(first * length_ * in);
        on_.enter(activity::forward);
        pass_.run_stage(*layer_, s, count, x_.of(first), input.from(first * length_ * before), to);
        add(inputs, s, to, first, count);
      });
      input = std::move(next);
      quantize(s, inputs);
    }
    on_.enter(activity::forward);
    for_each_batch(windows_, batch_, [&](index_t first, index_t count) {
      pass_.finish(*layer_, count, x_.of(first),
                   input.from(first * length_ * layer_->arithmetic().in(stage::down)));
      how_.advance(count);
    });
  }

  void run_at_once() {
    std::array<stage_inputs, stages> inputs;
    for (stage const s : all_stages) inputs[static_cast<std::size_t>(s)] = new_inputs(s);
    for_each_batch(windows_, batch_, [&](index_t first, index_t count) {
      on_.enter(activity::forward);
      index_t const size = count * length_ * model_.hidden;
      array<float> const copy(on_, size);
      on_.convert({copy.data(), number::float32}, {x_.of(first), number::float32}, size);
      number_array input;
      for (stage const s : all_stages) {
        number_array next(on_, count * length_ * layer_->arithmetic().in(s), how_.activations);
        on_.enter(activity::forward);
        pass_.run_stage(*layer_, s, count, copy.data(), input, next);
        add(inputs[static_cast<std::size_t>(s)], s, next, first, count);
        input = std::move(next);
      }
    });
    for (stage const s : all_stages) quantize(s, inputs[static_cast<std::size_t>(s)]);
    run_whole_layer();
  }

  void run_whole_layer() {
    on_.enter(activity::forward);
    for_each_batch(windows_, batch_, [&](index_t first, index_t count) {
      pass_.run_layer(*layer_, count, x_.of(first));
      how_.advance(count);
    });
  }

  stage_inputs new_inputs(stage s) {
    index_t const in = layer_->arithmetic().in(s);
    stage_inputs inputs;
    inputs.calibration = on_.new_hessian(in, how_.activations);
    if (how_.calibrating < windows_) inputs.held_out = on_.new_hessian(in, how_.activations);
    inputs.sample = array<float>(on_, static_cast<index_t>(how_.sample.size()) * in);
    return inputs;
  }

  /// Counts a stage's inputs of windows `first` and on.
  void add(stage_inputs& inputs, stage s, numbers input, index_t first, index_t count) {
    index_t const in = layer_->arithmetic().in(s);
    index_t const calibrating = std::clamp(how_.calibrating - first, index_t{0}, count);
    on_.enter(activity::hessian);
    if (calibrating > 0) inputs.calibration->add(input, calibrating, length_);
    if (calibrating < count) {
      inputs.held_out->add(input.from(calibrating * length_ * in), count - calibrating, length_);
    }
    on_.enter(activity::measuring);
    auto const begin = std::lower_bound(how_.sample.begin(), how_.sample.end(), first * length_);
    auto const end = std::lower_bound(begin, how_.sample.end(), (first + count) * length_);
    std::vector<std::int64_t> rows(begin, end);
    if (rows.empty()) return;
    for (std::int64_t& row : rows) row -= first * length_;
    auto const sampled = static_cast<index_t>(rows.size());
    array<std::int64_t> const on_device(on_, rows);
    on_.gather_rows(inputs.sample.data() + inputs.sampled * in, input, on_device.data(), sampled, in);
    inputs.sampled += sampled;
  }

  /// Some of x[count], on the host.
  std::vector<float> some(float const* x, index_t count) {
    if (!how_.some_of || count == 0) return {};
    std::vector<std::int64_t> const chosen = how_.some_of(count);
    array<std::int64_t> const at(on_, chosen);
    array<float> const values(on_, at.size());
    on_.gather(values.data(), x, at.data(), at.size());
    return values.host();
  }

  /// Quantizes a stage's linear layers and puts what was found in their place.
  void quantize(stage s, stage_inputs const& inputs) {
    auto const& linears = layer_->source().linears[static_cast<std::size_t>(s)];
    index_t const in = layer_->arithmetic().in(s), out = layer_->arithmetic().out(s);
    on_.enter(activity::measuring);
    numbers const stored = layer_->stored(s);
    array<float> converted;
    auto const* w = static_cast<float const*>(stored.data);
    if (stored.type != number::float32) {
      converted = array<float>(on_, out * in);
      on_.convert({converted.data(), number::float32}, stored, out * in);
      w = converted.data();
    }
    std::vector<linear_result> results;
    std::vector<weight> weights;
    std::vector<float> const sample = some(inputs.sample.data(), inputs.sampled * in);
    index_t first_row = 0;
    for (linear_source const& l : linears) {
      linear_result r;
      r.layer = index_, r.at = s, r.number = results.size(), r.name = l.name, r.out = l.weight.rows,
      r.in = in;
      r.inputs = sample;
      r.weights = some(w + first_row * in, r.out * in);
      weights.push_back({w + first_row * in, r.out});
      results.push_back(std::move(r));
      first_row += l.weight.rows;
    }
    on_.enter(activity::solving);
    std::shared_ptr<quantized const> layers = solve(weights, linears, inputs);
    on_.enter(activity::measuring);
    for (std::size_t i = 0; i < results.size(); ++i) results[i].report = layers->report(i);
    first_row = 0;
    for (std::size_t i = 0; i < results.size(); ++i) {
      numbers const replaced = layer_->weights(s).from(first_row * in);
      if (inputs.sampled > 0) {
        measure_int8(results[i], *layers, i, weights[i], replaced, inputs);
      } else {
        layers->dequantize(i, replaced);
      }
      first_row += results[i].out;
    }
    results_.add(
        [results = std::move(results), layers, finish = &how_.finish]() mutable {
          std::vector<std::future<void>> parts;
          for (linear_result& r : results) {
            r.codes = layers->fetch(r.number);
            parts.push_back(std::async(std::launch::async, [&r, finish] { (*finish)(r); }));
          }
          layers.reset();
          for (auto& part : parts) part.get();
          return std::move(results);
        },
        how_.done, 2 * stages);
  }

  std::unique_ptr<quantized> solve(std::span<weight const> weights, std::vector<linear_source> const& linears,
                                   stage_inputs const& inputs) {
    try {
      return on_.quantize(how_.format, weights, *inputs.calibration, how_.options, inputs.held_out.get());
    } catch (gptq::error const& e) {
      std::string names;
      for (linear_source const& l : linears) names += (names.empty() ? "" : ", ") + l.name;
      throw gptq::error(names + ": " + e.what());
    }
  }

  /// Puts a layer's decoded weights into `replaced`, and measures what inputs in int8 add to its error: as a
  /// ratio, since the sample's own error varies more than that.
  void measure_int8(linear_result& r, quantized const& layers, std::size_t i, weight const& w,
                    numbers replaced, stage_inputs const& inputs) {
    index_t const tokens = inputs.sampled;
    number_array const x(on_, tokens * r.in, how_.activations), change(on_, tokens * r.in, how_.activations);
    number_array const difference(on_, r.out * r.in, how_.activations);
    array<float> const y(on_, tokens * r.out);
    on_.convert(x, {inputs.sample.data(), number::float32}, tokens * r.in);
    index_t const group = how_.format.group_size == gptq::whole_row ? r.in : index_t{how_.format.group_size};
    on_.int8_error(change, inputs.sample.data(), layers.order(i), tokens, r.in, group);
    layers.dequantize(i, difference, w.data);
    layers.dequantize(i, replaced);
    product p{.x = x,
              .w = difference,
              .y = {y.data(), number::float32},
              .rows = tokens,
              .in = r.in,
              .out = r.out,
              .stride = r.out};
    on_.multiply(p);
    double const in_float = squares(y.data(), tokens, r.out);
    p.x = change, p.w = replaced, p.beta = 1.0F;
    on_.multiply(p);
    double const in_int8 = squares(y.data(), tokens, r.out);
    if (in_float > 0.0) {
      r.int8_error = r.report.output_error * in_int8 / in_float;
      return;
    }
    p.x = x, p.beta = 0.0F;
    on_.multiply(p);
    if (double const signal = squares(y.data(), tokens, r.out); signal > 0.0) r.int8_error = in_int8 / signal;
  }

  double squares(float const* x, index_t rows, index_t columns) {
    array<double> const sums(on_, rows);
    on_.dot(sums.data(), x, x, rows, columns);
    double total = 0.0;
    for (double const sum : sums.host()) total += sum;
    return total;
  }

  accelerator& on_;
  model_source const& model_;
  calibration const& how_;
  index_t windows_;
  index_t length_;
  forward_pass pass_;
  residual x_;
  decoder_layer* layer_ = nullptr;
  index_t index_ = 0;
  index_t batch_ = 1;
  background results_;
};

}  // namespace

void calibrate(accelerator& on, model_source const& model, token_windows const& windows,
               calibration const& how) {
  if (how.calibrating <= 0 || how.calibrating > windows.count()) {
    throw gptq::error(fmt::format("{} of {} windows to calibrate on", how.calibrating, windows.count()));
  }
  calibrator(on, model, windows, how).run();
}

double mean_loss(accelerator& on, model_source const& model, token_windows const& windows, number activations,
                 std::function<void(index_t)> const& advance, std::size_t batch_bytes) {
  index_t const count = windows.count(), length = windows.length, hidden = model.hidden;
  forward_pass const pass(on, activations, length, model.ropes);
  residual const x(on, model, windows);
  layer_stream layers(on, activations, model.layers, model.load);
  for (index_t i = 0; i < model.layers; ++i) {
    decoder_layer const& layer = layers.next();
    for_each_batch(count, pass.windows_at_a_time(layer.arithmetic(), batch_bytes),
                   [&](index_t first, index_t some) {
                     pass.run_layer(layer, some, x.of(first));
                     advance(some);
                   });
  }

  index_t const vocabulary = model.output.rows;
  number_array output(on, vocabulary * hidden, model.output.type);
  on.upload(numbers(output).data, model.output.data, model.output.bytes());
  if (model.output.type != activations) {
    number_array converted(on, vocabulary * hidden, activations);
    on.convert(converted, output, vocabulary * hidden);
    output = std::move(converted);
  }
  array<float> const norm(on, model.final_norm);
  // What a token's successor is; the last position of a window predicts none, and is not counted.
  std::vector<std::int32_t> targets(windows.tokens.begin() + 1, windows.tokens.end());
  targets.push_back(0);
  array<std::int32_t> const targets_on_device(on, targets);
  constexpr index_t slice = 8192;  // tokens of the vocabulary at a time
  auto const most = std::max(index_t{1}, static_cast<index_t>(batch_bytes / 4) / (slice * length * 4));
  double total = 0.0;
  for_each_batch(count, most, [&](index_t first, index_t some) {
    index_t const rows = some * length;
    number_array const normed(on, rows * hidden, activations);
    on.rms_norm(normed, x.of(first), norm.data(), rows, hidden, model.epsilon);
    std::vector<float> const lowest(static_cast<std::size_t>(rows), -std::numeric_limits<float>::infinity());
    array<float> const largest(on, lowest), target(on, rows);
    array<double> const sum(on, rows);
    on.fill_zero(sum.data(), static_cast<std::size_t>(rows) * sizeof(double));
    array<float> const logits(on, rows * std::min(slice, vocabulary));
    for (index_t begin = 0; begin < vocabulary; begin += slice) {
      index_t const out = std::min(slice, vocabulary - begin);
      on.multiply(product{.x = normed,
                          .w = output.from(begin * hidden),
                          .y = {logits.data(), number::float32},
                          .rows = rows,
                          .in = hidden,
                          .out = out,
                          .stride = out,
                          .alpha = model.logit_multiplier});
      on.count_loss({largest.data(), sum.data(), target.data()}, logits.data(),
                    targets_on_device.data() + first * length, rows, out, begin, model.logit_soft_cap);
    }
    auto const largest_host = largest.host(), target_host = target.host();
    auto const sum_host = sum.host();
    for (index_t t = 0; t < rows; ++t) {
      if (t % length == length - 1) continue;
      auto const i = static_cast<std::size_t>(t);
      total +=
          std::log(sum_host[i]) + static_cast<double>(largest_host[i]) - static_cast<double>(target_host[i]);
    }
    advance(some);
  });
  return total / static_cast<double>(count * (length - 1));
}

}  // namespace lm::device
