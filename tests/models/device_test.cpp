// The device path of the example programs: on the host, and on a GPU where there is one. Decoder layers
// against plain loops in double, calibration against the library's own GPTQ on what these loops compute.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include <gptq/input_error.hpp>

#include "catch.hpp"
#include "device/calibration.hpp"
#include "models/host_accelerator.hpp"
#include "support.hpp"

namespace {

using namespace lm::device;
using test::error_of;
using test::host_accelerator;

/// The host, and a GPU if there is one.
std::vector<std::unique_ptr<accelerator>> accelerators() {
  std::vector<std::unique_ptr<accelerator>> all;
  all.push_back(std::make_unique<host_accelerator>());
  try {
    all.push_back(make_cuda_accelerator());
  } catch (gptq::error const& e) {
    std::printf("no GPU here: %s\n", e.what());
  }
  return all;
}

// ---- a decoder layer in plain loops ----

using values = std::vector<double>;

struct reference_layer {
  layer_source const& s;
  values x;  ///< [tokens, hidden]
  index_t windows, length;
  rope_table const* rope;

  static double norm_factor(double const* v, index_t n, double epsilon) {
    double sum = 0.0;
    for (index_t i = 0; i < n; ++i) sum += v[i] * v[i];
    return 1.0 / std::sqrt(sum / static_cast<double>(n) + epsilon);
  }
  static values normed(values const& v, std::vector<float> const& w, double epsilon) {
    auto const n = static_cast<index_t>(w.size());
    values y(v.size());
    for (std::size_t row = 0; row < v.size(); row += w.size()) {
      double const f = norm_factor(&v[row], n, epsilon);
      for (std::size_t i = 0; i < w.size(); ++i) y[row + i] = v[row + i] * f * static_cast<double>(w[i]);
    }
    return y;
  }
  values multiplied(values const& v, stage at) const {
    layer_arithmetic const& a = s.arithmetic;
    index_t const in = a.in(at), out = a.out(at), rows = windows * length;
    values y(static_cast<std::size_t>(rows * out));
    index_t first = 0;
    for (linear_source const& l : s.linears[static_cast<std::size_t>(at)]) {
      auto const* const w = static_cast<float const*>(l.weight.data);
      for (index_t t = 0; t < rows; ++t) {
        for (index_t o = 0; o < l.weight.rows; ++o) {
          double sum = l.bias.empty() ? 0.0 : static_cast<double>(l.bias[static_cast<std::size_t>(o)]);
          for (index_t i = 0; i < in; ++i) {
            sum += static_cast<double>(w[o * in + i]) * v[static_cast<std::size_t>(t * in + i)];
          }
          y[static_cast<std::size_t>(t * out + first + o)] = sum;
        }
      }
      first += l.weight.rows;
    }
    return y;
  }
  void add(values y, std::vector<float> const& norm) {
    if (!norm.empty()) y = normed(y, norm, static_cast<double>(s.arithmetic.epsilon));
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] += static_cast<double>(s.arithmetic.residual_multiplier) * y[i];
  }
  values attention(values qkv) const {
    layer_arithmetic const& a = s.arithmetic;
    index_t const width = a.out(stage::query_key_value), size = a.head_dim;
    values mixed(static_cast<std::size_t>(windows * length * a.query_size()));
    for (index_t t = 0; t < windows * length; ++t) {
      for (index_t h = 0; h < a.heads + a.key_value_heads; ++h) {  // query and key heads
        double* const head = &qkv[static_cast<std::size_t>(t * width + h * size)];
        auto const& norm = h < a.heads ? s.query_norm : s.key_norm;
        if (!norm.empty()) {
          double const f = norm_factor(head, size, static_cast<double>(a.epsilon));
          for (index_t i = 0; i < size; ++i)
            head[i] *= f * static_cast<double>(norm[static_cast<std::size_t>(i)]);
        }
        if (rope == nullptr) continue;
        index_t const half = rope->rotated / 2;
        for (index_t i = 0; i < half; ++i) {
          auto const at = static_cast<std::size_t>(t % length * half + i);
          double const c = static_cast<double>(rope->cos[at]), n = static_cast<double>(rope->sin[at]);
          double const low = head[i], high = head[i + half];
          head[i] = low * c - high * n, head[i + half] = high * c + low * n;
        }
      }
    }
    for (index_t w = 0; w < windows; ++w) {
      for (index_t h = 0; h < a.heads; ++h) {
        for (index_t t = 0; t < length; ++t) {
          index_t const shared = a.heads + h / (a.heads / a.key_value_heads);
          auto const row = [&](index_t token, index_t head) {
            return &qkv[static_cast<std::size_t>((w * length + token) * width + head * size)];
          };
          index_t const first = a.window > 0 ? std::max(index_t{0}, t + 1 - a.window) : 0;
          values weights;
          for (index_t k = first; k <= t; ++k) {
            double score = static_cast<double>(a.attention_scale) *
                           std::inner_product(row(t, h), row(t, h) + size, row(k, shared), 0.0);
            double const cap = static_cast<double>(a.attention_soft_cap);
            if (cap > 0.0) score = cap * std::tanh(score / cap);
            weights.push_back(std::exp(score));
          }
          double const sum = std::accumulate(weights.begin(), weights.end(), 0.0);
          for (index_t k = first; k <= t; ++k) {
            for (index_t i = 0; i < size; ++i) {
              mixed[static_cast<std::size_t>((w * length + t) * a.query_size() + h * size + i)] +=
                  weights[static_cast<std::size_t>(k - first)] / sum * row(k, shared + a.key_value_heads)[i];
            }
          }
        }
      }
    }
    return mixed;
  }

