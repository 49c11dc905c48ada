#include "tuning.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <gptq/error.hpp>
#include <gptq/packed.hpp>

#include "formats.hpp"
#include "forward.hpp"
#include "gradient.hpp"
#include "linear.hpp"
#include "threads.hpp"

namespace lm {
namespace {

using Eigen::Index;
using gradient_row = gradient::row_of<float>;

/// The scales of one linear layer on their way; its codes, and zero points, stay.
class tuned_linear {
 public:
  explicit tuned_linear(packed_linear const& packed) : format_(packed.format()) {
    packed_parts const parts = packed.parts();
    out_ = parts.out, in_ = parts.in;
    gptq::with_format<formats>(format_, [&]<class Format>() {
      auto layer = gptq::unpack(view_of<Format>(parts));
      levels_ = Format::levels;
      group_columns_ = Format::group_columns(in_);
      groups_ = Format::groups(in_);
      stored_ = {std::move(layer.codes), std::move(layer.scales), std::move(layer.zeros),
                 std::move(layer.order)};
    });
    first_scales_ = stored_.scales;
    for (auto* const values : {&logarithms_, &mean_, &square_}) values->assign(first_scales_.size(), 0.0F);
  }

  /// What codes and scales stand for now: weight[out, in] in original column order.
  void decode(matrix& weight) const {
    weight.resize(out_, in_);
    for_each_code([&](std::size_t group, float level, Index row, Index column) {
      weight(row, column) = stored_.scales[group] * level;
    });
  }

  /// A step of Adam for the logarithms of scales.
  /// @param derivative  by the weight that was decoded: [out, in]
  void step(matrix const& derivative, float rate) {
    std::vector<float> d(first_scales_.size());
    for_each_code([&](std::size_t group, float level, Index row, Index column) {
      d[group] += derivative(row, column) * level;
    });
    mean_power_ *= mean_decay;
    square_power_ *= square_decay;
    for (std::size_t g = 0; g < d.size(); ++g) {
      d[g] *= stored_.scales[g];
      mean_[g] += (1.0F - mean_decay) * (d[g] - mean_[g]);
      square_[g] += (1.0F - square_decay) * (d[g] * d[g] - square_[g]);
      float const size = std::sqrt(square_[g] / (1.0F - square_power_));
      float const move = size > 0.0F ? mean_[g] / (1.0F - mean_power_) / size : 0.0F;
      logarithms_[g] = std::clamp(logarithms_[g] - rate * move, -farthest, farthest);
      stored_.scales[g] =
          gptq::detail::stored_scale(first_scales_[g] * std::exp(logarithms_[g]), format_.scales);
    }
  }

  std::vector<float> const& scales() const { return stored_.scales; }
  /// The linear layer with other scales.
  std::unique_ptr<packed_linear> pack(std::vector<float>&& scales) const {
    device::host_layer layer = stored_;
    layer.scales = std::move(scales);
    return lm::pack(format_, out_, in_, std::move(layer), {}).packed;
  }

 private:
  static constexpr float mean_decay = 0.9F, square_decay = 0.95F;
  /// Scales become e times as large or small at most.
  static constexpr float farthest = 1.0F;

  /// f(place of the scale, what the code is worth with a scale of 1, row, original column)
  template <class F>
  void for_each_code(F const& f) const {
    std::size_t at = 0;
    for (Index row = 0; row < out_; ++row) {
      for (Index p = 0; p < in_; ++p, ++at) {
        auto const group = static_cast<std::size_t>(row * groups_ + p / group_columns_);
        float const zero = levels_.has_zero_point ? static_cast<float>(stored_.zeros[group]) : levels_.zero;
        f(group, static_cast<float>(stored_.codes[at]) - zero, row,
          stored_.order.empty() ? p : Index{stored_.order[static_cast<std::size_t>(p)]});
      }
    }
  }

