#include "quantization.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
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
#include "ranks.hpp"
#include "shared_layers.hpp"
#include "threads.hpp"

namespace lm {
namespace {

using Eigen::Index;

quantiles quantiles_of(matrix const& values) {
  std::vector<float> sample;
  for (std::ptrdiff_t const i : spread(values.size(), sampled_values)) sample.push_back(values.data()[i]);
  return find_quantiles(std::move(sample));
}

/// Some of the tokens of all ranks' windows, on which to measure what a Hessian cannot tell.
class token_sample {
 public:
  static constexpr std::ptrdiff_t tokens = sampled_tokens;

  token_sample(window_shares const& windows, std::size_t length)
      : length_(static_cast<std::ptrdiff_t>(length)),
        first_(windows.mine().first),
        count_(windows.mine().count),
        chosen_(spread(windows.windows() * length_, tokens)) {}

  /// Appends the chosen rows of this rank's windows first, first + 1, ... to `rows`.
  void append(matrix& rows, std::vector<matrix const*> windows, std::size_t first) const {
    auto const before = static_cast<std::ptrdiff_t>(first);
    windows.resize(static_cast<std::size_t>(
        std::clamp<std::ptrdiff_t>(count_ - before, 0, static_cast<std::ptrdiff_t>(windows.size()))));
    if (windows.empty()) return;  // held out, all of them
    auto const begin = (first_ + before) * length_;
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
  std::ptrdiff_t first_;  ///< of this rank's windows
  std::ptrdiff_t count_;
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

/// What this rank's windows have brought: a sum for each share of them.
struct partial_inputs {
  std::vector<collected_inputs> calibration;
  std::vector<collected_inputs> held_out;
  matrix sample;  ///< [tokens, in]
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
  own_windows const& windows;                    ///< first those to calibrate on
  std::size_t length;                            ///< of a window
  gptq::observer* observer;                      ///< null: none
  unfinished_run const* saved;                   ///< null: nowhere
  std::map<std::string, linear_report> reports;  ///< of what is observed, by name
};

/// This rank's of the rows of all ranks' first `count` windows, at most so many, spread evenly over them.
matrix sample_rows(ranks& world, std::vector<matrix> const& windows, std::size_t count, Index columns,
                   std::ptrdiff_t most) {
  std::vector<std::pair<std::size_t, Index>> mine;
  for (std::size_t w = 0; w < count; ++w) {
    for (Index t = 0; t < windows[w].rows(); ++t) mine.emplace_back(w, t);
  }
  std::ptrdiff_t before = 0, total = 0;
  auto const counts = gather(world, std::to_string(mine.size()));
  for (std::size_t r = 0; r < counts.size(); ++r) {
    if (static_cast<int>(r) < world.rank()) before += std::stoll(counts[r]);
    total += std::stoll(counts[r]);
  }
  std::vector<std::pair<std::size_t, Index>> chosen;
  for (std::ptrdiff_t const i : spread(total, most)) {
    if (i >= before && i - before < static_cast<std::ptrdiff_t>(mine.size())) {
      chosen.push_back(mine[static_cast<std::size_t>(i - before)]);
    }
  }
  matrix rows(static_cast<Index>(chosen.size()), columns);
  for (Index i = 0; i < rows.rows(); ++i) {
    auto const [w, t] = chosen[static_cast<std::size_t>(i)];
    rows.row(i) = windows[w].row(t);
  }
  return rows;
}

/// The sum of what all ranks' shares have brought, on the ranks `to`; elsewhere it is nothing of use.
/// @param with_error  whether each has an input_error, too
collected_inputs add_up(ranks& world, std::vector<collected_inputs>&& parts, Index in, bool with_error,
                        std::vector<int> const& to) {
  if (world.size() == 1 && parts.size() == 1) return std::move(parts.front());
  std::string counts;  // of each share
  for (collected_inputs const& part : parts) {
    counts += fmt::format("{} {} ", part.h->tokens(), part.h->sequences());
  }
  double tokens = 0.0;
  Index sequences = 0;
  for (std::string const& of_rank : gather(world, counts)) {
    std::istringstream in_order(of_rank);
    double more = 0.0;
    for (Index sequence = 0; in_order >> more >> sequence;) tokens += more, sequences += sequence;
  }
  collected_inputs whole{std::make_shared<gptq::hessian>(in), std::nullopt};
  bool const wanted = std::find(to.begin(), to.end(), world.rank()) != to.end();
  if (sequences > 0) {
    // Of a symmetric matrix half travels.
    std::vector<std::vector<float>> triangles;
    for (collected_inputs const& part : parts) {
      std::vector<float>& triangle = triangles.emplace_back();
      triangle.reserve(static_cast<std::size_t>(in * (in + 1) / 2));
      for (Index j = 0; j < in; ++j) {
        float const* const column = part.h->sum().data() + j * in;
        triangle.insert(triangle.end(), column + j, column + in);
      }
    }
    std::vector<std::span<float const>> const views(triangles.begin(), triangles.end());
    std::vector<float> total(static_cast<std::size_t>(in * (in + 1) / 2));
    add_in_order(world, views, total, to);
    if (wanted) {
      Eigen::MatrixXf sum = Eigen::MatrixXf::Zero(in, in);
      float const* next = total.data();
      for (Index j = 0; j < in; ++j, next += in - j + 1) std::copy_n(next, in - j, sum.data() + j * in + j);
      whole.h = std::make_shared<gptq::hessian>(gptq::hessian::from_sum(sum, tokens, sequences));
    }
  }
  if (with_error) {
    std::vector<std::span<float const>> views;
    for (collected_inputs const& part : parts) {
      views.emplace_back(part.error->sum().data(), static_cast<std::size_t>(in * in));
    }
    Eigen::MatrixXf total(in, in);
    add_in_order(world, views, std::span(total.data(), static_cast<std::size_t>(in * in)), to);
    if (wanted) whole.error = gptq::input_error::from_sum(total);
  }
  return whole;
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
        world_(*run.how.world),
        index_(layer),
        description_(run.m.config().layer(layer)),
        owners_(make_plan(description_, run.how).owner),
        calibrating_(static_cast<std::size_t>(run.windows.calibration.mine().count)) {
    agree(world_, [&] {
      weights_ = run_.m.load(layer, run_.how.threads);
      if (gpu* const device = run_.how.quantize.device.get()) on_device_.emplace(*device, weights_);
      if (run_.saved != nullptr) saved_ = run_.saved->load(layer, description_);
    });
    is_saved_ = sum(world_, saved_ ? 1.0 : 0.0) > 0.0;
    reports_.resize(description_.linears.size());
  }

  /// x becomes the decoder layer's output, when that is quantized, and `exact`, unless it is empty, from the
  /// unquantized model's residual its output.
  void run(std::vector<matrix>& x, std::vector<matrix>& exact) {
    if (is_saved_ && !run_.how.observe) {
      take_saved(x, exact);
    } else if (run_.how.true_sequential) {
      run_sequentially(x, exact);
    } else {
      run_at_once(x, exact);
    }
    if (!is_saved_) agree(world_, [&] { keep(); });
  }

 private:
  /// Linear layers and what they are quantized for, which their owners have.
  struct task {
    std::vector<std::size_t> places;
    stage_inputs inputs;
  };

  /// Stage by stage: each sees the stages before it quantized. x becomes the decoder layer's output.
  void run_sequentially(std::vector<matrix>& x, std::vector<matrix>& exact) {
    std::optional<float_layer> original;
    std::optional<device_layer> original_on_device;
    if (run_.how.propagate) {
      original_on_device = on_device_;
      if (!on_device_) original = weights_;
    }
    decoder_layer const& exact_decoder = either(original_on_device, original ? *original : weights_);
    std::vector<stage_input> input(x.size());
    std::vector<stage_input> exact_input(exact.size());
    for (stage const s : stages) {
      partial_inputs inputs;
      agree(world_, [&] {
        for_each_window(x, [&](std::size_t w) { run_stage(run_.ctx, decoder(), s, x[w], input[w]); });
        for_each_window(
            exact, [&](std::size_t w) { run_stage(run_.ctx, exact_decoder, s, exact[w], exact_input[w]); });
        if (is_of_experts(s)) return;
        inputs = new_inputs(s);
        add(inputs, s, input, exact_input, 0);
      });
      if (is_of_experts(s)) {
        if (s == stage::gate_up) quantize_experts(input, exact_input, exact_decoder);
        continue;
      }
      quantize({task_for(s, std::move(inputs))});
    }
    agree(world_, [&] {
      for_each_window(exact,
                      [&](std::size_t w) { finish(run_.ctx, exact_decoder, exact[w], exact_input[w]); });
      for_each_window(x, [&](std::size_t w) {
        finish(run_.ctx, decoder(), x[w], input[w]);
        run_.events.advance();
      });
    });
  }

  /// All inputs from the unquantized layer, then all of it quantized, then run again: x becomes its output.
  void run_at_once(std::vector<matrix>& x, std::vector<matrix>& exact) {
    std::vector<partial_inputs> inputs;
    std::vector<stage_input> of_experts, exact_of_experts;  // what they all choose from, of every window
    agree(world_, [&] { collect_all(x, exact, inputs, of_experts, exact_of_experts); });
    std::vector<task> tasks;
    for (stage const s : stages) {
      if (!is_of_experts(s)) tasks.push_back(task_for(s, std::move(inputs[static_cast<std::size_t>(s)])));
    }
    quantize(std::move(tasks));
    if (is_of_experts(stage::down)) quantize_experts(of_experts, exact_of_experts, decoder());
    of_experts.clear();
    exact_of_experts.clear();
    run_whole_layer(x);
  }

  /// Runs the unquantized layer, with `exact` becoming its output, and collects the inputs of all stages.
  void collect_all(std::vector<matrix> const& x, std::vector<matrix>& exact,
                   std::vector<partial_inputs>& inputs, std::vector<stage_input>& of_experts,
                   std::vector<stage_input>& exact_of_experts) {
    for (stage const s : stages) inputs.push_back(is_of_experts(s) ? partial_inputs{} : new_inputs(s));
    // A few windows at a time: what the stages leave behind is as large as all activations otherwise.
    constexpr std::size_t batch_bytes = std::size_t{256} << 20;
    auto const threads = static_cast<std::size_t>(gptq::linalg::thread_count(run_.how.threads));
    auto const window_bytes = run_.length * static_cast<std::size_t>(run_.m.config().intermediate_size) * 4;
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
  }

  void run_whole_layer(std::vector<matrix>& x) {
    agree(world_, [&] {
      for_each_window(x, [&](std::size_t w) {
        run_layer(run_.ctx, decoder(), x[w]);
        run_.events.advance();
      });
    });
  }

  /// All of it is there already.
  void take_saved(std::vector<matrix>& x, std::vector<matrix>& exact) {
    agree(world_,
          [&] { for_each_window(exact, [&](std::size_t w) { run_layer(run_.ctx, decoder(), exact[w]); }); });
    for (std::size_t place = 0; place < description_.linears.size(); ++place) take_saved(place);
    run_whole_layer(x);
  }

  /// Writes the decoder layer, and has the model use it from the file: then it takes no memory.
  void keep() {
    if (run_.saved == nullptr) return;
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

  /// The first rank has it.
  linear_report const& take_saved(std::size_t place) {
    solved_linear solved;
    if (saved_) solved = {saved_->reports[place], std::move(saved_->packed[place])};
    return install(place, broadcast(world_, std::move(solved), 0));
  }

  /// Puts what was packed in a linear layer's place: for the windows that follow, and on the first rank for good.
  linear_report const& install(std::size_t place, solved_linear&& solved) {
    matrix& weight = weights_.weights[place];
    weight.resize(solved.report.out, solved.report.in);
    solved.packed->dequantize(weight.data());
    if (on_device_) on_device_->replace(place, weight);
    if (world_.rank() == 0) run_.m.replace(index_, place, std::move(solved.packed));
    reports_[place] = std::move(solved.report);
    run_.events.done(reports_[place]);
    return reports_[place];
  }

  bool is_of_experts(stage s) const {
    return description_.experts && (s == stage::gate_up || s == stage::down);
  }

  template <class Windows, class Piece>
  void for_each_window(Windows const& windows, Piece&& piece) const {
    for_each(static_cast<std::ptrdiff_t>(windows.size()), run_.how.threads,
             [&](std::ptrdiff_t w) { piece(static_cast<std::size_t>(w)); });
  }

  partial_inputs new_inputs(stage s) const {
    auto const none = [&](window_shares const& windows) {
      auto const in = description_.input_size(s);
      std::vector<collected_inputs> shares;
      for (std::size_t i = 0; i < windows.parts().size(); ++i) {
        shares.push_back({std::make_shared<gptq::hessian>(in, run_.how.threads), std::nullopt});
        if (run_.how.propagate) shares.back().error.emplace(in, run_.how.threads);
      }
      return shares;
    };
    return {none(run_.windows.calibration), none(run_.windows.held_out), {}};
  }

  /// Counts the inputs of a stage's linear layers, one matrix a sequence, of windows `first` and on; `exact`,
  /// unless it is empty, are those of the unquantized model.
  void add(partial_inputs& inputs, stage s, std::vector<stage_input> const& windows,
           std::vector<stage_input> const& exact, std::size_t first) const {
    std::vector<matrix const*> rows, exact_rows;
    for (stage_input const& window : windows) rows.push_back(&window.x);
    for (stage_input const& window : exact) exact_rows.push_back(&window.x);
    add(inputs, description_.linears[description_.linears_of(s).front()].name, rows, exact_rows, first);
    run_.sample.append(inputs.sample, rows, first);
  }

  void add(partial_inputs& inputs, std::string const& name, std::vector<matrix const*> const& windows,
           std::vector<matrix const*> const& exact, std::size_t first) const {
    auto const add_to = [&](std::vector<collected_inputs>& to, window_shares const& shares,
                            std::size_t offset) {
      for (std::size_t share = 0; share < to.size(); ++share) {
        auto const begin = offset + static_cast<std::size_t>(shares.parts()[share].first);
        auto const end = begin + static_cast<std::size_t>(shares.parts()[share].count);
        auto const from = std::clamp(begin, first, first + windows.size()) - first;
        auto const up_to = std::clamp(end, first, first + windows.size()) - first;
        if (gpu* const device = run_.how.quantize.device.get()) {
          add_on(*device, std::span(windows).subspan(from, up_to - from), *to[share].h);
        }
        for (std::size_t w = from; w < up_to; ++w) {
          if (windows[w]->rows() == 0) continue;
          if (!run_.how.quantize.device) to[share].h->add(*windows[w]);
          if (to[share].error) to[share].error->add(*exact[w], *windows[w]);
        }
      }
    };
    try {
      add_to(inputs.calibration, run_.windows.calibration, 0);
      add_to(inputs.held_out, run_.windows.held_out, calibrating_);
    } catch (gptq::error const& e) {
      throw gptq::error("input of " + name + ": " + e.what());
    }
  }

  /// What all ranks' windows bring, on those that own one of these linear layers.
  stage_inputs add_up(partial_inputs&& inputs, std::vector<std::size_t> const& places) const {
    auto const in = static_cast<Index>(description_.linears[places.front()].in);
    std::vector<int> to;
    for (std::size_t const place : places) {
      if (std::find(to.begin(), to.end(), owners_[place]) == to.end()) to.push_back(owners_[place]);
    }
    bool const with_error = run_.how.propagate.has_value();
    stage_inputs all{
        lm::add_up(world_, std::move(inputs.calibration), in, with_error, to), std::nullopt, {}, -1.0};
    if (run_.how.held_out_windows > 0)
      all.held_out = lm::add_up(world_, std::move(inputs.held_out), in, with_error, to);
    if (world_.size() == 1) {
      all.sample = std::move(inputs.sample);
    } else {
      auto const rows =
          join(world_, {inputs.sample.data(), static_cast<std::size_t>(inputs.sample.size())}, to);
      all.sample = Eigen::Map<matrix const>(rows.data(), static_cast<Index>(rows.size()) / in, in);
    }
    return all;
  }

  task task_for(stage s, partial_inputs&& inputs) const {
    auto const places = description_.linears_of(s);
    return {places, add_up(std::move(inputs), places)};
  }

  /// The inputs of an expert's share of the tokens, and where they are fewer tokens than the layer has columns,
  /// of all tokens besides, with so small a weight that together they make up the difference.
  /// @param rows, exact  of each window, those that are routed to the expert
  /// @param all(w)       the same input for every token of a window
  template <class All>
  task task_for_expert(stage s, std::vector<std::size_t> const& places, std::vector<matrix> const& rows,
                       std::vector<matrix> const& exact, All const& all) const {
    auto const& linear = description_.linears[places.front()];
    auto const in = static_cast<Index>(linear.in);
    auto const columns = static_cast<double>(linear.in);
    partial_inputs inputs = new_inputs(s);
    agree(world_, [&] {
      std::vector<matrix const*> each, exact_each;
      for (matrix const& window : rows) each.push_back(&window);
      for (matrix const& window : exact) exact_each.push_back(&window);
      add(inputs, linear.name, each, exact_each, 0);
    });
    double mine = 0.0;
    for (collected_inputs const& share : inputs.calibration) mine += share.h->tokens();
    double const tokens = sum(world_, mine);
    if (tokens >= columns) {
      inputs.sample = sample_rows(world_, rows, calibrating_, in, token_sample::tokens);
    } else {
      std::vector<matrix> every(calibrating_);
      agree(world_, [&] {
        for (std::size_t w = 0; w < every.size(); ++w) every[w] = all(w);
        double const total =
            static_cast<double>(run_.windows.calibration.windows()) * static_cast<double>(run_.length);
        auto const weight = static_cast<float>((columns - tokens) / total);
        std::vector<float> const weights(run_.length, weight);
        try {
          for (std::size_t share = 0; share < inputs.calibration.size(); ++share) {
            auto const [first, count] = run_.windows.calibration.parts()[share];
            for (auto w = first; w < first + count; ++w) {
              inputs.calibration[share].h->add(every[static_cast<std::size_t>(w)], weights);
            }
          }
        } catch (gptq::error const& e) {
          throw gptq::error("input of " + linear.name + ": " + e.what());
        }
      });
      inputs.sample = sample_rows(world_, every, calibrating_, in, token_sample::tokens);
    }
    task made{places, add_up(std::move(inputs), places)};
    made.inputs.tokens = tokens;
    return made;
  }

  /// One expert a rank at a time: the inputs of all of them at once would take as much memory as there are
  /// experts.
  /// @param windows  as stage gate_up has left them
  /// @param exact    likewise of the unquantized model, whose decoder layer is `exact_decoder`; may be empty
  void quantize_experts(std::vector<stage_input> const& windows, std::vector<stage_input> const& exact,
                        decoder_layer const& exact_decoder) {
    struct expert {
      std::int64_t number;
      std::vector<matrix> rows, exact_rows;
    };
    std::int64_t const experts = run_.m.config().num_experts;
    for (std::int64_t first = 0; first < experts; first += world_.size()) {
      std::vector<expert> some;
      std::vector<task> gates, downs;
      for (std::int64_t e = first; e < std::min<std::int64_t>(experts, first + world_.size()); ++e) {
        expert& one = some.emplace_back(
            expert{e, std::vector<matrix>(windows.size()), std::vector<matrix>(exact.size())});
        agree(world_, [&] {
          for_each_window(windows, [&](std::size_t w) { one.rows[w] = expert_input(windows[w], e); });
          for_each_window(exact,
                          [&](std::size_t w) { one.exact_rows[w] = rows_for(windows[w], exact[w].x, e); });
        });
        gates.push_back(task_for_expert(stage::gate_up, description_.linears_of(stage::gate_up, e), one.rows,
                                        one.exact_rows, [&](std::size_t w) { return windows[w].x; }));
      }
      auto const collect_down = [&] {
        for (expert& one : some) {
          std::vector<matrix> hidden(windows.size()), exact_hidden(exact.size());
          agree(world_, [&] {
            for_each_window(windows, [&](std::size_t w) {
              hidden[w] = expert_hidden(run_.ctx, decoder(), one.number, one.rows[w]);
            });
            for_each_window(exact, [&](std::size_t w) {
              exact_hidden[w] = expert_hidden(run_.ctx, exact_decoder, one.number, one.exact_rows[w]);
            });
          });
          auto const hidden_of_all = [&](std::size_t w) {
            return expert_hidden(run_.ctx, decoder(), one.number, windows[w].x);
          };
          downs.push_back(task_for_expert(stage::down, description_.linears_of(stage::down, one.number),
                                          hidden, exact_hidden, hidden_of_all));
        }
      };
      if (!run_.how.true_sequential) collect_down();
      quantize(std::move(gates));
      if (run_.how.true_sequential) collect_down();
      quantize(std::move(downs));
    }
  }

  /// Quantizes linear layers, each where it is owned, and puts what was packed in their place.
  void quantize(std::vector<task>&& tasks) {
    std::map<std::size_t, solved_linear> solved;
    agree(world_, [&] {
      for (task const& t : tasks) {
        quantiles const of_inputs = quantiles_of(t.inputs.sample);
        for (std::size_t const place : t.places) {
          if (is_saved_ || owners_[place] != world_.rank()) continue;
          solved[place] = solve(place, t.inputs, of_inputs);
          if (world_.size() == 1) take(place, t.inputs, std::move(solved[place]));  // and say so at once
        }
      }
    });
    if (world_.size() == 1 && !is_saved_) return;
    for (task const& t : tasks) {
      for (std::size_t const place : t.places) {
        if (is_saved_) {
          observe(place, t.inputs, take_saved(place));
        } else {
          take(place, t.inputs, broadcast(world_, std::move(solved[place]), owners_[place]));
        }
      }
    }
  }

  void take(std::size_t place, stage_inputs const& inputs, solved_linear&& solved) {
    observe(place, inputs, install(place, std::move(solved)));
  }

  solved_linear solve(std::size_t place, stage_inputs const& inputs, quantiles const& of_inputs) {
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
      measure_int8(report, place, inputs.sample, exact, result.packed->parts().order);
      return {report, std::move(result.packed)};
    } catch (gptq::error const& e) {
      throw gptq::error(report.name + ": " + e.what());
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
  ranks& world_;
  std::int64_t index_;
  decoder_description const& description_;
  std::vector<int> owners_;  ///< of linear layers, by place
  std::size_t calibrating_;  ///< of this rank's windows; those after them are held out
  float_layer weights_;
  std::optional<device_layer> on_device_;  ///< the same, where a GPU makes the products of whole windows
  std::optional<unfinished_run::saved_layer> saved_;  ///< on the first rank
  bool is_saved_ = false;
  std::vector<linear_report> reports_;  ///< by place
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

own_windows find_own_windows(std::size_t windows, quantization const& how) {
  auto const calibrating = static_cast<std::ptrdiff_t>(calibration_windows(windows, how));
  auto const held_out = static_cast<std::ptrdiff_t>(how.held_out_windows);
  return {{calibrating, *how.world, how.deterministic_reduction},
          {held_out, *how.world, how.deterministic_reduction}};
}

solving_plan make_plan(decoder_description const& description, quantization const& how) {
  int const size = how.world->size();
  auto const& linears = description.linears;
  solving_plan plan{std::vector<int>(linears.size()), std::vector<double>(static_cast<std::size_t>(size))};
  if (how.observe || size == 1) {  // what is quantized again needs its Hessian in one place
    plan.cost.front() = 1.0;
    return plan;
  }
  std::vector<solving_task> tasks;
  std::vector<std::vector<std::size_t>> places;  // of each task
  auto const assign = [&] {
    solving_plan const some = make_plan(tasks, size);
    for (std::size_t t = 0; t < tasks.size(); ++t) {
      for (std::size_t const place : places[t]) plan.owner[place] = some.owner[t];
    }
    for (std::size_t r = 0; r < plan.cost.size(); ++r) plan.cost[r] += some.cost[r];
    tasks.clear(), places.clear();
  };
  int input = 0;
  for (stage const s : stages) {
    if (description.experts && (s == stage::gate_up || s == stage::down)) continue;
    for (std::size_t const place : description.linears_of(s)) {
      // The host factorizes a Hessian for each linear layer.
      tasks.push_back({linears[place].out, linears[place].in, how.accelerator != nullptr ? input : ++input});
      places.push_back({place});
    }
    ++input;
    if (how.true_sequential) assign();  // stages follow each other
  }
  if (!how.true_sequential) assign();
  std::map<std::int64_t, std::vector<std::size_t>> experts;
  for (std::size_t place = 0; place < linears.size(); ++place) {
    if (linears[place].expert != no_expert) experts[linears[place].expert].push_back(place);
  }
  for (auto const& [expert, of_expert] : experts) {
    gptq::index_t rows = 0;
    for (std::size_t const place : of_expert) rows += linears[place].out;
    tasks.push_back({rows, linears[of_expert.front()].in, ++input});
    places.push_back(of_expert);
  }
  assign();
  return plan;
}

void quantize_model(model& m, std::span<token_window const> windows, quantization const& how,
                    quantization_events const& events, unfinished_run const* saved) {
  if (how.accelerator != nullptr) {
    device::quantize_model(*how.accelerator, how.activations, m, windows, how, events, saved);
    return;
  }
  own_windows const own = find_own_windows(windows.size(), how);
  set_blas_threads(how.threads);
  auto const length = windows.front().size();
  auto const angles = make_rotations(m.config(), static_cast<std::int64_t>(length));
  context const ctx{m.config(), angles};
  token_sample const sample(own.calibration, length);
  std::optional<gptq::observer> observer;
  if (how.observe && how.world->rank() == 0)
    observer.emplace(how.observe->top_k, how.observe->spill_directory);
  run_state run{m, how, ctx, events, sample, own, length, observer ? &*observer : nullptr, saved, {}};

  std::vector<matrix> x;
  for (range const r : {own.calibration.mine(), range{own.calibration.windows() + own.held_out.mine().first,
                                                      own.held_out.mine().count}}) {
    for (auto w = r.first; w < r.first + r.count; ++w)
      x.push_back(m.embed(windows[static_cast<std::size_t>(w)]));
  }
  std::vector<matrix> exact;
  if (how.propagate) exact = x;
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) decoder_quantizer(run, i).run(x, exact);
  exact.clear();
  x.clear();
  agree(*how.world, [&] {
    if (observer) refine(run);
  });
}

}  // namespace lm
