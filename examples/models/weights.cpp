#include "weights.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <gptq/error.hpp>

#include "gguf_model.hpp"

namespace lm {

using gptq::checkpoint::dtype;
using gptq::checkpoint::ggml_tensor;
using gptq::checkpoint::tensor_view;

namespace {

/// Files called gptq_model-*.safetensors, where there are none of the usual names.
std::vector<std::filesystem::path> files_of_auto_gptq(std::filesystem::path const& directory) {
  std::vector<std::filesystem::path> files;
  if (std::filesystem::exists(directory / "model.safetensors") ||
      std::filesystem::exists(directory / "model.safetensors.index.json")) {
    return files;
  }
  for (auto const& entry : std::filesystem::directory_iterator(directory)) {
    auto const name = entry.path().filename().string();
    if (name.starts_with("gptq_model-") && name.ends_with(".safetensors")) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

using tensors_by_name = std::map<std::string, stored_weight, std::less<>>;

/// Takes NAME out of `weights` as a matrix for each expert, one after another in the file; nothing: it has none.
std::vector<tensor_view> take_matrices(tensors_by_name& weights, std::string const& name, config const& c,
                                       std::int64_t rows, std::int64_t columns) {
  auto const found = weights.find(name);
  if (found == weights.end()) return {};
  auto const& whole = std::get<tensor_view>(found->second.tensor);
  auto const matrix_rows = static_cast<std::size_t>(rows), matrix_columns = static_cast<std::size_t>(columns);
  std::vector<std::size_t> const shape{static_cast<std::size_t>(c.num_experts), matrix_rows, matrix_columns};
  if (whole.shape != shape) {
    throw gptq::error(fmt::format("tensor '{}' is {}, but config.json makes it [{}, {}, {}]", name,
                                  to_string(whole), shape[0], rows, columns));
  }
  std::vector<tensor_view> matrices;
  std::size_t const bytes = whole.bytes.size() / shape[0];
  for (std::size_t e = 0; e < shape[0]; ++e) {
    matrices.push_back({whole.type, {matrix_rows, matrix_columns}, whole.bytes.subspan(e * bytes, bytes)});
  }
  weights.erase(found);
  return matrices;
}

/// Gives the weights of experts that are stored in one tensor the names that they have one by one:
/// transformers 5 computes with mlp.experts.gate_up_proj [experts, 2 * intermediate, hidden], rows of gate first,
/// and mlp.experts.down_proj [experts, hidden, intermediate], and saves them so when it is asked not to convert.
void separate_experts(tensors_by_name& weights, config const& c) {
  for (std::size_t i = 0; i < c.layers.size(); ++i) {
    decoder_description const& layer = c.layers[i];
    if (!layer.experts) continue;
    std::string const prefix = fmt::format("{}layers.{}.mlp.", c.prefix, i);
    std::int64_t const inner = c.expert_intermediate_size;
    auto const gate_up = take_matrices(weights, prefix + "experts.gate_up_proj", c, 2 * inner, c.hidden_size);
    auto const down = take_matrices(weights, prefix + "experts.down_proj", c, c.hidden_size, inner);
    auto const put = [&](linear kind, std::size_t expert, tensor_view const& matrix) {
      std::size_t const place = layer.index(kind, static_cast<std::int64_t>(expert));
      weights[layer.linears[place].name + ".weight"] = stored_weight{matrix};
    };
    for (std::size_t e = 0; e < gate_up.size(); ++e) {
      tensor_view half = gate_up[e];
      half.shape[0] /= 2;
      std::size_t const bytes = half.bytes.size() / 2;
      half.bytes = gate_up[e].bytes.first(bytes);
      put(linear::gate_proj, e, half);
      half.bytes = gate_up[e].bytes.last(bytes);
      put(linear::up_proj, e, half);
    }
    for (std::size_t e = 0; e < down.size(); ++e) put(linear::down_proj, e, down[e]);
    // The router's name beside them.
    if (auto const router = weights.find(prefix + "gate.weight");
        router != weights.end() && !weights.contains(layer.router + ".weight")) {
      weights[layer.router + ".weight"] = router->second;
      weights.erase(router);
    }
  }
}

std::string to_string(packed_tensor const& tensor) {
  return fmt::format("{} [{}, {}]", to_string(tensor.packed->format()), tensor.shape[0], tensor.shape[1]);
}

/// As the library has it for tensors of files: whole rows of the matrix.
void to_float(packed_tensor const& tensor, std::size_t first, std::span<float> out) {
  std::size_t const columns = tensor.shape[1];
  auto const row = static_cast<std::int64_t>(first / columns);
  tensor.packed->dequantize({row, row + static_cast<std::int64_t>(out.size() / columns)}, out.data());
}

}  // namespace

std::vector<std::size_t> const& stored_weight::shape() const {
  return std::visit([](auto const& t) -> std::vector<std::size_t> const& { return t.shape; }, tensor);
}

std::span<std::byte const> stored_weight::bytes() const {
  if (auto const* const quantized = std::get_if<packed_tensor>(&tensor)) {
    return quantized->packed->parts().codes;
  }
  auto const* const view = std::get_if<tensor_view>(&tensor);
  return view != nullptr ? view->bytes : std::get<ggml_tensor>(tensor).bytes;
}

bool stored_weight::is_readable() const {
  if (std::holds_alternative<packed_tensor>(tensor)) return true;
  auto const* const view = std::get_if<tensor_view>(&tensor);
  return view != nullptr ? is_float(view->type) : is_decodable(std::get<ggml_tensor>(tensor).type);
}

std::optional<dtype> stored_weight::float_type() const {
  if (interleaved != 0 || std::holds_alternative<packed_tensor>(tensor)) return std::nullopt;
  if (auto const* const view = std::get_if<tensor_view>(&tensor)) {
    return is_float(view->type) ? std::optional(view->type) : std::nullopt;
  }
  using gptq::checkpoint::ggml_type;
  switch (std::get<ggml_tensor>(tensor).type) {
    case ggml_type::f32:
      return dtype::f32;
    case ggml_type::f16:
      return dtype::f16;
    case ggml_type::bf16:
      return dtype::bf16;
    default:
      return std::nullopt;
  }
}

tensor_view stored_weight::as_safetensors(std::vector<float>& decoded) const {
  if (auto const* const view = std::get_if<tensor_view>(&tensor)) return *view;
  if (auto const* const quantized = std::get_if<packed_tensor>(&tensor)) {
    decoded.resize(quantized->shape[0] * quantized->shape[1]);
    quantized->packed->dequantize(decoded.data());
    return {dtype::f32, quantized->shape, std::as_bytes(std::span(decoded))};
  }
  auto const& stored = std::get<ggml_tensor>(tensor);
  if (auto const type = float_type()) return {*type, stored.shape, stored.bytes};
  decoded = to_float(stored);
  return {dtype::f32, stored.shape, std::as_bytes(std::span(decoded))};
}

void stored_weight::rows(std::int64_t first, std::int64_t count, float* out) const {
  auto const columns = shape().back();
  auto const read = [&](std::int64_t row, std::int64_t rows, float* to) {
    std::visit(
        [&](auto const& t) {
          to_float(t, static_cast<std::size_t>(row) * columns,
                   {to, static_cast<std::size_t>(rows) * columns});
        },
        tensor);
  };
  if (interleaved == 0) {
    read(first, count, out);
    return;
  }
  if (shape().size() == 1) {  // a bias
    std::vector<float> stored(columns);
    read(0, 1, stored.data());
    for (std::size_t i = 0; i < columns; ++i) {
      out[i] = stored[static_cast<std::size_t>(interleaved_row(static_cast<std::int64_t>(i), interleaved))];
    }
    return;
  }
  for (std::int64_t i = 0; i < count; ++i, out += columns) {
    read(interleaved_row(first + i, interleaved), 1, out);
  }
}

std::string to_string(stored_weight const& weight) {
  return std::visit([](auto const& t) { return to_string(t); }, weight.tensor);
}

weight_files::weight_files(std::filesystem::path const& path, config const& c) : path_(path) {
  if (is_gguf(path)) {
    gguf_.emplace(path);
    weights_ = weights_of(*gguf_, c);
  } else {
    auto const names = files_of_auto_gptq(path);
    for (auto const& name : names) {
      for (auto const& [tensor, view] : named_.emplace_back(name).tensors()) {
        if (!tensors_.emplace(tensor, view).second) {
          throw gptq::error(name.string() + ": tensor '" + tensor + "' is in another file, too");
        }
      }
    }
    if (names.empty()) directory_.emplace(path);
    for (auto const& [name, tensor] : safetensors()) weights_[name] = {tensor, 0};
    try {
      separate_experts(weights_, c);
    } catch (gptq::error const& e) {
      throw gptq::error(path.string() + ": " + e.what());
    }
  }
}

stored_weight const& weight_files::at(std::string_view name) const {
  auto const found = weights_.find(name);
  if (found == weights_.end()) {
    throw gptq::error(path_.string() + ": has no tensor '" + std::string(name) + "'");
  }
  return found->second;
}

gptq::checkpoint::tensor_map const& weight_files::safetensors() const {
  return directory_ ? directory_->tensors() : tensors_;
}

}  // namespace lm
