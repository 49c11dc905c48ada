// Continuing a text.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "model.hpp"
#include "tokens.hpp"

namespace lm {

struct sampling {
  double temperature = 0.0;  ///< 0: always the likeliest token
  double top_p = 1.0;        ///< draw among the likeliest tokens that together have this probability
  std::uint64_t seed = 0;
};

/// How a model is run.
struct execution {
  arithmetic how = arithmetic::float32;
  int threads = 0;  ///< 0: one a core
  /// Keep all decoder layers at hand. Without it arithmetic::float32 decodes one at a time, again for every
  /// token: as small as the packed model, and slow.
  bool resident = true;
};

/// A continued text, and what it took.
struct generated_text {
  std::vector<token> tokens;    ///< the new ones
  double prompt_seconds = 0.0;  ///< up to the first of them
  double seconds = 0.0;         ///< for the tokens after the first
  double bytes_a_token = 0.0;   ///< weights and cached keys and values that each of these had to be read

  double tokens_a_second() const {
    return tokens.size() < 2 ? 0.0 : static_cast<double>(tokens.size() - 1) / seconds;
  }
};

/// Throws gptq::error when the prompt is empty, or the model has too few positions for it and `most` more.
void check_prompt(config const& c, std::span<token const> prompt, std::int64_t most);

/// Up to `most` new tokens after `prompt`, ending before one of the configuration's end tokens;
/// check_prompt() first, with its errors.
/// @param next  called with each new token
generated_text generate(
    model const& m, std::span<token const> prompt, std::int64_t most, sampling const& how,
    execution const& run, std::function<void(token)> const& next = [](token) {});

/// The position in `logits` of the next token. `random` is uniform in [0, 1).
token choose(row_vector const& logits, sampling const& how, double random);

}  // namespace lm
