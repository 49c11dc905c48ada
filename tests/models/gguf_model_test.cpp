// Models in GGUF files: written, read, and what they cannot hold.
#include "gguf_model.hpp"

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/gguf.hpp>

#include "catch.hpp"
#include "files.hpp"
#include "model.hpp"
#include "packed_model.hpp"
#include "quantization.hpp"
#include "random_model.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::dtype;
using nlohmann::json;
using test::contains;
using test::error_of;
using test::llama3_scaling;
using test::logits_of;
using test::random_tokens;
using test::scratch;
using test::small_config;
using test::write_model;

}  // namespace

TEST_CASE("models in GGUF files") {
  namespace checkpoint = gptq::checkpoint;
  scratch const dir;
  auto const source = dir.path / "source";
  fs::create_directories(source);
  json config = small_config();
  config["num_key_value_heads"] = 2;
  config["intermediate_size"] = 64;
  lm::quantization how;
  how.quantize.format = {"fixed_zero", 4, 32};
  how.threads = how.quantize.options.threads = 1;
  auto const calibration = random_tokens(8 * 48, 80);
  auto const windows = lm::cut_windows(calibration, 48, 0);
  auto const file = dir.path / "out" / "model.gguf";
  auto const quantized = [&] {
    lm::model m(source);
    lm::quantize_model(m, windows, how, {});
    return m;
  };
  auto const written = [&](std::optional<checkpoint::ggml_type> embeddings = std::nullopt) {
    auto m = quantized();
    lm::write_gguf_model(dir.path / "out", m, source, embeddings);
    return m;
  };

  SECTION("the order of rows") {
    // A head of 8: its two halves in turn.
    std::vector<std::int64_t> rows;
    for (std::int64_t row = 8; row < 16; ++row) rows.push_back(lm::interleaved_row(row, 8));
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
      config["rope_scaling"] = llama3_scaling();
      how.quantize.format.bits = 8;
      write_model(source, config, dtype::f32);
    }
    auto const before = written();
    lm::model const after(file);
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
      CHECK((logits_of(lm::model(file), tokens) - logits_of(before, tokens)).cwiseAbs().maxCoeff() < 0.05F);
    }
  }
  SECTION("embeddings of another type, and from there to a packed model") {
    write_model(source, config, dtype::f32);
    auto const before = written(checkpoint::ggml_type::q8_0);
    checkpoint::gguf_file const tensors(file);
    CHECK(tensors.tensors().at("token_embd.weight").type == checkpoint::ggml_type::q8_0);
    CHECK(tensors.tensors().at("output_norm.weight").type == checkpoint::ggml_type::f32);
    lm::model again(file);
    how.quantize.format.bits = 8;
    lm::quantize_model(again, windows, how, {});
    lm::write_packed_model(dir.path / "packed", again, file);
    lm::model const packed(dir.path / "packed");
    auto const tokens = random_tokens(40, 80);
    CHECK((logits_of(packed, tokens) - logits_of(again, tokens)).cwiseAbs().maxCoeff() == 0.0F);
    lm::write_gguf_model(dir.path / "out8", again, file, std::nullopt);
    CHECK((logits_of(lm::model(dir.path / "out8" / "model.gguf"), tokens) - logits_of(again, tokens))
              .cwiseAbs()
              .maxCoeff() == 0.0F);
  }
  SECTION("what cannot be held") {
    auto const refusal = [](gptq::format_spec const& f) { return error_of([&] { lm::gguf_type_of(f); }); };
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
      return error_of([&] { lm::model const m(dir.path / "changed.gguf"); });
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
                        [](checkpoint::gguf_metadata& m) { m.add("general.architecture", "mamba"); }),
                   "is mamba: only gemma2, "));
    CHECK(contains(open("", number("llama.expert_count", 8)), "llama.expert_used_count"));
    CHECK(contains(open("", [](checkpoint::gguf_metadata& m) { m.add("llama.rope.scaling.type", "mrope"); }),
                   "is mrope: not implemented"));
    CHECK(contains(open("llama.rope.dimension_count", number("llama.rope.dimension_count", 10)),
                   "not an even part of a head of 8"));
    CHECK(contains(open("llama.attention.value_length", number("llama.attention.value_length", 4)),
                   "only the size of a head is implemented"));
    CHECK(contains(open("llama.attention.head_count_kv", number("llama.attention.head_count_kv", 3)),
                   "does not divide"));
    CHECK(contains(open("llama.rope.freq_base",
                        [](checkpoint::gguf_metadata& m) { m.add("llama.rope.freq_base", 0.0F); }),
                   "not positive"));
    CHECK(contains(open("tokenizer.ggml.bos_token_id", number("tokenizer.ggml.bos_token_id", 80)),
                   "is 80: not a token of the vocabulary"));
  }
  SECTION("linear scaling of rope, by its type, without one, and by an older name") {
    write_model(source, config, dtype::f32);
    written();
    checkpoint::gguf_file const good(file);
    auto const tokens = random_tokens(40, 80);
    config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 4.0}};
    auto const other = dir.path / "scaled";
    fs::create_directories(other);
    write_model(other, config, dtype::f32);
    auto const stretched = [&](std::vector<std::pair<std::string, float>> const& numbers, char const* type) {
      checkpoint::gguf_metadata metadata;
      for (auto const& [key, value] : good.metadata()) metadata.add(key, value);
      for (auto const& [key, value] : numbers) metadata.add(key, value);
      if (type != nullptr) metadata.add("llama.rope.scaling.type", type);
      write_gguf(dir.path / "changed.gguf", metadata, good.tensors());
      lm::model const m(dir.path / "changed.gguf");
      REQUIRE(m.config().ropes.size() == 1);
      return m.config().ropes[0];
    };
    for (auto const& rope : {stretched({{"llama.rope.scaling.factor", 4.0F}}, "linear"),
                             stretched({{"llama.rope.scaling.factor", 4.0F}}, nullptr),
                             stretched({{"llama.rope.scale_linear", 4.0F}}, nullptr)}) {
      CHECK(rope.type == lm::rope_type::linear);
      CHECK(lm::rope_frequencies(rope, 40) == lm::rope_frequencies(lm::read_config(other).ropes[0], 40));
    }
    CHECK(stretched({{"llama.rope.scaling.factor", 4.0F}}, "none").type == lm::rope_type::standard);
  }
  SECTION("biases, in the order of their rows; a tensor that nobody takes is named") {
    write_model(source, config, dtype::f32);
    written();
    checkpoint::gguf_file const good(file);
    auto tensors = good.tensors();
    std::vector<float> bias(32);
    for (std::size_t i = 0; i < bias.size(); ++i) bias[i] = 0.1F * static_cast<float>(i);
    checkpoint::ggml_tensor const wide{checkpoint::ggml_type::f32, {32}, std::as_bytes(std::span(bias))};
    checkpoint::ggml_tensor const narrow{
        checkpoint::ggml_type::f32, {16}, std::as_bytes(std::span(bias).first(16))};
    for (char const* const layer : {"blk.0.", "blk.1."}) {
      tensors[layer + std::string("attn_q.bias")] = wide;
      tensors[layer + std::string("attn_k.bias")] = narrow;
      tensors[layer + std::string("attn_v.bias")] = narrow;
    }
    checkpoint::gguf_metadata metadata;
    for (auto const& [key, value] : good.metadata()) metadata.add(key, value);
    auto const open = [&] {
      write_gguf(dir.path / "changed.gguf", metadata, tensors);
      return lm::model(dir.path / "changed.gguf");
    };
    auto const biased = open();
    auto const layer = biased.load(0, 1);
    auto const& q = layer.biases[layer.description->index(lm::linear::q_proj)];
    REQUIRE(q.size() == 32);
    CHECK(q(1) == bias[2]);  // row 1 of the first half of a head of 8 is the file's row 2
    CHECK(q(4) == bias[1]);
    CHECK(q(31) == bias[31]);
    auto const& v = layer.biases[layer.description->index(lm::linear::v_proj)];
    CHECK(v(1) == bias[1]);
    tensors["blk.1.attn_output.bias"] = wide;
    CHECK(contains(error_of([&] { open(); }), "tensor 'blk.1.attn_output.bias' is in the file, but nothing"));
    tensors["blk.0.attn_output.bias"] = wide;
    CHECK(error_of([&] { open(); }).empty());
    tensors.erase("blk.1.attn_k.bias");
    CHECK(contains(error_of([&] { open(); }), "has no tensor 'model.layers.1.self_attn.k_proj.bias'"));
  }
}
