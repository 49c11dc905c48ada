// One linear layer: quantized and packed, whatever its format.
#pragma once

#include <cstddef>
#include <memory>

#include <gptq/format.hpp>
#include <gptq/hessian.hpp>
#include <gptq/layer.hpp>
#include <gptq/options.hpp>

namespace llama {

/// A packed matrix of a format chosen at run time.
class packed_linear {
 public:
  virtual ~packed_linear() = default;
  /// weight[out, in], row-major, columns in their original order.
  virtual void dequantize(float* weight) const = 0;
  /// Memory of codes, scales, zeros and column order.
  virtual std::ptrdiff_t bytes() const = 0;
};

/// How linear layers are quantized.
struct quantizer {
  gptq::format_spec format;
  gptq::quantize_options options;
  bool round_to_nearest = false;  ///< instead of GPTQ; the Hessian then only measures

  struct result {
    std::unique_ptr<packed_linear> packed;
    gptq::quantize_report report;
  };
  /// Quantizes and packs weight[out, in] for inputs like those that `h` has seen; uses the weight's memory
  /// up. Throws gptq::error when the format is not compiled into this program, and as gptq::quantize does.
  result operator()(gptq::matrix&& weight, gptq::hessian const& h) const;
};

}  // namespace llama
