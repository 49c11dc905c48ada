// The ways in which byte-level BPE cuts text into words before it merges, by the names that llama.cpp has for
// them.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace lm {

/// What tokenizer.json has as "pre_tokenizer" for one of llama.cpp's names, and in "model" as
/// "ignore_merges"; nothing for a name that is not known here.
struct pre_tokenizer {
  nlohmann::json description;
  bool ignore_merges = false;
};
std::optional<pre_tokenizer> find_pre_tokenizer(std::string_view name);

/// llama.cpp's name for what a tokenizer does: that of the pre-tokenizer which cuts a probe text into the
/// same pieces. Throws gptq::error, naming the file, when none does.
/// @param document  of tokenizer.json, byte-level BPE
std::string identify_pre_tokenizer(nlohmann::json const& document, std::string const& file);

}  // namespace lm
