// Directories that others have quantized as models of the LLaMA example: tensors are written here as the formats are published.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors.hpp>

#include "catch.hpp"
#include "files.hpp"
#include "model.hpp"
#include "quantize_model.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::dtype;
using llama::linear;
using nlohmann::json;
using test::contains;
using test::error_of;
using test::scratch;
using test::write_file;

json small_config() {
  return {{"model_type", "llama"},    {"hidden_size", 32},
          {"intermediate_size", 64},  {"num_hidden_layers", 1},
          {"num_attention_heads", 4}, {"num_key_value_heads", 2},
          {"vocab_size", 40},         {"max_position_embeddings", 64}};
}

struct stored {
  dtype type;
  std::vector<std::size_t> shape;
  std::vector<std::byte> bytes;
};
using stored_tensors = std::map<std::string, stored>;

template <class T>
stored store(dtype type, std::vector<std::size_t> shape, std::vector<T> const& values) {
  auto const bytes = std::as_bytes(std::span(values));
  return {type, std::move(shape), {bytes.begin(), bytes.end()}};
}

void write_directory(fs::path const& directory, json const& config, stored_tensors const& tensors) {
  fs::create_directories(directory);
  gptq::checkpoint::tensor_map map;
  for (auto const& [name, t] : tensors) map[name] = {t.type, t.shape, t.bytes};
  write_safetensors(directory / "model.safetensors", map);
  write_file(directory / "config.json", config.dump());
}

struct named_shape {
  std::string name;
  std::size_t out, in;
};
std::vector<named_shape> linear_layers() {
  std::string const layer = "model.layers.0.";
  return {{layer + "self_attn.k_proj", 16, 32}, {layer + "self_attn.v_proj", 16, 32},
          {layer + "self_attn.q_proj", 32, 32}, {layer + "self_attn.o_proj", 32, 32},
          {layer + "mlp.up_proj", 64, 32},      {layer + "mlp.gate_proj", 64, 32},
          {layer + "mlp.down_proj", 32, 64}};
}

/// Everything but the linear layers.
stored_tensors float_tensors() {
  test::random random(91);
  stored_tensors tensors;
  auto const add = [&](std::string const& name, std::vector<std::size_t> const& shape, float center) {
    std::vector<float> values(shape.size() == 1 ? shape[0] : shape[0] * shape[1]);
    for (float& v : values) v = center + 0.5F * random.uniform();
    tensors[name] = store(dtype::f32, shape, values);
  };
  add("model.embed_tokens.weight", {40, 32}, 0.0F);
  add("lm_head.weight", {40, 32}, 0.0F);
  add("model.norm.weight", {32}, 1.0F);
  add("model.layers.0.input_layernorm.weight", {32}, 1.0F);
  add("model.layers.0.post_attention_layernorm.weight", {32}, 1.0F);
  return tensors;
}

/// Adds the tensors of a layer of random codes, and returns the weights that they stand for: [out, in].
using add_layer = std::function<std::vector<float>(stored_tensors&, named_shape const&, test::random&)>;

/// Words of numbers of 4 bits, by the order of their nibbles.
std::uint32_t word_of(int const* numbers, std::array<int, 8> const& order) {
  std::uint32_t word = 0;
  for (std::size_t i = 0; i < 8; ++i) {
    word |= static_cast<std::uint32_t>(numbers[order[i]]) << (4 * i);
  }
  return word;
}

std::vector<float> add_awq(stored_tensors& tensors, named_shape const& l, test::random& random) {
  constexpr std::array order{0, 2, 4, 6, 1, 3, 5, 7};
  std::size_t const groups = l.in / 32;
  std::vector<int> codes(l.in * l.out);
  std::vector<int> zeros(groups * l.out);
  std::vector<gptq::float16> scales;
  for (int& code : codes) code = random.below(16);
  for (int& zero : zeros) zero = 6 + random.below(4), scales.emplace_back(0.02F + 0.01F * random.unit());
  std::vector<std::uint32_t> qweight;
  std::vector<std::uint32_t> qzeros;
  for (std::size_t i = 0; i < codes.size(); i += 8) qweight.push_back(word_of(&codes[i], order));
  for (std::size_t i = 0; i < zeros.size(); i += 8) qzeros.push_back(word_of(&zeros[i], order));
  tensors[l.name + ".qweight"] = store(dtype::i32, {l.in, l.out / 8}, qweight);
  tensors[l.name + ".qzeros"] = store(dtype::i32, {groups, l.out / 8}, qzeros);
  tensors[l.name + ".scales"] = store(dtype::f16, {groups, l.out}, scales);
  std::vector<float> weights(l.out * l.in);
  for (std::size_t k = 0; k < l.in; ++k) {
    for (std::size_t n = 0; n < l.out; ++n) {
      std::size_t const g = k / 32 * l.out + n;
      weights[n * l.in + k] =
          static_cast<float>(scales[g]) * static_cast<float>(codes[k * l.out + n] - zeros[g]);
    }
  }
  return weights;
}

