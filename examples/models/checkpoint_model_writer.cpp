// Models as AWQ and compressed-tensors checkpoints.
#include <optional>
#include <span>
#include <string>

#include <fmt/format.h>

#include <gptq/checkpoint/awq.hpp>
#include <gptq/checkpoint/compressed_tensors.hpp>
#include <gptq/error.hpp>
#include <gptq/packed.hpp>

#include "checkpoint_model.hpp"
#include "formats.hpp"

namespace lm {
namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::dtype;
using gptq::checkpoint::safetensors_writer;
using nlohmann::ordered_json;

using integer_zeros = gptq::schemes<gptq::asymmetric, gptq::symmetric, gptq::fixed_zero>;
using awq_formats = gptq::combinations<integer_zeros, gptq::bit_widths<4>, group_sizes>;
using compressed_formats = gptq::combinations<integer_zeros, gptq::bit_widths<2, 3, 4, 8>, group_sizes,
                                              gptq::scale_types<gptq::float16, float>>;

std::size_t as_size(gptq::index_t n) { return static_cast<std::size_t>(n); }

/// What write(Format, layer) does, with the layer's name before what it throws.
template <class List, class Write>
void with_layer(std::string const& name, packed_linear const& packed, Write const& write) {
  try {
    gptq::with_format<List>(packed.format(),
                            [&]<class Format>() { write(gptq::unpack(view_of<Format>(packed.parts()))); });
  } catch (gptq::error const& e) {
    throw gptq::error(name + ": " + e.what());
  }
}

/// The format of all layers; a layer with another is refused by name.
gptq::format_spec only_format(model const& m, char const* what) {
  std::optional<gptq::format_spec> all;
  m.for_each_packed([&](linear_layer const& layer, packed_linear const& packed) {
    auto const format = packed.format();
    if (all && to_string(*all) != to_string(format)) {
      throw gptq::error(fmt::format("{}: is in {}, others in {}: {} have one for all; --format gptq can",
                                    layer.name, to_string(format), to_string(*all), what));
    }
    all = format;
  });
  return all.value();
}

void refuse_half_steps(gptq::format_spec const& format, char const* what) {
  if (format.scheme != "half_step") return;
  throw gptq::error(
      fmt::format("{} hold integer zero points: half_step does not fit; --format packed can", what));
}

void check_awq_layer(gptq::format_spec const& format, linear_layer const& l) {
  refuse_half_steps(format, "AWQ checkpoints");
  if (format.bits != 4) {
    throw gptq::error(fmt::format("AWQ checkpoints have 4 bits, not {}; --format gptq can", format.bits));
  }
  if (format.scales != gptq::scale_type::float16) {
    throw gptq::error("AWQ checkpoints have float16 scales: float32 ones would be rounded after the fact");
  }
  if (l.out % 8 != 0) {
    throw gptq::error(fmt::format(
        "AWQ checkpoints have whole 32-bit words: {} outputs of 4 bits are not; --format packed can", l.out));
  }
}

checkpoint_piece awq_piece(linear_layer const& layer, packed_linear const& packed) {
  check_awq_layer(packed.format(), layer);
  if (!packed.parts().order.empty()) {
    throw gptq::error(layer.name +
                      ": its columns are reordered, for which AWQ has no place; --format gptq has");
  }
  std::string const& name = layer.name;
  std::size_t const out = as_size(layer.out), in = as_size(layer.in), groups = as_size(groups_of(packed));
  return {{{name + ".qweight", dtype::i32, {in, out / 8}},
           {name + ".qzeros", dtype::i32, {groups, out / 8}},
           {name + ".scales", dtype::f16, {groups, out}}},
          [name, &packed](safetensors_writer& file) {
            with_layer<awq_formats>(name, packed, [&](auto const& quantized) {
              auto const tensors = gptq::checkpoint::to_awq(quantized);
              file.write(std::as_bytes(std::span(tensors.qweight)));
              file.write(std::as_bytes(std::span(tensors.qzeros)));
              file.write(std::as_bytes(std::span(tensors.scales)));
            });
          }};
}

void check_compressed_layer(gptq::format_spec const& format, linear_layer const& /*l*/) {
  refuse_half_steps(format, "compressed-tensors checkpoints");
}

checkpoint_piece compressed_piece(linear_layer const& layer, packed_linear const& packed) {
  auto const format = packed.format();
  check_compressed_layer(format, layer);
  std::string const& name = layer.name;
  std::size_t const out = as_size(layer.out), in = as_size(layer.in), groups = as_size(groups_of(packed));
  auto const words = [&](std::size_t codes) { return (codes * as_size(format.bits) + 31) / 32; };
  bool const half = format.scales == gptq::scale_type::float16;
  bool const reordered = !packed.parts().order.empty();
  checkpoint_piece piece;
  piece.tensors = {{name + ".weight_packed", dtype::i32, {out, words(in)}},
                   {name + ".weight_scale", half ? dtype::f16 : dtype::f32, {out, groups}},
                   {name + ".weight_shape", dtype::i64, {2}}};
  if (format.scheme == "asymmetric")
    piece.tensors.push_back({name + ".weight_zero_point", dtype::i32, {words(out), groups}});
  if (reordered) piece.tensors.push_back({name + ".weight_g_idx", dtype::i32, {in}});
  piece.write = [name, &packed, half](safetensors_writer& file) {
    using gptq::checkpoint::compressed_scale;
    with_layer<compressed_formats>(name, packed, [&](auto const& quantized) {
      auto const tensors = gptq::checkpoint::to_compressed(
          quantized, half ? compressed_scale::float16 : compressed_scale::float32);
      file.write(std::as_bytes(std::span(tensors.weight_packed)));
      file.write(tensors.weight_scale);
      file.write(std::as_bytes(std::span(tensors.weight_shape)));
      if (!tensors.weight_zero_point.empty()) file.write(std::as_bytes(std::span(tensors.weight_zero_point)));
      if (!tensors.weight_g_idx.empty()) file.write(std::as_bytes(std::span(tensors.weight_g_idx)));
    });
  };
  return piece;
}

/// As llm-compressor writes it, with what transformers asks for.
ordered_json compressed_configuration(model const& m) {
  gptq::format_spec const format = only_format(m, "compressed-tensors checkpoints");
  bool const whole_rows = format.group_size == gptq::whole_row;
  bool reordered = false;
  m.for_each_packed([&](linear_layer const&, packed_linear const& packed) {
    reordered = reordered || !packed.parts().order.empty();
  });
  ordered_json weights{{"num_bits", format.bits},
                       {"type", "int"},
                       {"symmetric", format.scheme != "asymmetric"},
                       {"strategy", whole_rows ? "channel" : "group"},
                       {"group_size", whole_rows ? ordered_json() : ordered_json(format.group_size)},
                       {"dynamic", false},
                       {"observer", "minmax"}};
  if (reordered) weights["actorder"] = "group";
  ordered_json const group{{"targets", {"Linear"}},
                           {"weights", weights},
                           {"input_activations", nullptr},
                           {"output_activations", nullptr}};
  return {{"quant_method", "compressed-tensors"},
          {"format", "pack-quantized"},
          {"quantization_status", "compressed"},
          {"config_groups", {{"group_0", group}}},
          {"ignore", {m.config().output_name}}};
}

}  // namespace

