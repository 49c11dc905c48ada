#include "linear.hpp"

#include <utility>

#include <gptq/packed.hpp>
#include <gptq/quantize.hpp>

namespace llama {
namespace {

template <gptq::storage_format Format>
class packed_as final : public packed_linear {
 public:
  explicit packed_as(gptq::packed_matrix<Format> matrix) : matrix_(std::move(matrix)) {}
  void dequantize(float* weight) const override { gptq::dequantize(matrix_.view(), weight); }
  std::ptrdiff_t bytes() const override { return matrix_.bytes(); }

 private:
  gptq::packed_matrix<Format> matrix_;
};

// What the command line can ask for.
using formats =
    gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::symmetric, gptq::fixed_zero, gptq::half_step>,
                       gptq::bit_widths<2, 3, 4, 8>, gptq::group_sizes<32, 64, 128, gptq::whole_row>,
                       gptq::scale_types<gptq::float16, float>>;

}  // namespace

quantizer::result quantizer::operator()(gptq::matrix&& weight, gptq::hessian const& h) const {
  return gptq::with_format<formats>(format, [&]<class Format>() -> result {
    auto const layer = round_to_nearest ? gptq::round_to_nearest<Format>(weight, options, &h)
                                        : gptq::quantize<Format>(std::move(weight), h, options);
    return {std::make_unique<packed_as<Format>>(gptq::pack(layer)), layer.report};
  });
}

}  // namespace llama
