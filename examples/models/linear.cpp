#include "linear.hpp"

#include <utility>
#include <vector>

#include <fmt/format.h>

#include <gptq/error.hpp>
#include <gptq/packed.hpp>
#include <gptq/quantize.hpp>

#include "formats.hpp"
#include "gpu.hpp"

namespace lm {
namespace {

/// @tparam Owner  keeps the memory of the view: the matrix itself, or a mapped file
template <gptq::storage_format Format, class Owner>
class packed_as final : public packed_linear {
 public:
  packed_as(Owner owner, gptq::packed_view<Format> view) : owner_(std::move(owner)), view_(view) {}

  gptq::format_spec format() const override { return gptq::to_spec<Format>(); }
  using packed_linear::dequantize;
  void dequantize(gptq::row_range rows, float* weight) const override {
    gptq::dequantize(view_, rows, weight);
  }
  packed_parts parts() const override { return parts_of(view_); }

 private:
  Owner owner_;
  gptq::packed_view<Format> view_;
};

template <gptq::storage_format Format>
quantizer::result pack_as(gptq::quantized_layer<Format> const& layer) {
  auto packed = gptq::pack(layer);
  auto const view = packed.view();  // stays good when the matrix moves: it points to what that owns
  auto const bytes = packed.bytes();
  return {std::make_unique<packed_as<Format, gptq::packed_matrix<Format>>>(std::move(packed), view),
          layer.report, bytes};
}

}  // namespace

std::unique_ptr<packed_linear> make_packed(gptq::format_spec const& format, packed_parts const& parts,
                                           std::shared_ptr<void const> owner) {
  return gptq::with_format<formats>(format, [&]<class Format>() -> std::unique_ptr<packed_linear> {
    gptq::packed_layout<Format> const layout{parts.out, parts.in};
    auto const check_size = [](char const* what, std::size_t bytes, gptq::index_t expected) {
      if (static_cast<gptq::index_t>(bytes) != expected) {
        throw gptq::error(fmt::format("its {} have {} bytes, not {}", what, bytes, expected));
      }
    };
    check_size("codes", parts.codes.size(), layout.code_bytes());
    check_size("scales", parts.scales.size(),
               layout.scale_count() * gptq::index_t{sizeof(typename Format::scale)});
    check_size("zeros", parts.zeros.size(), layout.zero_bytes());
    if (!parts.order.empty()) check_size("order", parts.order.size_bytes(), parts.in * 4);
    auto const view = view_of<Format>(parts);
    gptq::check(view);
    return std::make_unique<packed_as<Format, std::shared_ptr<void const>>>(std::move(owner), view);
  });
}

quantizer::result quantizer::operator()(gptq::matrix&& weight, gptq::hessian const& h,
                                        gptq::hessian const* held_out) const {
  return gptq::with_format<formats>(format, [&]<class Format>() -> result {
    gptq::quantized_layer<Format> layer;
    if (round_to_nearest) {
      layer = gptq::round_to_nearest<Format>(weight, options, &h, held_out);
    } else if (device) {
      auto const sums = [](gptq::hessian const& of) {
        return gpu_sums{of.sum().data(), of.tokens(), of.sequences()};
      };
      gpu_sums const others = held_out != nullptr ? sums(*held_out) : gpu_sums{};
      auto on = device->quantize(format, weight.data(), weight.rows(), weight.cols(), sums(h), options,
                                 held_out != nullptr ? &others : nullptr);
      layer = {
          weight.rows(),       weight.cols(), std::move(on.codes), std::move(on.scales), std::move(on.zeros),
          std::move(on.order), on.report};
    } else {
      layer = gptq::quantize<Format>(std::move(weight), h, options, held_out);
    }
    return pack_as(layer);
  });
}

quantizer::result pack(gptq::format_spec const& format, gptq::index_t out, gptq::index_t in,
                       device::host_layer&& layer, gptq::quantize_report const& report) {
  return gptq::with_format<formats>(format, [&]<class Format>() -> quantizer::result {
    return pack_as<Format>({out, in, std::move(layer.codes), std::move(layer.scales), std::move(layer.zeros),
                            std::move(layer.order), report});
  });
}

}  // namespace lm