  /// The inputs of all stages, and x becomes the output.
  std::array<values, stages> run() {
    layer_arithmetic const& a = s.arithmetic;
    auto const epsilon = static_cast<double>(a.epsilon);
    std::array<values, stages> inputs;
    inputs[0] = normed(x, s.attention_norm, epsilon);
    inputs[1] = attention(multiplied(inputs[0], stage::query_key_value));
    add(multiplied(inputs[1], stage::output), s.after_attention_norm);
    inputs[2] = normed(x, s.mlp_norm, epsilon);
    values const both = multiplied(inputs[2], stage::gate_up);
    auto const inner = static_cast<std::size_t>(a.intermediate);
    for (std::size_t at = 0; at < both.size(); at += 2 * inner) {
      for (std::size_t i = 0; i < inner; ++i) {
        double const g = both[at + i];
        double const f =
            a.gate == gate_function::silu
                ? g / (1.0 + std::exp(-g))
                : 0.5 * g * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (g + 0.044715 * g * g * g)));
        inputs[3].push_back(f * both[at + inner + i]);
      }
    }
    add(multiplied(inputs[3], stage::down), s.after_mlp_norm);
    return inputs;
  }
};

// ---- random layers ----

/// Weights in float32 that `kept` keeps alive.
layer_source random_layer(test::random& random, layer_arithmetic const& a, bool fused = false) {
  layer_source s;
  s.arithmetic = a;
  auto const some = [&](index_t n, float center, float deviation) {
    std::vector<float> v = random.normals(static_cast<std::size_t>(n));
    for (float& x : v) x = center + deviation * x;
    return v;
  };
  s.attention_norm = some(a.hidden, 1.0F, 0.1F);
  s.mlp_norm = some(a.hidden, 1.0F, 0.1F);
  auto const linear = [&](char const* name, index_t out, index_t in) {
    auto const data =
        std::make_shared<std::vector<float>>(some(out * in, 0.0F, 1.0F / std::sqrt(static_cast<float>(in))));
    return linear_source{name, {data->data(), number::float32, out, in, data}, {}};
  };
  if (fused) {
    s.linears = {{{linear("qkv_proj", a.query_size() + 2 * a.key_value_size(), a.hidden)},
                  {linear("o_proj", a.hidden, a.query_size())},
                  {linear("gate_up_proj", 2 * a.intermediate, a.hidden)},
                  {linear("down_proj", a.hidden, a.intermediate)}}};
  } else {
    s.linears = {
        {{linear("q_proj", a.query_size(), a.hidden), linear("k_proj", a.key_value_size(), a.hidden),
          linear("v_proj", a.key_value_size(), a.hidden)},
         {linear("o_proj", a.hidden, a.query_size())},
         {linear("gate_proj", a.intermediate, a.hidden), linear("up_proj", a.intermediate, a.hidden)},
         {linear("down_proj", a.hidden, a.intermediate)}}};
  }
  return s;
}

