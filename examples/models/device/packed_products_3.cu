// Products with packed weights of 3 bits.
#include "packed_kernels.cuh"

namespace lm::device {

template std::unique_ptr<gpu_packed_weight> new_packed_weight_of<3>(gptq::cuda::context const&,
                                                                    gptq::format_spec const&,
                                                                    packed_parts const&);

}  // namespace lm::device
