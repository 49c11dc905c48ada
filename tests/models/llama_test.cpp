// The LLaMA example on small random models: its forward pass against plain loops in double, the pieces around
// it, and what the program says when it is given something wrong.
#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <numbers>
#include <random>
#include <string>
#include <unistd.h>
#include <vector>

#include <nlohmann/json.hpp>
#include <sys/wait.h>

#include <gptq/checkpoint/safetensors.hpp>
#include <gptq/quantize.hpp>

#include "catch.hpp"
#include "config.hpp"
#include "evaluate.hpp"
#include "files.hpp"
#include "forward.hpp"
#include "generation.hpp"
#include "gguf_model.hpp"
#include "gguf_tokenizer.hpp"
#include "gptq_model.hpp"
#include "interrupt.hpp"
#include "model.hpp"
#include "packed_model.hpp"
#include "quantize_model.hpp"
#include "support.hpp"
#include "tokens.hpp"

namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::dtype;
using gptq::checkpoint::tensor_map;
using llama::token;
using nlohmann::json;
using test::contains;
using test::error_of;
using test::scratch;
using test::write_file;

constexpr auto float32 = llama::arithmetic::float32;

// ---- a random model ----

json small_config() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", 32},
          {"intermediate_size", 48},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 4},
          {"vocab_size", 80},
          {"max_position_embeddings", 64},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", false}};
}

std::size_t size_of(json const& config, char const* key) { return config.at(key).get<std::size_t>(); }

/// Weights as the model sees them, that is, rounded to the stored type.
using weights = std::map<std::string, std::vector<double>>;

/// Writes a random model of this configuration, spread over `files` files.
weights write_model(fs::path const& directory, json const& config, dtype type, std::size_t files = 1) {
  auto const hidden = size_of(config, "hidden_size");
  auto const heads = size_of(config, "num_attention_heads");
  auto const head = config.value("head_dim", hidden / heads);
  auto const key_value = size_of(config, "num_key_value_heads") * head;
  auto const inner = size_of(config, "intermediate_size");
  auto const vocab = size_of(config, "vocab_size");
  std::map<std::string, std::vector<std::size_t>> shapes{{"model.embed_tokens.weight", {vocab, hidden}},
                                                         {"model.norm.weight", {hidden}}};
  if (!config.at("tie_word_embeddings").get<bool>()) shapes["lm_head.weight"] = {vocab, hidden};
  for (std::size_t i = 0; i < size_of(config, "num_hidden_layers"); ++i) {
    std::string const layer = "model.layers." + std::to_string(i) + ".";
    shapes[layer + "input_layernorm.weight"] = {hidden};
    shapes[layer + "post_attention_layernorm.weight"] = {hidden};
    shapes[layer + "self_attn.q_proj.weight"] = {heads * head, hidden};
    shapes[layer + "self_attn.k_proj.weight"] = {key_value, hidden};
    shapes[layer + "self_attn.v_proj.weight"] = {key_value, hidden};
    shapes[layer + "self_attn.o_proj.weight"] = {hidden, heads * head};
    shapes[layer + "mlp.gate_proj.weight"] = {inner, hidden};
    shapes[layer + "mlp.up_proj.weight"] = {inner, hidden};
    shapes[layer + "mlp.down_proj.weight"] = {hidden, inner};
  }

  std::mt19937 random(1);
  weights values;
  std::map<std::string, std::vector<std::byte>> bytes;
  std::vector<tensor_map> parts(files);
  json index;
  std::size_t next = 0;
  for (auto const& entry : shapes) {
    std::string const& name = entry.first;
    auto const& shape = entry.second;
    std::size_t const count = shape.size() == 1 ? shape[0] : shape[0] * shape[1];
    float const center = shape.size() == 1 ? 1.0F : 0.0F;  // norms scale by about 1
    auto& stored = bytes[name];
    auto const put = [&](auto value) {
      auto const* const from = reinterpret_cast<std::byte const*>(&value);
      stored.insert(stored.end(), from, from + sizeof value);
      values[name].push_back(static_cast<double>(static_cast<float>(value)));
    };
    for (std::size_t i = 0; i < count; ++i) {
      float const value = center + (static_cast<float>(random() >> 8) * 0x1p-24F - 0.5F);
      if (type == dtype::f32) put(value);
      if (type == dtype::f16) put(gptq::float16(value));
      if (type == dtype::bf16) put(gptq::bfloat16(value));
    }
    std::size_t const part = next++ % files;
    parts[part][name] = {type, shape, stored};
    index["weight_map"][name] = "part-" + std::to_string(part) + ".safetensors";
  }
  fs::remove(directory / "model.safetensors");
  if (files == 1) {
    write_safetensors(directory / "model.safetensors", parts[0]);
  } else {
    for (std::size_t p = 0; p < files; ++p) {
      write_safetensors(directory / ("part-" + std::to_string(p) + ".safetensors"), parts[p]);
    }
    write_file(directory / "model.safetensors.index.json", index.dump());
  }
  write_file(directory / "config.json", config.dump());
  return values;
}

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
table reference_logits(json const& config, weights const& w, std::vector<double> const& frequencies,
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

std::vector<token> random_tokens(std::size_t count, token vocab, unsigned seed = 2) {
  std::mt19937 random(seed);
  std::vector<token> tokens(count);
  for (token& id : tokens) id = static_cast<token>(random() % static_cast<unsigned>(vocab));
  return tokens;
}

/// Logits of the example's own pieces: [tokens, vocabulary].
gptq::matrix logits_of(llama::model const& m, std::vector<token> const& tokens) {
  auto const& c = m.config();
  auto const angles = llama::make_rotations(c, static_cast<std::int64_t>(tokens.size()));
  gptq::matrix x = m.embed(tokens);
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) llama::run_layer({c, angles}, m.load(i, 1), x);
  return llama::rms_norm(x, m.final_norm(), c.rms_norm_eps) * m.output_rows(0, c.vocab_size).transpose();
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

json const llama3_scaling{{"rope_type", "llama3"},
                          {"factor", 8.0},
                          {"low_freq_factor", 1.0},
                          {"high_freq_factor", 4.0},
                          {"original_max_position_embeddings", 64}};

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
    config["rope_scaling"] = llama3_scaling;
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
  llama::model const m(dir.path);
  auto const tokens = random_tokens(40, 80);
  auto const expected = reference_logits(config, w, frequencies, tokens);
  CHECK(largest_difference(logits_of(m, tokens), expected) < logit_tolerance);

  std::vector<llama::token_window> const windows{tokens, tokens};
  for (int const threads : {1, 3}) {
    CHECK(llama::perplexity(m, windows, float32, threads) ==
          Approx(reference_perplexity(expected, tokens)).epsilon(1e-5));
  }
}

TEST_CASE("rotary frequencies of Llama 3.2") {
  llama::config c{};
  c.head_dim = 64;
  c.rope_theta = 500000.0;
  c.rope_scaling = llama::rope_scaling{32.0, 1.0, 4.0, 8192.0};
  // Elements 0, 5, 14 (the last unscaled one), 15, 17 (blended), 18 and 31 of transformers' result in
  // PyTorch.
  std::vector<std::pair<std::size_t, double>> const expected{{0, 1.0},
                                                             {5, 0.12868738174438477},
                                                             {14, 0.0032114461064338684},
                                                             {15, 0.0012905480107292533},
                                                             {17, 9.708286233944818e-05},
                                                             {18, 1.9461638657958247e-05},
                                                             {31, 9.418306490260875e-08}};
  auto const frequencies = llama::rope_frequencies(c);
  REQUIRE(frequencies.size() == 32);
  for (auto const& [i, value] : expected) CHECK(frequencies[i] == Approx(value).epsilon(2e-6));
}

TEST_CASE("a token sees nothing that comes after it") {
  scratch const dir;
  json config = small_config();
  config["num_key_value_heads"] = 2;
  config["max_position_embeddings"] = 300;
  write_model(dir.path, config, dtype::f32);
  llama::model const m(dir.path);
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
  llama::model const m(dir.path);
  auto const vocab = m.config().vocab_size;
  llama::row_vector const x = llama::row_vector::Random(m.config().hidden_size);
  llama::row_vector const expected = x * m.output_rows(0, vocab).transpose();
  for (int const threads : {1, 2, 5}) {
    CHECK((m.logits(x, threads) - expected).cwiseAbs().maxCoeff() < 1e-5F);
  }
}