rope_table random_rope(index_t positions, index_t rotated) {
  rope_table rope;
  rope.rotated = rotated;
  for (index_t p = 0; p < positions; ++p) {
    for (index_t i = 0; i < rotated / 2; ++i) {
      double const angle = static_cast<double>(p) *
                           std::pow(100.0, -2.0 * static_cast<double>(i) / static_cast<double>(rotated));
      rope.cos.push_back(static_cast<float>(std::cos(angle)));
      rope.sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return rope;
}

layer_arithmetic llama_like() {
  layer_arithmetic a;
  a.hidden = 32, a.heads = 4, a.key_value_heads = 2, a.head_dim = 8, a.intermediate = 48;
  a.epsilon = 1e-5F, a.attention_scale = 0.35F, a.rope = 0;
  return a;
}

double relative_error(std::vector<float> const& got, values const& want) {
  REQUIRE(got.size() == want.size());
  double error = 0.0, size = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    double const d = static_cast<double>(got[i]) - want[i];
    error += d * d, size += want[i] * want[i];
  }
  return std::sqrt(error / size);  // a NaN passes no comparison
}

std::vector<float> host_of(accelerator& on, numbers n, index_t count) {
  array<float> const wide(on, count);
  on.convert({wide.data(), number::float32}, n, count);
  return wide.host();
}

/// Sums of products of rounded numbers: float32's error grows with their number; 16 bits round each input.
double tolerance(number type) {
  return type == number::float32 ? 2e-6 : type == number::float16 ? 4e-3 : 3e-2;
}

void check_layer(accelerator& on, layer_source const& source, rope_table const& rope, index_t windows,
                 index_t length, number type) {
  INFO(on.name() << ", " << name_of(type) << ", " << windows << " x " << length);
  layer_arithmetic const& a = source.arithmetic;
  test::random random(7);
  std::vector<float> const x = random.normals(static_cast<std::size_t>(windows * length * a.hidden));
  reference_layer reference{source, values(x.begin(), x.end()), windows, length,
                            a.rope < 0 ? nullptr : &rope};
  auto const want = reference.run();

  forward_pass const pass(on, type, length, std::span(&rope, 1));
  decoder_layer layer(on);
  on.order_transfers();
  layer.fill(layer_source(source));
  on.await_transfers();
  layer.prepare(type);
  array<float> const residual(on, x);
  number_array input;
  for (stage const s : {stage::query_key_value, stage::output, stage::gate_up, stage::down}) {
    index_t const count = windows * length * a.in(s);
    number_array next(on, count, type);
    pass.run_stage(layer, s, windows, residual.data(), input, next);
    INFO("stage " << static_cast<int>(s));
    CHECK(relative_error(host_of(on, next, count), want[static_cast<std::size_t>(s)]) < tolerance(type));
    input = std::move(next);
  }
  pass.finish(layer, windows, residual.data(), input);
  CHECK(relative_error(residual.host(), reference.x) < tolerance(type));

  array<float> const again(on, x);
  pass.run_layer(layer, windows, again.data());
  CHECK(again.host() == residual.host());
}

constexpr std::array types{number::float32, number::float16, number::bfloat16};

}  // namespace

TEST_CASE("a decoder layer on a device computes what plain loops do") {
  test::random random(3);
  for (auto const& on : accelerators()) {
    for (number const type : types) {
      layer_arithmetic a = llama_like();
      check_layer(*on, random_layer(random, a), random_rope(40, 8), 3, 37, type);
      a.key_value_heads = 4;
      check_layer(*on, random_layer(random, a, true), random_rope(40, 4), 1, 5, type);  // partial rope, fused
      a.key_value_heads = 1, a.rope = -1, a.gate = gate_function::gelu_tanh, a.residual_multiplier = 0.5F;
      check_layer(*on, random_layer(random, a), random_rope(40, 8), 2, 1, type);
    }
  }
}

TEST_CASE("norms, biases, soft caps and windows of a decoder layer on a device") {
  test::random random(4);
  for (auto const& on : accelerators()) {
    for (number const type : types) {
      layer_arithmetic a = llama_like();
      a.attention_soft_cap = 1.5F;
      layer_source s = random_layer(random, a);
      auto const near = [&](index_t n, float center) {
        std::vector<float> v = random.normals(static_cast<std::size_t>(n));
        for (float& x : v) x = center + 0.2F * x;
        return v;
      };
      s.query_norm = near(a.head_dim, 1.0F), s.key_norm = near(a.head_dim, 1.5F);
      s.after_attention_norm = near(a.hidden, 1.0F), s.after_mlp_norm = near(a.hidden, 0.5F);
      check_layer(*on, s, random_rope(40, 8), 2, 19, type);
      s.query_norm.clear(), s.after_mlp_norm.clear();
      for (auto& linears : s.linears) {
        for (auto& l : linears) l.bias = near(l.weight.rows, 0.0F);
      }
      s.linears[0][1].bias.clear();  // of keys alone there is none
      for (index_t const window : {1, 2, 18, 19, 20}) {
        s.arithmetic.window = window;
        check_layer(*on, s, random_rope(40, 8), 2, 19, type);
      }
    }
  }
}

TEST_CASE("attention over several blocks of queries, with and without a window") {
  test::random random(5);
  layer_arithmetic a = llama_like();
  a.hidden = 16, a.heads = 2, a.key_value_heads = 1, a.intermediate = 8;
  for (auto const& on : accelerators()) {
    for (index_t const window : {0, 13, 512, 513}) {
      a.window = window;
      check_layer(*on, random_layer(random, a), random_rope(1100, 8), 1, 1100, number::float32);
      check_layer(*on, random_layer(random, a), random_rope(1100, 8), 2, 512, number::bfloat16);
    }
  }
}

// ---- calibration ----

namespace {

constexpr index_t vocabulary = 40;

struct random_model {
  model_source source;
  std::vector<layer_source> layers;
  std::vector<float> table;