  gptq::format_spec format_;
  gptq::code_levels levels_{};
  Index out_ = 0, in_ = 0, groups_ = 0, group_columns_ = 0;
  device::host_layer stored_;
  std::vector<float> first_scales_, logarithms_, mean_, square_;
  float mean_power_ = 1.0F, square_power_ = 1.0F;
};

/// A decoder layer as the float32 model has it.
float_layer original_layer(model const& m, std::int64_t i, int threads) {
  float_layer layer;
  m.load_small(i, layer);
  layer.weights.resize(layer.description->linears.size());
  for_each(static_cast<std::ptrdiff_t>(layer.weights.size()), threads, [&](std::ptrdiff_t place) {
    layer.weights[static_cast<std::size_t>(place)] = m.original(i, static_cast<std::size_t>(place));
  });
  return layer;
}

/// The loss of a sequence by what the last decoder layer puts out, and its derivative where that is asked
/// for.
using loss_function = std::function<double(std::size_t window, matrix const& y, matrix* dy)>;

/// Some decoder layers, one after the other, whose scales are tuned.
class tuned_layers {
 public:
  tuned_layers(model& m, std::vector<rotations> const& angles, std::int64_t first, std::int64_t last,
               tuning const& options)
      : m_(m), threads_(options.threads), first_(first) {
    for (rotations const& rope : angles) angles_.push_back({rope.cos, rope.sin});
    for (std::int64_t i = first; i < last; ++i) {
      layers_.push_back(std::make_unique<layer>(m.config().layer(i)));
      float_layer const original = original_layer(m, i, threads_);
      layers_.back()->values = gradient::parameters_of<float>(original);
      for (std::size_t place = 0; place < original.weights.size(); ++place) {
        layers_.back()->linears.emplace_back(*m.packed(i, place));
        layers_.back()->linears.back().decode(layers_.back()->values.weights[place]);
      }
    }
  }

  /// The mean loss of some windows.
  /// @param x  inputs of the first of the decoder layers, by window
  double loss(std::vector<matrix> const& x, std::span<std::size_t const> windows,
              loss_function const& f) const {
    std::vector<double> each(windows.size());
    for_each(static_cast<std::ptrdiff_t>(windows.size()), threads_, [&](std::ptrdiff_t w) {
      std::size_t const window = windows[static_cast<std::size_t>(w)];
      matrix y = x[window];
      gradient::tape<float> tape;
      for (auto const& l : layers_) y = gradient::forward<float>(view(*l), std::move(y), tape);
      each[static_cast<std::size_t>(w)] = f(window, y, nullptr);
    });
    return std::accumulate(each.begin(), each.end(), 0.0) / static_cast<double>(each.size());
  }

  /// One step on some windows.
  void step(std::vector<matrix> const& x, std::span<std::size_t const> windows, loss_function const& f,
            float rate) {
    auto const count = static_cast<std::ptrdiff_t>(windows.size());
    for (auto const& l : layers_) l->tapes.resize(windows.size());
    std::vector<matrix> d(windows.size());
    for_each(count, threads_, [&](std::ptrdiff_t i) {
      auto const w = static_cast<std::size_t>(i);
      matrix y = x[windows[w]];
      for (auto const& l : layers_) y = gradient::forward<float>(view(*l), std::move(y), l->tapes[w]);
      f(windows[w], y, &d[w]);
    });
    for (std::size_t at = layers_.size(); at-- > 0;) {
      layer& l = *layers_[at];
      std::vector<gradient::output_gradients<float>> outputs(windows.size());
      for_each(count, threads_, [&](std::ptrdiff_t i) {
        auto const w = static_cast<std::size_t>(i);
        std::array<gradient_row, norm_kinds> norms;  // nobody asks for them
        for (std::size_t n = 0; n < norm_kinds; ++n) norms[n].setZero(l.values.norms[n].size());
        gradient::backward<float>(view(l), l.tapes[w], d[w], norms, outputs[w]);
      });
      gradient::parameters<float> derivatives;
      derivatives.weights.resize(l.linears.size());
      derivatives.biases.resize(l.linears.size());
      for_each(static_cast<std::ptrdiff_t>(l.linears.size()), threads_, [&](std::ptrdiff_t i) {
        auto const place = static_cast<std::size_t>(i);
        gradient::weight_gradient<float>(view(l), place, l.tapes, outputs, derivatives);
        l.linears[place].step(derivatives.weights[place], rate);
        l.linears[place].decode(l.values.weights[place]);
        derivatives.weights[place].resize(0, 0);
      });
    }
  }

  /// The scales of all linear layers.
  using state = std::vector<std::vector<std::vector<float>>>;
  state save() const {
    state all;
    for (auto const& l : layers_) {
      auto& own = all.emplace_back();
      for (tuned_linear const& linear : l->linears) own.push_back(linear.scales());
    }
    return all;
  }
  /// The model has these from now on.
  void finish(state&& kept) {
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      for (std::size_t place = 0; place < layers_[l]->linears.size(); ++place) {
        m_.replace(first_ + static_cast<std::int64_t>(l), place,
                   layers_[l]->linears[place].pack(std::move(kept[l][place])));
      }
    }
  }

