#include "device_layer.hpp"

namespace lm {

device_layer::device_layer(gpu& device, float_layer const& layer) : decoder_layer(layer), device_(&device) {
  for (std::size_t l = 0; l < linears; ++l) replace(linear(l), layer[linear(l)]);
}

void device_layer::replace(linear l, matrix const& weight) {
  weights_[static_cast<std::size_t>(l)] = device_->upload(weight.data(), weight.rows(), weight.cols());
}

std::size_t device_layer::bytes() const {
  std::size_t sum = 0;
  for (auto const& weight : weights_)
    sum += static_cast<std::size_t>(weight->out * weight->in) * sizeof(float);
  return sum;
}

void device_layer::multiply_all(std::span<linear const> some, matrix const& x, matrix* y) const {
  for (linear const l : some) {
    gpu_matrix const& weight = *weights_[static_cast<std::size_t>(l)];
    y->resize(x.rows(), weight.out);
    device_->multiply(weight, x.data(), x.rows(), (y++)->data());
  }
}

}  // namespace lm
