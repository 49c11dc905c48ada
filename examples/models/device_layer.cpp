#include "device_layer.hpp"

namespace lm {

device_layer::device_layer(gpu& device, float_layer const& layer)
    : decoder_layer(layer), device_(&device), weights_(layer.weights.size()) {
  for (std::size_t place = 0; place < weights_.size(); ++place) replace(place, layer.weights[place]);
}

void device_layer::replace(std::size_t place, matrix const& weight) {
  weights_[place] = device_->upload(weight.data(), weight.rows(), weight.cols());
}

std::size_t device_layer::bytes_of(std::size_t place) const {
  return static_cast<std::size_t>(weights_[place]->out * weights_[place]->in) * sizeof(float);
}

void device_layer::multiply_all(std::span<std::size_t const> places, matrix const& x, matrix* y) const {
  for (std::size_t const place : places) {
    gpu_matrix const& weight = *weights_[place];
    y->resize(x.rows(), weight.out);
    if (x.rows() > 0) device_->multiply(weight, x.data(), x.rows(), y->data());
    ++y;
  }
}

}  // namespace lm
