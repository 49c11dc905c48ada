#include "gptq_model.hpp"

#include <cstdio>
#include <map>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include <gptq/checkpoint/gptq_config.hpp>
#include <gptq/error.hpp>

#include "formats.hpp"

namespace lm {
namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::dtype;
using gptq::checkpoint::gptq_tensors;
using gptq::checkpoint::gptq_version;
using gptq::checkpoint::safetensors_writer;
using gptq::checkpoint::tensor_map;
using nlohmann::ordered_json;

using written_formats = gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::symmetric, gptq::fixed_zero>,
                                           gptq::bit_widths<2, 3, 4, 8>, group_sizes>;

gptq_tensors tensors_of(packed_linear const& packed, gptq_version version) {
  return gptq::with_format<written_formats>(packed.format(), [&]<class Format>() {
    return to_gptq(gptq::unpack(view_of<Format>(packed.parts())), version);
  });
}

checkpoint_piece piece_of(std::string const& name, packed_linear const& packed, gptq_version version) {
  auto const parts = packed.parts();
  auto const bits = static_cast<std::size_t>(packed.format().bits);
  auto const out = static_cast<std::size_t>(parts.out);
  auto const in = static_cast<std::size_t>(parts.in);
  auto const groups = static_cast<std::size_t>(groups_of(packed));
  return {{{name + ".qweight", dtype::i32, {in * bits / 32, out}},
           {name + ".qzeros", dtype::i32, {groups, out * bits / 32}},
           {name + ".g_idx", dtype::i32, {in}},
           {name + ".scales", dtype::f16, {groups, out}}},
          [name, &packed, version](safetensors_writer& file) {
            try {
              auto const tensors = tensors_of(packed, version);
              file.write(std::as_bytes(std::span(tensors.qweight)));
              file.write(std::as_bytes(std::span(tensors.qzeros)));
              file.write(std::as_bytes(std::span(tensors.g_idx)));
              file.write(std::as_bytes(std::span(tensors.scales)));
            } catch (gptq::error const& e) {
              throw gptq::error(name + ": " + e.what());
            }
          }};
}

/// The linear layer's zero points, since version 1 cannot hold 0.
void check_zeros(std::string const& name, packed_linear const& packed) {
  gptq::with_format<written_formats>(packed.format(), [&]<class Format>() {
    if constexpr (Format::has_zero_point) {
      auto const view = view_of<Format>(packed.parts());
      for (gptq::index_t row = 0; row < view.out; ++row) {
        for (gptq::index_t group = 0; group < view.layout().groups(); ++group) {
          if (view.grid(row, group).zero != 0) continue;
          throw gptq::error(
              fmt::format("{}: the zero point of row {}, group {} is 0, which version 1 cannot hold; "
                          "--format gptq_v2 can, "
                          "and with --resume it goes on with what is quantized",
                          name, row, group));
        }
      }
    }
  });
}

/// Throws gptq::error unless a GPTQ checkpoint holds a layer of this format.
void check_layer(gptq::format_spec const& format, linear_layer const& l) {
  if (format.scheme == "half_step") {
    throw gptq::error(
        "GPTQ checkpoints hold integer zero points: half_step does not fit; --format gguf can (Q4_1)");
  }
  if (format.scales != gptq::scale_type::float16) {
    throw gptq::error("GPTQ checkpoints have float16 scales: float32 ones would be rounded after the fact");
  }
  for (std::int64_t const extent : {l.in, l.out}) {
    if (extent * format.bits % 32 == 0) continue;
    throw gptq::error(fmt::format(
        "GPTQ checkpoints have whole 32-bit words: {} codes of {} bits are not; --format packed can", extent,
        format.bits));
  }
}

/// What config.json says of all layers, and of those that differ as "dynamic".
gptq::checkpoint::gptq_config make_configuration(model const& m, gptq_version version) {
  std::map<std::string, std::optional<gptq::checkpoint::gptq_layer_config>> layers;
  bool act_order = false;
  m.for_each_packed([&](linear_layer const& layer, packed_linear const& packed) {
    auto const format = packed.format();
    layers[layer.name] = gptq::checkpoint::gptq_layer_config{
        format.bits, format.group_size, format.scheme != "asymmetric", /*act_order=*/false};
    act_order = act_order || !packed.parts().order.empty();
  });
  auto config = make_gptq_config(layers, version);
  config.layers.act_order = act_order;
  for (auto& rule : config.rules) {
    if (rule.config) rule.config->act_order = act_order;
  }
  return config;
}

}  // namespace

void check_gptq(gptq::format_spec const& format, config const& c) {
  for (decoder_description const& layer : c.layers) {
    for (linear_layer const& l : layer.linears) check_layer(format, l);
  }
}

void write_gptq_model(fs::path const& directory, model const& m, fs::path const& source, gptq_version version,
                      ordered_json const& how, std::size_t shard_bytes) {
  checkpoint_format format;
  format.piece = [version](linear_layer const& layer, packed_linear const& packed) {
    check_layer(packed.format(), layer);
    if (version == gptq_version::v1) check_zeros(layer.name, packed);
    return piece_of(layer.name, packed, version);
  };
  format.configuration = to_json(make_configuration(m, version));
  for (auto const& [key, value] : how.items()) format.configuration[key] = value;
  format.configuration_file = "quantize_config.json";
  write_checkpoint(directory, m, source, format, shard_bytes);
}

gptq_version version_of(tensor_map const& tensors, quantized_checkpoint const& checkpoint,
                        fs::path const& where) {
  for (auto const& [name, tensor] : tensors) {
    if (!name.ends_with(".qzeros") || tensor.type != dtype::i32 || tensor.shape.size() != 2 ||
        tensor.bytes.empty()) {
      continue;
    }
    auto const format =
        checkpoint.find_format(name.substr(0, name.size() - std::string_view(".qzeros").size()));
    if (!format) continue;
    int const bits = format->bits;
    auto const out = static_cast<std::int64_t>(tensor.shape[1]) * 32 / bits;
    auto const proven = gptq::checkpoint::proven_version({out, 0, {}, tensor.bytes, {}, {}}, bits,
                                                         format->scheme == "fixed_zero");
    if (!proven || *proven == checkpoint.version) continue;
    fmt::print(stderr, "warning: {}: read as version {}, whatever config.json says: '{}' proves it\n",
               where.string(), *proven == gptq_version::v1 ? 1 : 2, name);
    return *proven;
  }
  return checkpoint.version;
}

}  // namespace lm
