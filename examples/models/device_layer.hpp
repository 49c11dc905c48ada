// A decoder layer whose products a GPU makes.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "gpu.hpp"
#include "model.hpp"

namespace lm {

/// In float32, with weights of its own in the GPU's memory, which copies of a layer share. Any number of
/// threads may run it: while one waits for its products, the others compute what lies between.
class device_layer final : public decoder_layer {
 public:
  /// `device` has to outlive the layer.
  device_layer(gpu& device, float_layer const& layer);

  void replace(std::size_t place, matrix const& weight);

 private:
  void multiply_all(std::span<std::size_t const> places, matrix const& x, matrix* y) const override;
  std::size_t bytes_of(std::size_t place) const override;

  gpu* device_;
  std::vector<std::shared_ptr<gpu_matrix const>> weights_;
};

}  // namespace lm
