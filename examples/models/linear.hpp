// One linear layer: quantized and packed, whatever its format.
#pragma once

#include <cstddef>
#include <memory>

#include <gptq/format_spec.hpp>
#include <gptq/hessian.hpp>
#include <gptq/layer.hpp>
#include <gptq/options.hpp>

#include "device/accelerator.hpp"
#include "gpu.hpp"
#include "kernels.hpp"

namespace lm {

/// A packed matrix of a format chosen at run time.
class packed_linear {
 public:
  virtual ~packed_linear() = default;
  virtual gptq::format_spec format() const = 0;
  /// Decodes `rows`: weight[rows, in], row-major, columns in their original order.
  virtual void dequantize(gptq::row_range rows, float* weight) const = 0;
  /// All rows.
  void dequantize(float* weight) const { dequantize({0, parts().out}, weight); }
  /// Codes, scales, zeros and column order, as long as this object lives.
  virtual packed_parts parts() const = 0;
};

/// Groups of a row.
inline gptq::index_t groups_of(packed_linear const& packed) {
  gptq::index_t const in = packed.parts().in;
  gptq::index_t const columns =
      packed.format().group_size == gptq::whole_row ? in : packed.format().group_size;
  return (in + columns - 1) / columns;
}

/// A packed matrix whose pieces `owner` owns. Throws gptq::error when the format is not compiled into this
/// program, or a piece has not the size that format and shape give it, or order is not a permutation.
std::unique_ptr<packed_linear> make_packed(gptq::format_spec const& format, packed_parts const& parts,
                                           std::shared_ptr<void const> owner);

/// How linear layers are quantized.
struct quantizer {
  gptq::format_spec format;
  gptq::quantize_options options;
  bool round_to_nearest = false;  ///< instead of GPTQ; the Hessian then only measures
  std::shared_ptr<gpu> device;    ///< for products, Hessians and GPTQ; null: the CPU

  struct result {
    std::unique_ptr<packed_linear> packed;
    gptq::quantize_report report;
    gptq::index_t bytes = 0;  ///< of `packed`
  };
  /// Quantizes and packs weight[out, in] for inputs like those that `h` has seen; uses the weight's memory
  /// up. `held_out`, of other tokens, may be null: the error on them is reported, and quality best chooses by
  /// them. Throws gptq::error when the format is not compiled into this program, and as gptq::quantize does.
  result operator()(gptq::matrix&& weight, gptq::hessian const& h,
                    gptq::hessian const* held_out = nullptr) const;
};

/// Packs a layer that was quantized on a device. Throws gptq::error as quantizer does.
quantizer::result pack(gptq::format_spec const& format, gptq::index_t out, gptq::index_t in,
                       device::host_layer&& layer, gptq::quantize_report const& report);

}  // namespace lm
