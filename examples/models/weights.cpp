#include "weights.hpp"

#include <utility>

#include <gptq/error.hpp>

#include "gguf_model.hpp"

namespace lm {

using gptq::checkpoint::dtype;
using gptq::checkpoint::ggml_tensor;
using gptq::checkpoint::tensor_view;

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
    directory_.emplace(path);
    for (auto const& [name, tensor] : directory_->tensors()) weights_[name] = {tensor, 0};
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
  static gptq::checkpoint::tensor_map const none;
  return directory_ ? directory_->tensors() : none;
}

}  // namespace lm
