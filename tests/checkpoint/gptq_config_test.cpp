// The configuration of GPTQ checkpoints: what others write is read, what is not understood is refused by name.
#include <string>

#include <gptq/checkpoint/gptq_config.hpp>

#include "bad_inputs.hpp"
#include "catch.hpp"
#include "support.hpp"

using nlohmann::ordered_json;
using namespace gptq::checkpoint;
using test::error_of;

namespace {

gptq_config parse(std::string const& text) { return parse_gptq_config(ordered_json::parse(text), "x"); }

}  // namespace

TEST_CASE("a configuration as GPTQModel writes it", "[gptq_config]") {
  auto const config = parse(R"({
    "bits": 4, "group_size": 64, "desc_act": true, "sym": false, "lm_head": false, "quant_method": "gptq",
    "checkpoint_format": "gptq_v2", "format": "gptq_v2", "pack_dtype": "int32", "rotation": null, "adapter": null,
    "meta": {"quantizer": ["gptqmodel:5.0.0"], "damp_percent": 0.05},
    "dynamic": {
      "-:lm_head": {},
      "+:.*\\.1[0-2]\\..*down": {"bits": 8, "group_size": -1, "damp_percent": 0.1},
      ".*\\.11\\.": {"bits": 2},
      "+:model\\.layers\\.3\\.": {"sym": true, "desc_act": false}
    }})");
  CHECK(config.version == gptq_version::v2);
  gptq_layer_config const layers{4, 64, false, true};
  CHECK(config.layers == layers);
  REQUIRE(config.rules.size() == 4);
  CHECK_FALSE(layer_config(config, "lm_head").has_value());
  CHECK(layer_config(config, "model.lm_head") == layers);      // a match begins where the name does
  CHECK_FALSE(layer_config(config, "lm_head.2").has_value());  // and ends where it likes
  CHECK(layer_config(config, "model.layers.11.mlp.down_proj") == gptq_layer_config{8, -1, false, true});
  CHECK(layer_config(config, "model.layers.11.mlp.up_proj") == gptq_layer_config{2, 64, false, true});
  CHECK(layer_config(config, "model.layers.3.mlp.up_proj") == gptq_layer_config{4, 64, true, false});
  CHECK(layer_config(config, "model.layers.4.mlp.up_proj") == layers);
  auto const all = layer_configs(config, {"model.layers.11.mlp.up_proj", "lm_head", "model.layers.4"});
  CHECK(all.size() == 3);
  CHECK(all.at("model.layers.11.mlp.up_proj") == gptq_layer_config{2, 64, false, true});
  CHECK_FALSE(all.at("lm_head").has_value());
  CHECK(all.at("model.layers.4") == layers);
  // In the order in which they stand, whatever the alphabet says.
  auto const twice =
      parse(R"({"bits":4,"group_size":32,"dynamic":{"z":{"bits":2},"zz":{"bits":3},"a":{"bits":8}}})");
  CHECK(layer_config(twice, "zz")->bits == 2);
  // A pattern with its prefix and without is one, and its first rule counts, once it is written as well.
  auto const same = parse(R"({"bits":4,"group_size":32,"dynamic":{"a":{"bits":2},"+:a":{"bits":8}}})");
  CHECK(layer_config(same, "a")->bits == 2);
  CHECK(layer_config(parse(to_json(same).dump()), "a")->bits == 2);
}

