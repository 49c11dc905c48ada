// A small random LLaMA in a directory, and what this library's programs compute with it.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors.hpp>

#include "model.hpp"
#include "tokens.hpp"

namespace test {

/// Two layers, 32 wide, 80 tokens.
nlohmann::json small_config();
inline std::size_t size_of(nlohmann::json const& config, char const* key) {
  return config.at(key).get<std::size_t>();
}

/// Weights as the model sees them, that is, rounded to the stored type.
using model_weights = std::map<std::string, std::vector<double>>;

/// Writes a random model of this configuration, spread over `files` files.
model_weights write_model(std::filesystem::path const& directory, nlohmann::json const& config,
                          gptq::checkpoint::dtype type, std::size_t files = 1);

std::vector<lm::token> random_tokens(std::size_t count, lm::token vocab, unsigned seed = 2);

/// Logits, one decoder layer after the other in float32: [tokens, vocabulary].
gptq::matrix logits_of(lm::model const& m, std::vector<lm::token> const& tokens);

/// Scaled rotary embeddings as of Llama 3, for 64 positions.
nlohmann::json llama3_scaling();

}  // namespace test
