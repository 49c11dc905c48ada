#include "checkpoint_writer.hpp"

#include <numeric>
#include <span>
#include <utility>

#include <fmt/format.h>

#include <gptq/error.hpp>

#include "gguf_model.hpp"
#include "output_files.hpp"
#include "packed_model.hpp"

namespace lm {
namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::safetensors_writer;
using gptq::checkpoint::tensor_info;
using nlohmann::ordered_json;

/// Everything that is to be written, checked.
std::vector<checkpoint_piece> pieces_of(model const& m, checkpoint_format const& format) {
  std::vector<checkpoint_piece> pieces;
  m.for_each_float_tensor([&](std::string const& name, gptq::checkpoint::tensor_view const& tensor) {
    pieces.push_back({{{name, tensor.type, tensor.shape}},
                      [tensor](safetensors_writer& file) { file.write(tensor.bytes); }});
  });
  m.for_each_packed([&](linear_layer const& layer, packed_linear const& packed) {
    pieces.push_back(format.piece(layer, packed));
  });
  return pieces;
}

/// model.safetensors, or as many files as it takes and the index that names them.
void write_weights(fs::path const& directory, std::vector<checkpoint_piece> const& pieces,
                   std::size_t shard_bytes) {
  std::vector<std::span<checkpoint_piece const>> files;
  std::size_t total = 0;
  std::size_t in_file = 0;
  for (checkpoint_piece const& p : pieces) {
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
    for (checkpoint_piece const& p : files[i])
      tensors.insert(tensors.end(), p.tensors.begin(), p.tensors.end());
    for (tensor_info const& t : tensors) weight_map[t.name] = name;
    safetensors_writer file(directory / name, std::move(tensors), {{"format", "pt"}});
    for (checkpoint_piece const& p : files[i]) p.write(file);
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

/// Files that say how the weights of their directory are stored.
bool is_about_weights(fs::path const& file) {
  return file == "config.json" || file == "quantize_config.json" || file == "quant_config.json";
}

}  // namespace

std::size_t checkpoint_piece::bytes() const {
  return std::accumulate(tensors.begin(), tensors.end(), std::size_t{0},
                         [](std::size_t sum, tensor_info const& t) { return sum + t.bytes(); });
}

void write_checkpoint(fs::path const& directory, model const& m, fs::path const& source,
                      checkpoint_format const& format, std::size_t shard_bytes) {
  std::vector<checkpoint_piece> const pieces = pieces_of(m, format);
  make_directory(directory);
  write_weights(directory, pieces, shard_bytes);
  if (is_gguf(source)) {
    copy_tokenizer(source, directory);
  } else {
    for (auto const& file : fs::directory_iterator(source)) {
      auto const name = file.path().filename();
      if (!file.is_regular_file() || is_weights(name) || is_about_weights(name)) continue;
      lm::copy_file(file.path(), directory / name);
    }
  }
  if (format.configuration_file != nullptr) {
    write_text(directory / format.configuration_file, format.configuration.dump(1) + "\n");
  }
  ordered_json configuration = is_gguf(source) ? json_of(m.config()) : read_json(source / "config.json");
  configuration["quantization_config"] = format.configuration;
  write_text(directory / "config.json", configuration.dump(1) + "\n");
}

}  // namespace lm
