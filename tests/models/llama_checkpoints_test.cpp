// Directories that others have quantized as models of the LLaMA example, and the export of grids: tensors and
// files are written here as the formats are published.
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
#include "npy.hpp"
#include "quant_directory.hpp"
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

std::string contents(fs::path const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
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

TEST_CASE(".npy files are numpy's") {
  scratch const dir;
  auto const file = dir.path / "a.npy";
  std::string const where = file.string() + ": ";
  // What numpy.save() writes.
  std::string const floats =
      std::string("\x93NUMPY\x01\x00v\x00", 10) +
      "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }" + std::string(58, ' ') + "\n" +
      std::string("\x00\x00\x80?\x00\x00\x00@\x00\x00@@\x00\x00\x80@\x00\x00\xa0@\x00\x00\xd0@", 24);
  std::string const integers = std::string("\x93NUMPY\x01\x00v\x00", 10) +
                               "{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }" +
                               std::string(60, ' ') + "\n" +
                               std::string("\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00", 12);
  std::vector<float> const values{1.0F, 2.0F, 3.0F, 4.0F, 5.0F, 6.5F};
  std::vector<std::int32_t> const ids{2, 0, 1};
  std::size_t const shape[] = {2, 3};
  std::size_t const length[] = {3};
  llama::write_npy<float>(file, shape, values);
  CHECK(contents(file) == floats);
  CHECK(llama::read_npy<float>(file).values == values);
  CHECK(llama::read_npy<float>(file).shape == std::vector<std::size_t>{2, 3});
  llama::write_npy<std::int32_t>(file, length, ids);
  CHECK(contents(file) == integers);
  CHECK(llama::read_npy<std::int32_t>(file).values == ids);

  auto const with = [&](std::string text, std::string const& from, std::string const& to) {
    return text.replace(text.find(from), from.size(), to);
  };
  // Columns first; keys in another order, as version 2 with a longer length.
  write_file(file, with(floats, "False", "True "));
  CHECK(llama::read_npy<float>(file).values == std::vector<float>{1.0F, 3.0F, 5.0F, 2.0F, 4.0F, 6.5F});
  std::string const other = R"({"shape":(2,3),"fortran_order":False,"descr":"<f4"})";
  write_file(file, std::string("\x93NUMPY\x02\x00", 8) + static_cast<char>(other.size()) +
                       std::string(3, '\0') + other + floats.substr(floats.size() - 24));
  CHECK(llama::read_npy<float>(file).values == values);

  std::string const header = "its header is not a dictionary of descr, fortran_order and shape";
  std::pair<std::string, std::string> const cases[] = {
      {"", "is empty"},
      {"\x93NUMPY\x01", "not a .npy file"},
      {"PK" + floats, "not a .npy file"},
      {with(floats, "\x01", "\x04"), "version 4 of the format is not known"},
      {floats.substr(0, 127), "cut short within its header"},
      {floats.substr(0, 151), "has 23 bytes of numbers, but its shape [2, 3] takes 24"},
      {floats + "x", "has 25 bytes of numbers, but its shape [2, 3] takes 24"},
      {with(floats, "(2, 3)", "(0, 3)"), "has 24 bytes of numbers, but its shape [0, 3] takes 0"},
      {with(floats, "<f4", ">f4"), "holds '>f4', not '<f4'"},
      {with(floats, "<f4", "<f2"), "holds '<f2', not '<f4'"},
      {with(floats, "<f4", "|O8"), "holds '|O8', not '<f4'"},
      {integers, "holds '<i4', not '<f4'"},
      {with(floats, "(2, 3), } ", "(2, 3, 1)}"), "has 3 dimensions, not 1 or 2"},
      {with(floats, "(2, 3), }            ", "(4294967296, 8589934592)}").erase(10 + 118, 4),
       "its shape overflows"},
      {with(floats, "(2, 3)", "(-2,3)"), header},
      {with(floats, "(2, 3)", "(2; 3)"), header},
      {with(floats, "(2, 3)", "[2, 3]"), header},
      {with(floats, "False", "false"), header},
      {with(floats, "'descr'", "'dtype'"), header},
      {with(floats, "'shape'", "'descr'"), header},
      {with(floats, "{", " "), header},
      {with(floats, "}", ","), header},
      {with(floats, "}", "'"), header},
      {with(floats, "} ", "}x"), header},
      {with(floats, "'shape': (2, 3), ", "                 "), header},
  };
  for (auto const& [text, message] : cases) {
    write_file(file, text);
    CHECK(error_of([&] { llama::read_npy<float>(file); }) == where + message);
  }
}

TEST_CASE("grids are exported, and weights rounded to them") {
  scratch const dir;
  write_both(dir.path, awq_config(), add_awq);
  auto const source = dir.path / "plain";
  auto const out = dir.path / "grids";
  auto const tokens = some_tokens();
  auto const windows = llama::cut_windows(tokens, 32, 0);
  llama::quantization how;
  how.threads = how.quantize.options.threads = 1;
  how.quantize.format =
      GENERATE(gptq::format_spec{"asymmetric", 3, 32}, gptq::format_spec{"symmetric", 4, 32},
               gptq::format_spec{"fixed_zero", 4, gptq::whole_row, gptq::scale_type::float32},
               gptq::format_spec{"half_step", 2, 32});
  CAPTURE(to_string(how.quantize.format));
  bool const symmetric =
      how.quantize.format.scheme == "symmetric" || how.quantize.format.scheme == "fixed_zero";
  bool const rows = how.quantize.format.group_size == gptq::whole_row;

  SECTION("to nearest: the same again") {
    how.quantize.round_to_nearest = true;
    llama::model m(source);
    llama::quantize_model(m, windows, how, {});
    llama::write_quant_directory(out, m);
    llama::model again(source);
    again.round_to(llama::read_quant_directory(out));
    for (std::size_t l = 0; l < llama::linears; ++l) {
      CHECK(again.load(0, 1).weights[l] == m.load(0, 1).weights[l]);
    }
  }
  SECTION("by GPTQ: what is quantized lies on them") {
    how.quantize.options.quality = gptq::quality::plain;
    how.quantize.options.act_order = true;
    llama::model m(source);
    llama::quantize_model(m, windows, how, {});
    llama::write_quant_directory(out, m);
    auto const grids = llama::read_quant_directory(out);
    CHECK(grids.size() == llama::linears);
    for (std::size_t l = 0; l < llama::linears; ++l) {
      gptq::matrix weight = m.load(0, 1).weights[l];
      gptq::matrix rounded = weight * 1.0001F;
      auto const& of_layer = grids.at(llama::full_name(0, linear(l)));
      llama::check_shape(of_layer, weight.rows(), weight.cols());
      CHECK(of_layer.bits == how.quantize.format.bits);
      CHECK(of_layer.symmetric == symmetric);
      CHECK(of_layer.zeros.empty() == symmetric);
      CHECK(of_layer.group_ids.empty() == rows);
      llama::round_to(of_layer, rounded);
      CHECK(rounded == weight);
    }
    // The files that the published exporter writes.
    std::string const name = "model.layers.0.mlp.down_proj";
    CHECK(fs::exists(out / (name + ".scale.npy")));
    CHECK(fs::exists(out / (name + ".zero.npy")) != symmetric);
    CHECK(fs::exists(out / (name + ".group_ids.npy")) != rows);
    std::string const index = contents(out / "quant.toml");
    CHECK(contains(index, "['model.layers.0.mlp.down_proj']\n"));
    CHECK(contains(index, "groupsize = " + std::to_string(how.quantize.format.group_size) + "\n"));
    CHECK(contains(index, symmetric ? "sym = true\n" : "sym = false\n"));
    CHECK(contains(index, "scale = 'model.layers.0.mlp.down_proj.scale.npy'\n"));
    CHECK(contains(index, "perchannel = true\n"));
    CHECK(error_of([&] { llama::prepare_quant_directory(out, false); }) ==
          out.string() + ": holds such an export already");
    llama::prepare_quant_directory(out, true);
    llama::write_quant_directory(out, m);
    CHECK(contents(out / "quant.toml") == index);
  }
}

TEST_CASE("an export as GPTQ-for-LLaMa writes it, and what may be wrong with it") {
  scratch const dir;
  std::string const index = (dir.path / "quant.toml").string() + ": ";
  std::string const layer = index + "'a.b' ";
  std::size_t const grid_shape[] = {2, 2};
  std::size_t const columns[] = {16};
  llama::write_npy<float>(dir.path / "a.b.scale.npy", grid_shape, std::vector<float>{0.5F, 1.0F, 2.0F, 4.0F});
  llama::write_npy<float>(dir.path / "a.b.zero.npy", grid_shape, std::vector<float>{0.0F, 8.0F, 7.5F, 15.0F});
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 16; ++i) ids.push_back(i % 2);
  llama::write_npy<std::int32_t>(dir.path / "a.b.group_ids.npy", columns, ids);
  // toml.dump() of Python's toml package.
  std::string const good = R"(["a.b"]
zero = "a.b.zero.npy"
scale = "a.b.scale.npy"
wbits = 4
groupsize = 8
group_ids = "a.b.group_ids.npy"
sym = false
perchannel = true
)";
  auto const with = [&](std::string const& from, std::string const& to) {
    std::string text = good;
    if (!from.empty()) text.replace(text.find(from), from.size(), to);
    write_file(dir.path / "quant.toml", text);
    return error_of([&] { llama::read_quant_directory(dir.path); });
  };
  REQUIRE(with("", "").empty());
  auto const grids = llama::read_quant_directory(dir.path).at("a.b");
  gptq::matrix weight = gptq::matrix::Constant(2, 16, -3.3F);
  llama::round_to(grids, weight);
  CHECK(weight(0, 0) == 0.0F);    // 0.5 (q - 0): the lowest is 0
  CHECK(weight(0, 1) == -3.0F);   // 1 (q - 8)
  CHECK(weight(1, 0) == -3.0F);   // 2 (q - 7.5): odd numbers
  CHECK(weight(1, 15) == -4.0F);  // 4 (q - 15)
  CHECK(error_of([&] { llama::check_shape(grids, 2, 15); }) ==
        "grids for 2 rows and 16 columns do not fit a weight of 2 x 15");
  CHECK(error_of([&] { llama::check_shape(grids, 3, 16); }) ==
        "grids for 2 rows and 16 columns do not fit a weight of 3 x 16");

  CHECK(with("sym = false", "sym = true").empty());
  CHECK(llama::read_quant_directory(dir.path).at("a.b").zeros.empty());
  CHECK(contains(with("wbits = 4", "wbits = "), index + "line 4: not valid TOML: "));
  CHECK(contains(with("\"a.b\"]", "\"a.\xff\"]"), index + "line 1: not valid TOML: "));
  CHECK(contains(with("wbits = 4", "sym = true"), index + "line 7: not valid TOML: "));  // twice
  CHECK(with("[\"a.b\"]", "\"a.b\" = 1\n[x]") == layer + "is not a table");
  CHECK(with("wbits = 4", "wbits = 5") == layer + "has wbits 5, not 2, 3, 4 or 8");
  CHECK(with("wbits = 4", "wbits = 4.0") == layer + "has no whole number 'wbits'");
  CHECK(with("wbits = 4\n", "") == layer + "has no whole number 'wbits'");
  CHECK(with("groupsize = 8", "groupsize = 0") == layer + "has groupsize 0, neither positive nor -1");
  CHECK(with("groupsize = 8", "groupsize = 99999999999") == layer + "has no whole number 'groupsize'");
  CHECK(with("groupsize = 8", "groupsize = -1") == layer + "has 2 groups in rows of one");
  CHECK(with("sym = false", "sym = 0") == layer + "has no true or false 'sym'");
  CHECK(with("perchannel = true", "perchannel = false") ==
        layer + "has one grid for all rows: not implemented");
  CHECK(with("scale = \"a.b.scale.npy\"\n", "") == layer + "has no file 'scale'");
  CHECK(with("zero = \"a.b.zero.npy\"\n", "") == layer + "has no file 'zero'");
  CHECK(with("group_ids = \"a.b.group_ids.npy\"\n", "") == layer + "has no file 'group_ids'");
  CHECK(with("a.b.scale.npy", "../s.npy") ==
        layer + "has its scale in '../s.npy', which is no name in this directory");
  CHECK(with("a.b.scale.npy", "") == layer + "has its scale in '', which is no name in this directory");
  CHECK(with("a.b.scale.npy", "none") ==
        (dir.path / "none").string() + ": cannot be opened: No such file or directory");
  CHECK(with("a.b.scale.npy", "a.b.group_ids.npy") ==
        (dir.path / "a.b.group_ids.npy").string() + ": holds '<i4', not '<f4'");

  auto const with_floats = [&](char const* file, std::span<std::size_t const> shape,
                               std::vector<float> const& values) {
    auto const before = contents(dir.path / file);
    llama::write_npy<float>(dir.path / file, shape, values);
    auto const message = with("", "");
    write_file(dir.path / file, before);
    return message;
  };
  std::size_t const row[] = {4};
  CHECK(with_floats("a.b.scale.npy", row, {1, 1, 1, 1}) ==
        layer + "has its scale in an array of 1 dimensions, not 2");
  CHECK(with_floats("a.b.scale.npy", grid_shape, {1, 1, 1, NAN}) == layer + "has a scale that is nan");
  CHECK(with_floats("a.b.zero.npy", grid_shape, {1, 1, 1, 16}) ==
        layer + "has a zero that is 16, no multiple of 1/2 between 0 and 15");
  CHECK(with_floats("a.b.zero.npy", grid_shape, {1, 1, 0.25F, 1}) ==
        layer + "has a zero that is 0.25, no multiple of 1/2 between 0 and 15");
  std::size_t const tall[] = {4, 1};
  CHECK(with_floats("a.b.zero.npy", tall, {1, 1, 1, 1}) == layer + "has 4 x 1 zeros for 2 x 2 scales");
  ids[3] = 2;
  llama::write_npy<std::int32_t>(dir.path / "a.b.group_ids.npy", columns, ids);
  CHECK(with("", "") == layer + "has a column in group 2 of 2");
  fs::remove(dir.path / "quant.toml");
  CHECK(error_of([&] { llama::read_quant_directory(dir.path); }) ==
        index + "cannot be opened: No such file or directory");

  // With a model.
  write_both(dir.path, awq_config(), add_awq);
  llama::model m(dir.path / "plain");
  std::string const first = "model.layers.0.self_attn.k_proj";
  CHECK(error_of([&] { m.round_to({}); }) == first + ": there are no grids for it");
  CHECK(error_of([&] {
          m.round_to({{first, grids}});
        }) == first + ": grids for 2 rows and 16 columns do not fit a weight of 16 x 32");
  llama::model packed(dir.path / "quantized");
  CHECK(error_of([&] { packed.round_to({}); }) == first + ": is quantized already");
}