TEST_CASE("tokens one by one through the cache are the same as all at once") {
  scratch const dir;
  json config = small_config();
  config["num_key_value_heads"] = 2;
  config["head_dim"] = GENERATE(8, 32, 20);
  int const threads = GENERATE(1, 3);
  write_model(dir.path, config, dtype::f32);
  llama::model const m(dir.path);
  auto const& c = m.config();
  auto const tokens = random_tokens(20, 80);
  auto const angles = llama::make_rotations(c, 20);

  gptq::matrix whole = m.embed(tokens);
  std::vector<llama::kv_cache> caches(2);
  for (std::int64_t i = 0; i < 2; ++i) llama::run_layer({c, angles}, m.load(i, 1), whole);
  for (std::size_t t = 0; t < tokens.size(); t += t == 0 ? 5 : 1) {
    gptq::matrix x = m.embed(std::span(tokens).subspan(t, t == 0 ? 5 : 1));
    for (std::int64_t i = 0; i < 2; ++i) {
      llama::run_layer({c, angles, threads}, m.load(i, 1), x, &caches[static_cast<std::size_t>(i)]);
    }
    CHECK((x - whole.middleRows(static_cast<Eigen::Index>(t), x.rows())).cwiseAbs().maxCoeff() < 1e-4F);
  }

  SECTION("so greedy generation takes the likeliest token of the whole text, again and again") {
    auto text = std::vector<token>(tokens.begin(), tokens.begin() + 5);
    auto const generated = llama::generate(m, text, 12, {}, {float32, 2, true}).tokens;
    CHECK(generated.size() == 12);
    for (token const next : generated) {
      gptq::matrix const logits = logits_of(m, text);
      Eigen::Index likeliest = 0;
      logits.bottomRows(1).row(0).maxCoeff(&likeliest);
      CHECK(next == likeliest);
      text.push_back(next);
    }
  }
  SECTION("and it ends before an end token") {
    auto const text = std::vector<token>(tokens.begin(), tokens.begin() + 5);
    auto const generated = llama::generate(m, text, 12, {}, {float32, 1, false}).tokens;
    config["eos_token_id"] = json::array({7, generated[3]});
    write_file(dir.path / "config.json", config.dump());
    std::array const ends{token{7}, generated[3]};
    auto const until =
        std::find_first_of(generated.begin(), generated.end(), ends.begin(), ends.end()) - generated.begin();
    auto const shorter = llama::generate(llama::model(dir.path), text, 12, {}, {}).tokens;
    CHECK(shorter == std::vector<token>(generated.begin(), generated.begin() + until));
  }
  SECTION("a text longer than the model is an error") {
    CHECK(contains(error_of([&] { llama::generate(m, tokens, 45, {}, {}); }), "64 positions"));
    CHECK(contains(error_of([&] { llama::generate(m, {}, 1, {}, {}); }), "no tokens"));
  }
}

TEST_CASE("choosing a token") {
  llama::row_vector logits(4);
  logits << std::log(0.1F), std::log(0.4F), std::log(0.2F), std::log(0.3F);
  CHECK(llama::choose(logits, {}, 0.99) == 1);
  llama::sampling how{.temperature = 1.0};  // in falling order: token 1, 3, 2, 0
  CHECK(llama::choose(logits, how, 0.0) == 1);
  CHECK(llama::choose(logits, how, 0.39) == 1);
  CHECK(llama::choose(logits, how, 0.41) == 3);
  CHECK(llama::choose(logits, how, 0.71) == 2);
  CHECK(llama::choose(logits, how, 0.91) == 0);
  how.top_p = 0.6;  // tokens 1 and 3, in the ratio 4 to 3
  CHECK(llama::choose(logits, how, 0.57) == 1);
  CHECK(llama::choose(logits, how, 0.58) == 3);
  CHECK(llama::choose(logits, how, 0.9999) == 3);
  how.top_p = 0.0;
  CHECK(llama::choose(logits, how, 0.9999) == 1);
  how = {.temperature = 0.5};  // probabilities squared: 1, 16, 4, 9 of 30
  CHECK(llama::choose(logits, how, 0.53) == 1);
  CHECK(llama::choose(logits, how, 0.54) == 3);
}

TEST_CASE("packed layers make the same of a prompt as their decoded weights, on any number of threads") {
  scratch const dir;
  json config = small_config();
  config["intermediate_size"] = 600;  // more rows than stay in a cache for all tokens of a prompt
  write_model(dir.path, config, dtype::f32);
  auto const tokens = random_tokens(2 * 24, 80);
  llama::quantization how;
  how.quantize.format = {"asymmetric", 4, 32};
  how.quantize.round_to_nearest = true;
  llama::model m(dir.path);
  llama::quantize_model(m, llama::cut_windows(tokens, 24, 0), how, {});
  auto const prompt = std::span(tokens).first(7);
  auto const angles = llama::make_rotations(m.config(), 7);
  gptq::matrix expected = m.embed(prompt);
  llama::run_layer({m.config(), angles}, m.load(0, 1), expected);
  for (int const threads : {1, 2, 3}) {
    auto const packed = m.load(0, llama::arithmetic::int15, threads);
    gptq::matrix whole = m.embed(prompt);
    llama::run_layer({m.config(), angles, threads}, *packed, whole);
    CHECK((whole - expected).cwiseAbs().maxCoeff() < 1e-3F * expected.cwiseAbs().maxCoeff());
    llama::kv_cache cache;
    for (Eigen::Index t = 0; t < whole.rows(); ++t) {
      gptq::matrix x = m.embed(prompt.subspan(static_cast<std::size_t>(t), 1));
      llama::run_layer({m.config(), angles, threads}, *packed, x, &cache);
      CHECK((x - whole.row(t)).cwiseAbs().maxCoeff() < 1e-4F * whole.cwiseAbs().maxCoeff());
    }
  }
}

