// packed_products.cuh for the formats of a width.
#pragma once

#include <vector>

#include <gptq/cuda/gemm.cuh>
#include <gptq/cuda/gemv.cuh>
#include <gptq/cuda/prepack.cuh>

#include "../formats.hpp"
#include "packed_products.cuh"

namespace lm::device {

template <gptq::cuda::device_format Format>
class prepacked_weight final : public gpu_packed_weight {
 public:
  prepacked_weight(gptq::cuda::context const& ctx, packed_parts const& parts)
      : layout_{parts.out, parts.in},
        memory_(ctx, layout_.bytes(!parts.order.empty())),
        places_(ctx, static_cast<index_t>(parts.order.size())) {
    auto const copy = [&](auto span) {
      gptq::cuda::device_array<char> there(ctx, static_cast<index_t>(span.size_bytes()));
      if (!span.empty()) there.upload(reinterpret_cast<char const*>(span.data()));
      return there;
    };
    auto const codes = copy(parts.codes), scales = copy(parts.scales), zeros = copy(parts.zeros),
               order = copy(parts.order);
    gptq::packed_view<Format> view = view_of<Format>(parts);
    view.codes = reinterpret_cast<std::uint8_t const*>(codes.data());
    view.scales = reinterpret_cast<typename Format::scale const*>(scales.data());
    if (Format::has_zero_point) view.zeros = reinterpret_cast<std::uint8_t const*>(zeros.data());
    if (!parts.order.empty()) view.order = reinterpret_cast<std::int32_t const*>(order.data());
    view_ = gptq::cuda::prepack(view, memory_.data(), ctx.stream());
    std::vector<std::int32_t> places(parts.order.size());
    for (std::size_t i = 0; i < places.size(); ++i) {
      places[static_cast<std::size_t>(parts.order[i])] = static_cast<std::int32_t>(i);
    }
    if (!places.empty()) places_.upload(places.data());
    ctx.synchronize();
  }

  index_t out() const override { return layout_.out; }
  index_t in() const override { return layout_.in; }
  std::size_t bytes() const override { return static_cast<std::size_t>(memory_.size()); }
  std::int32_t const* places() const override { return places_.size() > 0 ? places_.data() : nullptr; }
  std::size_t workspace_bytes(index_t rows) const override {
    return gptq::cuda::workspace_bytes<__half, __half>(view_, rows);
  }
  void multiply(packed_product const& p, product_resources const& with) const override {
    gptq::cuda::product_options const options{with.stream, with.workspace, with.workspace_bytes, with.blas,
                                              with.overlap};
    auto view = view_;
    if (p.arranged) view.order = nullptr;
    auto const* const x = static_cast<__half const*>(p.x.data);
    if (p.y.type == number::float32) {
      gptq::cuda::gemv(view, x, p.rows, static_cast<float*>(p.y.data), options);
    } else {
      gptq::cuda::gemm(view, x, p.rows, static_cast<__half*>(p.y.data), options);
    }
  }

 private:
  gptq::cuda::prepacked_layout<Format> layout_;
  gptq::cuda::device_array<char> memory_;
  gptq::cuda::device_array<std::int32_t> places_;
  gptq::cuda::prepacked_view<Format> view_;
};

template <int Bits>
std::unique_ptr<gpu_packed_weight> new_packed_weight_of(gptq::cuda::context const& ctx,
                                                        gptq::format_spec const& format,
                                                        packed_parts const& parts) {
  gptq::format_spec same = format;
  if (same.scheme == "symmetric") same.scheme = "fixed_zero";  // without the lowest level, and else the same
  std::unique_ptr<gpu_packed_weight> made;
  auto const make = [&]<class... Formats>(gptq::format_list<Formats...>) {
    ((gptq::to_spec<Formats>() == same ? void(made = std::make_unique<prepacked_weight<Formats>>(ctx, parts))
                                       : void()),
     ...);
  };
  make(gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::fixed_zero>, gptq::bit_widths<Bits>,
                          group_sizes>{});
  return made;
}

}  // namespace lm::device
