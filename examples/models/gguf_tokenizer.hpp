// The tokenizer of a Hugging Face directory as the metadata that llama.cpp reads.
#pragma once

#include <filesystem>

#include <gptq/checkpoint/gguf.hpp>

#include "config.hpp"

namespace lm {

/// Adds tokenizer.ggml.* from
///   - tokenizer.model, through sentencepiece;
///   - or tokenizer.json: byte-level BPE as GPT-2, Llama 3 and SmolLM have it, or BPE with byte fallback;
///   - or none of them: the bytes themselves for a vocabulary of 256, and otherwise the note that there is no
///     vocabulary (llama.cpp then takes token ids only);
/// and the chat template of tokenizer_config.json. Throws gptq::error, naming the file, when it is not such a
/// tokenizer, has more tokens than the model, or this program was built without sentencepiece.
void add_tokenizer(gptq::checkpoint::gguf_metadata& metadata, std::filesystem::path const& directory,
                   config const& c);

}  // namespace lm