  explicit random_model(index_t count, number type = number::float32) {
    test::random random(11);
    layer_arithmetic const a = llama_like();
    for (index_t i = 0; i < count; ++i) layers.push_back(random_layer(random, a));
    for (layer_source& s : layers) {
      for (auto& linears : s.linears) {
        for (linear_source& l : linears) store_as(l.weight, type);
      }
    }
    table = random.normals(static_cast<std::size_t>(vocabulary * a.hidden));
    source.layers = count;
    source.hidden = a.hidden;
    source.embedding = {table.data(), number::float32, vocabulary, a.hidden, nullptr};
    source.embedding_multiplier = 1.5F;
    source.ropes.push_back(random_rope(32, 8));
    source.load = [this](index_t i) { return layers[static_cast<std::size_t>(i)]; };
    source.final_norm.assign(static_cast<std::size_t>(a.hidden), 1.25F);
    source.epsilon = 1e-5F;
    source.output = source.embedding;
    source.logit_multiplier = 0.3F;
    source.logit_soft_cap = 4.0F;
  }

  /// The weights become what that type can hold.
  static void store_as(host_matrix& m, number type) {
    if (type != number::bfloat16) return;
    auto const* const from = static_cast<float const*>(m.data);
    auto const data = std::make_shared<std::vector<gptq::bfloat16>>();
    for (index_t i = 0; i < m.rows * m.columns; ++i) data->push_back(gptq::bfloat16(from[i]));
    m = {data->data(), type, m.rows, m.columns, data};
  }
};

token_windows random_windows(index_t count, index_t length) {
  test::random random(12);
  token_windows w;
  w.length = length;
  for (index_t i = 0; i < count * length; ++i) w.tokens.push_back(random.below(vocabulary));
  return w;
}

using q4 = gptq::format<gptq::asymmetric, 4, 32>;

calibration plain(index_t windows) {
  calibration how;
  how.format = gptq::to_spec<q4>();
  how.options.quality = gptq::quality::plain;
  how.options.act_order = true;
  how.activations = number::float32;
  how.calibrating = windows;
  return how;
}

std::vector<linear_result> results_of(accelerator& on, random_model const& m, token_windows const& windows,
                                      calibration how) {
  std::vector<linear_result> all;
  index_t passed = 0;
  how.finish = [](linear_result& r) { r.made = std::make_shared<std::string>(r.name); };
  how.done = [&](std::vector<linear_result>&& results) {
    for (linear_result& r : results) all.push_back(std::move(r));
  };
  how.advance = [&](index_t count) { passed += count; };
  calibrate(on, m.source, windows, how);
  CHECK(passed == windows.count() * m.source.layers);
  REQUIRE(all.size() == 7 * m.layers.size());
  for (linear_result const& r : all) {
    CHECK(*static_cast<std::string*>(r.made.get()) == r.name);
    CHECK(r.name ==
          m.layers[static_cast<std::size_t>(r.layer)].linears[static_cast<std::size_t>(r.at)][r.number].name);
  }
  return all;
}

gptq::quantized_layer<q4> layer_of(linear_result const& r) {
  return {r.out, r.in, r.codes.codes, r.codes.scales, r.codes.zeros, r.codes.order, r.report};
}

/// The same by the reference, in float for the library: codes of all linear layers.
/// @param strengths  with which errors were propagated, are added; may be null
std::vector<gptq::quantized_layer<q4>> quantized_by_loops(random_model const& m, token_windows const& windows,
                                                          calibration const& how,
                                                          std::vector<double>* strengths = nullptr) {
  std::vector<gptq::quantized_layer<q4>> all;
  index_t const hidden = m.source.hidden;
  values x;
  for (std::int32_t const token : windows.tokens) {
    for (index_t i = 0; i < hidden; ++i) {
      x.push_back(1.5 * static_cast<double>(m.table[static_cast<std::size_t>(token * hidden + i)]));
    }
  }
  values exact_x = x;  // in the unquantized model
  for (layer_source const& original : m.layers) {
    reference_layer exact{original, exact_x, windows.count(), windows.length, &m.source.ropes[0]};
    auto const exact_inputs = exact.run();
    layer_source s = original;
    for (std::size_t at = 0; at < stages; ++at) {
      // With all stages before it quantized, or none.
      layer_source const& seen = how.true_sequential ? s : original;
      auto const inputs = reference_layer{seen, x, windows.count(), windows.length, &m.source.ropes[0]}.run();
      index_t const in = s.arithmetic.in(stage(static_cast<int>(at)));
      auto const sequence = [&](auto const& of_stages, index_t w) {
        gptq::matrix tokens(windows.length, in);
        for (index_t i = 0; i < tokens.size(); ++i) {
          tokens.data()[i] =
              static_cast<float>(of_stages[at][static_cast<std::size_t>(w * windows.length * in + i)]);
        }
        return tokens;
      };
      gptq::hessian h(in), held_out(in);
      gptq::input_error error(in), held_out_error(in);
      for (index_t w = 0; w < windows.count(); ++w) {
        bool const calibrates = w < how.calibrating;
        auto const seen_tokens = sequence(inputs, w);
        (calibrates ? h : held_out).add(seen_tokens);
        (calibrates ? error : held_out_error).add(sequence(exact_inputs, w), seen_tokens);
      }
      bool const some_held_out = how.calibrating < windows.count();
      gptq::held_out_inputs const others{held_out, held_out_error};
      for (std::size_t l = 0; l < s.linears[at].size(); ++l) {
        host_matrix& w = s.linears[at][l].weight;
        gptq::matrix weight =
            Eigen::Map<gptq::matrix const>(static_cast<float const*>(w.data), w.rows, w.columns);
        if (how.propagate) {
          auto compensated = gptq::compensate(std::move(weight), h, error,
                                              {.strength = *how.propagate, .damping = how.options.damping},
                                              some_held_out ? &others : nullptr);
          weight = std::move(compensated.weight);
          if (strengths != nullptr) strengths->push_back(compensated.strength);
        }
        auto layer = gptq::quantize<q4>(weight, h, how.options, some_held_out ? &held_out : nullptr);
        auto const decoded = std::make_shared<gptq::matrix>(gptq::dequantize(layer));
        w = {decoded->data(), number::float32, w.rows, w.columns, decoded};
        all.push_back(std::move(layer));
      }
    }
    reference_layer last{s, x, windows.count(), windows.length, &m.source.ropes[0]};
    last.run();
    x = last.x;
    exact_x = exact.x;
  }
  return all;
}

/// Of all codes, those that differ.
double different(std::vector<linear_result> const& got, std::vector<gptq::quantized_layer<q4>> const& want) {
  REQUIRE(got.size() == want.size());
  double differing = 0.0, count = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    auto const a = gptq::dequantize(layer_of(got[i])), b = gptq::dequantize(want[i]);
    REQUIRE(a.size() == b.size());
    for (index_t j = 0; j < a.size(); ++j) {
      differing += std::abs(a.data()[j] - b.data()[j]) > 1e-3F * std::abs(b.data()[j]);
      ++count;
    }
  }
  return differing / count;
}

}  // namespace

