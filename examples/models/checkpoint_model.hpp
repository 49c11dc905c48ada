// Directories that others have quantized: the linear layers of AWQ and compressed-tensors checkpoints.
//
// In place of NAME.weight a linear layer has NAME.qweight, NAME.qzeros and NAME.scales (AWQ,
// gptq/checkpoint/awq.hpp), or NAME.weight_packed, NAME.weight_scale and so on (gptq/checkpoint/
// compressed_tensors.hpp). GPTQ checkpoints are in gptq_model.hpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <gptq/checkpoint/safetensors.hpp>

#include "config.hpp"
#include "linear.hpp"

namespace lm {

/// The linear layer called NAME of such a directory, repacked, whichever kind it is. Throws gptq::error,
/// naming it, when a tensor is missing or does not fit, or the directory says that it is not quantized.
std::unique_ptr<packed_linear> read_checkpoint(gptq::checkpoint::tensor_map const& tensors,
                                               std::string const& name,
                                               quantized_checkpoint const& checkpoint, std::int64_t out,
                                               std::int64_t in);

}  // namespace lm
