#include "weights.hpp"

#include <algorithm>
#include <utility>

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

}  // namespace

std::vector<std::size_t> const& stored_weight::shape() const {
  return std::visit([](auto const& t) -> std::vector<std::size_t> const& { return t.shape; }, tensor);
}

std::span<std::byte const> stored_weight::bytes() const {
  return std::visit([](auto const& t) { return t.bytes; }, tensor);
}

bool stored_weight::is_readable() const {
  auto const* const view = std::get_if<tensor_view>(&tensor);
  return view != nullptr ? is_float(view->type) : is_decodable(std::get<ggml_tensor>(tensor).type);
}

std::optional<dtype> stored_weight::float_type() const {
  if (interleaved != 0) return std::nullopt;
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