TEST_CASE("calibration on a device finds the codes of the library on the loops' activations") {
  random_model const m(2);
  auto const windows = random_windows(7, 24);
  for (auto const& on : accelerators()) {
    for (bool const sequential : {false, true}) {
      for (index_t const held_out : {0, 2}) {
        INFO(on->name() << (sequential ? ", true sequential" : "") << ", " << held_out
                        << " windows held out");
        calibration how = plain(windows.count() - held_out);
        how.true_sequential = sequential;
        auto const want = quantized_by_loops(m, windows, how);
        for (std::size_t const batch_bytes : {std::size_t{1}, std::size_t{300000}, std::size_t{1} << 30}) {
          how.batch_bytes = batch_bytes;
          auto const got = results_of(*on, m, windows, how);
          // A tie moves a code, and in its row those after it; the activations of later layers with them.
          CHECK(different(got, want) < 0.02);
          for (std::size_t i = 0; i < got.size(); ++i) {
            CHECK(got[i].report.loss == Approx(want[i].report.loss).epsilon(0.01));
            CHECK(std::isfinite(got[i].report.held_out_error) == (held_out > 0));
            CHECK((held_out == 0 || got[i].report.held_out_error > 0.3 * got[i].report.output_error));
          }
        }
      }
    }
  }
}

TEST_CASE("held-out windows choose, and errors are propagated, on a device as in the library") {
  random_model const m(2);
  auto const windows = random_windows(9, 24);
  for (auto const& on : accelerators()) {
    for (int const run : {0, 1, 2, 3, 4}) {
      calibration how = plain(windows.count() - (run == 4 ? 0 : 2));
      how.options.quality = run < 2    ? gptq::quality::fast
                            : run == 2 ? gptq::quality::best
                                       : gptq::quality::plain;
      how.options.act_order = run != 1;
      how.true_sequential = run % 2 == 1;
      if (run > 0) how.propagate = run == 4 ? 0.5 : 1.0;
      INFO(on->name() << ", run " << run);
      std::vector<double> strengths;
      auto const want = quantized_by_loops(m, windows, how, &strengths);
      auto const got = results_of(*on, m, windows, how);
      CHECK(different(got, want) < 0.05);
      for (std::size_t i = 0; i < got.size(); ++i) {
        CHECK(got[i].codes.order == want[i].order);
        CHECK(got[i].report.fell_back == want[i].report.fell_back);
        CHECK(got[i].report.damping == want[i].report.damping);
        CHECK(got[i].report.loss == Approx(want[i].report.loss).epsilon(0.02));
        CHECK(std::isnan(got[i].report.held_out_error) == (run == 4));
        CHECK((run == 4 ||
               got[i].report.held_out_error == Approx(want[i].report.held_out_error).epsilon(0.02)));
        CHECK(got[i].propagated == Approx(run > 0 ? strengths[i] : 0.0).margin(0.01));
      }
    }
  }
}

