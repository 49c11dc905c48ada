// decode_model MODEL FILE [GRIDS]: the linear layers of a model in float32, as the example decodes them or,
// with an export of grids, rounds them, into a safetensors file.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include <gptq/checkpoint/safetensors.hpp>

#include "model.hpp"
#include "quant_directory.hpp"

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) return 2;
  try {
    lm::model m(argv[1]);
    if (argc == 4) m.round_to(lm::read_quant_directory(argv[3]));
    std::vector<lm::float_layer> layers;
    gptq::checkpoint::tensor_map tensors;
    for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) layers.push_back(m.load(i, 0));
    for (std::size_t i = 0; i < layers.size(); ++i) {
      for (std::size_t l = 0; l < layers[i].weights.size(); ++l) {
        gptq::matrix const& w = layers[i].weights[l];
        tensors[layers[i].description->linears[l].name + ".weight"] = {
            gptq::checkpoint::dtype::f32,
            {static_cast<std::size_t>(w.rows()), static_cast<std::size_t>(w.cols())},
            std::as_bytes(std::span(w.data(), static_cast<std::size_t>(w.size())))};
      }
    }
    write_safetensors(argv[2], tensors);
    return 0;
  } catch (std::exception const& e) {
    std::fprintf(stderr, "decode_model: %s\n", e.what());
    return 1;
  }
}
