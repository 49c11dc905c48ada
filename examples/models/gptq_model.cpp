#include "gptq_model.hpp"

#include <cstdio>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <gptq/checkpoint/gptq_config.hpp>
#include <gptq/error.hpp>

#include "formats.hpp"
#include "gguf_model.hpp"
#include "output_files.hpp"

namespace lm {
namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::dtype;
using gptq::checkpoint::gptq_tensors;
using gptq::checkpoint::gptq_version;
using gptq::checkpoint::safetensors_writer;
using gptq::checkpoint::tensor_info;
using gptq::checkpoint::tensor_map;
using nlohmann::ordered_json;

using written_formats = gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::symmetric, gptq::fixed_zero>,
                                           gptq::bit_widths<2, 3, 4, 8>, group_sizes>;

gptq_tensors tensors_of(packed_linear const& packed, gptq_version version) {
  return gptq::with_format<written_formats>(packed.format(), [&]<class Format>() {
    return to_gptq(gptq::unpack(view_of<Format>(packed.parts())), version);
  });
}

/// What is written at once: a linear layer, which is converted only then, or another tensor.
struct piece {
  std::vector<tensor_info> tensors;
  std::function<void(safetensors_writer&)> write;

  std::size_t bytes() const {
    return std::accumulate(tensors.begin(), tensors.end(), std::size_t{0},
                           [](std::size_t sum, tensor_info const& t) { return sum + t.bytes(); });
  }
};

piece piece_of(std::string const& name, packed_linear const& packed, gptq_version version) {
  auto const parts = packed.parts();
  auto const bits = static_cast<std::size_t>(packed.format().bits);
  auto const out = static_cast<std::size_t>(parts.out);
  auto const in = static_cast<std::size_t>(parts.in);
  std::size_t const columns = packed.format().group_size == gptq::whole_row
                                  ? in
                                  : static_cast<std::size_t>(packed.format().group_size);
  std::size_t const groups = (in + columns - 1) / columns;
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
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
    auto const& linears = m.config().layer(i).linears;
    for (std::size_t place = 0; place < linears.size(); ++place) {
      packed_linear const& packed = *m.packed(i, place);
      auto const format = packed.format();
      layers[linears[place].name] = gptq::checkpoint::gptq_layer_config{
          format.bits, format.group_size, format.scheme != "asymmetric", /*act_order=*/false};
      act_order = act_order || !packed.parts().order.empty();
    }
  }
  auto config = make_gptq_config(layers, version);
  config.layers.act_order = act_order;
  for (auto& rule : config.rules) {
    if (rule.config) rule.config->act_order = act_order;
  }
  return config;
}

/// Everything that is to be written, checked.
std::vector<piece> pieces_of(model const& m, gptq_version version) {
  std::vector<piece> pieces;
  m.for_each_float_tensor([&](std::string const& name, gptq::checkpoint::tensor_view const& tensor) {
    pieces.push_back({{{name, tensor.type, tensor.shape}},
                      [tensor](safetensors_writer& file) { file.write(tensor.bytes); }});
  });
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
    auto const& linears = m.config().layer(i).linears;
    for (std::size_t place = 0; place < linears.size(); ++place) {
      std::string const& name = linears[place].name;
      packed_linear const* const packed = m.packed(i, place);
      if (packed == nullptr) throw gptq::error(name + " is not quantized");
      check_layer(packed->format(), linears[place]);
      if (version == gptq_version::v1) check_zeros(name, *packed);
      pieces.push_back(piece_of(name, *packed, version));
    }
  }
  return pieces;
}

/// model.safetensors, or as many files as it takes and the index that names them.
void write_weights(fs::path const& directory, std::vector<piece> const& pieces, std::size_t shard_bytes) {
  std::vector<std::span<piece const>> files;
  std::size_t total = 0;
  std::size_t in_file = 0;
  for (piece const& p : pieces) {
    std::size_t const bytes = p.bytes();
    if (files.empty() || in_file + bytes > shard_bytes) {
      files.emplace_back(&p, 0);
      in_file = 0;
    }
    files.back() = {files.back().data(), files.back().size() + 1};
    in_file += bytes;
    total += bytes;
  }
  ordered_json weight_map;
  for (std::size_t i = 0; i < files.size(); ++i) {
    std::string const name = files.size() == 1
                                 ? "model.safetensors"
                                 : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, files.size());
    std::vector<tensor_info> tensors;
    for (piece const& p : files[i]) tensors.insert(tensors.end(), p.tensors.begin(), p.tensors.end());
    for (tensor_info const& t : tensors) weight_map[t.name] = name;
    safetensors_writer file(directory / name, std::move(tensors), {{"format", "pt"}});
    for (piece const& p : files[i]) p.write(file);
    file.finish();
  }
  if (files.size() == 1) return;
  ordered_json const index{{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
  write_text(directory / "model.safetensors.index.json", index.dump(1) + "\n");
}

bool is_weights(fs::path const& file) {
  for (char const* const extension : {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"}) {
    if (file.extension() == extension) return true;
  }
  return file.filename().string().ends_with(".index.json");
}

}  // namespace

void check_gptq(gptq::format_spec const& format, config const& c) {
  for (decoder_description const& layer : c.layers) {
    for (linear_layer const& l : layer.linears) check_layer(format, l);
  }
}

void write_gptq_model(fs::path const& directory, model const& m, fs::path const& source, gptq_version version,
                      ordered_json const& how, std::size_t shard_bytes) {
  std::vector<piece> const pieces = pieces_of(m, version);
  make_directory(directory);
  write_weights(directory, pieces, shard_bytes);
  for (auto const& file : fs::directory_iterator(source)) {
    auto const name = file.path().filename();
    if (!file.is_regular_file() || is_weights(name) || name == "config.json") continue;
    lm::copy_file(file.path(), directory / name);
  }
  ordered_json quantization = to_json(make_configuration(m, version));
  for (auto const& [key, value] : how.items()) quantization[key] = value;
  write_text(directory / "quantize_config.json", quantization.dump(1) + "\n");
  ordered_json configuration = read_json(source / "config.json");
  configuration["quantization_config"] = quantization;
  write_text(directory / "config.json", configuration.dump(1) + "\n");
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
