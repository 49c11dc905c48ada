// The export that GPTQ-for-LLaMa makes with --quant-directory: the grids of a model's linear layers, for
// engines that quantize its weights themselves. It holds no codes.
//
// quant.toml has a table for each layer, by its name: wbits, groupsize (-1: one group a row), sym,
// perchannel, and the names of .npy files beside it: scale and, unless sym, zero, both float32 [out, groups];
// and group_ids, int32 [in], unless there is one group a row. With sym every zero is 2^(wbits - 1).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <gptq/hessian.hpp>

namespace lm {

class model;

/// The grids of one layer. A weight stands for scale * (code - zero), with the scale and zero of its row and
/// of its column's group.
struct layer_grids {
  int bits = 0;        ///< 2, 3, 4 or 8
  int group_size = 0;  ///< or gptq::whole_row
  bool symmetric = false;
  std::int64_t out = 0;
  std::int64_t groups = 0;              ///< of a row
  std::vector<float> scales;            ///< [out, groups]
  std::vector<float> zeros;             ///< [out, groups], multiples of 1/2; empty if symmetric
  std::vector<std::int32_t> group_ids;  ///< [in] group of each column; empty: one group a row
};

/// By the layers' names: "model.layers.0.self_attn.q_proj".
using model_grids = std::map<std::string, layer_grids>;

/// Makes the directory. Throws gptq::error when it cannot be made, or when such an export is there already
/// and not to be replaced.
void prepare_quant_directory(std::filesystem::path const& directory, bool replace);

/// Writes the grids of a model all of whose linear layers are packed. quant.toml comes last, so a directory
/// that has one is whole. Throws gptq::error when the disk does not take a file; nothing of that file is left
/// then.
void write_quant_directory(std::filesystem::path const& directory, model const& m);

/// Throws gptq::error, naming the file and the layer, when something is missing, out of range or does not
/// fit.
model_grids read_quant_directory(std::filesystem::path const& directory);

/// Throws gptq::error, naming both shapes, unless these are grids for a weight[out, in].
void check_shape(layer_grids const& grids, std::int64_t out, std::int64_t in);

/// Rounds each element of weight[out, in] to the nearest number that its grid has.
void round_to(layer_grids const& grids, gptq::matrix& weight);

}  // namespace lm