TEST_CASE("quantizing a model") {
  scratch const dir;
  json config = small_config();
  config["num_key_value_heads"] = 2;
  write_model(dir.path, config, dtype::f32);
  auto const calibration = random_tokens(16 * 48, 80);
  auto const evaluation = random_tokens(8 * 48, 80, 3);
  auto const windows = llama::cut_windows(calibration, 48, 0);
  auto const held_out = llama::cut_windows(evaluation, 48, 0);

  struct outcome {
    std::vector<llama::linear_report> reports;
    std::vector<gptq::refinement> refined;
    double perplexity;
    double perplexity_int15;
    double perplexity_int8;
  };
  auto const run = [&](llama::quantization const& how) {
    llama::model m(dir.path);
    outcome result{};
    llama::quantization_events events;
    events.done = [&](auto const& r) { result.reports.push_back(r); };
    events.refined = [&](auto const& r, auto const&) { result.refined.push_back(r); };
    llama::quantize_model(m, windows, how, events);
    result.perplexity = llama::perplexity(m, held_out, float32, 1);
    result.perplexity_int15 = llama::perplexity(m, held_out, llama::arithmetic::int15, 1);
    result.perplexity_int8 = llama::perplexity(m, held_out, llama::arithmetic::int8, 3);
    return result;
  };
  llama::quantization how;
  how.quantize.format = {"asymmetric", 8, 32};
  how.threads = how.quantize.options.threads = 1;
  double const before = llama::perplexity(llama::model(dir.path), held_out, float32, 1);

  SECTION("reports every linear layer, in the published order") {
    auto const reports = run(how).reports;
    std::vector<std::string> const names{"self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj",
                                         "self_attn.o_proj", "mlp.up_proj",      "mlp.gate_proj",
                                         "mlp.down_proj"};
    REQUIRE(reports.size() == 14);
    for (std::size_t i = 0; i < 14; ++i) {
      CHECK(reports[i].name == "model.layers." + std::to_string(i / 7) + "." + names[i % 7]);
      CHECK(reports[i].quality.snr_db > 35.0);
    }
    CHECK(reports[0].out == 16);
    CHECK(reports[0].in == 32);
    CHECK(reports[6].out == 32);
    CHECK(reports[6].in == 48);
  }
  SECTION("is a GPTQ checkpoint, written and read") {
    using gptq::checkpoint::gptq_version;
    how.quantize.format =
        GENERATE(gptq::format_spec{"asymmetric", 4, 32}, gptq::format_spec{"symmetric", 2, 32},
                 gptq::format_spec{"fixed_zero", 8, gptq::whole_row});
    how.quantize.options.quality = gptq::quality::plain;
    how.quantize.options.act_order = GENERATE(false, true);
    auto const version = GENERATE(gptq_version::v1, gptq_version::v2);
    std::size_t const shard_bytes = GENERATE(std::size_t{1}, std::size_t{1} << 30);
    llama::model m(dir.path);
    llama::quantize_model(m, windows, how, {});
    auto const out = dir.path / "gptq";
    write_file(dir.path / "tokenizer.json", "{}");
    llama::write_gptq_model(out, m, dir.path, version, {{"damp_percent", 0.01}}, shard_bytes);
    CHECK(fs::exists(out / "model.safetensors.index.json") == (shard_bytes == 1));
    // 7 other tensors, 14 linear layers.
    CHECK(fs::exists(out / "model-00021-of-00021.safetensors") == (shard_bytes == 1));
    CHECK(fs::exists(out / "model.safetensors") != (shard_bytes == 1));
    CHECK(fs::exists(out / "tokenizer.json"));
    auto const said = json::parse(std::ifstream(out / "quantize_config.json"));
    CHECK(said.at("sym") == (how.quantize.format.scheme != "asymmetric"));
    bool const ordered = how.quantize.options.act_order && how.quantize.format.group_size != gptq::whole_row;
    CHECK(said.at("desc_act") == ordered);
    CHECK(said.at("damp_percent") == 0.01);

    double const expected = llama::perplexity(m, held_out, float32, 1);
    llama::model const read(out);
    CHECK(read.has_kernels());
    CHECK(llama::perplexity(read, held_out, float32, 1) == Approx(expected).epsilon(1e-6));
    CHECK(contains(error_of([&] { read.require_unquantized(); }), "quantized already"));

    // A label that zero points prove wrong.
    auto label = json::parse(std::ifstream(out / "config.json"));
    CHECK(label.at("quantization_config") == said);
    label["quantization_config"]["checkpoint_format"] = version == gptq_version::v1 ? "gptq_v2" : "gptq";
    write_file(out / "config.json", label.dump());
    if (said.at("sym") == true) {
      CHECK(llama::perplexity(llama::model(out), held_out, float32, 1) == Approx(expected).epsilon(1e-6));
    }
    label["quantization_config"]["checkpoint_format"] = "marlin";
    write_file(out / "config.json", label.dump());
    CHECK(contains(error_of([&] { llama::model const other(out); }), "only gptq and gptq_v2 can be read"));
    label["quantization_config"]["checkpoint_format"] = "gptq";
    label["quantization_config"]["bits"] = 0;
    write_file(out / "config.json", label.dump());
    CHECK(contains(error_of([&] { llama::model const other(out); }), "'bits' is 0: not 2, 3, 4 or 8"));
  }
  SECTION("what a GPTQ checkpoint cannot hold") {
    llama::model m(dir.path);
    auto const refusal = [&](gptq::format_spec const& f) {
      return error_of([&] { llama::check_gptq(f, m.config()); });
    };
    CHECK(refusal({"symmetric", 4, 32}).empty());
    CHECK(contains(refusal({"half_step", 4, 32}), "half_step does not fit; --format gguf can (Q4_1)"));
    CHECK(contains(refusal({"symmetric", 4, 32, gptq::scale_type::float32}), "float16 scales"));
    CHECK(contains(refusal({"symmetric", 3, 32}), "16 codes of 3 bits are not; --format packed can"));

    auto const out = dir.path / "gptq";
    how.quantize.format = {"asymmetric", 4, 32};
    llama::quantize_model(m, windows, how, {});
    auto const write = [&](gptq::checkpoint::gptq_version version) {
      return error_of([&] { llama::write_gptq_model(out, m, dir.path, version, {}); });
    };
    auto parts = m.packed(1, llama::linear::o_proj)->parts();
    std::vector<std::byte> const zeros(parts.zeros.size());
    parts.zeros = zeros;
    std::vector<std::byte> const codes(parts.codes.begin(), parts.codes.end());
    parts.codes = codes;
    std::vector<gptq::float16> const scales(parts.scales.size() / 2, gptq::float16(0.01F));
    parts.scales = std::as_bytes(std::span(scales));
    m.replace(1, llama::linear::o_proj, llama::make_packed(how.quantize.format, parts, nullptr));
    CHECK(write(gptq::checkpoint::gptq_version::v1) ==
          "model.layers.1.self_attn.o_proj: the zero point of row 0, group 0 is 0, which version 1 cannot "
          "hold; "
          "--format gptq_v2 can, and with --resume it goes on with what is quantized");
    CHECK_FALSE(fs::exists(out));
    CHECK(write(gptq::checkpoint::gptq_version::v2).empty());
    CHECK(llama::perplexity(llama::model(out), held_out, float32, 1) ==
          Approx(llama::perplexity(m, held_out, float32, 1)).epsilon(1e-6));
    fs::remove_all(out);

    how.quantize.format = {"fixed_zero", 4, 32};
    llama::quantize_model(m, windows, how, {});
    llama::write_gptq_model(out, m, dir.path, gptq::checkpoint::gptq_version::v2, {});
    auto const file = out / "model.safetensors";
    std::string const name = "model.layers.1.self_attn.q_proj";
    auto const with = [&](auto&& change) {
      gptq::checkpoint::safetensors_file const mapped(file);
      auto tensors = mapped.tensors();
      change(tensors);
      write_safetensors(dir.path / "changed", tensors);
      fs::rename(file, dir.path / "kept");
      fs::rename(dir.path / "changed", file);
      auto const message = error_of([&] { llama::model const other(out); });
      fs::rename(dir.path / "kept", file);
      return message;
    };
    CHECK(with([](auto&) {}).empty());
    CHECK(contains(with([&](auto& t) { t.erase(name + ".qzeros"); }), "has no tensor '" + name + ".qzeros'"));
    CHECK(contains(with([&](auto& t) { t[name + ".qweight"] = t[name + ".g_idx"]; }),
                   "'" + name + "': GPTQ checkpoint: qweight has 128 bytes, not 512"));
    CHECK(contains(with([&](auto& t) { t[name + ".scales"].type = gptq::checkpoint::dtype::bf16; }),
                   "not F16"));
    fs::resize_file(file, fs::file_size(file) - 1);
    CHECK(contains(error_of([&] { llama::model const other(out); }), "model.safetensors"));
  }
  SECTION("8 bits change the perplexity a little, 2 bits a lot") {
    CHECK(run(how).perplexity == Approx(before).epsilon(0.01));
    CHECK(run(how).perplexity != before);
    how.quantize.format.bits = 2;
    CHECK(std::abs(run(how).perplexity / before - 1.0) > 0.05);
  }
  SECTION("a GPU makes the same of it, where there is one") {
    try {
      how.quantize.device = std::make_shared<llama::gpu>();
    } catch (gptq::error const&) {
      return;
    }
    how.quantize.format.bits = 4;
    how.quantize.options.quality = gptq::quality::plain;
    how.true_sequential = GENERATE(false, true);
    if (GENERATE(false, true)) how.propagate = 0.5;
    CAPTURE(how.true_sequential, how.propagate.has_value());
    auto const on_device = run(how);
    auto const device = std::exchange(how.quantize.device, nullptr);
    auto const expected = run(how);
    REQUIRE(on_device.reports.size() == expected.reports.size());
    double sum = 0.0, expected_sum = 0.0;
    for (std::size_t i = 0; i < expected.reports.size(); ++i) {
      sum += on_device.reports[i].quality.loss;
      expected_sum += expected.reports[i].quality.loss;
    }
    CHECK(on_device.reports[0].quality.loss == Approx(expected.reports[0].quality.loss).epsilon(0.01));
    CHECK(sum == Approx(expected_sum).epsilon(0.05));  // a tie that goes the other way changes what follows
    CHECK(on_device.perplexity == Approx(expected.perplexity).epsilon(0.02));
    CHECK(llama::perplexity(
              llama::model(dir.path), held_out, float32, 2, [] {}, device.get()) ==
          Approx(before).epsilon(1e-5));
  }
  SECTION("what is evaluated is what was packed") {
    how.quantize.format.bits = 2;
    how.quantize.round_to_nearest = true;
    llama::model m(dir.path);
    llama::float_layer const original = m.load(1, 1);
    llama::quantize_model(m, windows, how, {});
    llama::float_layer const loaded = m.load(1, 1);
    for (std::size_t l = 0; l < llama::linears; ++l) {
      // Rounding to nearest does not depend on activations, so it can be repeated.
      using format = gptq::format<gptq::asymmetric, 2, 32>;
      auto const rounded = gptq::dequantize(gptq::round_to_nearest<format>(original.weights[l]));
      CHECK(loaded.weights[l] == rounded);
    }
    CHECK(loaded.attention_norm == original.attention_norm);
  }
  SECTION("the kernels compute what the decoded weights do") {
    how.quantize.format =
        GENERATE(gptq::format_spec{"asymmetric", 4, 32}, gptq::format_spec{"symmetric", 3, 32},
                 gptq::format_spec{"half_step", 4, gptq::whole_row}, gptq::format_spec{"fixed_zero", 8, 32});
    how.quantize.options.act_order = GENERATE(false, true);
    auto const r = run(how);
    CHECK(r.perplexity_int15 == Approx(r.perplexity).epsilon(1e-4));
    CHECK(r.perplexity_int8 == Approx(r.perplexity).epsilon(2e-2));
    CHECK(r.perplexity_int8 != r.perplexity);
    for (auto const& layer : r.reports) {
      // 8 bits of input lose about 45 dB of their own.
      CHECK(layer.int8_snr_db < layer.quality.snr_db + 0.1);
      double const of_inputs = std::pow(10.0, -0.1 * layer.int8_snr_db) - layer.quality.output_error;
      CHECK(of_inputs < 2e-4);
      if (how.quantize.format.bits == 8) CHECK(of_inputs > 1e-6);
    }
  }
  SECTION("what has no kernels says so") {
    llama::model m(dir.path);
    CHECK_FALSE(m.has_kernels());
    CHECK(contains(error_of([&] { m.load(0, llama::arithmetic::int8, 1); }), "is not quantized"));
    how.quantize.format.scales = gptq::scale_type::float32;
    llama::quantize_model(m, windows, how, {});
    CHECK_FALSE(m.has_kernels());
    CHECK(contains(error_of([&] { m.load(0, llama::arithmetic::int8, 1); }), "float32 scales"));
  }
  SECTION("the worst layers are quantized again from their original weights") {
    how.quantize.format.bits = 2;
    auto const coarse = run(how);
    how.observe = llama::observation{3, {}, std::nullopt};
    auto const observed = run(how);
    REQUIRE(observed.refined.size() == 3);
    std::vector<double> losses;
    for (auto const& r : coarse.reports) losses.push_back(r.quality.loss);
    std::sort(losses.begin(), losses.end(), std::greater<>());
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(observed.refined[i].before().loss == losses[i]);
      CHECK(observed.refined[i].after().loss <= 0.5 * losses[i]);
      CHECK(observed.refined[i].after().format.bits == 4);
    }
    CHECK(observed.perplexity != coarse.perplexity);
    how.observe->extra_bytes = 0;
    CHECK(run(how).perplexity == coarse.perplexity);
  }
  SECTION("what the quantized layers before change is made up for") {
    how.quantize.format.bits = 2;
    how.true_sequential = GENERATE(false, true);
    how.held_out_windows = 4;
    auto const final_residual = [&](llama::model const& m) {
      auto const angles = llama::make_rotations(m.config(), 48);
      llama::matrix all;
      for (auto const window : windows) {
        llama::matrix x = m.embed(window);
        for (std::int64_t i = 0; i < 2; ++i) llama::run_layer({m.config(), angles}, m.load(i, 1), x);
        all.conservativeResize(all.rows() + x.rows(), x.cols());
        all.bottomRows(x.rows()) = x;
      }
      return all;
    };
    auto const exact = final_residual(llama::model(dir.path));
    std::vector<llama::linear_report> reports;
    llama::quantization_events events;
    events.done = [&](auto const& r) { reports.push_back(r); };
    auto const distance = [&] {
      llama::model m(dir.path);
      reports.clear();
      llama::quantize_model(m, windows, how, events);
      return (final_residual(m) - exact).norm();
    };
    double const left_alone = distance();
    auto const plain = reports;
    how.propagate = 1.0;
    CHECK(distance() < 0.99 * left_alone);
    for (std::size_t i = 0; i < 14; ++i) {
      CAPTURE(i);
      CHECK(plain[i].propagated == 0.0);
      CHECK(reports[i].quality.held_out_error > 0.0);
      // The first inputs are what they were; with all of them from unquantized stages, the first layer's are.
      bool const same = i < 3 || (i < 7 && !how.true_sequential);
      CHECK((reports[i].propagated == 0.0) == same);
      CHECK((reports[i].quality.loss == plain[i].quality.loss) == same);
    }
    how.held_out_windows = windows.size();
    CHECK(contains(error_of([&] { distance(); }), "none is left"));
  }
  SECTION("true sequential or not differs from the second stage on") {
    how.quantize.format.bits = 2;
    auto const at_once = run(how).reports;
    how.true_sequential = true;
    auto const sequential = run(how).reports;
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(at_once[i].quality.loss == Approx(sequential[i].quality.loss).epsilon(1e-6));
    }
    CHECK(at_once[3].quality.loss != Approx(sequential[3].quality.loss).epsilon(1e-3));
  }
  SECTION("the number of threads does not matter") {
    how.true_sequential = GENERATE(false, true);
    auto const one = run(how);
    how.threads = how.quantize.options.threads = 3;
    auto const three = run(how);
    CHECK(one.perplexity == Approx(three.perplexity).epsilon(1e-5));  // not exact with a threaded BLAS
    for (std::size_t i = 0; i < 14; ++i) {
      CHECK(one.reports[i].quality.loss == Approx(three.reports[i].quality.loss).epsilon(1e-2));
    }
  }
  SECTION("GPTQ loses less than rounding to nearest") {
    how.quantize.format.bits = 3;
    auto const gptq = run(how).reports;
    how.quantize.round_to_nearest = true;
    auto const nearest = run(how).reports;
    for (std::size_t i = 0; i < 3; ++i) CHECK(gptq[i].quality.output_error < nearest[i].quality.output_error);
  }
  SECTION("what is not finite is named") {
    std::vector<float> embedding(80 * 32, std::numeric_limits<float>::quiet_NaN());
    gptq::checkpoint::safetensors_file const file(dir.path / "model.safetensors");
    tensor_map tensors = file.tensors();
    tensors["model.embed_tokens.weight"].bytes = std::as_bytes(std::span(embedding));
    write_safetensors(dir.path / "model.safetensors", tensors);
    CHECK(contains(error_of([&] { run(how); }), "input of model.layers.0.self_attn"));
  }
}

