// Text token by token: the cache of keys and values, the choice of a token, and packed layers.
#include "generation.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors.hpp>

#include "catch.hpp"
#include "files.hpp"
#include "forward.hpp"
#include "model.hpp"
#include "quantization.hpp"
#include "random_model.hpp"
#include "support.hpp"

namespace {

using gptq::checkpoint::dtype;
using lm::token;
using nlohmann::json;
using test::contains;
using test::error_of;
using test::logits_of;
using test::random_tokens;
using test::scratch;
using test::small_config;
using test::write_file;
using test::write_model;

constexpr auto float32 = lm::arithmetic::float32;

}  // namespace

TEST_CASE("tokens one by one through the cache are the same as all at once") {
  scratch const dir;
  json config = small_config();
  config["num_key_value_heads"] = 2;
  config["head_dim"] = GENERATE(8, 32, 20);
  int const threads = GENERATE(1, 3);
  write_model(dir.path, config, dtype::f32);
  lm::model const m(dir.path);
  auto const& c = m.config();
  auto const tokens = random_tokens(20, 80);
  auto const angles = lm::make_rotations(c, 20);

  gptq::matrix whole = m.embed(tokens);
  std::vector<lm::kv_cache> caches(2);
  for (std::int64_t i = 0; i < 2; ++i) lm::run_layer({c, angles}, m.load(i, 1), whole);
  for (std::size_t t = 0; t < tokens.size(); t += t == 0 ? 5 : 1) {
    gptq::matrix x = m.embed(std::span(tokens).subspan(t, t == 0 ? 5 : 1));
    for (std::int64_t i = 0; i < 2; ++i) {
      lm::run_layer({c, angles, threads}, m.load(i, 1), x, &caches[static_cast<std::size_t>(i)]);
    }
    CHECK((x - whole.middleRows(static_cast<Eigen::Index>(t), x.rows())).cwiseAbs().maxCoeff() < 1e-4F);
  }

  SECTION("so greedy generation takes the likeliest token of the whole text, again and again") {
    auto text = std::vector<token>(tokens.begin(), tokens.begin() + 5);
    auto const generated = lm::generate(m, text, 12, {}, {float32, 2, true}).tokens;
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
    auto const generated = lm::generate(m, text, 12, {}, {float32, 1, false}).tokens;
    config["eos_token_id"] = json::array({7, generated[3]});
    write_file(dir.path / "config.json", config.dump());
    std::array const ends{token{7}, generated[3]};
    auto const until =
        std::find_first_of(generated.begin(), generated.end(), ends.begin(), ends.end()) - generated.begin();
    auto const shorter = lm::generate(lm::model(dir.path), text, 12, {}, {}).tokens;
    CHECK(shorter == std::vector<token>(generated.begin(), generated.begin() + until));
  }
  SECTION("a text longer than the model is an error") {
    CHECK(contains(error_of([&] { lm::generate(m, tokens, 45, {}, {}); }), "64 positions"));
    CHECK(contains(error_of([&] { lm::generate(m, {}, 1, {}, {}); }), "no tokens"));
  }
}

TEST_CASE("choosing a token") {
  lm::row_vector logits(4);
  logits << std::log(0.1F), std::log(0.4F), std::log(0.2F), std::log(0.3F);
  CHECK(lm::choose(logits, {}, 0.99) == 1);
  lm::sampling how{.temperature = 1.0};  // in falling order: token 1, 3, 2, 0
  CHECK(lm::choose(logits, how, 0.0) == 1);
  CHECK(lm::choose(logits, how, 0.39) == 1);
  CHECK(lm::choose(logits, how, 0.41) == 3);
  CHECK(lm::choose(logits, how, 0.71) == 2);
  CHECK(lm::choose(logits, how, 0.91) == 0);
  how.top_p = 0.6;  // tokens 1 and 3, in the ratio 4 to 3
  CHECK(lm::choose(logits, how, 0.57) == 1);
  CHECK(lm::choose(logits, how, 0.58) == 3);
  CHECK(lm::choose(logits, how, 0.9999) == 3);
  how.top_p = 0.0;
  CHECK(lm::choose(logits, how, 0.9999) == 1);
  how = {.temperature = 0.5};  // probabilities squared: 1, 16, 4, 9 of 30
  CHECK(lm::choose(logits, how, 0.53) == 1);
  CHECK(lm::choose(logits, how, 0.54) == 3);
}

TEST_CASE("packed layers make the same of a prompt as their decoded weights, on any number of threads") {
  scratch const dir;
  json config = small_config();
  config["intermediate_size"] = 600;  // more rows than stay in a cache for all tokens of a prompt
  write_model(dir.path, config, dtype::f32);
  auto const tokens = random_tokens(2 * 24, 80);
  lm::quantization how;
  how.quantize.format = {"asymmetric", 4, 32};
  how.quantize.round_to_nearest = true;
  lm::model m(dir.path);
  lm::quantize_model(m, lm::cut_windows(tokens, 24, 0), how, {});
  auto const prompt = std::span(tokens).first(7);
  auto const angles = lm::make_rotations(m.config(), 7);
  gptq::matrix expected = m.embed(prompt);
  lm::run_layer({m.config(), angles}, m.load(0, 1), expected);
  for (int const threads : {1, 2, 3}) {
    auto const packed = m.load(0, lm::arithmetic::int15, threads);
    gptq::matrix whole = m.embed(prompt);
    lm::run_layer({m.config(), angles, threads}, *packed, whole);
    CHECK((whole - expected).cwiseAbs().maxCoeff() < 1e-3F * expected.cwiseAbs().maxCoeff());
    lm::kv_cache cache;
    for (Eigen::Index t = 0; t < whole.rows(); ++t) {
      gptq::matrix x = m.embed(prompt.subspan(static_cast<std::size_t>(t), 1));
      lm::run_layer({m.config(), angles, threads}, *packed, x, &cache);
      CHECK((x - whole.row(t)).cwiseAbs().maxCoeff() < 1e-4F * whole.cwiseAbs().maxCoeff());
    }
  }
}
