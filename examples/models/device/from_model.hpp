// A model as the device path takes it: the same description (config.hpp), the same weights, as values.
#pragma once

#include <string>

#include "../model.hpp"
#include "calibration.hpp"

namespace lm::device {

/// What of a model the device does not compute with weights as they are packed, in words; empty: it computes all of
/// it.
std::string unsupported_packed_part(config const& c);

/// The type of activations in which products with the weights as they are stored are made without rounding
/// them: bfloat16 or float16 where all linear layers are stored so, otherwise float32.
number exact_activations(model const& m);

/// The model for texts of so many positions; it has to outlive what is returned. Weights lie in the mapped
/// files where they are stored as plain numbers, and are decoded to float32 on `threads` threads otherwise,
/// a layer at a time.
model_source make_source(model const& m, index_t positions, int threads);

/// The same with linear layers, and the output layer, as they are packed, where they are.
model_source make_packed_source(model const& m, index_t positions, int threads);

/// The output layer, decoded where it is packed.
host_matrix output_matrix(model const& m);

/// Places of a stage's linear layers in the description, in the order of the rows that the device gives them.
std::vector<std::size_t> row_order(decoder_description const& d, stage s);

}  // namespace lm::device