/// 4 bits, symmetric, groups of 32, scales in bfloat16.
std::vector<float> add_symmetric(stored_tensors& tensors, named_shape const& l, test::random& random) {
  constexpr std::array order{0, 1, 2, 3, 4, 5, 6, 7};
  std::size_t const groups = l.in / 32;
  std::vector<int> codes(l.out * l.in);
  std::vector<gptq::bfloat16> scales;
  for (int& code : codes) code = random.below(16);
  for (std::size_t i = 0; i < l.out * groups; ++i) scales.emplace_back(0.02F + 0.01F * random.unit());
  std::vector<std::uint32_t> packed;
  for (std::size_t i = 0; i < codes.size(); i += 8) packed.push_back(word_of(&codes[i], order));
  tensors[l.name + ".weight_packed"] = store(dtype::i32, {l.out, l.in / 8}, packed);
  tensors[l.name + ".weight_scale"] = store(dtype::bf16, {l.out, groups}, scales);
  tensors[l.name + ".weight_shape"] =
      store(dtype::i64, {2}, std::vector<std::int64_t>{std::int64_t(l.out), std::int64_t(l.in)});
  std::vector<float> weights;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    weights.push_back(static_cast<float>(scales[i / 32]) * static_cast<float>(codes[i] - 8));
  }
  return weights;
}

/// 8 bits, asymmetric, one group a row, scales in float32.
std::vector<float> add_channels(stored_tensors& tensors, named_shape const& l, test::random& random) {
  std::vector<std::uint8_t> codes(l.out * l.in);  // four of them are a word
  std::vector<std::uint8_t> zeros(l.out);
  std::vector<float> scales;
  for (auto& code : codes) code = static_cast<std::uint8_t>(random.below(256));
  for (auto& zero : zeros) zero = static_cast<std::uint8_t>(100 + random.below(50));
  for (std::size_t i = 0; i < l.out; ++i) scales.push_back(0.001F + 0.001F * random.unit());
  tensors[l.name + ".weight_packed"] = store(dtype::i32, {l.out, l.in / 4}, codes);
  tensors[l.name + ".weight_zero_point"] = store(dtype::i32, {l.out / 4, 1}, zeros);
  tensors[l.name + ".weight_scale"] = store(dtype::f32, {l.out, 1}, scales);
  std::vector<float> weights;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    std::size_t const row = i / l.in;
    weights.push_back(scales[row] * static_cast<float>(int{codes[i]} - int{zeros[row]}));
  }
  return weights;
}

json awq_config() {
  return {{"quant_method", "awq"}, {"bits", 4},         {"group_size", 32},
          {"zero_point", true},    {"version", "gemm"}, {"modules_to_not_convert", nullptr}};
}
json compressed_config(json const& weights) {
  return {{"quant_method", "compressed-tensors"},
          {"format", "pack-quantized"},
          {"ignore", {"lm_head"}},
          {"quantization_status", "compressed"},
          {"config_groups",
           {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}, {"input_activations", nullptr}}}}}};
}
json symmetric_weights() {
  return {{"num_bits", 4}, {"type", "int"}, {"symmetric", true}, {"strategy", "group"}, {"group_size", 32}};
}
json channel_weights() {
  return {{"num_bits", 8}, {"type", "int"}, {"symmetric", false}, {"strategy", "channel"}};
}

/// The same model twice: as a checkpoint in directory/quantized, and in float32 in directory/plain.
void write_both(fs::path const& directory, json const& quantization, add_layer const& add,
                std::string const& not_converted = "") {
  test::random random(92);
  auto plain = float_tensors();
  auto quantized = plain;
  for (auto const& l : linear_layers()) {
    stored_tensors packed;
    auto const weight = store(dtype::f32, {l.out, l.in}, add(packed, l, random));
    plain[l.name + ".weight"] = weight;
    if (l.name == not_converted) packed = {{l.name + ".weight", weight}};
    quantized.insert(packed.begin(), packed.end());
  }
  json config = small_config();
  write_directory(directory / "plain", config, plain);
  config["quantization_config"] = quantization;
  write_directory(directory / "quantized", config, quantized);
}

