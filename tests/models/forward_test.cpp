// The forward pass on small random models, against plain loops in double.
#include "forward.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors.hpp>

#include "catch.hpp"
#include "evaluate.hpp"
#include "files.hpp"
#include "model.hpp"
#include "random_model.hpp"
#include "support.hpp"

namespace {

using gptq::checkpoint::dtype;
using lm::token;
using nlohmann::json;
using test::llama3_scaling;
using test::logits_of;
using test::model_weights;
using test::random_tokens;
using test::scratch;
using test::size_of;
using test::small_config;
using test::write_model;

constexpr auto float32 = lm::arithmetic::float32;

// ---- the forward pass once more, in loops ----

using table = std::vector<std::vector<double>>;  // [token][feature]

table multiply(table const& x, std::vector<double> const& weight) {
  std::size_t const in = x[0].size();
  table y(x.size(), std::vector<double>(weight.size() / in));
  for (std::size_t t = 0; t < x.size(); ++t) {
    for (std::size_t o = 0; o < y[t].size(); ++o) {
      for (std::size_t i = 0; i < in; ++i) y[t][o] += weight[o * in + i] * x[t][i];
    }
  }
  return y;
}

table normalize(table x, std::vector<double> const& weight, double epsilon) {
  for (auto& row : x) {
    double sum = 0.0;
    for (double const v : row) sum += v * v;
    double const factor = 1.0 / std::sqrt(sum / static_cast<double>(row.size()) + epsilon);
    for (std::size_t i = 0; i < row.size(); ++i) row[i] *= factor * weight[i];
  }
  return x;
}

/// Logits [token][vocabulary].
table reference_logits(json const& config, model_weights const& w, std::vector<double> const& frequencies,
                       std::vector<token> const& tokens) {
  auto const hidden = size_of(config, "hidden_size");
  auto const heads = size_of(config, "num_attention_heads");
  auto const sharing = heads / size_of(config, "num_key_value_heads");
  auto const head = config.value("head_dim", hidden / heads);
  auto const epsilon = config.at("rms_norm_eps").get<double>();
  auto const rotate = [&](table& x) {
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t at = 0; at < x[t].size(); at += head) {
        for (std::size_t i = 0; i < head / 2; ++i) {
          double const angle = static_cast<double>(t) * frequencies[i];
          double& low = x[t][at + i];
          double& high = x[t][at + i + head / 2];
          double const turned = low * std::cos(angle) - high * std::sin(angle);
          high = high * std::cos(angle) + low * std::sin(angle);
          low = turned;
        }
      }
    }
  };
  auto const add = [](table& x, table const& y) {
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t i = 0; i < x[t].size(); ++i) x[t][i] += y[t][i];
    }
  };

  auto const& embedding = w.at("model.embed_tokens.weight");
  table x;
  for (token const id : tokens) {
    auto const* const row = embedding.data() + static_cast<std::size_t>(id) * hidden;
    x.emplace_back(row, row + hidden);
  }
  for (std::size_t l = 0; l < size_of(config, "num_hidden_layers"); ++l) {
    auto const of = [&](std::string const& name) -> std::vector<double> const& {
      return w.at("model.layers." + std::to_string(l) + "." + name + ".weight");
    };
    table const a = normalize(x, of("input_layernorm"), epsilon);
    table q = multiply(a, of("self_attn.q_proj"));
    table k = multiply(a, of("self_attn.k_proj"));
    table const v = multiply(a, of("self_attn.v_proj"));
    rotate(q);
    rotate(k);
    table mixed(x.size(), std::vector<double>(heads * head));
    for (std::size_t h = 0; h < heads; ++h) {
      std::size_t const own = h * head;
      std::size_t const shared = h / sharing * head;
      for (std::size_t t = 0; t < x.size(); ++t) {
        std::vector<double> score(t + 1);
        double sum = 0.0;
        for (std::size_t s = 0; s <= t; ++s) {
          for (std::size_t i = 0; i < head; ++i) score[s] += q[t][own + i] * k[s][shared + i];
          score[s] = std::exp(score[s] / std::sqrt(static_cast<double>(head)));
          sum += score[s];
        }
        for (std::size_t s = 0; s <= t; ++s) {
          for (std::size_t i = 0; i < head; ++i) mixed[t][own + i] += score[s] / sum * v[s][shared + i];
        }
      }
    }
    add(x, multiply(mixed, of("self_attn.o_proj")));
    table const m = normalize(x, of("post_attention_layernorm"), epsilon);
    table inner = multiply(m, of("mlp.up_proj"));
    table const gate = multiply(m, of("mlp.gate_proj"));
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t i = 0; i < inner[t].size(); ++i)
        inner[t][i] *= gate[t][i] / (1.0 + std::exp(-gate[t][i]));
    }
    add(x, multiply(inner, of("mlp.down_proj")));
  }
  x = normalize(x, w.at("model.norm.weight"), epsilon);
  return multiply(x, w.contains("lm_head.weight") ? w.at("lm_head.weight") : embedding);
}

double reference_perplexity(table const& logits, std::vector<token> const& tokens) {
  double total = 0.0;
  for (std::size_t t = 0; t + 1 < tokens.size(); ++t) {
    double sum = 0.0;
    for (double const logit : logits[t]) sum += std::exp(logit);
    total += std::log(sum) - logits[t][static_cast<std::size_t>(tokens[t + 1])];
  }
  return std::exp(total / static_cast<double>(tokens.size() - 1));
}

