// A LLaMA's arithmetic, as in transformers' modeling_llama.py, on the activations of one sequence.
//
// A decoder layer runs stage by stage, so that calibration can look at the input of each linear layer, and
// can quantize a layer before its output is computed, without computing anything twice:
//
//   stage             turns `input` into                     and adds to the residual x
//   query_key_value   norm(x)                                -
//   output            attention of the projected input       -
//   gate_up           norm(x)                                o_proj(input), before the norm
//   down              silu(gate_proj) * up_proj              -
//   (finish)          -                                      down_proj(input)
#pragma once

#include "config.hpp"
#include "model.hpp"

namespace lm {

/// cos and sin of the rotary embedding's angles: [positions, head_dim / 2] each.
struct rotations {
  matrix cos;
  matrix sin;
};

/// The frequency of each pair of a head's elements: [head_dim / 2], Llama 3's scaling included.
std::vector<double> rope_frequencies(config const& c);
/// Angles for the positions 0..positions-1.
rotations make_rotations(config const& c, std::int64_t positions);

/// Rotated keys, and values, of the positions so far: the first `positions` rows, [key_value_size] each.
struct kv_cache {
  matrix keys;
  matrix values;
  Eigen::Index positions = 0;
};

/// x / rms(x) * weight, row by row.
matrix rms_norm(matrix const& x, row_vector const& weight, double epsilon);

/// What the arithmetic of a decoder layer needs besides its weights.
struct context {
  config const& c;
  rotations const& angles;  ///< for every position that is asked for
  int threads = 1;          ///< for attention, each some of the heads
};

/// Runs one stage: afterwards `input` is the input of the stage's linear layers.
/// @param x      residual [tokens, hidden], positions cache->positions and on (0 and on without a cache)
/// @param input  what the stage before left here
/// @param cache  keys and values of earlier positions, to which these are appended; null for a whole sequence
void run_stage(context const& ctx, decoder_layer const& layer, stage s, matrix& x, matrix& input,
               kv_cache* cache = nullptr);
/// Adds the output of the last stage's linear layer to x: the decoder layer's output.
void finish(decoder_layer const& layer, matrix& x, matrix const& input);

/// All stages: x becomes the decoder layer's output.
void run_layer(context const& ctx, decoder_layer const& layer, matrix& x, kv_cache* cache = nullptr);

}  // namespace lm