std::vector<llama::token> some_tokens() {
  test::random random(93);
  std::vector<llama::token> tokens;
  for (int i = 0; i < 6 * 32; ++i) tokens.push_back(random.below(40));
  return tokens;
}

}  // namespace

TEST_CASE("checkpoints of others are the models that they stand for") {
  scratch const dir;
  struct kind {
    json quantization;
    add_layer add;
    bool kernels;
  };
  auto const& [quantization, add, kernels] = GENERATE(
      kind{awq_config(), add_awq, true}, kind{compressed_config(symmetric_weights()), add_symmetric, true},
      kind{compressed_config(channel_weights()), add_channels, false});
  CAPTURE(quantization.dump());
  bool const mixed = GENERATE(false, true);
  write_both(dir.path, quantization, add, mixed ? "model.layers.0.mlp.up_proj" : "");
  llama::model const plain(dir.path / "plain");
  llama::model read(dir.path / "quantized");
  CHECK(read.has_kernels() == (kernels && !mixed));
  auto const same = [](llama::model const& a, llama::model const& b) {
    auto const x = a.load(0, 1);
    auto const y = b.load(0, 1);
    for (std::size_t l = 0; l < llama::linears; ++l) CHECK(x.weights[l] == y.weights[l]);
  };
  same(read, plain);

  // A source model as any other: what is made of it is what is made of the float32 model.
  read.require_unquantized();
  auto const tokens = some_tokens();
  auto const windows = llama::cut_windows(tokens, 32, 0);
  llama::quantization how;
  how.quantize.format = {"fixed_zero", 3, 32};
  how.threads = how.quantize.options.threads = 1;
  llama::model from_plain(dir.path / "plain");
  llama::quantize_model(read, windows, how, {});
  llama::quantize_model(from_plain, windows, how, {});
  same(read, from_plain);
  for (std::size_t l = 0; l < llama::linears; ++l) {
    CHECK(read.original(0, linear(l)) == plain.original(0, linear(l)));
  }
}

