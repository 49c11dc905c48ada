// Directories that others have quantized, as models: tensors are written here as the formats are published.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors.hpp>

#include "catch.hpp"
#include "checkpoint_directory.hpp"
#include "files.hpp"
#include "model.hpp"
#include "quantization.hpp"
#include "support.hpp"

namespace {

using gptq::checkpoint::dtype;
using nlohmann::json;
using test::add_awq;
using test::add_channels;
using test::add_layer;
using test::add_symmetric;
using test::awq_config;
using test::channel_weights;
using test::checkpoint_config;
using test::compressed_config;
using test::contains;
using test::error_of;
using test::float_tensors;
using test::linear_layers;
using test::scratch;
using test::some_tokens;
using test::store;
using test::stored_tensors;
using test::symmetric_weights;
using test::write_both;
using test::write_directory;

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
  lm::model const plain(dir.path / "plain");
  lm::model read(dir.path / "quantized");
  CHECK(read.has_kernels() == (kernels && !mixed));
  auto const same = [](lm::model const& a, lm::model const& b) {
    auto const x = a.load(0, 1);
    auto const y = b.load(0, 1);
    CHECK(x.weights == y.weights);
  };
  same(read, plain);

  // A source model as any other: what is made of it is what is made of the float32 model.
  read.require_unquantized();
  auto const tokens = some_tokens();
  auto const windows = lm::cut_windows(tokens, 32, 0);
  lm::quantization how;
  how.quantize.format = {"fixed_zero", 3, 32};
  how.threads = how.quantize.options.threads = 1;
  lm::model from_plain(dir.path / "plain");
  lm::quantize_model(read, windows, how, {});
  lm::quantize_model(from_plain, windows, how, {});
  same(read, from_plain);
  for (std::size_t l = 0; l < plain.config().layer(0).linears.size(); ++l) {
    CHECK(read.original(0, l) == plain.original(0, l));
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
    json config = checkpoint_config();
    config["quantization_config"] = quantization;
    write_directory(directory, config, tensors);
    return error_of([&] { lm::model const m(directory); });
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
                   "only gptq-packed, gptq, auto-round, awq and compressed-tensors can be read"));
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
          weights + ": 'num_bits' is 5: not 2, 3, 4 or 8");
    CHECK(compressed("/config_groups/group_0/weights/strategy", "tensor") ==
          weights + ": 'strategy' is \"tensor\": only group and channel are implemented");
    CHECK(compressed("/config_groups/group_0/weights/strategy", nullptr).empty());
    CHECK(contains(compressed("/config_groups/group_0/weights/symmetric", false),
                   "weight_zero_point has 0 bytes"));
  }
}