namespace {

std::string contents_of_model(fs::path const& directory) {
  std::string all;
  for (char const* const name : {"config.json", "model.safetensors"}) {
    std::ifstream in(directory / name, std::ios::binary);
    all.append(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  return all;
}

}  // namespace

TEST_CASE("packed models and unfinished runs") {
  scratch const dir;
  auto const source = dir.path / "source";
  fs::create_directories(source);
  write_model(source, small_config(), dtype::bf16);
  write_file(source / "tokenizer.model", "whatever");
  auto const calibration = random_tokens(8 * 48, 80);
  auto const windows = llama::cut_windows(calibration, 48, 0);
  llama::quantization how;
  how.quantize.format = {"asymmetric", 3, 32};
  how.quantize.options.quality = gptq::quality::plain;  // for its act-order, which reorders columns
  how.quantize.options.act_order = true;
  how.threads = how.quantize.options.threads = 1;
  json const settings{{"bits", 3}};
  auto const packed = dir.path / "packed";
  /// Quantizes and writes; ends by an exception after `most` linear layers.
  auto const run = [&](fs::path const& to, bool resume, std::size_t most = 99) {
    llama::model m(source);
    llama::unfinished_run const saved(to, settings, resume);
    std::vector<llama::linear_report> reports;
    llama::quantization_events events;
    events.done = [&](auto const& r) {
      reports.push_back(r);
      if (reports.size() == most) throw llama::interrupted();
    };
    llama::quantize_model(m, windows, how, events, &saved);
    llama::write_packed_model(to, m, source);
    saved.remove();
    return reports;
  };

  SECTION("a packed model computes what it did before it was written") {
    llama::model before(source);
    llama::quantize_model(before, windows, how, {});
    llama::write_packed_model(packed, before, source);
    llama::model const after(packed);
    CHECK(after.has_kernels());
    CHECK(fs::exists(packed / "tokenizer.model"));
    for (auto const arithmetic : {float32, llama::arithmetic::int15, llama::arithmetic::int8}) {
      CHECK(llama::perplexity(after, windows, arithmetic, 1) ==
            llama::perplexity(before, windows, arithmetic, 1));
    }
    std::vector<token> const prompt(calibration.begin(), calibration.begin() + 6);
    auto const text = llama::generate(after, prompt, 20, {}, {llama::arithmetic::int15, 2, true});
    CHECK(text.tokens == llama::generate(before, prompt, 20, {}, {float32, 1, false}).tokens);
    CHECK(text.tokens_a_second() > 0.0);
    CHECK(text.bytes_a_token > static_cast<double>(after.output_bytes().size()));
    CHECK(contains(error_of([&] { after.require_unquantized(); }), "quantized already"));
  }
  SECTION("a run that is resumed ends with the same bytes") {
    how.true_sequential = GENERATE(false, true);
    auto const more = GENERATE(0, 1, 2);
    if (more == 1) how.observe = llama::observation{4, {}, std::nullopt};
    if (more == 2) {
      how.propagate = 1.0;
      how.held_out_windows = 2;
    }
    auto const whole = run(packed, false);
    auto const again = dir.path / "again";
    CHECK_THROWS_AS(run(again, false, 10), llama::interrupted);  // in the second of two decoder layers
    CHECK(llama::unfinished_run(again, settings, true).finished() == 1);
    CHECK_FALSE(fs::exists(again / "config.json"));
    CHECK(contains(error_of([&] { run(again, false); }), "--resume"));
    auto const other = json{{"bits", 4}};
    CHECK(
        contains(error_of([&] { llama::unfinished_run(again, other, true); }), "that run had bits 3, not 4"));
    write_file(again / "model.safetensors.part-1", "of one that was killed");

    auto const resumed = run(again, true);
    REQUIRE(resumed.size() == 14);
    for (std::size_t i = 0; i < 14; ++i) {
      CHECK(resumed[i].name == whole[i].name);
      CHECK(resumed[i].quality.loss == whole[i].quality.loss);
      CHECK(resumed[i].int8_snr_db == whole[i].int8_snr_db);
    }
    CHECK(contents_of_model(again) == contents_of_model(packed));
    CHECK(std::distance(fs::directory_iterator(again), {}) == 3);  // with the tokenizer, and nothing else
    CHECK(contains(error_of([&] { run(again, true); }), "holds a model already"));
  }
  SECTION("what is damaged is named") {
    CHECK_THROWS_AS(run(packed, false, 10), llama::interrupted);
    auto const layer = packed / "unfinished" / "layer-00000.safetensors";
    auto const size = fs::file_size(layer);
    fs::resize_file(layer, size - 1);
    CHECK(contains(error_of([&] { run(packed, true); }), "layer-00000.safetensors"));
    fs::remove_all(packed);

    run(packed, false);
    auto const open = [&] { return error_of([&] { llama::model const m(packed); }); };
    CHECK(open().empty());
    auto const file = packed / "model.safetensors";
    auto const original = tensor_map(gptq::checkpoint::safetensors_file(file).tensors());
    std::string const name = "model.layers.0.mlp.down_proj";
    auto const with = [&](auto&& change) {
      gptq::checkpoint::safetensors_file const mapped(file);
      tensor_map tensors = mapped.tensors();
      change(tensors);
      write_safetensors(packed / "changed", tensors);
      fs::rename(file, packed / "kept");
      fs::rename(packed / "changed", file);
      std::string const message = open();
      fs::rename(packed / "kept", file);
      return message;
    };
    CHECK(contains(with([&](auto& t) { t.erase(name + ".codes"); }), name + ".codes'"));
    CHECK(contains(with([&](auto& t) { t.erase(name + ".zeros"); }), "its zeros have 0 bytes"));
    CHECK(contains(with([&](auto& t) { t[name + ".scales"].type = dtype::i16; }), name + ".scales' is I16"));
    std::vector<std::int32_t> const twice(48, 3);
    CHECK(contains(with([&](auto& t) { t[name + ".order"].bytes = std::as_bytes(std::span(twice)); }),
                   "is not a permutation of 0.."));
    auto config = json::parse(std::ifstream(packed / "config.json"));
    auto& formats = config["quantization_config"]["layers"];
    auto const with_format = [&](json const& format) {
      json changed = config;
      changed["quantization_config"]["layers"][name] = format;
      write_file(packed / "config.json", changed.dump());
      return open();
    };
    json format = formats[name];
    format["group_size"] = 64;
    CHECK(contains(with_format(format), name));
    format["bits"] = 5;
    CHECK(contains(with_format(format), "not compiled"));
    format["bits"] = "3";
    CHECK(contains(with_format(format), "bits"));
    formats.erase(name);
    write_file(packed / "config.json", config.dump());
    CHECK(contains(open(), "no format for '" + name));
  }
}

TEST_CASE("models in GGUF files") {
  namespace checkpoint = gptq::checkpoint;
  scratch const dir;
  auto const source = dir.path / "source";
  fs::create_directories(source);
  json config = small_config();
  config["num_key_value_heads"] = 2;
  config["intermediate_size"] = 64;
  llama::quantization how;
  how.quantize.format = {"fixed_zero", 4, 32};
  how.threads = how.quantize.options.threads = 1;
  auto const calibration = random_tokens(8 * 48, 80);
  auto const windows = llama::cut_windows(calibration, 48, 0);
  auto const file = dir.path / "out" / "model.gguf";
  auto const quantized = [&] {
    llama::model m(source);
    llama::quantize_model(m, windows, how, {});
    return m;
  };
  auto const written = [&](std::optional<checkpoint::ggml_type> embeddings = std::nullopt) {
    auto m = quantized();
    llama::write_gguf_model(dir.path / "out", m, source, embeddings);
    return m;
  };

  SECTION("the order of rows") {
    // A head of 8: its two halves in turn.
    std::vector<std::int64_t> rows;
    for (std::int64_t row = 8; row < 16; ++row) rows.push_back(llama::interleaved_row(row, 8));
    CHECK(rows == std::vector<std::int64_t>{8, 10, 12, 14, 9, 11, 13, 15});
  }
  SECTION("compute what they did before they were written") {
    SECTION("Q4_0, untied, bfloat16 embeddings") { write_model(source, config, dtype::bf16); }
    SECTION("Q4_0, tied, float16 embeddings, large heads") {
      config["tie_word_embeddings"] = true;
      config["head_dim"] = 16;
      write_model(source, config, dtype::f16);
    }
    SECTION("Q8_0, scaled rotary embeddings") {
      config["head_dim"] = 16;
      config["rope_scaling"] = llama3_scaling;
      how.quantize.format.bits = 8;
      write_model(source, config, dtype::f32);
    }
    auto const before = written();
    llama::model const after(file);
    auto const tokens = random_tokens(40, 80);
    auto const difference = (logits_of(after, tokens) - logits_of(before, tokens)).cwiseAbs().maxCoeff();
    CHECK(difference < 1e-5F);  // the factors of rotary embeddings are float32
    CHECK(after.config().num_key_value_heads == 2);
    CHECK(after.config().tie_word_embeddings == config["tie_word_embeddings"]);
    CHECK(after.parameters() == before.parameters());
  }
  SECTION("minima round to float16") {
    write_model(source, config, dtype::f32);
    for (auto const* const scheme : {"asymmetric", "half_step"}) {
      how.quantize.format.scheme = scheme;
      auto const before = written();
      auto const tokens = random_tokens(40, 80);
      CHECK((logits_of(llama::model(file), tokens) - logits_of(before, tokens)).cwiseAbs().maxCoeff() <
            0.05F);
    }
  }
  SECTION("embeddings of another type, and from there to a packed model") {
    write_model(source, config, dtype::f32);
    auto const before = written(checkpoint::ggml_type::q8_0);
    checkpoint::gguf_file const tensors(file);
    CHECK(tensors.tensors().at("token_embd.weight").type == checkpoint::ggml_type::q8_0);
    CHECK(tensors.tensors().at("output_norm.weight").type == checkpoint::ggml_type::f32);
    llama::model again(file);
    how.quantize.format.bits = 8;
    llama::quantize_model(again, windows, how, {});
    llama::write_packed_model(dir.path / "packed", again, file);
    llama::model const packed(dir.path / "packed");
    auto const tokens = random_tokens(40, 80);
    CHECK((logits_of(packed, tokens) - logits_of(again, tokens)).cwiseAbs().maxCoeff() == 0.0F);
    llama::write_gguf_model(dir.path / "out8", again, file, std::nullopt);
    CHECK((logits_of(llama::model(dir.path / "out8" / "model.gguf"), tokens) - logits_of(again, tokens))
              .cwiseAbs()
              .maxCoeff() == 0.0F);
  }
  SECTION("what cannot be held") {
    auto const refusal = [](gptq::format_spec const& f) { return error_of([&] { llama::gguf_type_of(f); }); };
    CHECK(refusal({"asymmetric", 4, 64}) == "");
    CHECK(contains(refusal({"asymmetric", 8, 32}), "only its decoded weights can be written"));
    CHECK(contains(refusal({"fixed_zero", 3, 32}), "4 bits (Q4_0, Q4_1) and 8 bits (Q8_0) can be written"));
    CHECK(contains(refusal({"fixed_zero", 4, 32, gptq::scale_type::float32}), "float16 scales"));
    how.quantize.options.quality = gptq::quality::plain;
    how.quantize.options.act_order = true;
    write_model(source, config, dtype::f32);
    CHECK(contains(error_of([&] { written(); }), "GGUF Q4_0 keeps columns in their order"));
    CHECK(fs::is_empty(dir.path / "out"));
    how.quantize.options.act_order = false;
    config["intermediate_size"] = 48;
    write_model(source, config, dtype::f32);
    CHECK(contains(error_of([&] { written(); }), "rows of 48 elements are no whole blocks of 32"));
    CHECK(fs::is_empty(dir.path / "out"));
  }
  SECTION("metadata that does not fit") {
    write_model(source, config, dtype::f32);
    written();
    checkpoint::gguf_file const good(file);
    /// The same file with `change` made to its metadata.
    auto const open = [&](std::string const& left_out, auto&& change) {
      checkpoint::gguf_metadata metadata;
      for (auto const& [key, value] : good.metadata()) {
        if (key != left_out) metadata.add(key, value);
      }
      change(metadata);
      write_gguf(dir.path / "changed.gguf", metadata, good.tensors());
      return error_of([&] { llama::model const m(dir.path / "changed.gguf"); });
    };
    auto const nothing = [](checkpoint::gguf_metadata&) {};
    auto const number = [](char const* key, std::uint32_t value) {
      return [=](checkpoint::gguf_metadata& m) { m.add(key, value); };
    };
    CHECK(open("", nothing) == "");
    CHECK(contains(open("llama.block_count", nothing), "has no metadata 'llama.block_count'"));
    CHECK(contains(open("llama.block_count", number("llama.block_count", 1U << 20)),
                   "'llama.block_count' is 1048576, more than the file's 21 tensors"));
    CHECK(contains(open("llama.block_count", number("llama.block_count", 3)),
                   "has no tensor 'model.layers.2.input_layernorm.weight'"));
    CHECK(contains(open("llama.embedding_length", number("llama.embedding_length", 64)),
                   "'model.embed_tokens.weight' is F32 [80, 32], but its metadata makes it F32 [80, 64]"));
    CHECK(contains(open("general.architecture",
                        [](checkpoint::gguf_metadata& m) { m.add("general.architecture", "gemma"); }),
                   "is gemma: only llama is implemented"));
    CHECK(contains(open("", number("llama.expert_count", 8)), "mixtures of experts"));
    CHECK(contains(open("", [](checkpoint::gguf_metadata& m) { m.add("llama.rope.scaling.type", "yarn"); }),
                   "is yarn: not implemented"));
    CHECK(contains(open("llama.rope.dimension_count", number("llama.rope.dimension_count", 4)),
                   "only the size of a head is implemented"));
    CHECK(contains(open("llama.attention.head_count_kv", number("llama.attention.head_count_kv", 3)),
                   "does not divide"));
    CHECK(contains(open("llama.rope.freq_base",
                        [](checkpoint::gguf_metadata& m) { m.add("llama.rope.freq_base", 0.0F); }),
                   "not positive"));
    CHECK(contains(open("tokenizer.ggml.bos_token_id", number("tokenizer.ggml.bos_token_id", 80)),
                   "is 80: not a token of the vocabulary"));
  }
}

TEST_CASE("tokenizers for llama.cpp") {
  namespace checkpoint = gptq::checkpoint;
  using strings = std::vector<std::string_view>;
  scratch const dir;
  auto const file = dir.path / "x.gguf";
  llama::config c{};
  c.vocab_size = 8;
  c.bos_token_id = 1;
  auto const written = [&] {
    checkpoint::gguf_metadata metadata;
    llama::add_tokenizer(metadata, dir.path, c);
    checkpoint::write_gguf(file, metadata, {});
    return checkpoint::gguf_file(file);
  };
  SECTION("none") { CHECK(written().at<std::string_view>("tokenizer.ggml.model") == "none"); }
  SECTION("bytes") {
    c.vocab_size = 256;
    auto const m = written();
    auto const tokens = m.at<strings>("tokenizer.ggml.tokens");
    REQUIRE(tokens.size() == 256);
    CHECK(tokens['a'] == "a");
    CHECK(tokens[' '] == "\u0120");
    CHECK(tokens['\n'] == "\u010a");
    CHECK(tokens[0xe9] == "\u00e9");
    CHECK(tokens[0xad] == "\u0143");
    CHECK(m.at<strings>("tokenizer.ggml.merges").empty());
  }
  SECTION("byte-level BPE") {
    write_file(dir.path / "tokenizer.json",
               R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 2, "ab": 3, "abb": 4},
                             "merges": ["a b", ["ab", "b"]]},
                   "added_tokens": [{"id": 1, "content": "<s>", "special": true}, {"id": 5, "content": "<x>"}],
                   "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                     {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}| ?\\s+"}}, {"type": "ByteLevel"}]}})");
    write_file(dir.path / "tokenizer_config.json", R"({"chat_template": "{{ messages }}"})");
    auto const m = written();
    CHECK(m.at<std::string_view>("tokenizer.ggml.model") == "gpt2");
    CHECK(m.at<std::string_view>("tokenizer.ggml.pre") == "llama-bpe");
    CHECK(m.at<strings>("tokenizer.ggml.tokens") ==
          strings{"a", "<s>", "b", "ab", "abb", "<x>", "[PAD6]", "[PAD7]"});
    CHECK(m.at<std::vector<std::int64_t>>("tokenizer.ggml.token_type") ==
          std::vector<std::int64_t>{1, 3, 1, 1, 1, 4, 5, 5});
    CHECK(m.at<strings>("tokenizer.ggml.merges") == strings{"a b", "ab b"});
    CHECK(m.at<std::int64_t>("tokenizer.ggml.bos_token_id") == 1);
    CHECK(m.at<std::string_view>("tokenizer.chat_template") == "{{ messages }}");
  }
  SECTION("BPE with byte fallback becomes scores in the order of merges") {
    write_file(dir.path / "tokenizer.json",
               R"({"model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
                             "vocab": {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "a": 3, "ab": 4, "abb": 5, "b": 6},
                             "merges": ["a b", "ab b"]},
                   "added_tokens": [{"id": 1, "content": "<s>", "special": true}]})");
    auto const m = written();
    CHECK(m.at<std::string_view>("tokenizer.ggml.model") == "llama");
    CHECK(m.at<std::vector<double>>("tokenizer.ggml.scores") ==
          std::vector<double>{-1e6, -1e6, -1e6, -1e6, 0, -1, -1e6, -1e6});
    CHECK(m.at<std::vector<std::int64_t>>("tokenizer.ggml.token_type") ==
          std::vector<std::int64_t>{2, 3, 6, 1, 1, 1, 1, 5});
    CHECK(m.at<std::int64_t>("tokenizer.ggml.unknown_token_id") == 0);
  }
  SECTION("others") {
    auto const refusal = [&](std::string const& text) {
      write_file(dir.path / "tokenizer.json", text);
      return error_of([&] { written(); });
    };
    CHECK(contains(refusal("{"), "not valid JSON"));
    CHECK(contains(refusal("{}"), "not a tokenizer"));
    CHECK(contains(refusal(R"({"model": {"type": "Unigram"}})"), "is \"Unigram\": only BPE can be written"));
    CHECK(contains(refusal(R"({"model": {"vocab": {"a": 8}, "merges": []}})"),
                   "token 8 is outside the model's vocabulary of 8"));
    CHECK(
        contains(refusal(R"({"model": {"vocab": {"a": 0}, "merges": []}})"), "its pre-tokenizer is none of"));
    CHECK(contains(refusal(R"({"model": {"byte_fallback": true, "vocab": {"a": 0}, "merges": ["ab"]}})"),
                   "merge 'ab' is not two pieces"));
  }
}

