// For programs that were built without CUDA.
#include <gptq/error.hpp>

#include "accelerator.hpp"

namespace lm::device {

std::unique_ptr<accelerator> make_cuda_accelerator() {
  throw gptq::error("this program was built without CUDA: nvcc 13 was not found");
}

}  // namespace lm::device
