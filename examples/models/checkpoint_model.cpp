#include "checkpoint_model.hpp"

#include <initializer_list>
#include <span>
#include <utility>

#include <fmt/format.h>

#include <gptq/checkpoint/awq.hpp>
#include <gptq/checkpoint/compressed_tensors.hpp>
#include <gptq/checkpoint/gptq.hpp>
#include <gptq/error.hpp>

#include "formats.hpp"

namespace lm {
namespace {

using gptq::checkpoint::compressed_scale;
using gptq::checkpoint::dtype;
using gptq::checkpoint::tensor_map;
using gptq::checkpoint::tensor_view;

using gptq_formats = gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::fixed_zero>,
                                        gptq::bit_widths<2, 3, 4, 8>, group_sizes>;
using awq_formats = gptq::combinations<gptq::schemes<gptq::asymmetric>, gptq::bit_widths<4>, group_sizes>;
using compressed_formats =
    gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::fixed_zero>, gptq::bit_widths<2, 3, 4, 8>,
                       group_sizes, gptq::scale_types<gptq::float16, float>>;

/// The tensors of one linear layer, NAME.SUFFIX.
class layer_tensors {
 public:
  layer_tensors(tensor_map const& tensors, std::string const& name) : tensors_(tensors), name_(name) {}

  tensor_view const* find(char const* suffix, std::initializer_list<dtype> types) const {
    auto const found = tensors_.find(name_ + suffix);
    if (found == tensors_.end()) return nullptr;
    for (dtype const type : types) {
      if (found->second.type == type) return &found->second;
    }
    std::string expected;
    for (dtype const type : types)
      expected += fmt::format("{}{}", expected.empty() ? "" : " or ", type_name(type));
    throw gptq::error(
        fmt::format("tensor '{}{}' is {}, not {}", name_, suffix, to_string(found->second), expected));
  }
  tensor_view const& at(char const* suffix, std::initializer_list<dtype> types) const {
    auto const* const tensor = find(suffix, types);
    if (tensor == nullptr) throw gptq::error(fmt::format("has no tensor '{}{}'", name_, suffix));
    return *tensor;
  }
  /// Empty when there is none.
  std::span<std::byte const> bytes(char const* suffix, dtype type) const {
    auto const* const tensor = find(suffix, {type});
    return tensor == nullptr ? std::span<std::byte const>() : tensor->bytes;
  }

 private:
  tensor_map const& tensors_;
  std::string const& name_;
};

/// The packed matrix that read.operator()<Format>() returns for a format of `List`.
template <class List, class Read>
std::unique_ptr<packed_linear> pack_as(gptq::format_spec const& format, Read const& read) {
  return gptq::with_format<List>(format, [&]<class Format>() {
    auto const owner = std::make_shared<gptq::packed_matrix<Format>>(read.template operator()<Format>());
    return make_packed(format, parts_of(std::as_const(*owner).view()), owner);
  });
}

std::unique_ptr<packed_linear> read_gptq(layer_tensors const& layer, gptq::format_spec const& format,
                                         gptq::checkpoint::gptq_version version, std::int64_t out,
                                         std::int64_t in) {
  gptq::checkpoint::gptq_view const view{out,
                                         in,
                                         layer.at(".qweight", {dtype::i32}).bytes,
                                         layer.at(".qzeros", {dtype::i32}).bytes,
                                         layer.at(".scales", {dtype::f16}).bytes,
                                         layer.bytes(".g_idx", dtype::i32)};
  return pack_as<gptq_formats>(
      format, [&]<class Format>() { return gptq::checkpoint::to_packed<Format>(view, version); });
}

std::unique_ptr<packed_linear> read_awq(layer_tensors const& layer, gptq::format_spec const& format,
                                        std::int64_t out, std::int64_t in) {
  gptq::checkpoint::awq_view const view{out, in, layer.at(".qweight", {dtype::i32}).bytes,
                                        layer.at(".qzeros", {dtype::i32}).bytes,
                                        layer.at(".scales", {dtype::f16}).bytes};
  return pack_as<awq_formats>(
      format, [&]<class Format>() { return gptq::pack(gptq::checkpoint::from_awq<Format>(view)); });
}

std::unique_ptr<packed_linear> read_compressed(layer_tensors const& layer, gptq::format_spec format,
                                               std::int64_t out, std::int64_t in) {
  tensor_view const& scale = layer.at(".weight_scale", {dtype::f16, dtype::bf16, dtype::f32});
  gptq::checkpoint::compressed_view const view{out,
                                               in,
                                               layer.at(".weight_packed", {dtype::i32}).bytes,
                                               scale.bytes,
                                               scale.type == dtype::f16    ? compressed_scale::float16
                                               : scale.type == dtype::bf16 ? compressed_scale::bfloat16
                                                                           : compressed_scale::float32,
                                               layer.bytes(".weight_zero_point", dtype::i32),
                                               layer.bytes(".weight_g_idx", dtype::i32),
                                               layer.bytes(".weight_shape", dtype::i64)};
  if (!scales_fit_float16(view)) format.scales = gptq::scale_type::float32;
  return pack_as<compressed_formats>(
      format, [&]<class Format>() { return gptq::pack(gptq::checkpoint::from_compressed<Format>(view)); });
}

}  // namespace

std::unique_ptr<packed_linear> read_checkpoint(tensor_map const& tensors, std::string const& name,
                                               quantized_checkpoint const& checkpoint, std::int64_t out,
                                               std::int64_t in) {
  layer_tensors const layer(tensors, name);
  auto const format = checkpoint.find_format(name);
  if (!format) throw gptq::error(fmt::format("'{}': is not quantized", name));
  try {
    switch (checkpoint.method) {
      case checkpoint_method::gptq:
        return read_gptq(layer, *format, checkpoint.version, out, in);
      case checkpoint_method::awq:
        return read_awq(layer, *format, out, in);
      default:
        return read_compressed(layer, *format, out, in);
    }
  } catch (gptq::error const& e) {
    throw gptq::error(fmt::format("'{}': {}", name, e.what()));
  }
}

}  // namespace lm
