#include "checkpoint_directory.hpp"

#include <array>
#include <cstdint>

#include "files.hpp"

namespace test {

namespace fs = std::filesystem;
using gptq::checkpoint::dtype;
using nlohmann::json;

json checkpoint_config() {
  return {{"model_type", "llama"},    {"hidden_size", 32},
          {"intermediate_size", 64},  {"num_hidden_layers", 1},
          {"num_attention_heads", 4}, {"num_key_value_heads", 2},
          {"vocab_size", 40},         {"max_position_embeddings", 64}};
}

void write_directory(fs::path const& directory, json const& config, stored_tensors const& tensors) {
  fs::create_directories(directory);
  gptq::checkpoint::tensor_map map;
  for (auto const& [name, t] : tensors) map[name] = {t.type, t.shape, t.bytes};
  write_safetensors(directory / "model.safetensors", map);
  write_file(directory / "config.json", config.dump());
}

std::vector<named_shape> linear_layers() {
  std::string const layer = "model.layers.0.";
  return {{layer + "self_attn.k_proj", 16, 32}, {layer + "self_attn.v_proj", 16, 32},
          {layer + "self_attn.q_proj", 32, 32}, {layer + "self_attn.o_proj", 32, 32},
          {layer + "mlp.up_proj", 64, 32},      {layer + "mlp.gate_proj", 64, 32},
          {layer + "mlp.down_proj", 32, 64}};
}

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

namespace {

/// Words of numbers of 4 bits, by the order of their nibbles.
std::uint32_t word_of(int const* numbers, std::array<int, 8> const& order) {
  std::uint32_t word = 0;
  for (std::size_t i = 0; i < 8; ++i) {
    word |= static_cast<std::uint32_t>(numbers[order[i]]) << (4 * i);
  }
  return word;
}

}  // namespace

std::vector<float> add_awq(stored_tensors& tensors, named_shape const& l, random& random) {
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

std::vector<float> add_symmetric(stored_tensors& tensors, named_shape const& l, random& random) {
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

std::vector<float> add_channels(stored_tensors& tensors, named_shape const& l, random& random) {
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

void write_both(fs::path const& directory, json const& quantization, add_layer const& add,
                std::string const& not_converted) {
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
  json config = checkpoint_config();
  write_directory(directory / "plain", config, plain);
  config["quantization_config"] = quantization;
  write_directory(directory / "quantized", config, quantized);
}

std::vector<lm::token> some_tokens() {
  test::random random(93);
  std::vector<lm::token> tokens;
  for (int i = 0; i < 6 * 32; ++i) tokens.push_back(random.below(40));
  return tokens;
}

}  // namespace test
