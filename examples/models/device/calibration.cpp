#include "calibration.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <future>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include <gptq/error.hpp>
#include <gptq/solver/damping.hpp>

#include "experts.hpp"
#include "packed_layer.hpp"

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

/// S of some windows' inputs and, where errors are propagated, C = sum of (x - x~) x~' (gptq/input_error.hpp).
struct input_sums {
  std::unique_ptr<hessian> h;
  array<float> error;  ///< [in, in]; empty: none is propagated
};

/// What the windows bring to a stage.
struct stage_inputs {
  input_sums calibration;
  std::optional<input_sums> held_out;
  array<float> sample;  ///< [tokens, in]
  index_t sampled = 0;
  double expert_tokens = -1.0;  ///< calibration tokens, of an expert: without those that all experts share
};

/// Some windows, and where their tokens go.
struct routed_windows {
  index_t first;
  index_t count;
  routed_tokens tokens;
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
        x_(on, model, windows) {
    if (how.propagate) exact_.emplace(on, model, windows);
  }

  void run() {
    layer_stream layers(on_, how_.activations, model_.layers, model_.load);
    for (index_t i = 0; i < model_.layers; ++i) {
      layer_ = &layers.next();
      index_ = i;
      batch_ = std::min(windows_, pass_.windows_at_a_time(layer_->arithmetic(), how_.batch_bytes));
      if (layer_->source().finished) {
        if (exact_) throw gptq::error("a finished layer lacks the weights that errors are measured against");
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
  bool has_experts() const { return layer_->arithmetic().experts > 0; }

  void run_sequentially() {
    number_array input, exact_input;
    originals_ = {};
    std::vector<routed_windows> routed;
    for (stage const s : all_stages) {
      if (s == stage::down && has_experts()) break;
      index_t const in = layer_->arithmetic().in(s);
      index_t const before =
          s == stage::query_key_value ? 0 : layer_->arithmetic().in(stage(static_cast<int>(s) - 1));
      number_array next(on_, windows_ * length_ * in, how_.activations), exact_next;
      if (exact_) exact_next = number_array(on_, windows_ * length_ * in, how_.activations);
      bool const of_experts = s == stage::gate_up && has_experts();
      stage_inputs inputs = of_experts ? stage_inputs{} : new_inputs(s);
      for_each_batch(windows_, batch_, [&](index_t first, index_t count) {
        index_t const from = first * length_ * before, to = first * length_ * in;
        on_.enter(activity::forward);
        pass_.run_stage(*layer_, s, count, x_.of(first), input.from(from), next.from(to));
        if (exact_) {
          with_original_of(s == stage::query_key_value ? s : stage(static_cast<int>(s) - 1), [&] {
            pass_.run_stage(*layer_, s, count, exact_->of(first), exact_input.from(from),
                            exact_next.from(to));
          });
        }
        if (of_experts) {
          add_routed(routed, first, count, x_.of(first));
        } else {
          add(inputs, s, next.from(to), exact_ ? exact_next.from(to) : numbers{}, first, count);
        }
      });
      input = std::move(next), exact_input = std::move(exact_next);
      if (of_experts) {
        quantize_experts(input, routed);
      } else {
        quantize(s, inputs);
      }
    }
    on_.enter(activity::forward);
    if (has_experts()) {
      for (routed_windows const& some : routed) {
        add_experts(on_, *layer_, some.tokens, input.from(some.first * length_ * model_.hidden),
                    some.count * length_, x_.of(some.first));
        how_.advance(some.count);
      }
      return;
    }
    for_each_batch(windows_, batch_, [&](index_t first, index_t count) {
      index_t const from = first * length_ * layer_->arithmetic().in(stage::down);
      pass_.finish(*layer_, count, x_.of(first), input.from(from));
      if (exact_) {
        with_original_of(stage::down,
                         [&] { pass_.finish(*layer_, count, exact_->of(first), exact_input.from(from)); });
      }
      how_.advance(count);
    });
  }

  void run_at_once() {
    std::array<stage_inputs, stages> inputs;
    for (stage const s : stages_of_all()) inputs[static_cast<std::size_t>(s)] = new_inputs(s);
    std::vector<routed_windows> routed;
    number_array normed;  // what experts choose from
    if (has_experts()) normed = number_array(on_, windows_ * length_ * model_.hidden, how_.activations);
    for_each_batch(windows_, batch_, [&](index_t first, index_t count) {
      on_.enter(activity::forward);
      index_t const size = count * length_ * model_.hidden;
      array<float> const copy(on_, size);
      on_.convert({copy.data(), number::float32}, {x_.of(first), number::float32}, size);
      number_array input, exact_input;
      for (stage const s : all_stages) {
        index_t const inputs_size = count * length_ * layer_->arithmetic().in(s);
        number_array next(on_, inputs_size, how_.activations), exact_next;
        on_.enter(activity::forward);
        pass_.run_stage(*layer_, s, count, copy.data(), input, next);
        if (s == stage::gate_up && has_experts()) {
          on_.convert(normed.from(first * length_ * model_.hidden), next, size);
          add_routed(routed, first, count, copy.data());
          break;
        }
        if (exact_) {
          exact_next = number_array(on_, inputs_size, how_.activations);
          pass_.run_stage(*layer_, s, count, exact_->of(first), exact_input, exact_next);
        }
        add(inputs[static_cast<std::size_t>(s)], s, next, exact_next, first, count);
        input = std::move(next), exact_input = std::move(exact_next);
      }
      if (exact_) pass_.finish(*layer_, count, exact_->of(first), exact_input);
    });
    for (stage const s : stages_of_all()) quantize(s, inputs[static_cast<std::size_t>(s)]);
    if (has_experts()) quantize_experts(normed, routed);
    routed.clear(), normed = number_array();
    run_whole_layer();
  }

  /// The stages that all tokens go through.
  std::span<stage const> stages_of_all() const {
    return std::span(all_stages).first(has_experts() ? 2 : stages);
  }

  /// Routes windows `first` and on, calibrating ones apart from held-out ones.
  void add_routed(std::vector<routed_windows>& routed, index_t first, index_t count, float const* x) {
    index_t const calibrating = std::clamp(how_.calibrating - first, index_t{0}, count);
    for (auto const& [begin, size] :
         {std::pair{index_t{0}, calibrating}, {calibrating, count - calibrating}}) {
      if (size == 0) continue;
      routed.push_back(
          {first + begin, size, route(on_, *layer_, size, length_, x + begin * length_ * model_.hidden)});
    }
  }

  /// Stage gate_up of all experts, then stage down, with their Hessians all at once.
  /// @param normed  [tokens, hidden] of all windows
  void quantize_experts(numbers normed, std::vector<routed_windows> const& routed) {
    std::vector<stage_inputs> gate_up = collect(stage::gate_up, normed, routed);
    if (how_.true_sequential) quantize_each(stage::gate_up, gate_up);
    std::vector<stage_inputs> const down = collect(stage::down, normed, routed);
    if (!how_.true_sequential) quantize_each(stage::gate_up, gate_up);
    gate_up.clear();
    quantize_each(stage::down, down);
  }

  void quantize_each(stage s, std::vector<stage_inputs> const& inputs) {
    std::size_t const linears = layer_->source().linears[static_cast<std::size_t>(s)].size() / inputs.size();
    for (std::size_t e = 0; e < inputs.size(); ++e) quantize(s, inputs[e], e * linears, linears);
  }

  /// What each expert sees in a stage. Where they are fewer tokens than it has columns, all tokens besides, with so
  /// small a weight that together they make up the difference.
  std::vector<stage_inputs> collect(stage s, numbers normed, std::vector<routed_windows> const& routed) {
    layer_arithmetic const& a = layer_->arithmetic();
    index_t const in = a.in(s);
    std::vector<stage_inputs> inputs;
    for (index_t e = 0; e < a.experts; ++e) inputs.push_back(new_inputs(s));
    std::unique_ptr<hessian> const all =
        s == stage::gate_up ? on_.new_hessian(in, how_.activations) : nullptr;
    for (routed_windows const& some : routed) {
      bool const held_out = some.first >= how_.calibrating;
      numbers const from = normed.from(some.first * length_ * a.hidden);
      on_.enter(activity::forward);
      number_array const rows(on_, some.tokens.entries() * a.hidden, how_.activations);
      gather_routed(on_, *layer_, some.tokens, 0, a.experts, from, rows);
      if (all != nullptr && !held_out) {
        on_.enter(activity::hessian);
        all->add(from, some.count, length_);
      }
      for (index_t e = 0; e < a.experts; ++e) {
        index_t const count = some.tokens.count(e);
        if (count == 0) continue;
        numbers input = rows.from(some.tokens.begin(e) * a.hidden);
        number_array hidden;
        if (s == stage::down) {
          on_.enter(activity::forward);
          hidden = number_array(on_, count * in, how_.activations);
          run_expert(on_, *layer_, e, input, count, hidden);
          input = hidden;
        }
        stage_inputs& of_expert = inputs[static_cast<std::size_t>(e)];
        on_.enter(activity::hessian);
        (held_out ? *of_expert.held_out : of_expert.calibration)
            .h->add_unequal(input, count, some.tokens.sequences(e));
        if (!held_out) add_sample(of_expert, input, count, some.count, in);
      }
    }
    on_.enter(activity::hessian);
    for (index_t e = 0; e < a.experts; ++e) {
      stage_inputs& of_expert = inputs[static_cast<std::size_t>(e)];
      of_expert.expert_tokens = of_expert.calibration.h->tokens();
      if (of_expert.held_out && of_expert.held_out->h->tokens() == 0.0) of_expert.held_out.reset();
      double const missing = static_cast<double>(in) - of_expert.expert_tokens;
      if (missing <= 0.0) continue;
      std::unique_ptr<hessian> own;  // of all tokens, through this expert
      if (s == stage::down) own = hidden_of_all(e, normed);
      hessian const& shared = own != nullptr ? *own : *all;
      of_expert.calibration.h->add_share(shared, missing / shared.tokens());
    }
    return inputs;
  }

  std::unique_ptr<hessian> hidden_of_all(index_t expert, numbers normed) {
    layer_arithmetic const& a = layer_->arithmetic();
    auto all = on_.new_hessian(a.intermediate, how_.activations);
    for_each_batch(how_.calibrating, batch_, [&](index_t first, index_t count) {
      index_t const rows = count * length_;
      number_array const hidden(on_, rows * a.intermediate, how_.activations);
      run_expert(on_, *layer_, expert, normed.from(first * length_ * a.hidden), rows, hidden);
      all->add(hidden, count, length_);
    });
    return all;
  }

  /// Some of an expert's rows of some windows, spread evenly: as many as are their share of the sample.
  void add_sample(stage_inputs& inputs, numbers rows, index_t count, index_t windows, index_t in) {
    index_t const most = inputs.sample.size() / in;
    index_t const share =
        std::min({count, most - inputs.sampled, (most * windows + how_.calibrating - 1) / how_.calibrating});
    if (share <= 0) return;
    on_.enter(activity::measuring);
    std::vector<std::int64_t> chosen;
    for (index_t i = 0; i < share; ++i) chosen.push_back(i * count / share);
    array<std::int64_t> const on_device(on_, chosen);
    on_.gather_rows(inputs.sample.data() + inputs.sampled * in, rows, on_device.data(), share, in);
    inputs.sampled += share;
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
    auto const none = [&] {
      input_sums sums;
      sums.h = on_.new_hessian(in, how_.activations);
      if (!exact_) return sums;
      sums.error = array<float>(on_, in * in);
      on_.fill_zero(sums.error.data(), static_cast<std::size_t>(in * in) * sizeof(float));
      return sums;
    };
    stage_inputs inputs;
    inputs.calibration = none();
    if (how_.calibrating < windows_) inputs.held_out = none();
    inputs.sample = array<float>(on_, static_cast<index_t>(how_.sample.size()) * in);
    return inputs;
  }

  /// Calls run() with a stage's weights as they were before they were quantized.
  template <class Run>
  void with_original_of(stage s, Run const& run) {
    number_array const& original = originals_[static_cast<std::size_t>(s)];
    if (numbers(original).data == nullptr) return run();
    numbers const quantized = layer_->weights(s);
    layer_->use(s, original);
    run();
    layer_->use(s, quantized);
  }

  void add(input_sums& sums, numbers input, numbers exact, index_t windows, index_t in) {
    if (windows == 0) return;
    sums.h->add(input, windows, length_);
    if (!exact_) return;
    index_t const tokens = windows * length_;
    number_array const error(on_, tokens * in, how_.activations);
    on_.subtract(error, exact, input, tokens * in);
    on_.add_cross_products(sums.error.data(), error, input, tokens, in);
  }

  /// Counts a stage's inputs of windows `first` and on, and what they are in the unquantized model, where errors
  /// are propagated.
  void add(stage_inputs& inputs, stage s, numbers input, numbers exact, index_t first, index_t count) {
    index_t const in = layer_->arithmetic().in(s);
    index_t const calibrating = std::clamp(how_.calibrating - first, index_t{0}, count);
    on_.enter(activity::hessian);
    add(inputs.calibration, input, exact, calibrating, in);
    if (calibrating < count) {
      index_t const rest = calibrating * length_ * in;
      add(*inputs.held_out, input.from(rest), exact_ ? exact.from(rest) : exact, count - calibrating, in);
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

  void quantize(stage s, stage_inputs const& inputs) {
    quantize(s, inputs, 0, layer_->source().linears[static_cast<std::size_t>(s)].size());
  }

  /// Quantizes `count` of a stage's linear layers, which have these inputs, and puts what was found in their place.
  void quantize(stage s, stage_inputs const& inputs, std::size_t first, std::size_t count) {
    auto const& all = layer_->source().linears[static_cast<std::size_t>(s)];
    std::span const linears = std::span(all).subspan(first, count);
    index_t const in = layer_->arithmetic().in(s);
    index_t out = 0, above = 0;  // rows of these, and of those before
    for (linear_source const& l : linears) out += l.weight.rows;
    for (linear_source const& l : std::span(all).first(first)) above += l.weight.rows;
    on_.enter(activity::measuring);
    numbers const stored = layer_->stored(s).from(above * in);
    array<float> converted;
    auto const* w = static_cast<float const*>(stored.data);
    if (stored.type != number::float32) {
      converted = array<float>(on_, out * in);
      on_.convert({converted.data(), number::float32}, stored, out * in);
      w = converted.data();
    }
    if (exact_ && how_.true_sequential) {
      number_array& original = originals_[static_cast<std::size_t>(s)];
      original = number_array(on_, out * in, how_.activations);
      on_.convert(original, layer_->weights(s), out * in);
    }
    std::vector<linear_result> results;
    std::vector<weight> weights;
    std::vector<float> const sample = some(inputs.sample.data(), inputs.sampled * in);
    index_t first_row = 0;
    for (linear_source const& l : linears) {
      linear_result r;
      r.layer = index_, r.at = s, r.number = first + results.size(), r.name = l.name, r.out = l.weight.rows,
      r.in = in;
      r.last = s == stage::down && r.number + 1 == all.size();
      r.expert_tokens = inputs.expert_tokens;
      r.inputs = sample;
      r.weights = some(w + first_row * in, r.out * in);
      results.push_back(std::move(r));
      first_row += l.weight.rows;
    }
    array<float> compensated;
    if (exact_) {
      compensated = compensate(w, out, results, inputs);
      w = compensated.data();
    }
    first_row = 0;
    for (linear_result const& r : results) {
      weights.push_back({w + first_row * in, r.out});
      first_row += r.out;
    }
    on_.enter(activity::solving);
    std::shared_ptr<quantized const> layers = solve(weights, linears, inputs);
    on_.enter(activity::measuring);
    for (std::size_t i = 0; i < results.size(); ++i) results[i].report = layers->report(i);
    first_row = 0;
    for (std::size_t i = 0; i < results.size(); ++i) {
      numbers const replaced = layer_->weights(s).from((above + first_row) * in);
      if (inputs.sampled > 0) {
        measure_int8(results[i], *layers, i, weights[i], replaced, inputs);
      } else {
        layers->dequantize(i, replaced);
      }
      first_row += results[i].out;
    }
    results_.add(
        [results = std::move(results), layers, first, finish = &how_.finish]() mutable {
          std::vector<std::future<void>> parts;
          for (linear_result& r : results) {
            r.codes = layers->fetch(r.number - first);
            parts.push_back(std::async(std::launch::async, [&r, finish] { (*finish)(r); }));
          }
          layers.reset();
          for (auto& part : parts) part.get();
          return std::move(results);
        },
        how_.done, 2 * stages);
  }

  /// W + strength * W C (S + damping)^-1 of a stage's weights, with a strength for each linear layer, which its
  /// result gets.
  array<float> compensate(float const* w, index_t out, std::vector<linear_result>& results,
                          stage_inputs const& inputs) {
    index_t const in = results.front().in;
    hessian const& h = *inputs.calibration.h;
    array<float> compensated(on_, out * in), correction(on_, out * in), target;
    on_.convert({compensated.data(), number::float32}, {const_cast<float*>(w), number::float32}, out * in);
    gptq::solver::damping_ladder ladder(how_.options.damping);
    float const mean = mean_of_diagonal(h);
    for (;;) {
      multiply(correction, w, inputs.calibration.error, out, in);
      // Without any input there is nothing to make up for, and any diagonal will do.
      float const added = mean > 0.0F ? static_cast<float>(ladder.damping()) * mean : 1.0F;
      if (on_.divide_by(h, added, correction.data(), out)) break;
      if (!ladder.raise()) {
        throw gptq::error(results.front().name +
                          ": the Hessian is not positive definite even with damping 1");
      }
    }
    if (inputs.held_out) {
      target = array<float>(on_, out * in);
      multiply(target, w, inputs.held_out->error, out, in);
    }
    index_t first = 0;  // of a layer's numbers
    for (linear_result& r : results) {
      r.propagated = *how_.propagate;
      float const* const of_layer = correction.data() + first;
      if (inputs.held_out) {
        double const square = on_.quadratic_form(of_layer, r.out, in, *inputs.held_out->h);
        double const along = dot(target.data() + first, of_layer, r.out, in);
        r.propagated = square > 0.0 ? std::clamp(along / square, 0.0, r.propagated) : 0.0;
      }
      on_.add_to_residual(compensated.data() + first, of_layer, nullptr, nullptr, r.out, in, 0.0F,
                          static_cast<float>(r.propagated));
      first += r.out * in;
    }
    return compensated;
  }

  /// to = w C
  void multiply(array<float> const& to, float const* w, array<float> const& c, index_t out, index_t in) {
    on_.multiply(batched_product{.x = {const_cast<float*>(w), number::float32},
                                 .w = {c.data(), number::float32},
                                 .y = {to.data(), number::float32},
                                 .rows = out,
                                 .in = in,
                                 .out = in,
                                 .batch = 1,
                                 .x_stride = in,
                                 .w_stride = in,
                                 .y_stride = in,
                                 .x_step = 0,
                                 .w_step = 0,
                                 .y_step = 0,
                                 .transposed = false});
  }

  float mean_of_diagonal(hessian const& h) {
    index_t const in = h.in_features();
    std::vector<std::int64_t> places;
    for (index_t i = 0; i < in; ++i) places.push_back(i * (in + 1));
    array<std::int64_t> const at(on_, places);
    array<float> const diagonal(on_, in);
    on_.gather(diagonal.data(), h.sum(), at.data(), in);
    double sum = 0.0;
    for (float const value : diagonal.host()) sum += static_cast<double>(value);
    return static_cast<float>(sum / static_cast<double>(in));
  }

  std::unique_ptr<quantized> solve(std::span<weight const> weights, std::span<linear_source const> linears,
                                   stage_inputs const& inputs) {
    try {
      return on_.quantize(how_.format, weights, *inputs.calibration.h, how_.options,
                          inputs.held_out ? inputs.held_out->h.get() : nullptr);
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

  double squares(float const* x, index_t rows, index_t columns) { return dot(x, x, rows, columns); }

  double dot(float const* a, float const* b, index_t rows, index_t columns) {
    array<double> const sums(on_, rows);
    on_.dot(sums.data(), a, b, rows, columns);
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
  std::optional<residual> exact_;                 ///< of the unquantized model, where errors are propagated
  std::array<number_array, stages> originals_{};  ///< weights before they were quantized, likewise
  decoder_layer* layer_ = nullptr;
  index_t index_ = 0;
  index_t batch_ = 1;
  background results_;
};

/// What is left of a loss when the windows have passed all decoder layers.
double output_loss(accelerator& on, model_source const& model, token_windows const& windows,
                   number activations, residual const& x, std::function<void(index_t)> const& advance,
                   std::size_t batch_bytes) {
  index_t const count = windows.count(), length = windows.length, hidden = model.hidden;
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
  forward_pass const pass(on, activations, windows.length, model.ropes);
  residual const x(on, model, windows);
  layer_stream layers(on, activations, model.layers, model.load);
  for (index_t i = 0; i < model.layers; ++i) {
    decoder_layer const& layer = layers.next();
    for_each_batch(windows.count(), pass.windows_at_a_time(layer.arithmetic(), batch_bytes),
                   [&](index_t first, index_t some) {
                     pass.run_layer(layer, some, x.of(first));
                     advance(some);
                   });
  }
  return output_loss(on, model, windows, activations, x, advance, batch_bytes);
}

double packed_mean_loss(accelerator& on, model_source const& model, token_windows const& windows,
                        std::function<void(index_t)> const& advance, std::size_t batch_bytes) {
  forward_pass const pass(on, number::float16, windows.length, model.ropes);
  residual const x(on, model, windows);
  for (index_t i = 0; i < model.layers; ++i) {
    packed_layer const layer(on, model.load(i));
    for_each_batch(windows.count(), pass.windows_at_a_time(layer.arithmetic(), batch_bytes),
                   [&](index_t first, index_t some) {
                     (void)layer.run(pass, some, x.of(first));
                     advance(some);
                   });
  }
  return output_loss(on, model, windows, number::float16, x, advance, batch_bytes);
}

}  // namespace lm::device