TEST_CASE("activations in 16 bits hardly change the loss") {
  random_model const m(2, number::bfloat16);
  auto const windows = random_windows(16, 32);
  host_accelerator host;
  calibration how = plain(windows.count());
  auto const want = results_of(host, m, windows, how);
  double exact = 0.0;
  for (auto const& r : want) exact += r.report.loss;
  for (auto const& on : accelerators()) {
    for (number const type : {number::float16, number::bfloat16}) {
      INFO(on->name() << ", " << name_of(type));
      how.activations = type;
      double sum = 0.0;
      for (auto const& r : results_of(*on, m, windows, how)) sum += r.report.loss;
      // Rounding decides ties anew; over so few weights their losses do not average out.
      CHECK(sum == Approx(exact).epsilon(0.01));
    }
  }
}

TEST_CASE("samples of weights and inputs are those that were asked for") {
  random_model const m(1);
  auto const windows = random_windows(5, 8);
  for (auto const& on : accelerators()) {
    for (bool const sequential : {false, true}) {
      calibration how = plain(4);
      how.true_sequential = sequential;
      how.batch_bytes = 1;  // a window at a time
      how.sample = {0, 7, 8, 31};
      how.some_of = [](index_t count) { return std::vector<std::int64_t>{0, count / 2, count - 1}; };
      auto const all = results_of(*on, m, windows, how);
      auto const* const q = static_cast<float const*>(m.layers[0].linears[0][0].weight.data);
      CHECK(all[0].weights ==
            std::vector<float>{q[0], q[all[0].out * all[0].in / 2], q[all[0].out * all[0].in - 1]});
      // The first stage's input is the embeddings' norm.
      std::vector<float> const& norm = m.layers[0].attention_norm;
      auto const input = [&](std::size_t token, std::size_t i) {
        values x;
        for (std::size_t j = 0; j < 32; ++j) {
          x.push_back(1.5 *
                      static_cast<double>(m.table[static_cast<std::size_t>(windows.tokens[token]) * 32 + j]));
        }
        return reference_layer::normed(x, norm, 1e-5)[i];
      };
      REQUIRE(all[0].inputs.size() == 3);
      CHECK(static_cast<double>(all[0].inputs[0]) == Approx(input(0, 0)));
      CHECK(static_cast<double>(all[0].inputs[1]) == Approx(input(8, 0)));
      CHECK(static_cast<double>(all[0].inputs[2]) == Approx(input(31, 31)));
    }
  }
}

TEST_CASE("what inputs in int8 add to a layer's error") {
  random_model const m(1);
  auto const windows = random_windows(5, 24);
  for (auto const& on : accelerators()) {
    INFO(on->name());
    for (bool const act_order : {false, true}) {
      calibration how = plain(5);
      how.options.act_order = act_order;
      how.sample.resize(120);
      std::iota(how.sample.begin(), how.sample.end(), 0);
      auto const all = results_of(*on, m, windows, how);
      // The first stage once more: all tokens are sampled, so that its own error is report.output_error.
      values x;
      for (std::int32_t const token : windows.tokens) {
        for (std::size_t i = 0; i < 32; ++i) {
          x.push_back(1.5 * static_cast<double>(m.table[static_cast<std::size_t>(token) * 32 + i]));
        }
      }
      values const inputs = reference_layer::normed(x, m.layers[0].attention_norm, 1e-5);
      auto const decoded = gptq::dequantize(layer_of(all[0]));
      auto const* const w = static_cast<float const*>(m.layers[0].linears[0][0].weight.data);
      double in_int8 = 0.0, signal = 0.0;
      for (std::size_t t = 0; t < 120; ++t) {
        double largest = 0.0;  // of a chunk, which all 32 columns are
        for (std::size_t i = 0; i < 32; ++i) largest = std::max(largest, std::abs(inputs[t * 32 + i]));
        for (index_t o = 0; o < all[0].out; ++o) {
          double got = 0.0, want = 0.0;
          for (index_t i = 0; i < 32; ++i) {
            double const v = inputs[t * 32 + static_cast<std::size_t>(i)];
            got += std::nearbyint(v * 127.0 / largest) * largest / 127.0 * static_cast<double>(decoded(o, i));
            want += v * static_cast<double>(w[o * 32 + i]);
          }
          in_int8 += (got - want) * (got - want), signal += want * want;
        }
      }
      CHECK(all[0].int8_error == Approx(in_int8 / signal).epsilon(1e-3));
      for (auto const& r : all) CHECK(r.int8_error > 0.5 * r.report.output_error);
    }
  }
}