TEST_CASE("a signal ends the work between two steps") {
  llama::check_interrupt();
  llama::catch_interrupts();
  std::raise(SIGTERM);
  CHECK_THROWS_AS(llama::check_interrupt(), llama::interrupted);
  CHECK(llama::interrupt_status() == 143);
  llama::detail::interrupt_signal = 0;
  std::signal(SIGINT, SIG_DFL);
}

TEST_CASE("a tokenizer that does not fit") {
  scratch const dir;
  llama::config c{};
  c.vocab_size = 80;
  // A sentencepiece model: pieces {1: text, 2: score, 3: kind}, the first of them the unknown piece.
  auto const pieces = [](int count) {
    std::string model;
    for (int i = 0; i < count; ++i) {
      std::string const text =
          i == 0 ? "<unk>" : std::string(1, static_cast<char>('!' + i % 90)) + (i > 89 ? "x" : "");
      std::string piece = "\x0a" + std::string(1, static_cast<char>(text.size())) + text;
      piece += std::string("\x15\0\0\0\0", 5) + "\x18" + (i == 0 ? '\x02' : '\x01');
      model += "\x0a" + std::string(1, static_cast<char>(piece.size())) + piece;
    }
    return model;
  };
  write_file(dir.path / "tokenizer.model", pieces(81));
  std::string const message = error_of([&] { llama::make_tokenizer(dir.path, c); });
  INFO(message);
  CHECK((contains(message, "81 pieces, more than the model's vocabulary of 80") ||
         contains(message, "without sentencepiece")));
  write_file(dir.path / "tokenizer.model", pieces(80));
  if (!contains(message, "without")) CHECK(error_of([&] { llama::make_tokenizer(dir.path, c); }).empty());
}