TEST_CASE("what is wrong with a checkpoint of others") {
  scratch const dir;
  auto const directory = dir.path / "quantized";
  std::string const name = "model.layers.0.self_attn.q_proj";
  /// The error of a model with changed tensors or quantization_config.
  auto const with = [&](json const& quantization, add_layer const& add,
                        std::function<void(stored_tensors&)> const& change) {
    test::random random(94);
    auto tensors = float_tensors();
    for (auto const& l : linear_layers()) add(tensors, l, random);
    change(tensors);
    json config = small_config();
    config["quantization_config"] = quantization;
    write_directory(directory, config, tensors);
    return error_of([&] { llama::model const m(directory); });
  };
  std::string const where = directory.string() + ": '" + name + "': ";

  SECTION("AWQ tensors") {
    auto const changed = [&](auto const& change) { return with(awq_config(), add_awq, change); };
    CHECK(changed([](auto&) {}).empty());
    CHECK(changed([&](auto& t) { t.erase(name + ".qzeros"); }) ==
          where + "has no tensor '" + name + ".qzeros'");
    CHECK(changed([&](auto& t) { t[name + ".qweight"].type = dtype::u32; }) ==
          where + "tensor '" + name + ".qweight' is U32 [32, 4], not I32");
    CHECK(changed([&](auto& t) { t[name + ".scales"].type = dtype::bf16; }) ==
          where + "tensor '" + name + ".scales' is BF16 [1, 32], not F16");
    CHECK(changed([&](auto& t) { t[name + ".qweight"] = t[name + ".qzeros"]; }) ==
          where + "AWQ checkpoint: qweight has 16 bytes, not 512");
    CHECK(changed([&](auto& t) {
            for (char const* const suffix : {".qweight", ".qzeros", ".scales"}) t.erase(name + suffix);
          }) == where + "has no tensor '" + name + ".qweight'");
  }
  SECTION("compressed tensors") {
    auto const changed = [&](auto const& change) {
      return with(compressed_config(symmetric_weights()), add_symmetric, change);
    };
    CHECK(changed([](auto&) {}).empty());
    CHECK(changed([&](auto& t) { t.erase(name + ".weight_shape"); }).empty());
    CHECK(changed([&](auto& t) { t.erase(name + ".weight_packed"); }) ==
          where + "has no tensor '" + name + ".weight_packed'");
    CHECK(changed([&](auto& t) { t[name + ".weight_scale"].type = dtype::u16; }) ==
          where + "tensor '" + name + ".weight_scale' is U16 [32, 1], not F16 or BF16 or F32");
    CHECK(changed([&](auto& t) {
            t[name + ".weight_shape"] = store(dtype::i64, {2}, std::vector<std::int64_t>{32, 31});
          }) == where + "compressed-tensors: weight_shape is 32 x 31, not 32 x 32");
    CHECK(changed([&](auto& t) {
            t[name + ".weight_packed"] = t[name + ".weight_scale"],
                     t[name + ".weight_packed"].type = dtype::i32, t[name + ".weight_packed"].shape = {16};
          }) == where + "compressed-tensors: weight_packed has 64 bytes, not 512");
    CHECK(with(compressed_config(channel_weights()), add_channels, [&](auto& t) {
            t.erase(name + ".weight_zero_point");
          }) == where + "compressed-tensors: weight_zero_point has 0 bytes, not 32");
  }
  SECTION("what config.json says of them") {
    auto const none = [](auto&) {};
    std::string const file = (directory / "config.json").string() + ": 'quantization_config'";
    auto const awq = [&](char const* key, json const& value) {
      json quantization = awq_config();
      quantization[key] = value;
      return with(quantization, add_awq, none);
    };
    CHECK(awq("version", "marlin") == file + ": 'version' is \"marlin\": only gemm can be read");
    CHECK(awq("zero_point", false) ==
          file + ": 'zero_point' is false: only layers with zero points can be read");
    CHECK(awq("bits", 3) == file + ": 'bits' is 3: not 4");
    CHECK(awq("bits", "4") == file + ": 'bits' is \"4\": not a whole number");
    CHECK(contains(awq("group_size", 48), "groups of 48"));
    CHECK(contains(awq("group_size", 48), "is not compiled into this program"));
    CHECK(contains(awq("quant_method", "bitsandbytes"),
                   "only gptq-packed, gptq, awq and compressed-tensors can be read"));
    json named = awq_config();
    named.erase("bits");
    named.erase("group_size");
    named["w_bit"] = 4;
    named["q_group_size"] = 32;
    named["version"] = "GEMM";
    CHECK(with(named, add_awq, none).empty());
    named.erase("w_bit");
    CHECK(with(named, add_awq, none) == file + ": has no 'w_bit'");

    auto const compressed = [&](char const* pointer, json const& value) {
      json quantization = compressed_config(symmetric_weights());
      quantization[json::json_pointer(pointer)] = value;
      return with(quantization, add_symmetric, none);
    };
    std::string const group = file + ": 'config_groups': 'group_0'";
    CHECK(compressed("/format", "int-quantized") ==
          file + ": 'format' is \"int-quantized\": only pack-quantized can be read");
    CHECK(compressed("/format", nullptr) == file + ": has no 'format'");
    CHECK(contains(compressed("/transform_config", {{"config_groups", {{"u", {}}}}}),
                   "transformed weights are not implemented"));
    CHECK(contains(compressed("/sparsity_config", {{"format", "sparse-24-bitmask"}}),
                   "sparse weights are not implemented"));
    CHECK(compressed("/sparsity_config", {{"format", "dense"}}).empty());
    CHECK(contains(compressed("/config_groups/group_1", json::object()),
                   "only one scheme for all layers is implemented"));
    CHECK(contains(compressed("/config_groups", json::object()),
                   "only one scheme for all layers is implemented"));
    CHECK(compressed("/config_groups/group_0/targets", {"re:.*q_proj"}) ==
          group + ": 'targets' is [\"re:.*q_proj\"]: only [\"Linear\"] is implemented");
    CHECK(contains(compressed("/config_groups/group_0/input_activations", {{"num_bits", 8}}),
                   "quantized activations are not implemented"));
    std::string const weights = group + ": 'weights'";
    CHECK(compressed("/config_groups/group_0/weights", nullptr) == group + ": has no 'weights'");
    CHECK(compressed("/config_groups/group_0/weights/type", "float") ==
          weights + ": 'type' is \"float\": only int is implemented");
    CHECK(compressed("/config_groups/group_0/weights/num_bits", 5) ==
          weights + ": 'num_bits' is 5: neither 4 nor 8");
    CHECK(compressed("/config_groups/group_0/weights/strategy", "tensor") ==
          weights + ": 'strategy' is \"tensor\": only group and channel are implemented");
    CHECK(compressed("/config_groups/group_0/weights/strategy", nullptr).empty());
    CHECK(contains(compressed("/config_groups/group_0/weights/symmetric", false),
                   "weight_zero_point has 0 bytes"));
  }
}
