// Products with packed weights on a GPU, for a format known at run time. Formats of a width are compiled in a file
// of their own, packed_products_N.cu, by packed_kernels.cuh: they take long.
#pragma once

#include <memory>

#include <gptq/cuda/memory.cuh>

#include "accelerator.hpp"

namespace lm::device {

/// What products need besides their operands.
struct product_resources {
  cudaStream_t stream;
  cublasHandle_t blas;
  void* workspace;
  std::size_t workspace_bytes;
  bool overlap;  ///< kernels may start before those ahead of them end
};

class gpu_packed_weight : public packed_weight {
 public:
  virtual std::size_t workspace_bytes(index_t rows) const = 0;
  virtual void multiply(packed_product const& p, product_resources const& with) const = 0;
};

/// Null where there are no kernels for this format of `Bits` bits. Waits for the copies.
template <int Bits>
std::unique_ptr<gpu_packed_weight> new_packed_weight_of(gptq::cuda::context const& ctx,
                                                        gptq::format_spec const& format,
                                                        packed_parts const& parts);

/// The same for any width; a program with few formats has 4 bits alone.
inline std::unique_ptr<gpu_packed_weight> new_packed_weight(gptq::cuda::context const& ctx,
                                                            gptq::format_spec const& format,
                                                            packed_parts const& parts) {
  switch (format.bits) {
    case 4:
      return new_packed_weight_of<4>(ctx, format, parts);
#if !defined(MODELS_FEW_FORMATS)
    case 2:
      return new_packed_weight_of<2>(ctx, format, parts);
    case 3:
      return new_packed_weight_of<3>(ctx, format, parts);
    case 8:
      return new_packed_weight_of<8>(ctx, format, parts);
#endif
    default:
      return nullptr;
  }
}

}  // namespace lm::device
