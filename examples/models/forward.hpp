// The arithmetic of a decoder, as its description has it (config.hpp), on the activations of one sequence.
//
// A decoder layer runs stage by stage, so that calibration can look at the input of each linear layer, and
// can quantize a layer before its output is computed, without computing anything twice:
//
//   stage             turns `input` into                     and adds to the residual x
//   query_key_value   norm(x)                                -
//   output            attention of the projected input       -
//   gate_up           norm(x); which experts each token has  o_proj(input), before the norm
//   down              act(gate_proj) * up_proj               -
//   (finish)          -                                      down_proj(input)
//
// In a layer of experts each of them takes the rows of norm(x) that are routed to it. Stage down then leaves
// all as it is, and finish() does the rest: expert_input() and expert_hidden() are the inputs of an expert's
// linear layers.
#pragma once

#include <vector>

#include "config.hpp"
#include "model.hpp"

namespace lm {

/// Rotated keys, and values, of the positions so far: the first `positions` rows, [key_value_size] each.
struct kv_cache {
  matrix keys;
  matrix values;
  Eigen::Index positions = 0;
};

/// The tokens that a layer gives to an expert.
struct routed_tokens {
  std::vector<Eigen::Index> rows;  ///< in order
  std::vector<float> weights;      ///< that the expert's output has in the sum, one a row
};

/// What a stage leaves for its linear layers and for the next one.
struct stage_input {
  matrix x;                            ///< [tokens, in]
  std::vector<routed_tokens> experts;  ///< from stage gate_up of a layer of experts on: one an expert
};

/// x / rms(x) * weight, row by row.
matrix rms_norm(matrix const& x, row_vector const& weight, double epsilon);

/// What the arithmetic of a decoder layer needs besides its weights.
struct context {
  config const& c;
  std::vector<rotations> const& angles;  ///< of each rope, for every position that is asked for
  int threads = 1;                       ///< for attention, each some of the heads
};

/// Runs one stage: afterwards `input` is the input of the stage's linear layers.
/// @param x      residual [tokens, hidden], positions cache->positions and on (0 and on without a cache)
/// @param input  what the stage before left here
/// @param cache  keys and values of earlier positions, to which these are appended; null for a whole sequence
void run_stage(context const& ctx, decoder_layer const& layer, stage s, matrix& x, stage_input& input,
               kv_cache* cache = nullptr);
/// Adds the output of the last stage's linear layers to x: the decoder layer's output.
void finish(context const& ctx, decoder_layer const& layer, matrix& x, stage_input const& input);

/// The rows of `input`, after stage gate_up, that are routed to an expert.
matrix expert_input(stage_input const& input, std::int64_t expert);
/// What an expert's down_proj takes for such rows.
matrix expert_hidden(context const& ctx, decoder_layer const& layer, std::int64_t expert, matrix const& rows);

/// All stages: x becomes the decoder layer's output.
void run_layer(context const& ctx, decoder_layer const& layer, matrix& x, kv_cache* cache = nullptr);

/// Multiplies and caps logits in place as the model does.
void scale_logits(config const& c, Eigen::Ref<matrix> logits);

}  // namespace lm
