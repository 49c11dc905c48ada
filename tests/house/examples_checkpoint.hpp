// What the examples in the heads of the checkpoint headers take for granted.
#pragma once

#include <cstdio>
#include <fstream>
#include <vector>

#include <gptq/checkpoint/awq.hpp>
#include <gptq/checkpoint/compressed_tensors.hpp>
#include <gptq/checkpoint/gguf.hpp>
#include <gptq/checkpoint/gptq.hpp>
#include <gptq/checkpoint/safetensors.hpp>

using gptq::checkpoint::ggml_type;
using q4 = gptq::format<gptq::asymmetric, 4, 128>;
extern gptq::quantized_layer<gptq::format<gptq::fixed_zero, 4, 32>> layer;
extern gptq::checkpoint::ggml_tensor tensor;

namespace checkpoint_awq_hpp {
extern gptq::checkpoint::awq_view tensors;
}
namespace checkpoint_repack_hpp {
extern gptq::checkpoint::gptq_view tensors;
}
namespace checkpoint_compressed_tensors_hpp {
extern gptq::checkpoint::compressed_view tensors;
}
namespace checkpoint_gptq_hpp {
extern gptq::checkpoint::gptq_view tensors;
}
