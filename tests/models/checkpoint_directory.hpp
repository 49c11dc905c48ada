// Directories as others quantize them, and the float32 models that they stand for: one decoder layer, random
// codes.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors.hpp>

#include "support.hpp"
#include "tokens.hpp"

namespace test {

struct stored {
  gptq::checkpoint::dtype type;
  std::vector<std::size_t> shape;
  std::vector<std::byte> bytes;
};
using stored_tensors = std::map<std::string, stored>;

template <class T>
stored store(gptq::checkpoint::dtype type, std::vector<std::size_t> shape, std::vector<T> const& values) {
  auto const bytes = std::as_bytes(std::span(values));
  return {type, std::move(shape), {bytes.begin(), bytes.end()}};
}

nlohmann::json checkpoint_config();
void write_directory(std::filesystem::path const& directory, nlohmann::json const& config,
                     stored_tensors const& tensors);

struct named_shape {
  std::string name;
  std::size_t out, in;
};
std::vector<named_shape> linear_layers();
/// Everything but the linear layers.
stored_tensors float_tensors();

/// Adds the tensors of a layer of random codes, and returns the weights that they stand for: [out, in].
using add_layer = std::function<std::vector<float>(stored_tensors&, named_shape const&, random&)>;

std::vector<float> add_awq(stored_tensors& tensors, named_shape const& l, random& random);
/// 4 bits, symmetric, groups of 32, scales in bfloat16.
std::vector<float> add_symmetric(stored_tensors& tensors, named_shape const& l, random& random);
/// 8 bits, asymmetric, one group a row, scales in float32.
std::vector<float> add_channels(stored_tensors& tensors, named_shape const& l, random& random);

/// quantization_config of these.
nlohmann::json awq_config();
nlohmann::json compressed_config(nlohmann::json const& weights);
nlohmann::json symmetric_weights();
nlohmann::json channel_weights();

/// The same model twice: as a checkpoint in directory/quantized, and in float32 in directory/plain.
void write_both(std::filesystem::path const& directory, nlohmann::json const& quantization,
                add_layer const& add, std::string const& not_converted = "");

std::vector<lm::token> some_tokens();

}  // namespace test