TEST_CASE("tokens from files") {
  scratch const dir;
  llama::config c{};
  c.vocab_size = 256;
  SECTION("a byte-level model reads bytes") {
    write_file(dir.path / "x.txt", "A\n\xff");
    CHECK(llama::read_tokens(dir.path / "x.txt", dir.path, c) == std::vector<token>{65, 10, 255});
    CHECK(llama::make_tokenizer(dir.path, c).decode(std::vector<token>{72, 105}) == "Hi");
  }
  SECTION("token ids are int32") {
    std::string contents("\x05\0\0\0\xff\0\0\0", 8);
    write_file(dir.path / "x.i32", contents);
    CHECK(llama::read_tokens(dir.path / "x.i32", dir.path, c) == std::vector<token>{5, 255});
    write_file(dir.path / "x.i32", contents + "\x01");
    CHECK(contains(error_of([&] { llama::read_tokens(dir.path / "x.i32", dir.path, c); }), "9 bytes"));
    c.vocab_size = 255;
    write_file(dir.path / "x.i32", contents);
    CHECK(contains(error_of([&] { llama::read_tokens(dir.path / "x.i32", dir.path, c); }), "token 1 is 255"));
    write_file(dir.path / "x.i32", std::string("\xff\xff\xff\xff", 4));
    CHECK(contains(error_of([&] { llama::read_tokens(dir.path / "x.i32", dir.path, c); }), "token 0 is -1"));
  }
  SECTION("other models need a tokenizer") {
    c.vocab_size = 1000;
    write_file(dir.path / "x.txt", "text");
    CHECK(
        contains(error_of([&] { llama::read_tokens(dir.path / "x.txt", dir.path, c); }), "tokenizer.model"));
    write_file(dir.path / "tokenizer.model", "nonsense");
    CHECK(contains(error_of([&] { llama::read_tokens(dir.path / "x.txt", dir.path, c); }), "sentencepiece"));
  }
  SECTION("windows are whole and do not overlap") {
    auto const tokens = random_tokens(25, 80);
    auto const windows = llama::cut_windows(tokens, 10, 0);
    REQUIRE(windows.size() == 2);
    CHECK(windows[1].data() == tokens.data() + 10);
    CHECK(windows[1].size() == 10);
    CHECK(llama::cut_windows(tokens, 10, 1).size() == 1);
    CHECK(llama::cut_windows(tokens, 26, 0).empty());
  }
}

