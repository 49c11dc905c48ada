// What kernels find wrong with weights, Hessian and scales.
#pragma once

namespace gptq::cuda::detail {

/// What is wrong, by its index; `none` where nothing is.
struct faults {
  static constexpr unsigned long long none = ~0ULL;
  unsigned long long weight;   ///< first entry that is not finite: row * in + column
  unsigned long long hessian;  ///< likewise: column * in + row
  unsigned long long scale;    ///< first one that does not fit its type: row * groups + group
};

}  // namespace gptq::cuda::detail
