// What quantize_model is asked to do.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include <gptq/checkpoint/gguf.hpp>

#include "generation.hpp"
#include "quantization.hpp"
#include "ranks.hpp"
#include "tuning.hpp"
#include "written_model.hpp"

namespace lm {

/// What --output holds in the end.
struct command_line {
  std::filesystem::path model;
  std::filesystem::path calibration;
  std::filesystem::path evaluation;  ///< empty: no perplexity
  std::int64_t window = 0;           ///< tokens in a sequence; 0: as many as suit the model
  std::int64_t samples = 128;        ///< calibration windows, at most
  std::int64_t eval_windows = 0;     ///< evaluation windows, at most; 0: all
  quantization how;
  std::optional<tuning> tune;  ///< after quantizing; nothing: not
  bool no_float_baseline = false;
  std::string prompt;  ///< empty: no text is generated
  std::int64_t generate_tokens = 64;
  lm::sampling sampling;
  std::filesystem::path output;  ///< the quantized model's directory; empty: it is not kept
  output_format written = output_format::packed;
  std::optional<gptq::checkpoint::ggml_type> embeddings;  ///< in a GGUF file; nothing: as they are
  std::optional<std::size_t> shard_bytes;                 ///< of a file of a checkpoint; nothing: the default
  std::filesystem::path quant_directory;  ///< for the grids alone (quant_directory.hpp); empty: nowhere
  bool resume = false;
  std::filesystem::path log;                  ///< JSON lines; empty: none are written
  std::optional<device::number> activations;  ///< on a device; nothing: what the weights are stored as
};

/// "published", "amax", "signed_amax"
std::string name_of(gptq::grid_rule rule);

/// Nothing after --help, which it prints. Throws gptq::error when an option is wrong.
/// @param host  what this rank has of it: its threads, unless --threads says otherwise, and which GPU
std::optional<command_line> parse_command_line(int argc, char** argv, host_share const& host);

}  // namespace lm