TEST_CASE("int8's change of a row, chunk by chunk of its groups in their order") {
  // 300 columns: groups of 160 are chunks of 128, 32, 128, 12.
  test::random random(21);
  for (auto const& on : accelerators()) {
    std::vector<float> const x = random.normals(2 * 300);
    std::vector<std::int32_t> order(300);
    std::iota(order.begin(), order.end(), 0);
    std::reverse(order.begin(), order.end());
    array<float> const from(*on, x), to(*on, 600);
    array<std::int32_t> const order_on_device(*on, order);
    for (bool const reversed : {false, true}) {
      on->int8_error({to.data(), number::float32}, from.data(), reversed ? order_on_device.data() : nullptr,
                     2, 300, 160);
      auto const got = to.host();
      for (std::size_t row = 0; row < 2; ++row) {
        for (auto const& [first, last] : {std::pair{0, 128}, {128, 160}, {160, 288}, {288, 300}}) {
          auto const at = [&](int i) {
            return row * 300 + static_cast<std::size_t>(reversed ? order[static_cast<std::size_t>(i)] : i);
          };
          float largest = 0.0F;
          for (int i = first; i < last; ++i) largest = std::max(largest, std::abs(x[at(i)]));
          for (int i = first; i < last; ++i) {
            float const digit = (got[at(i)] + x[at(i)]) * 127.0F / largest;
            CHECK(std::abs(digit - std::round(digit)) < 1e-3F);
            CHECK(std::abs(got[at(i)]) <= largest / 253.9F);
          }
        }
      }
    }
  }
}

TEST_CASE("a finished layer is run and not quantized") {
  random_model m(2);
  auto const windows = random_windows(4, 16);
  for (auto const& on : accelerators()) {
    auto const all = results_of(*on, m, windows, plain(4));
    random_model resumed(2);
    for (std::size_t i = 0; i < 7; ++i) {
      auto const decoded = std::make_shared<gptq::matrix>(gptq::dequantize(layer_of(all[i])));
      auto& l = resumed.layers[0].linears[static_cast<std::size_t>(all[i].at)][all[i].number].weight;
      l = {decoded->data(), number::float32, l.rows, l.columns, decoded};
    }
    resumed.layers[0].finished = true;
    std::vector<linear_result> rest;
    calibration how = plain(4);
    how.done = [&](std::vector<linear_result>&& results) {
      for (auto& r : results) rest.push_back(std::move(r));
    };
    calibrate(*on, resumed.source, windows, how);
    REQUIRE(rest.size() == 7);
    for (std::size_t i = 0; i < 7; ++i) {
      CHECK(rest[i].layer == 1);
      CHECK(rest[i].codes.codes == all[7 + i].codes.codes);
      CHECK(rest[i].codes.scales == all[7 + i].codes.scales);
    }
  }
}

TEST_CASE("the loss of a text on a device") {
  random_model const m(2);
  auto const windows = random_windows(5, 9);
  // In loops.
  values x;
  for (std::int32_t const token : windows.tokens) {
    for (index_t i = 0; i < 32; ++i)
      x.push_back(1.5 * static_cast<double>(m.table[static_cast<std::size_t>(token * 32 + i)]));
  }
  for (layer_source const& s : m.layers) {
    reference_layer layer{s, x, windows.count(), windows.length, &m.source.ropes[0]};
    layer.run();
    x = layer.x;
  }
  x = reference_layer::normed(x, m.source.final_norm, 1e-5);
  double want = 0.0;
  for (std::size_t t = 0; t < windows.tokens.size(); ++t) {
    if (t % 9 == 8) continue;
    values logits;
    for (std::size_t v = 0; v < vocabulary; ++v) {
      double sum = 0.0;
      for (std::size_t i = 0; i < 32; ++i) sum += x[t * 32 + i] * static_cast<double>(m.table[v * 32 + i]);
      logits.push_back(4.0 * std::tanh(0.3 * sum / 4.0));
    }
    double all = 0.0;
    for (double const l : logits) all += std::exp(l);
    want += std::log(all) - logits[static_cast<std::size_t>(windows.tokens[t + 1])];
  }
  want /= 5.0 * 8.0;
  for (auto const& on : accelerators()) {
    INFO(on->name());
    for (std::size_t const batch_bytes : {std::size_t{1}, std::size_t{1} << 30}) {
      index_t passed = 0;
      double const got = mean_loss(
          *on, m.source, windows, number::float32, [&](index_t n) { passed += n; }, batch_bytes);
      CHECK(got == Approx(want).epsilon(1e-6));
      CHECK(passed == 3 * 5);
      CHECK(mean_loss(*on, m.source, windows, number::bfloat16, [](index_t) {}) ==
            Approx(want).epsilon(0.01));
    }
  }
}