TEST_CASE("config.json") {
  scratch const dir;
  auto const read = [&](json const& config) {
    write_file(dir.path / "config.json", config.dump());
    return llama::read_config(dir.path);
  };
  SECTION("missing keys have the defaults of transformers") {
    json config = small_config();
    for (auto const* key : {"num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings",
                            "hidden_act", "tie_word_embeddings", "architectures"}) {
      config.erase(key);
    }
    config["head_dim"] = nullptr;
    config["rope_scaling"] = nullptr;
    auto const c = read(config);
    CHECK(c.num_key_value_heads == 4);
    CHECK(c.head_dim == 8);
    CHECK(c.rms_norm_eps == 1e-6);
    CHECK(c.rope_theta == 10000.0);
    CHECK(c.max_position_embeddings == 2048);
    CHECK_FALSE(c.tie_word_embeddings);
    CHECK_FALSE(c.rope_scaling);
  }
  SECTION("rotary parameters in their three forms") {
    json config = small_config();
    config["rope_scaling"] = llama3_scaling;
    CHECK(read(config).rope_scaling->factor == 8.0);
    config["rope_scaling"].erase("rope_type");
    config["rope_scaling"]["type"] = "llama3";
    CHECK(read(config).rope_scaling->high_freq_factor == 4.0);
    config = small_config();
    config["rope_parameters"] = llama3_scaling;
    config["rope_parameters"]["rope_theta"] = 77.0;
    CHECK(read(config).rope_scaling->original_max_position_embeddings == 64.0);
    CHECK(read(config).rope_theta == 77.0);
    config["rope_parameters"] = {{"rope_type", "default"}};
    CHECK_FALSE(read(config).rope_scaling);
  }
  SECTION("what is not implemented, or wrong, is named") {
    struct change {
      std::string key;
      json value;
    };
    auto const cases = std::vector<change>{{"model_type", "mistral"},
                                           {"architectures", {"MistralForCausalLM"}},
                                           {"hidden_act", "gelu"},
                                           {"attention_bias", true},
                                           {"mlp_bias", true},
                                           {"quantization_config", json::object()},
                                           {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}},
                                           {"rope_scaling", {{"rope_type", "llama3"}}},
                                           {"rope_scaling", 3},
                                           {"hidden_size", 0},
                                           {"hidden_size", -32},
                                           {"hidden_size", 32.5},
                                           {"hidden_size", "32"},
                                           {"vocab_size", 1'000'000'000},
                                           {"num_key_value_heads", 3},
                                           {"num_attention_heads", 5},
                                           {"rms_norm_eps", -1.0},
                                           {"rope_theta", "large"},
                                           {"tie_word_embeddings", 1},
                                           {"eos_token_id", 80},
                                           {"eos_token_id", {1, -1}}};
    for (auto const& [key, value] : cases) {
      json config = small_config();
      config[key] = value;
      std::string const message = error_of([&] { read(config); });
      INFO(key << " " << value << ": " << message);
      CHECK(contains(message, "config.json"));
      CHECK(contains(message, key));
    }
    for (auto const* const key : {"model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
                                  "num_attention_heads", "vocab_size"}) {
      json config = small_config();
      config.erase(key);
      INFO(key);
      CHECK(contains(error_of([&] { read(config); }), std::string("has no '") + key));
    }
    json config = small_config();
    config["head_dim"] = 7;
    CHECK(contains(error_of([&] { read(config); }), "odd"));
    CHECK(contains(error_of([&] { read(json::array()); }), "not a JSON object"));
    write_file(dir.path / "config.json", "{");
    CHECK(contains(error_of([&] { llama::read_config(dir.path); }), "not valid JSON"));
    CHECK(contains(error_of([&] { llama::read_config(dir.path / "none"); }), "is not a directory"));
  }
}

TEST_CASE("tensors that do not fit config.json") {
  scratch const dir;
  json config = small_config();
  write_model(dir.path, config, dtype::f32);
  auto const open = [&] { return error_of([&] { llama::model const m(dir.path); }); };
  CHECK(open().empty());
  config["intermediate_size"] = 49;
  write_file(dir.path / "config.json", config.dump());
  CHECK(contains(open(), "mlp.up_proj.weight' is F32 [48, 32], but config.json makes it F32 [49, 32]"));
  config = small_config();
  config["num_hidden_layers"] = 3;
  write_file(dir.path / "config.json", config.dump());
  CHECK(contains(open(), "has no tensor 'model.layers.2.input_layernorm.weight'"));
  write_file(dir.path / "config.json", small_config().dump());

  gptq::checkpoint::safetensors_file const file(dir.path / "model.safetensors");
  tensor_map tensors = file.tensors();
  tensors["model.norm.weight"].type = dtype::i32;
  write_safetensors(dir.path / "model.safetensors", tensors);
  CHECK(contains(open(), "'model.norm.weight' is I32 [32]"));
}