 private:
  struct layer {
    explicit layer(decoder_description const& d) : description(d) {}
    decoder_description const& description;
    gradient::parameters<float> values;
    std::vector<tuned_linear> linears;
    std::vector<gradient::tape<float>> tapes;
  };
  gradient::layer_view<float> view(layer const& l) const {
    static gradient::angles_of<float> const none;
    int const rope = l.description.rope;
    return {m_.config(), l.description, l.values, rope < 0 ? none : angles_[static_cast<std::size_t>(rope)]};
  }

  model& m_;
  int threads_;
  std::int64_t first_;
  std::vector<gradient::angles_of<float>> angles_;
  std::vector<std::unique_ptr<layer>> layers_;
};

/// Every window once, in an order that the seed gives, then again in another one.
class window_order {
 public:
  window_order(std::size_t windows, std::uint32_t seed) : order_(windows), random_(seed), next_(windows) {
    std::iota(order_.begin(), order_.end(), std::size_t{0});
  }
  std::vector<std::size_t> take(std::size_t count) {
    std::vector<std::size_t> taken;
    while (taken.size() < std::min(count, order_.size())) {
      if (next_ == order_.size()) shuffle();
      taken.push_back(order_[next_++]);
    }
    return taken;
  }

 private:
  void shuffle() {  // Fisher and Yates'; std::shuffle's is another one with every library
    for (std::size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random_() % i]);
    next_ = 0;
  }
  std::vector<std::size_t> order_;
  std::mt19937 random_;
  std::size_t next_;
};

using steady = std::chrono::steady_clock;
double seconds_since(steady::time_point start) {
  return std::chrono::duration<double>(steady::now() - start).count();
}

/// Tunes some decoder layers within a budget: options.steps, or otherwise so many seconds.
tuning_report tune(tuned_layers& layers, std::vector<matrix> const& x, std::size_t held_out,
                   loss_function const& f, tuning const& options, double seconds,
                   std::function<void(double)> const& advance) {
  auto const start = steady::now();
  std::size_t const tuned = x.size() - held_out;
  std::vector<std::size_t> judges(held_out);
  std::iota(judges.begin(), judges.end(), tuned);
  window_order order(tuned, options.seed);
  tuning_report report;
  report.before = report.after = layers.loss(x, judges, f);
  auto best = layers.save();
  auto const spent = [&] {
    return options.steps ? static_cast<double>(report.steps) / static_cast<double>(*options.steps)
                         : seconds_since(start) / seconds;
  };
  std::int64_t looked = 0;
  for (double share = spent(); share < 1.0;) {
    layers.step(x, order.take(options.batch), f, static_cast<float>((1.0 - share) * options.rate));
    ++report.steps;
    share = spent();
    advance(std::min(1.0, share));
    auto const look = static_cast<std::int64_t>(share * static_cast<double>(options.looks));
    if (look == looked && share < 1.0) continue;
    looked = look;
    double const now = layers.loss(x, judges, f);
    if (now < report.after) {
      report.after = now;
      report.kept = report.steps;
      best = layers.save();
    }
  }
  layers.finish(std::move(best));
  report.seconds = seconds_since(start);
  return report;
}

/// Tokens of the vocabulary, in order, that have a share of the probability which the float32 model gives
/// to all of them after some of the tokens: the others cost as much to compute and change little.
std::vector<Index> likely_tokens(config const& c, std::vector<matrix> const& exact, matrix const& output,
                                 double share, int threads) {
  constexpr Index step = 8;
  std::vector<row_vector> sums(exact.size());
  for_each(static_cast<std::ptrdiff_t>(exact.size()), threads, [&](std::ptrdiff_t w) {
    matrix const& all = exact[static_cast<std::size_t>(w)];
    matrix some((all.rows() + step - 1) / step, all.cols());
    for (Index t = 0; t < some.rows(); ++t) some.row(t) = all.row(t * step);
    matrix logits = some * output.transpose();
    gradient::log_probabilities(c, logits);
    sums[static_cast<std::size_t>(w)] = logits.array().exp().matrix().colwise().sum();
  });
  row_vector sum = row_vector::Zero(output.rows());
  for (row_vector const& window : sums) sum += window;
  std::vector<Index> tokens(static_cast<std::size_t>(output.rows()));
  std::iota(tokens.begin(), tokens.end(), Index{0});
  std::stable_sort(tokens.begin(), tokens.end(), [&](Index a, Index b) { return sum(a) > sum(b); });
  double const enough = share * sum.cast<double>().sum();
  double have = 0.0;
  std::size_t count = 0;
  while (count < tokens.size() && have < enough) have += static_cast<double>(sum(tokens[count++]));
  tokens.resize(count);
  std::sort(tokens.begin(), tokens.end());
  return tokens;
}

