// whole_job: GPTQ of all decoder layers of a LLaMA on a GPU, with random weights: seconds a layer, by stage.
//
//   bench_whole_job --layers 32 --true-sequential
//   bench_whole_job --layers 48 --hidden 2048 --intermediate 768 --key-value-heads 4 --experts 128 --true-sequential
//
// Everything but reading and writing files: weights come from the host's memory as bfloat16, results go back
// there and are packed. The shape is that of Llama 3 8B unless options say otherwise, in the second line that of
// Qwen3-30B-A3B.
#include <chrono>
#include <cmath>
#include <random>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <gptq/float16.hpp>
#include <gptq/format_spec.hpp>
#include <gptq/packed.hpp>

#include "device/calibration.hpp"

namespace {

using lm::device::index_t;
using lm::device::number;
using q4 = gptq::format<gptq::asymmetric, 4, 128>;

struct arguments {
  index_t layers = 4;
  index_t hidden = 4096;
  index_t intermediate = 14336;
  index_t heads = 32;
  index_t key_value_heads = 8;
  index_t head_dim = 128;
  index_t vocabulary = 32768;
  index_t experts = 0;  ///< of each layer, with an MLP of this intermediate size each
  index_t chosen = 8;   ///< experts of a token
  index_t windows = 128;
  index_t length = 2048;
  number activations = number::bfloat16;
  bool true_sequential = false;
  bool act_order = false;
  gptq::quality quality = gptq::quality::plain;
  index_t held_out = 0;
  double propagate = 0.0;
  bool loss = false;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Numbers with deviation 0.02, as bfloat16. Weights are taken from some place in it: every layer from
/// another.
std::vector<gptq::bfloat16> random_numbers(std::size_t count) {
  // A sum of four uniform numbers of 16 bits is near enough to a Gaussian one, and fast.
  std::vector<gptq::bfloat16> values(count);
  std::mt19937_64 random(1);
  float const unit = 0.02F / (65536.0F * std::sqrt(4.0F / 12.0F));
  for (gptq::bfloat16& v : values) {
    std::uint64_t const bits = random();
    std::uint64_t const sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
    v = gptq::bfloat16((static_cast<float>(sum) - 131070.0F) * unit);
  }
  return values;
}

class random_model {
 public:
  explicit random_model(arguments const& args)
      : args_(args),
        values_(random_numbers(static_cast<std::size_t>(args.hidden * largest(args)) + places * stride)) {
    source.layers = args.layers;
    source.hidden = args.hidden;
    source.embedding = matrix(args.vocabulary, args.hidden, 0);
    lm::device::rope_table rope;
    rope.rotated = args.head_dim;
    for (index_t p = 0; p < args.length; ++p) {
      for (index_t i = 0; i < args.head_dim / 2; ++i) {
        double const angle =
            static_cast<double>(p) *
            std::pow(500000.0, -2.0 * static_cast<double>(i) / static_cast<double>(args.head_dim));
        rope.cos.push_back(static_cast<float>(std::cos(angle)));
        rope.sin.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    source.ropes.push_back(std::move(rope));
    source.load = [this](index_t layer) { return load(layer); };
    source.final_norm.assign(static_cast<std::size_t>(args.hidden), 1.0F);
    source.epsilon = 1e-5F;
    source.output = source.embedding;
  }

  lm::device::model_source source;

 private:
  static constexpr std::size_t places = 61, stride = 4099;
  static index_t largest(arguments const& a) { return std::max(a.intermediate, a.vocabulary); }

  lm::device::host_matrix matrix(index_t rows, index_t columns, index_t place) const {
    return {values_.data() + static_cast<std::size_t>(place) % places * stride, number::bfloat16, rows,
            columns, nullptr};
  }

  lm::device::layer_source load(index_t layer) const {
    lm::device::layer_source s;
    auto& a = s.arithmetic;
    a.hidden = args_.hidden, a.intermediate = args_.intermediate;
    a.heads = args_.heads, a.key_value_heads = args_.key_value_heads, a.head_dim = args_.head_dim;
    a.epsilon = 1e-5F, a.rope = 0;
    a.attention_scale = 1.0F / std::sqrt(static_cast<float>(a.head_dim));
    s.attention_norm.assign(static_cast<std::size_t>(a.hidden), 1.0F);
    s.mlp_norm = s.attention_norm;
    index_t place = 7 * layer;
    auto const linear = [&](char const* name, index_t out, index_t in) {
      return lm::device::linear_source{fmt::format("layer {} {}", layer, name), matrix(out, in, ++place), {}};
    };
    s.linears[0] = {linear("q_proj", a.query_size(), a.hidden),
                    linear("k_proj", a.key_value_size(), a.hidden),
                    linear("v_proj", a.key_value_size(), a.hidden)};
    s.linears[1] = {linear("o_proj", a.hidden, a.query_size())};
    for (index_t e = 0; e < std::max(args_.experts, index_t{1}); ++e) {
      s.linears[2].push_back(linear("gate_proj", a.intermediate, a.hidden));
      s.linears[2].push_back(linear("up_proj", a.intermediate, a.hidden));
      s.linears[3].push_back(linear("down_proj", a.hidden, a.intermediate));
    }
    a.experts = args_.experts, a.chosen = args_.experts > 0 ? args_.chosen : 0;
    for (index_t i = 0; i < a.experts * a.hidden; ++i) {
      s.router.push_back(static_cast<float>(values_[static_cast<std::size_t>(layer * stride + i)]));
    }
    return s;
  }

  arguments args_;
  std::vector<gptq::bfloat16> values_;
};

void print(char const* name, double seconds, double total, index_t layers) {
  fmt::print("{:<24} {:>9.3f} s {:>9.4f} s a layer {:>6.1f} %\n", name, seconds,
             seconds / static_cast<double>(layers), 100.0 * seconds / total);
}

void run(arguments const& args) {
  auto start = std::chrono::steady_clock::now();
  auto const on = lm::device::make_cuda_accelerator();
  double const starting = seconds_since(start);
  start = std::chrono::steady_clock::now();
  random_model const model(args);
  lm::device::token_windows windows;
  windows.length = args.length;
  std::mt19937 random(2);
  for (index_t t = 0; t < args.windows * args.length; ++t) {
    windows.tokens.push_back(
        static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(args.vocabulary)));
  }
  fmt::print("device                   {}\n", on->name());
  fmt::print("model                    {} layers, hidden {}, intermediate {}, {}/{} heads of {}, random\n",
             args.layers, args.hidden, args.intermediate, args.heads, args.key_value_heads, args.head_dim);
  if (args.experts > 0) {
    fmt::print("experts                  {} in each layer, {} for a token\n", args.experts, args.chosen);
  }
  fmt::print("calibration              {} windows of {} tokens, {}, {}\n", args.windows, args.length,
             name_of(args.activations), args.true_sequential ? "one pass" : "two passes");
  fmt::print("making the model         {:>9.3f} s; starting the device {:.3f} s\n", seconds_since(start),
             starting);

  lm::device::calibration how;
  how.format = gptq::to_spec<q4>();
  how.options.quality = args.quality;
  how.options.act_order = args.act_order;
  how.activations = args.activations;
  how.true_sequential = args.true_sequential;
  how.calibrating = args.windows - args.held_out;
  if (args.propagate > 0.0) how.propagate = args.propagate;
  double factor = 0.0, sweep = 0.0, loss = 0.0;
  std::size_t packed_bytes = 0;
  how.finish = [](lm::device::linear_result& r) {
    gptq::quantized_layer<q4> const layer{r.out,
                                          r.in,
                                          std::move(r.codes.codes),
                                          std::move(r.codes.scales),
                                          std::move(r.codes.zeros),
                                          std::move(r.codes.order),
                                          r.report};
    r.made = std::make_shared<gptq::packed_matrix<q4>>(gptq::pack(layer));
  };
  std::vector<std::shared_ptr<void>> kept;
  how.done = [&](std::vector<lm::device::linear_result>&& results) {
    factor += results.front().report.seconds_factorization;  // they are those of the stage's layers together
    sweep += results.front().report.seconds_columns;
    for (auto& r : results) {
      loss += r.report.loss;
      packed_bytes += static_cast<std::size_t>(static_cast<gptq::packed_matrix<q4>*>(r.made.get())->bytes());
      kept.push_back(std::move(r.made));
    }
  };
  (void)on->take_times();
  start = std::chrono::steady_clock::now();
  calibrate(*on, model.source, windows, how);
  double const total = seconds_since(start);
  auto const times = on->take_times();
  using lm::device::activity;
  auto const of = [&](activity what) { return times.of[static_cast<std::size_t>(what)]; };
  print("forward, but attention", of(activity::forward), total, args.layers);
  print("attention", of(activity::attention), total, args.layers);
  print("Hessians", of(activity::hessian), total, args.layers);
  print("factorization", factor, total, args.layers);
  print("sweeps, descent", sweep, total, args.layers);
  print("solving, besides these", of(activity::solving) - factor - sweep, total, args.layers);
  print("samples, codes back", of(activity::measuring), total, args.layers);
  print("waiting for weights", of(activity::waiting), total, args.layers);
  print("the host alone", total - times.total(), total, args.layers);
  print("sum", total, total, args.layers);
  fmt::print("transfers, beside        {:>9.3f} s\n", times.transfers);
  fmt::print("packed                   {:.3f} GB, loss {:.6g}\n", 1e-9 * static_cast<double>(packed_bytes),
             loss);
  fmt::print("device memory            {:.1f} GB at most\n", 1e-9 * static_cast<double>(on->most_bytes()));
  if (!args.loss) return;
  start = std::chrono::steady_clock::now();
  double const nll = mean_loss(*on, model.source, windows, args.activations, [](index_t) {});
  fmt::print("loss of the text         {:.4f} in {:.3f} s (log of the vocabulary {:.4f})\n", nll,
             seconds_since(start), std::log(static_cast<double>(args.vocabulary)));
}

}  // namespace

int main(int argc, char** argv) {
  arguments args;
  CLI::App app("Times GPTQ of a whole model of random weights on a GPU");
  app.add_option("--layers", args.layers)->capture_default_str();
  app.add_option("--hidden", args.hidden)->capture_default_str();
  app.add_option("--intermediate", args.intermediate)->capture_default_str();
  app.add_option("--heads", args.heads)->capture_default_str();
  app.add_option("--key-value-heads", args.key_value_heads)->capture_default_str();
  app.add_option("--head-dim", args.head_dim)->capture_default_str();
  app.add_option("--vocabulary", args.vocabulary)->capture_default_str();
  app.add_option("--experts", args.experts, "In place of each MLP; 0: none")->capture_default_str();
  app.add_option("--experts-per-token", args.chosen)->capture_default_str();
  app.add_option("--windows", args.windows)->capture_default_str();
  app.add_option("--length", args.length)->capture_default_str();
  app.add_option("--activations", args.activations, "float32, float16 or bfloat16")
      ->transform(CLI::CheckedTransformer(std::map<std::string, number>{
          {"float32", number::float32}, {"float16", number::float16}, {"bfloat16", number::bfloat16}}));
  app.add_flag("--true-sequential", args.true_sequential, "One forward pass");
  app.add_flag("--act-order", args.act_order);
  app.add_option("--quality", args.quality, "plain, fast or best [plain]")
      ->transform(CLI::CheckedTransformer(std::map<std::string, gptq::quality>{
          {"plain", gptq::quality::plain}, {"fast", gptq::quality::fast}, {"best", gptq::quality::best}}));
  app.add_option("--held-out", args.held_out, "Of the windows, those that choices are made by")
      ->capture_default_str();
  app.add_option("--propagate", args.propagate, "Propagate errors with this strength; 0: do not")
      ->capture_default_str();
  app.add_flag("--loss", args.loss, "Measure the loss on the text, too");
  CLI11_PARSE(app, argc, argv);
  try {
    run(args);
    return 0;
  } catch (std::exception const& e) {
    fmt::print(stderr, "whole_job: {}\n", e.what());
    return 1;
  }
}
