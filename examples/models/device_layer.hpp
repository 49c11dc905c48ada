// A decoder layer whose products a GPU makes.
#pragma once

#include <array>
#include <memory>

#include "gpu.hpp"
#include "model.hpp"

namespace lm {

/// In float32, with weights of its own in the GPU's memory, which copies of a layer share. Any number of
/// threads may run it: while one waits for its products, the others compute what lies between.
class device_layer final : public decoder_layer {
 public:
  /// `device` has to outlive the layer.
  device_layer(gpu& device, float_layer const& layer);

  void replace(linear l, matrix const& weight);
  std::size_t bytes() const override;

 private:
  void multiply_all(std::span<linear const> some, matrix const& x, matrix* y) const override;

  gpu* device_;
  std::array<std::shared_ptr<gpu_matrix const>, linears> weights_;
};

}  // namespace lm
