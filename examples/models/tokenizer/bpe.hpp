// Byte pair encoding.
#pragma once

#include <memory>

#include "model.hpp"

namespace lm::tokenizers {

/// read_model() for type BPE.
std::unique_ptr<model const> read_bpe(node const& description);

}  // namespace lm::tokenizers