void tune_whole(model& m, std::vector<matrix> const& x, std::vector<matrix> const& exact,
                std::vector<rotations> const& angles, std::size_t held_out, tuning const& options,
                tuning_events const& events) {
  config const& c = m.config();
  matrix const output = m.output_rows(0, c.vocab_size);
  auto const likely = likely_tokens(c, exact, output, options.vocabulary_share, options.threads);
  matrix likely_output(static_cast<Index>(likely.size()), output.cols());
  for (Index i = 0; i < likely_output.rows(); ++i) {
    likely_output.row(i) = output.row(likely[static_cast<std::size_t>(i)]);
  }
  row_vector const& weight = m.final_norm();
  loss_function const divergence = [&](std::size_t window, matrix const& y, matrix* dy) {
    matrix const normed = gradient::rms_norm<float>(y, weight, c.rms_norm_eps);
    double const sum =
        gradient::divergence<float>(c, normed, exact[window], dy == nullptr ? output : likely_output, dy);
    if (dy != nullptr) {
      row_vector unused = row_vector::Zero(weight.size());
      gradient::rms_norm_backward<float>(y, weight, c.rms_norm_eps, *dy, unused);
    }
    return sum / static_cast<double>(y.rows());
  };
  tuned_layers layers(m, angles, 0, c.num_hidden_layers, options);
  events.done(tune(layers, x, held_out, divergence, options, 60.0 * options.minutes, events.advance));
}

}  // namespace

void check_tuning(config const& c) {
  for (decoder_description const& layer : c.layers) {
    if (layer.experts) throw gptq::error("--tune: layers of experts cannot be tuned");
  }
}

void tune_model(model& m, std::span<token_window const> windows, std::size_t held_out, tuning const& options,
                tuning_events const& events) {
  config const& c = m.config();
  check_tuning(c);
  if (held_out == 0 || held_out >= windows.size()) {
    throw gptq::error(
        fmt::format("tuning: {} of {} windows held out: it takes at least one that is and one that is not",
                    held_out, windows.size()));
  }
  auto const angles = make_rotations(c, static_cast<std::int64_t>(windows.front().size()));
  context const ctx{c, angles};
  std::vector<matrix> x(windows.size());
  auto const for_each_window = [&](auto const& piece) {
    for_each(static_cast<std::ptrdiff_t>(windows.size()), options.threads,
             [&](std::ptrdiff_t w) { piece(static_cast<std::size_t>(w)); });
  };
  for_each_window([&](std::size_t w) { x[w] = m.embed(windows[w]); });
  std::vector<matrix> exact = x;

  if (options.scope == tuning_scope::model) {
    for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
      float_layer const layer = original_layer(m, i, options.threads);
      for_each_window([&](std::size_t w) { run_layer(ctx, layer, exact[w]); });
    }
    for_each_window([&](std::size_t w) { exact[w] = rms_norm(exact[w], m.final_norm(), c.rms_norm_eps); });
    tune_whole(m, x, exact, angles, held_out, options, events);
    return;
  }
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
    {
      float_layer const layer = original_layer(m, i, options.threads);
      for_each_window([&](std::size_t w) { run_layer(ctx, layer, exact[w]); });
    }
    double added = 0.0;  // by the decoder layer, the mean square of a window
    for (std::size_t w = 0; w < x.size(); ++w) {
      added += static_cast<double>((exact[w] - x[w]).squaredNorm()) / static_cast<double>(x.size());
    }
    loss_function const error = [&](std::size_t window, matrix const& y, matrix* dy) {
      matrix const difference = y - exact[window];
      if (dy != nullptr) *dy = difference * static_cast<float>(2.0 / added);
      return static_cast<double>(difference.squaredNorm()) / added;
    };
    tuned_layers layers(m, angles, i, i + 1, options);
    auto const share = [&](double spent) {
      events.advance((static_cast<double>(i) + spent) / static_cast<double>(c.num_hidden_layers));
    };
    auto report = tune(layers, x, held_out, error, options,
                       60.0 * options.minutes / static_cast<double>(c.num_hidden_layers), share);
    report.layer = i;
    events.done(report);
    float_layer const tuned = m.load(i, options.threads);
    for_each_window([&](std::size_t w) { run_layer(ctx, tuned, x[w]); });
  }
}

}  // namespace lm