std::vector<double> plain_frequencies(double theta, int head) {
  std::vector<double> frequencies;
  for (int i = 0; i < head; i += 2) frequencies.push_back(std::pow(theta, -i / static_cast<double>(head)));
  return frequencies;
}

double largest_difference(gptq::matrix const& a, table const& b) {
  double largest = 0.0;
  for (std::size_t t = 0; t < b.size(); ++t) {
    for (std::size_t i = 0; i < b[t].size(); ++i) {
      auto const value = a(static_cast<Eigen::Index>(t), static_cast<Eigen::Index>(i));
      largest = std::max(largest, std::abs(static_cast<double>(value) - b[t][i]));
    }
  }
  return largest;
}

// Logits here are of the order of 1 to 10 and pass through some hundred float operations each.
constexpr double logit_tolerance = 2e-4;

}  // namespace

TEST_CASE("the forward pass agrees with plain loops in double") {
  scratch const dir;
  json config = small_config();
  dtype type = dtype::f32;
  std::size_t files = 1;
  std::vector<double> frequencies = plain_frequencies(1e4, 8);

  SECTION("as it is") {}
  SECTION("float16") { type = dtype::f16; }
  SECTION("bfloat16 in three files") {
    type = dtype::bf16;
    files = 3;
  }
  SECTION("heads that share keys and values") { config["num_key_value_heads"] = 2; }
  SECTION("one key and value head, heads of an explicit size") {
    config["num_key_value_heads"] = 1;
    config["head_dim"] = 16;
    frequencies = plain_frequencies(1e4, 16);
  }
  SECTION("tied embeddings, another theta") {
    config["tie_word_embeddings"] = true;
    config["rope_theta"] = 500.0;
    frequencies = plain_frequencies(500.0, 8);
  }
  SECTION("Llama 3's scaling of rotary embeddings") {
    config["head_dim"] = 16;
    config["rope_scaling"] = llama3_scaling();
    // From transformers' _compute_llama3_parameters in PyTorch.
    frequencies = {1.0,
                   0.24438458681106567,
                   0.013042256236076355,
                   0.0039528473280370235,
                   0.0012499999720603228,
                   0.00039528473280370235,
                   0.0001250000059371814,
                   3.9528473280370235e-05};
  }

  auto const w = write_model(dir.path, config, type, files);
  lm::model const m(dir.path);
  auto const tokens = random_tokens(40, 80);
  auto const expected = reference_logits(config, w, frequencies, tokens);
  CHECK(largest_difference(logits_of(m, tokens), expected) < logit_tolerance);

  std::vector<lm::token_window> const windows{tokens, tokens};
  for (int const threads : {1, 3}) {
    CHECK(lm::perplexity(m, windows, float32, threads) ==
          Approx(reference_perplexity(expected, tokens)).epsilon(1e-5));
  }
}

TEST_CASE("rotary frequencies of Llama 3.2") {
  lm::rope_parameters rope;
  rope.type = lm::rope_type::llama3;
  rope.dimensions = 64;
  rope.theta = 500000.0;
  rope.factor = 32.0;
  rope.original_positions = 8192.0;
  // Elements 0, 5, 14 (the last unscaled one), 15, 17 (blended), 18 and 31 of transformers' result in
  // PyTorch.
  std::vector<std::pair<std::size_t, double>> const expected{{0, 1.0},
                                                             {5, 0.12868738174438477},
                                                             {14, 0.0032114461064338684},
                                                             {15, 0.0012905480107292533},
                                                             {17, 9.708286233944818e-05},
                                                             {18, 1.9461638657958247e-05},
                                                             {31, 9.418306490260875e-08}};
  auto const frequencies = lm::rope_frequencies(rope, 1);
  REQUIRE(frequencies.size() == 32);
  for (auto const& [i, value] : expected) CHECK(frequencies[i] == Approx(value).epsilon(2e-6));
}

TEST_CASE("a token sees nothing that comes after it") {
  scratch const dir;
  json config = small_config();
  config["num_key_value_heads"] = 2;
  config["max_position_embeddings"] = 300;
  write_model(dir.path, config, dtype::f32);
  lm::model const m(dir.path);
  auto tokens = random_tokens(300, 80);  // more than a block of queries
  gptq::matrix const before = logits_of(m, tokens);
  constexpr int changed = 200;
  for (std::size_t t = changed; t < tokens.size(); ++t) tokens[t] = (tokens[t] + 1) % 80;
  gptq::matrix const after = logits_of(m, tokens);
  CHECK(before.topRows(changed) == after.topRows(changed));
  CHECK(before.row(changed) != after.row(changed));
}

TEST_CASE("the output layer of a token, whatever its type, its size and the threads") {
  scratch const dir;
  json config = small_config();
  config["vocab_size"] = GENERATE(1, 2, 81, 130);
  config["hidden_size"] = GENERATE(32, 52);
  config["head_dim"] = 8;
  write_model(dir.path, config, GENERATE(dtype::f32, dtype::f16, dtype::bf16));
  lm::model const m(dir.path);
  auto const vocab = m.config().vocab_size;
  lm::row_vector const x = lm::row_vector::Random(m.config().hidden_size);
  lm::row_vector const expected = x * m.output_rows(0, vocab).transpose();
  for (int const threads : {1, 2, 5}) {
    CHECK((m.logits(x, threads) - expected).cwiseAbs().maxCoeff() < 1e-5F);
  }
}