TEST_CASE("versions stand under either key", "[gptq_config]") {
  auto const version = [](std::string const& keys) {
    return parse(R"({"bits":4,"group_size":128)" + keys + "}").version;
  };
  CHECK(version("") == gptq_version::v1);
  for (std::string const key : {"format", "checkpoint_format"}) {
    CHECK(version(",\"" + key + R"(":"gptq")") == gptq_version::v1);
    CHECK(version(",\"" + key + R"(":"gptq_v2")") == gptq_version::v2);
    CHECK(version(",\"" + key + R"(":null)") == gptq_version::v1);
  }
  CHECK(parse(R"({"bits":4,"group_size":128})").layers == gptq_layer_config{4, 128, true, false});
}

TEST_CASE("what is written is read again", "[gptq_config]") {
  gptq_layer_config const most{4, 128, true, true};
  gptq_layer_config const other{8, -1, false, false};
  std::map<std::string, std::optional<gptq_layer_config>> layers;
  for (int i = 0; i < 12; ++i) layers["model.layers." + std::to_string(i) + ".mlp"] = most;
  layers["model.layers.1.mlp"] = other;
  layers["model.layers.11.mlp"] = gptq_layer_config{3, 128, true, true};
  layers["a+b (c) [d]"] = other;
  layers["lm_head"] = std::nullopt;
  for (gptq_version const version : {gptq_version::v1, gptq_version::v2}) {
    auto const config = make_gptq_config(layers, version);
    CHECK(config.layers == most);
    CHECK(config.rules.size() == 4);
    auto const json = to_json(config);
    CHECK(json.at("checkpoint_format") == (version == gptq_version::v1 ? "gptq" : "gptq_v2"));
    CHECK(json.at("format") == json.at("checkpoint_format"));
    CHECK(json.at("dynamic").at("-:^lm_head$") == ordered_json::object());
    CHECK(json.at("dynamic").at("+:^model\\.layers\\.11\\.mlp$") == ordered_json{{"bits", 3}});
    auto const read = parse(json.dump());
    CHECK(read.version == version);
    for (auto const& [name, expected] : layers) {
      INFO(name);
      CHECK(layer_config(read, name) == expected);
    }
    CHECK(layer_config(read, "model.layers.1.mlp2") == most);
    CHECK(layer_config(read, "model.layers.1xmlp") == most);
  }
  CHECK_FALSE(to_json(make_gptq_config({{"a", most}}, gptq_version::v1)).contains("dynamic"));
  CHECK(error_of([] {
          make_gptq_config({{"a", std::nullopt}}, gptq_version::v1);
        }) == "GPTQ configuration: no layer is quantized");
}

TEST_CASE("a pattern of any shape takes no longer than its length", "[gptq_config]") {
  auto const config =
      parse(R"({"bits":4,"group_size":128,"dynamic":{"(a*)*b":{"bits":8},"(x+x+)+y":{"bits":2}}})");
  CHECK(layer_config(config, std::string(60, 'a'))->bits == 4);
  CHECK(layer_config(config, std::string(60, 'x'))->bits == 4);
  CHECK(layer_config(config, std::string(60, 'x') + "y")->bits == 2);
}

TEST_CASE("a configuration that cannot be read is refused with the reason", "[gptq_config]") {
  auto const with = [](std::string const& keys) {
    return [text = R"({"bits":4,"group_size":128)" + keys + "}"] { parse(text); };
  };
  auto const whole = [](std::string const& text) { return [text] { parse(text); }; };
  test::check_bad_inputs(
      "GPTQ configurations",
      {
          {"an array", whole("[]")},
          {"no bits", whole(R"({"group_size":128})")},
          {"bits that are a string", whole(R"({"bits":"4","group_size":128})")},
          {"5 bits", whole(R"({"bits":5,"group_size":128})")},
          {"-1 bits", whole(R"({"bits":-1,"group_size":128})")},
          {"4.0 bits", whole(R"({"bits":4.0,"group_size":128})")},
          {"2^64 bits", whole(R"({"bits":18446744073709551615,"group_size":128})")},
          {"no group_size", whole(R"({"bits":4})")},
          {"a group_size of 0", whole(R"({"bits":4,"group_size":0})")},
          {"a group_size of -2", whole(R"({"bits":4,"group_size":-2})")},
          {"sym that is a number", with(R"(,"sym":1)")},
          {"another method", with(R"(,"quant_method":"awq")")},
          {"a format that is not implemented", with(R"(,"checkpoint_format":"gptq_p")")},
          {"the same under the other key", with(R"(,"format":"marlin")")},
          {"two keys that disagree", with(R"(,"checkpoint_format":"gptq","format":"gptq_v2")")},
          {"Marlin by its old name", with(R"(,"is_marlin_format":true)")},
          {"other words", with(R"(,"pack_dtype":"int64")")},
          {"a rotation", with(R"(,"rotation":"hadamard")")},
          {"an adapter", with(R"(,"adapter":{"name":"lora"})")},
          {"dynamic that is an array", with(R"(,"dynamic":[])")},
          {"a rule that is a number", with(R"(,"dynamic":{"a":1})")},
          {"a rule with an unknown key", with(R"(,"dynamic":{"a":{"bits":8,"zeropoint":true}})")},
          {"a rule with an unknown width", with(R"(,"dynamic":{"+:a":{"bits":6}})")},
          {"a pattern that is none", with(R"(,"dynamic":{"-:(a":{}})")},
          {"a pattern that refers back", with(R"(,"dynamic":{"(a)\\1":{}})")},
          {"a pattern of 2001 bytes", with(",\"dynamic\":{\"" + std::string(2001, 'a') + "\":{}}")},
      });
  CHECK_NOTHROW(with(",\"dynamic\":{\"" + std::string(2000, 'a') + "\":{}}")());
}