TEST_CASE("attention of a token to cached keys and values") {
  struct {
    index_t key_value_heads, sharing, size, rotated, window, position;
    float soft_cap;
    bool norms, bias, placed;
  } const cases[] = {
      {2, 1, 16, 16, 0, 0, 0.0F, false, false, false},    {1, 2, 64, 32, 0, 5, 0.0F, true, false, true},
      {8, 4, 128, 128, 0, 700, 0.0F, false, false, true}, {2, 7, 80, 40, 100, 900, 20.0F, true, true, true},
      {1, 3, 256, 256, 64, 63, 5.0F, false, true, false}, {1, 12, 48, 0, 65, 64, 0.0F, true, true, true},
      {1, 8, 8, 8, 0, 4095, 0.0F, false, false, false}};
  host_accelerator host;
  for (auto const& c : cases) {
    head_shape const shape{1, 4096, c.key_value_heads, c.sharing, c.size};
    index_t const width = shape.query_size() + 2 * shape.key_value_size(), half = c.rotated / 2;
    index_t const cached = shape.length * shape.key_value_size();
    std::mt19937 random(3);
    std::uniform_real_distribution<float> uniform(-1.0F, 1.0F);
    auto const numbers = [&](index_t count) {
      std::vector<float> v(static_cast<std::size_t>(count));
      for (float& x : v) x = uniform(random);
      return v;
    };
    auto const rows = numbers(width), bias = numbers(width), query_norm = numbers(c.size),
               key_norm = numbers(c.size), cos = numbers(shape.length * half),
               sin = numbers(shape.length * half);
    std::vector<gptq::float16> keys, values;
    for (float const x : numbers(cached)) keys.emplace_back(x), values.emplace_back(-0.5F * x);
    std::vector<std::int32_t> places(static_cast<std::size_t>(shape.query_size()));
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), random);
    std::vector<std::int32_t> const position{static_cast<std::int32_t>(c.position)};
    struct found {
      std::vector<gptq::float16> mixed, keys, values;
    };
    auto const attend = [&](accelerator& on) {
      array<float> const r(on, rows), b(on, bias), q(on, query_norm), k(on, key_norm), co(on, cos),
          si(on, sin);
      array<gptq::float16> const ks(on, keys), vs(on, values), to(on, shape.query_size());
      array<std::int32_t> const pl(on, places), po(on, position);
      array<char> const workspace(on, static_cast<index_t>(on.attention_bytes(shape)));
      on.fill_zero(workspace.data(), on.attention_bytes(shape));
      for (int twice = 0; twice < 2; ++twice) {  // the workspace is as it was
        on.attend(cached_attention{.rows = r.data(),
                                   .bias = c.bias ? b.data() : nullptr,
                                   .query_norm = c.norms ? q.data() : nullptr,
                                   .key_norm = c.norms ? k.data() : nullptr,
                                   .epsilon = 1e-5F,
                                   .shape = shape,
                                   .turn = {co.data(), si.data(), c.rotated},
                                   .position = po.data(),
                                   .keys = ks.data(),
                                   .values = vs.data(),
                                   .window = c.window,
                                   .scale = 0.3F,
                                   .soft_cap = c.soft_cap,
                                   .to = to.data(),
                                   .places = c.placed ? pl.data() : nullptr,
                                   .workspace = workspace.data()});
      }
      return found{to.host(), ks.host(), vs.host()};
    };
    auto const want = attend(host);
    for (auto const& on : accelerators()) {
      INFO(on->name() << ": " << c.key_value_heads << " x " << c.sharing << " heads of " << c.size
                      << ", position " << c.position);
      auto const got = attend(*on);
      float mixed = 0.0F, cache = 0.0F;
      for (std::size_t i = 0; i < want.mixed.size(); ++i) {
        mixed =
            std::max(mixed, std::abs(static_cast<float>(got.mixed[i]) - static_cast<float>(want.mixed[i])));
      }
      for (std::size_t i = 0; i < want.keys.size(); ++i) {
        cache = std::max({cache, std::abs(static_cast<float>(got.keys[i]) - static_cast<float>(want.keys[i])),
                          std::abs(static_cast<float>(got.values[i]) - static_cast<float>(want.values[i]))});
      }
      CHECK(mixed < 2e-3F);
      CHECK(cache < 4e-3F);  // half a unit in the last place of numbers below 8
    }
  }
}

TEST_CASE("what a device cannot do is refused by name") {
  host_accelerator host;
  auto const windows = random_windows(4, 16);
  random_model m(2);
  SECTION("windows") {
    CHECK(error_of([&] { calibrate(host, m.source, windows, plain(0)); }) ==
          "0 of 4 windows to calibrate on");
    CHECK(error_of([&] { calibrate(host, m.source, windows, plain(5)); }) ==
          "5 of 4 windows to calibrate on");
  }
  SECTION("memory") {
    host.set_capacity(10000);
    CHECK(test::contains(error_of([&] { calibrate(host, m.source, windows, plain(4)); }),
                         "the activations of 4 windows take"));
  }
  SECTION("an error of the last layer's last stage") {
    static_cast<float*>(const_cast<void*>(m.layers[1].linears[3][0].weight.data))[0] = NAN;
    CHECK(test::contains(error_of([&] { calibrate(host, m.source, windows, plain(4)); }), "down_proj: "));
  }
  SECTION("shapes") {
    m.layers[1].linears[3][0].weight.rows -= 1;
    CHECK(error_of([&] { calibrate(host, m.source, windows, plain(4)); }) ==
          "the linear layers of a stage have 31 outputs together, not 32");
  }
  SECTION("an error of what becomes of the results") {
    calibration how = plain(4);
    how.done = [](std::vector<linear_result>&& results) {
      if (results.front().layer == 1) throw gptq::error("no room");
    };
    CHECK(error_of([&] { calibrate(host, m.source, windows, how); }) == "no room");
  }
}
