// The export of grids, written and read, and weights rounded to them.
#include "quant_directory.hpp"

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "catch.hpp"
#include "checkpoint_directory.hpp"
#include "files.hpp"
#include "model.hpp"
#include "npy.hpp"
#include "quantization.hpp"
#include "support.hpp"

namespace {

namespace fs = std::filesystem;
using test::add_awq;
using test::awq_config;
using test::contains;
using test::error_of;
using test::scratch;
using test::some_tokens;
using test::write_both;
using test::write_file;

std::string contents(fs::path const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("grids are exported, and weights rounded to them") {
  scratch const dir;
  write_both(dir.path, awq_config(), add_awq);
  auto const source = dir.path / "plain";
  auto const out = dir.path / "grids";
  auto const tokens = some_tokens();
  auto const windows = lm::cut_windows(tokens, 32, 0);
  lm::quantization how;
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
    lm::model m(source);
    lm::quantize_model(m, windows, how, {});
    lm::write_quant_directory(out, m);
    lm::model again(source);
    again.round_to(lm::read_quant_directory(out));
    CHECK(again.load(0, 1).weights == m.load(0, 1).weights);
  }
  SECTION("by GPTQ: what is quantized lies on them") {
    how.quantize.options.quality = gptq::quality::plain;
    how.quantize.options.act_order = true;
    lm::model m(source);
    lm::quantize_model(m, windows, how, {});
    lm::write_quant_directory(out, m);
    auto const grids = lm::read_quant_directory(out);
    auto const& linears = m.config().layer(0).linears;
    CHECK(grids.size() == linears.size());
    for (std::size_t l = 0; l < linears.size(); ++l) {
      gptq::matrix weight = m.load(0, 1).weights[l];
      gptq::matrix rounded = weight * 1.0001F;
      auto const& of_layer = grids.at(linears[l].name);
      lm::check_shape(of_layer, weight.rows(), weight.cols());
      CHECK(of_layer.bits == how.quantize.format.bits);
      CHECK(of_layer.symmetric == symmetric);
      CHECK(of_layer.zeros.empty() == symmetric);
      CHECK(of_layer.group_ids.empty() == rows);
      lm::round_to(of_layer, rounded);
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
    CHECK(error_of([&] { lm::prepare_quant_directory(out, false); }) ==
          out.string() + ": holds such an export already");
    lm::prepare_quant_directory(out, true);
    lm::write_quant_directory(out, m);
    CHECK(contents(out / "quant.toml") == index);
  }
}

TEST_CASE("an export as GPTQ-for-LLaMa writes it, and what may be wrong with it") {
  scratch const dir;
  std::string const index = (dir.path / "quant.toml").string() + ": ";
  std::string const layer = index + "'a.b' ";
  std::size_t const grid_shape[] = {2, 2};
  std::size_t const columns[] = {16};
  lm::write_npy<float>(dir.path / "a.b.scale.npy", grid_shape, std::vector<float>{0.5F, 1.0F, 2.0F, 4.0F});
  lm::write_npy<float>(dir.path / "a.b.zero.npy", grid_shape, std::vector<float>{0.0F, 8.0F, 7.5F, 15.0F});
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 16; ++i) ids.push_back(i % 2);
  lm::write_npy<std::int32_t>(dir.path / "a.b.group_ids.npy", columns, ids);
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
    return error_of([&] { lm::read_quant_directory(dir.path); });
  };
  REQUIRE(with("", "").empty());
  auto const grids = lm::read_quant_directory(dir.path).at("a.b");
  gptq::matrix weight = gptq::matrix::Constant(2, 16, -3.3F);
  lm::round_to(grids, weight);
  CHECK(weight(0, 0) == 0.0F);    // 0.5 (q - 0): the lowest is 0
  CHECK(weight(0, 1) == -3.0F);   // 1 (q - 8)
  CHECK(weight(1, 0) == -3.0F);   // 2 (q - 7.5): odd numbers
  CHECK(weight(1, 15) == -4.0F);  // 4 (q - 15)
  CHECK(error_of([&] { lm::check_shape(grids, 2, 15); }) ==
        "grids for 2 rows and 16 columns do not fit a weight of 2 x 15");
  CHECK(error_of([&] { lm::check_shape(grids, 3, 16); }) ==
        "grids for 2 rows and 16 columns do not fit a weight of 3 x 16");

  CHECK(with("sym = false", "sym = true").empty());
  CHECK(lm::read_quant_directory(dir.path).at("a.b").zeros.empty());
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
    lm::write_npy<float>(dir.path / file, shape, values);
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
  lm::write_npy<std::int32_t>(dir.path / "a.b.group_ids.npy", columns, ids);
  CHECK(with("", "") == layer + "has a column in group 2 of 2");
  fs::remove(dir.path / "quant.toml");
  CHECK(error_of([&] { lm::read_quant_directory(dir.path); }) ==
        index + "cannot be opened: No such file or directory");

  // With a model.
  write_both(dir.path, awq_config(), add_awq);
  lm::model m(dir.path / "plain");
  std::string const first = "model.layers.0.self_attn.k_proj";
  CHECK(error_of([&] { m.round_to({}); }) == first + ": there are no grids for it");
  CHECK(error_of([&] {
          m.round_to({{first, grids}});
        }) == first + ": grids for 2 rows and 16 columns do not fit a weight of 16 x 32");
  lm::model packed(dir.path / "quantized");
  CHECK(error_of([&] { packed.round_to({}); }) == first + ": is quantized already");
}
