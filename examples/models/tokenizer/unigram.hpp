// Unigram: the likeliest way to put a text together from scored pieces.
#pragma once

#include <memory>

#include "model.hpp"

namespace lm::tokenizers {

/// read_model() for type Unigram.
std::unique_ptr<model const> read_unigram(node const& description);

}  // namespace lm::tokenizers