#ifdef GPTQ_LLAMA_PROGRAMS
namespace {

struct result {
  int status;
  std::string errors;
};

/// Runs a shell command and collects what it writes to stderr; stdout goes to `output`. $bin is where the
/// programs are.
result run_command(std::string const& text, fs::path const& output = "/dev/null") {
  std::string const command =
      "bin='" GPTQ_LLAMA_PROGRAMS "'; { " + text + "; } 2>&1 >'" + output.string() + "'";
  std::FILE* const pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  result r{};
  char buffer[256];
  while (std::fgets(buffer, sizeof buffer, pipe) != nullptr) r.errors += buffer;
  int const status = ::pclose(pipe);
  r.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return r;
}

result run_program(std::string const& arguments, fs::path const& output = "/dev/null") {
  return run_command("\"$bin/quantize_llama\" " + arguments, output);
}

std::string contents_of(fs::path const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace

TEST_CASE("the program") {
  scratch const dir;
  json config = small_config();
  config["vocab_size"] = 256;
  write_model(dir.path, config, dtype::bf16);
  std::string text;
  for (int i = 0; i < 2000; ++i) text += static_cast<char>('a' + i * i % 26);
  write_file(dir.path / "text.txt", text);
  std::string const model = "'" + dir.path.string() + "'";
  std::string const file = "'" + (dir.path / "text.txt").string() + "'";

  SECTION("quantizes, evaluates, generates") {
    auto const r = run_program(model + " --calibration " + file + " --evaluation " + file +
                                   " --group-size 32 --samples 8 --window 32 --generate abc"
                                   " --generate-tokens 5 --observe --topk 2 --log '" +
                                   (dir.path / "out.jsonl").string() + "'",
                               dir.path / "out.txt");
    CHECK(r.errors == "");
    REQUIRE(r.status == 0);
    std::ifstream lines(dir.path / "out.jsonl");
    std::vector<json> log;
    for (std::string line; std::getline(lines, line);) log.push_back(json::parse(line));
    REQUIRE(log.size() == 18);  // settings, 14 layers, 2 of them again, summary
    CHECK(log[0].at("event") == "settings");
    CHECK(log[14].at("name") == "model.layers.1.mlp.down_proj");
    CHECK(log[14].at("shape") == json::array({32, 48}));
    CHECK(log[14].at("int8_snr_db").get<double>() < log[14].at("snr_db").get<double>() + 0.1);
    CHECK(log[15].at("attempts").size() == 2);
    CHECK(log[15].at("attempts")[1].at("bits") == 8);
    json const& out = log.back();
    CHECK(out.at("float32_perplexity").get<double>() > 1.0);
    CHECK(out.at("perplexity").get<double>() ==
          Approx(out.at("float32_perplexity").get<double>()).epsilon(0.2));
    std::ifstream in(dir.path / "out.txt");
    std::string const printed((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    for (auto const* const part : {"model.layers.0.self_attn.k_proj", "32 x 48", "the worst layers again",
                                   "> 8 bits, groups of 32", "perplexity", "quantized    abc"}) {
      CHECK(contains(printed, part));
    }
  }
  SECTION("has help") {
    for (std::string const program : {"quantize_llama", "compare", "generate", "perplexity", "plot"}) {
      auto const r = run_command("\"$bin/" + program + "\" --help");
      CHECK(r.status == 0);
      CHECK(r.errors == "");
      CHECK(run_command("\"$bin/" + program + "\" --nonsense").status == 2);
    }
  }
  SECTION("writes what the other programs read") {
    auto const packed = dir.path / "packed";
    std::string const out = "'" + packed.string() + "'";
    std::string const quantize =
        model + " --calibration " + file + " --group-size 32 --window 32 --samples 8";
    std::string const grids = " --quant-directory '" + (dir.path / "grids").string() + "'";
    REQUIRE(run_program(quantize + " --output " + out + grids).status == 0);
    CHECK(contains(run_program(quantize + " --output " + out).errors, "holds a model already"));
    CHECK(contains(run_program(quantize + grids).errors, "holds such an export already"));
    CHECK(contains(run_program(out + " --calibration " + file).errors, "quantized already"));
    auto const printed = dir.path / "out.txt";
    CHECK(run_command("\"$bin/perplexity\" " + out + " " + file + " --window 32", printed).status == 0);
    for (char const* const name : {"float32", "int15", "int8"}) CHECK(contains(contents_of(printed), name));
    std::string const rounded = " " + file + " --window 32" + grids;
    CHECK(run_command("\"$bin/perplexity\" " + model + rounded, printed).status == 0);
    CHECK(contains(contents_of(printed), "float32"));
    CHECK(contains(run_command("\"$bin/perplexity\" " + out + rounded).errors, "is quantized already"));
    CHECK(run_command("\"$bin/generate\" " + out + " abc --tokens 4 --beside " + model, printed).status == 0);
    CHECK(contains(contents_of(printed), "int8: prompt of 3 tokens"));
    CHECK(contains(contents_of(printed), "float32: prompt of 3 tokens"));
    write_file(dir.path / "ids.i32", std::string("a\0\0\0b\0\0\0", 8));
    CHECK(run_command("\"$bin/generate\" " + out + " '" + (dir.path / "ids.i32").string() + "' --tokens 1",
                      printed)
              .status == 0);
    CHECK(contents_of(printed).starts_with("97 98 "));
    auto const r = run_command("\"$bin/generate\" " + model + " abc --tokens 4 --arithmetic int8");
    CHECK(r.status == 2);
    CHECK(contains(r.errors, "is not quantized"));
  }
  SECTION("compares") {
    auto const printed = dir.path / "out.txt";
    std::string const compare = "\"$bin/compare\" " + model + " --calibration " + file +
                                " --group-size 32 --window 32 --samples 8 --topk 2 ";
    REQUIRE(run_command(compare + "--evaluation " + file, printed).status == 0);
    for (char const* const row : {"float32", "asymmetric, 0..15", "symmetric, observed", "half step"}) {
      CHECK(contains(contents_of(printed), row));
    }
    auto const log = dir.path / "log.jsonl";
    REQUIRE(run_command(compare + "--log '" + log.string() + "'").status == 0);
    auto const plot = [&] {
      return run_command("\"$bin/plot\" '" + log.string() + "' '" + (dir.path / "p").string() + "'");
    };
    if (run_command("gnuplot --version").status == 0) {
      CHECK(plot().errors == "");
      for (char const* const name : {"p-loss", "p-weights", "p-inputs", "p-schemes"}) {
        CHECK(fs::file_size(dir.path / (name + std::string(".png"))) > 1000);
        CHECK(contains(contents_of(dir.path / (name + std::string(".svg"))), "<svg"));
      }
    } else {
      CHECK(plot().status == 2);
    }
    write_file(log, "{\"event\": \"layer\"}\nnonsense\n");
    CHECK(plot().status == 2);
    CHECK(contains(plot().errors, "line 2"));
    auto const published = dir.path / "published.json";
    auto const check = [&](double loss) {
      write_file(published, json::array({{{"method", "gptq asym act-order"},
                                          {"bits", 4},
                                          {"group_size", 32},
                                          {"loss_max", loss},
                                          {"loss_sum", loss}}})
                                .dump());
      return run_command(compare + "--quality reference --true-sequential --published '" +
                         published.string() + "'")
          .status;
    };
    CHECK(check(1e9) == 3);
  }
  SECTION("leaves nothing half when it is cut off") {
    auto const out = dir.path / "packed";
    std::string const quantize = model + " --calibration " + file +
                                 " --group-size 32 --window 32 --samples 8 --output '" + out.string() + "'";
    auto const parts = [&] {
      auto const all = fs::recursive_directory_iterator(dir.path);
      return std::count_if(begin(all), end(all), [](auto const& entry) {
        return contains(entry.path().filename().string(), ".part-");
      });
    };
    // The disk is full: no file may be longer than 8 KiB.
    auto full = run_command("trap '' XFSZ; ulimit -f 8; \"$bin/quantize_llama\" " + quantize);
    CHECK(full.status == 2);
    CHECK(contains(full.errors, "cannot be written: "));
    CHECK(std::count(full.errors.begin(), full.errors.end(), '\n') == 1);
    CHECK(parts() == 0);
    CHECK_FALSE(fs::exists(out / "config.json"));
    CHECK(run_program(quantize + " --resume").status == 0);
    CHECK_FALSE(fs::exists(out / "unfinished"));
    full = run_program(model + " --calibration " + file + " --group-size 32 --window 32 --log /dev/full");
    CHECK(full.status == 2);
    CHECK(contains(full.errors, "/dev/full: cannot be written"));

    // Ctrl-C: far more work than half a second's.
    fs::remove_all(out);
    std::string long_text;
    while (long_text.size() < 700'000) long_text += text;
    write_file(dir.path / "text.txt", long_text);
    std::string const much = model + " --calibration " + file +
                             " --group-size 32 --window 32 --samples 20000 --output '" + out.string() + "'";
    auto const r =
        run_command("timeout --foreground --preserve-status -s INT 0.5 \"$bin/quantize_llama\" " + much);
    CHECK(r.status == 130);
    CHECK(contains(r.errors, "interrupted"));
    CHECK(std::count(r.errors.begin(), r.errors.end(), '\n') == 1);
    CHECK(parts() == 0);
    CHECK_FALSE(fs::exists(out / "config.json"));
  }
  SECTION("ends with one line and status 2 when something is wrong") {
    write_file(dir.path / "short.txt", "abc");
    std::string const good = " --calibration " + file + " --window 32 --group-size 32 ";
    std::vector<std::pair<std::string, std::string>> const cases{
        {"", "MODEL"},
        {model, "--calibration"},
        {"/none" + good, "/none: is not a directory"},
        {model + " --calibration /none", "/none: cannot be opened"},
        {model + " --calibration '" + dir.path.string() + "'", "cannot be opened"},
        {model + good + "--evaluation '" + (dir.path / "short.txt").string() + "'",
         "3 tokens do not fill a window"},
        {model + " --group-size 32 --calibration '" + (dir.path / "short.txt").string() + "'",
         "3 tokens do not fill a window of 64"},
        {model + good + "--resume", "--output"},
        {model + good + "--bits 5", "--bits"},
        {model + " --group-size 48 --calibration " + file, "--group-size"},
        {model + good + "--scheme none", "--scheme"},
        {model + good + "--grid none", "--grid"},
        {model + good + "--scale float64", "--scale"},
        {model + " --window 65 --calibration " + file, "64 positions"},
        {model + " --window 1 --calibration " + file, "--window"},
        {model + good + "--samples 0", "--samples"},
        {model + good + "--generate abc --generate-tokens 62", "64 positions"},
        {model + good + "--log /none/x", "/none/x: cannot be written"},
        {model + good + "--extra-bytes 4K", "--observe"},
        {model + good + "--observe --topk 0", "--topk"},
        {model + good + "--format gptq", "needs an --output"},
        {model + good + "--format gptq --output x --observe", "one format for all layers"},
        {model + good + "--format gptq --output x --scheme half_step", "half_step does not fit"},
        {model + good + "--format gptq --output x --scale float32", "float16 scales"},
        {model + good + "--format gguf --output x --scheme fixed_zero --act-order --quality plain",
         "--act-order needs --static-groups"},
        {model + good + "--format gguf --output x --scheme fixed_zero --act-order --held-out 2",
         "--act-order needs --static-groups"},
        {model + good + "--shard-size 1G", "--shard-size is about --format gptq"},
        {model + good + "--quant-directory " + file, "text.txt: cannot be made"},
        {model + good + "--observe --extra-bytes some", "--extra-bytes"},
        {model + good + "--quality reference --scale float16", "--quality reference"},
        {model + good + "--nonsense", "--nonsense"},
    };
    for (auto const& [arguments, message] : cases) {
      auto const r = run_program(arguments);
      INFO(arguments << ": " << r.errors);
      CHECK(r.status == 2);
      CHECK(contains(r.errors, message));
      CHECK(std::count(r.errors.begin(), r.errors.end(), '\n') == 1);
    }
    fs::resize_file(dir.path / "model.safetensors", fs::file_size(dir.path / "model.safetensors") - 100);
    auto const truncated = run_program(model + good);
    CHECK(truncated.status == 2);
    CHECK(contains(truncated.errors, "model.safetensors"));
    CHECK(std::count(truncated.errors.begin(), truncated.errors.end(), '\n') == 1);
    config["model_type"] = "mistral";
    write_file(dir.path / "config.json", config.dump());
    auto const r = run_program(model + good);
    CHECK(r.status == 2);
    CHECK(contains(r.errors, "only llama is implemented"));
    CHECK(std::count(r.errors.begin(), r.errors.end(), '\n') == 1);
  }
}
#endif
