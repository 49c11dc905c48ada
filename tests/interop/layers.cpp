// write_layers FILE: random layers in every format that is written, for layers.py: tensors CASE/NAME, among them
// CASE/weight, what the layer decodes to, in float32; and in the metadata what CASE is, in JSON.
#include "checkpoint/layers.hpp"

#include <cstdint>
#include <cstdio>
#include <deque>
#include <exception>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/onnx.hpp>
#include <gptq/checkpoint/repack.hpp>
#include <gptq/checkpoint/safetensors.hpp>

namespace {

using namespace gptq::checkpoint;
using gptq::format;
using gptq::index_t;
using gptq::whole_row;
using nlohmann::json;

class collection {
 public:
  template <class T>
  void add(std::string const& name, dtype type, std::vector<std::size_t> shape,
           std::vector<T> const& values) {
    auto const bytes = std::as_bytes(std::span(values));
    auto const& kept = memory_.emplace_back(bytes.begin(), bytes.end());
    tensors_[name] = {type, std::move(shape), kept};
  }
  void describe(std::string const& name, json const& what) { metadata_[name] = what.dump(); }
  void write(std::string const& file) const { write_safetensors(file, tensors_, metadata_); }

 private:
  std::deque<std::vector<std::byte>> memory_;
  tensor_map tensors_;
  std::map<std::string, std::string> metadata_;
};

constexpr index_t out = 40;
constexpr index_t in = 320;  // a whole row is 2.5 blocks of 128

template <class Format>
json description(char const* kind, bool permuted) {
  return {{"kind", kind},
          {"bits", Format::bits},
          {"group_size", Format::group_size},
          {"symmetric", !Format::has_zero_point},
          {"permuted", permuted}};
}

template <class Format>
std::string case_name(char const* kind, bool permuted) {
  return std::string(kind) + " " + gptq::to_string(gptq::to_spec<Format>()) + (permuted ? ", permuted" : "");
}

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

template <class Format>
void add_compressed(collection& all, compressed_scale type) {
  auto layer = test::random_layer<Format>(out, in, false, 121);
  for (float& scale : layer.scales) scale = gptq::bfloat16(scale);  // bits that every type has
  auto const t = to_compressed(layer, type);
  char const* const types[] = {"float16", "bfloat16", "float32"};
  std::string const name = case_name<Format>("compressed", false) + ", " + types[static_cast<int>(type)];
  std::size_t const groups = at(layer.groups());
  all.add(name + "/weight", dtype::f32, {at(out), at(in)}, test::decoded_weights(layer));
  all.add(name + "/weight_packed", dtype::i32, {at(out), at((in * Format::bits + 31) / 32)}, t.weight_packed);
  dtype const scale_types[] = {dtype::f16, dtype::bf16, dtype::f32};
  all.add(name + "/weight_scale", scale_types[static_cast<int>(type)], {at(out), groups}, t.weight_scale);
  all.add(name + "/weight_shape", dtype::i64, {2}, std::vector<std::int64_t>{out, in});
  if (Format::has_zero_point) {
    all.add(name + "/weight_zero_point", dtype::i32, {at((out * Format::bits + 31) / 32), groups},
            t.weight_zero_point);
  }
  all.describe(name, description<Format>("compressed", false));
}

template <class Format>
void add_awq(collection& all) {
  auto const layer = test::random_layer<Format>(out, in, false, 122);
  auto const t = to_awq(layer);
  std::string const name = case_name<Format>("awq", false);
  all.add(name + "/weight", dtype::f32, {at(out), at(in)}, test::decoded_weights(layer));
  all.add(name + "/qweight", dtype::i32, {at(in), at(out / 8)}, t.qweight);
  all.add(name + "/qzeros", dtype::i32, {at(layer.groups()), at(out / 8)}, t.qzeros);
  all.add(name + "/scales", dtype::f16, {at(layer.groups()), at(out)}, t.scales);
  all.describe(name, description<Format>("awq", false));
}

template <class Format>
void add_ggml(collection& all, ggml_type type) {
  auto layer = test::random_layer<Format>(out, in, false, 123);
  if (type == ggml_type::q4_1 || type == ggml_type::q5_1) layer.scales.assign(layer.scales.size(), -0.25F);
  auto const blocks = repack_to_ggml(layer, type);
  std::string const name = case_name<Format>("ggml", false) + " as " + std::string(type_name(type));
  all.add(name + "/weight", dtype::f32, {at(out), at(in)}, test::decoded_weights(layer));
  all.add(name + "/blocks", dtype::u8, {at(out), blocks.size() / at(out)}, blocks);
  json what = description<Format>("ggml", false);
  what["type"] = static_cast<std::uint32_t>(type);
  all.describe(name, what);
}

/// Blocks of random bytes, as they are decoded here.
void add_decoded(collection& all, ggml_type type) {
  test::random random(124);
  std::vector<std::byte> blocks(64 * block_bytes(type));
  for (std::byte& b : blocks) b = static_cast<std::byte>(random.below(256));
  // A scale in each place where the types have one: at the start, after two bytes, or at the end.
  for (std::size_t i = 0; i < 64; ++i) {
    auto const put = [&](std::size_t offset) {
      auto const bits = gptq::float16(random.uniform()).bits;
      std::memcpy(blocks.data() + i * block_bytes(type) + offset, &bits, 2);
    };
    put(0);
    put(2);
    put(block_bytes(type) - 2);
  }
  std::string const name = "decoded " + std::string(type_name(type));
  std::size_t const columns = block_size(type);
  all.add(name + "/weight", dtype::f32, {64, columns}, to_float(ggml_tensor{type, {64, columns}, blocks}));
  all.add(name + "/blocks", dtype::u8, {64, block_bytes(type)}, blocks);
  all.describe(name, {{"kind", "ggml"}, {"type", static_cast<std::uint32_t>(type)}});
}

template <class Format>
void add_onnx(collection& all, bool permuted) {
  auto const layer = test::random_layer<Format>(out, in, permuted, 125);
  auto const node = to_onnx(layer);
  std::string const name = case_name<Format>("onnx", permuted);
  index_t const blocks = (in + node.block_size - 1) / node.block_size;
  all.add(name + "/weight", dtype::f32, {at(out), at(in)}, test::decoded_weights(layer));
  all.add(name + "/B", dtype::u8, {at(out), at(blocks), at(node.block_size * node.bits / 8)}, node.b);
  bool const is_half = Format::scales == gptq::scale_type::float16;
  all.add(name + "/scales", is_half ? dtype::f16 : dtype::f32, {at(out), at(blocks)}, node.scales);
  if (!node.zero_points.empty()) {
    all.add(name + "/zero_points", dtype::u8, {at(out), node.zero_points.size() / at(out)}, node.zero_points);
  }
  if (!node.wide_zero_points.empty()) {
    all.add(name + "/zero_points", is_half ? dtype::f16 : dtype::f32, {at(out), at(blocks)},
            node.wide_zero_points);
  }
  if (permuted) all.add(name + "/g_idx", dtype::i32, {node.g_idx.size()}, node.g_idx);
  json what = description<Format>("onnx", permuted);
  what["block_size"] = node.block_size;
  all.describe(name, what);
}

using gptq::asymmetric;
using gptq::fixed_zero;
using gptq::half_step;
using gptq::symmetric;

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    collection all;
    for (auto const type :
         {compressed_scale::float16, compressed_scale::bfloat16, compressed_scale::float32}) {
      add_compressed<format<fixed_zero, 2, 32>>(all, type);
      add_compressed<format<asymmetric, 2, 64>>(all, type);
      add_compressed<format<fixed_zero, 3, 32>>(all, type);
      add_compressed<format<asymmetric, 3, whole_row>>(all, type);
      add_compressed<format<symmetric, 4, 32>>(all, type);
      add_compressed<format<asymmetric, 4, 64>>(all, type);
      add_compressed<format<fixed_zero, 4, whole_row>>(all, type);
      add_compressed<format<fixed_zero, 8, 32>>(all, type);
      add_compressed<format<asymmetric, 8, whole_row>>(all, type);
    }
    add_awq<format<asymmetric, 4, 32>>(all);
    add_awq<format<fixed_zero, 4, 64>>(all);
    add_awq<format<symmetric, 4, 32>>(all);
    add_ggml<format<fixed_zero, 4, 32>>(all, ggml_type::q4_0);
    add_ggml<format<asymmetric, 3, 32>>(all, ggml_type::q4_0);
    add_ggml<format<half_step, 3, 64>>(all, ggml_type::q4_0);
    add_ggml<format<asymmetric, 4, 32>>(all, ggml_type::q4_1);
    add_ggml<format<asymmetric, 4, 32>>(all, ggml_type::q5_0);
    add_ggml<format<half_step, 4, 32>>(all, ggml_type::q5_0);
    add_ggml<format<asymmetric, 4, 64>>(all, ggml_type::q5_1);
    add_ggml<format<fixed_zero, 8, whole_row>>(all, ggml_type::q8_0);
    add_ggml<format<asymmetric, 4, 32>>(all, ggml_type::q8_0);
    for (auto const type : {ggml_type::q4_0, ggml_type::q4_1, ggml_type::q5_0, ggml_type::q5_1,
                            ggml_type::q8_0, ggml_type::iq4_nl, ggml_type::q4_k, ggml_type::q6_k}) {
      add_decoded(all, type);
    }
    for (bool const permuted : {false, true}) {
      add_onnx<format<asymmetric, 4, 32, float>>(all, permuted);
      add_onnx<format<fixed_zero, 4, 64, float>>(all, permuted);
      add_onnx<format<asymmetric, 4, 32>>(all, permuted);
    }
    add_onnx<format<asymmetric, 8, 32, float>>(all, false);
    add_onnx<format<asymmetric, 2, 32, float>>(all, false);
    add_onnx<format<asymmetric, 4, whole_row, float>>(all, false);
    add_onnx<format<fixed_zero, 8, whole_row, float>>(all, false);
    all.write(argv[1]);
    return 0;
  } catch (std::exception const& e) {
    std::fprintf(stderr, "write_layers: %s\n", e.what());
    return 1;
  }
}
