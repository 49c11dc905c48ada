// Rotary position embeddings (Su et al., "RoFormer", 2021) and the ways to stretch them over longer texts, by
// the names of transformers' "rope_type".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <gptq/hessian.hpp>

#include "json_keys.hpp"

namespace lm {

enum class rope_type {
  standard,  ///< "default"
  linear,    ///< positions divided by `factor`
  dynamic,   ///< a larger theta for texts longer than the model was trained on
  llama3,    ///< low frequencies divided by `factor`, high ones kept, a ramp between
  yarn,      ///< the same with the ramp over dimensions (Peng et al., 2023)
  longrope   ///< a factor for each dimension, others for long texts (Ding et al., 2024)
};

struct rope_parameters {
  rope_type type = rope_type::standard;
  double theta = 10000.0;
  std::int64_t dimensions = 0;  ///< of a head: its first ones are rotated; even
  double factor = 1.0;
  double original_positions = 0.0;  ///< that the model was trained on before it was stretched
  double attention_factor = 1.0;    ///< cos and sin are multiplied by it
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  ///< of llama3
  double beta_fast = 32.0, beta_slow = 1.0;              ///< of yarn
  bool truncate = true;  ///< of yarn: the ramp from whole dimension to whole dimension
  std::vector<double> short_factors, long_factors;  ///< of longrope: [dimensions / 2]
  /// What the frequencies are divided by besides: the table of a GGUF file. [dimensions / 2] or empty
  std::vector<double> divisors;
};

/// The frequency of each pair of a head's elements, [dimensions / 2], for a text of `positions`.
std::vector<double> rope_frequencies(rope_parameters const& rope, std::int64_t positions);

/// cos and sin of the angles of positions 0, 1, ...: [positions, dimensions / 2] each.
struct rotations {
  gptq::matrix cos;
  gptq::matrix sin;
};
/// For a text of so many positions, whose length decides about the frequencies of types dynamic and longrope.
rotations make_rotations(rope_parameters const& rope, std::int64_t positions);

/// What a "rope_scaling" or "rope_parameters" object says. Throws gptq::error, naming the key, when one is
/// missing or not known.
/// @param rope       theta and dimensions, and what is kept of them
/// @param positions  the model's max_position_embeddings
/// @param original   original_max_position_embeddings from outside of the object; 0: not there
rope_parameters read_rope(json_keys const& keys, rope_parameters rope, std::int64_t positions,
                          double original);

/// "yarn"
std::string name_of(rope_type type);

}  // namespace lm