void check_awq(gptq::format_spec const& format, config const& c) {
  for (decoder_description const& layer : c.layers) {
    for (linear_layer const& l : layer.linears) check_awq_layer(format, l);
  }
}

void write_awq_model(fs::path const& directory, model const& m, fs::path const& source,
                     std::size_t shard_bytes) {
  std::optional<int> group_size;
  m.for_each_packed([&](linear_layer const& layer, packed_linear const& packed) {
    int const groups = packed.format().group_size;
    if (group_size && *group_size != groups) {
      throw gptq::error(layer.name +
                        ": has other groups than the layers before, and AWQ checkpoints have one "
                        "size for all; --format gptq has not");
    }
    group_size = groups;
  });
  ordered_json const configuration{{"quant_method", "awq"},
                                   {"version", "gemm"},
                                   {"bits", 4},
                                   {"group_size", group_size.value()},
                                   {"zero_point", true}};
  write_checkpoint(directory, m, source, {awq_piece, configuration, "quant_config.json"}, shard_bytes);
}

void check_compressed(gptq::format_spec const& format, config const& c) {
  for (decoder_description const& layer : c.layers) {
    for (linear_layer const& l : layer.linears) check_compressed_layer(format, l);
  }
}

void write_compressed_model(fs::path const& directory, model const& m, fs::path const& source,
                            std::size_t shard_bytes) {
  write_checkpoint(directory, m, source, {compressed_piece, compressed_configuration(m)}, shard_bytes);
}

}  // namespace lm
