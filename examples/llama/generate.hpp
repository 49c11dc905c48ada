// Continuing a text.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model.hpp"
#include "tokens.hpp"

namespace llama {

struct sampling {
  double temperature = 0.0;  ///< 0: always the likeliest token
  double top_p = 1.0;        ///< draw among the likeliest tokens that together have this probability
  std::uint64_t seed = 0;
};

/// Throws gptq::error when the prompt is empty, or the model has too few positions for it and `most` more.
void check_prompt(config const& c, std::span<token const> prompt, std::int64_t most);

/// Up to `most` new tokens after `prompt`, ending before one of the configuration's end tokens;
/// check_prompt() first, with its errors. Decodes one decoder layer at a time for every token, to stay as
/// small as the packed model: simple, not fast.
std::vector<token> generate(model const& m, std::span<token const> prompt, std::int64_t most,
                            sampling const& how, int threads);

/// The position in `logits` of the next token. `random` is uniform in [0, 1).
token choose(row_vector const& logits, sampling const& how, double random);

}  // namespace llama
