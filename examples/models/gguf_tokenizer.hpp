// A model's tokenizer as the metadata that llama.cpp reads, and back.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include <gptq/checkpoint/gguf.hpp>

#include "config.hpp"

namespace lm {

/// Adds tokenizer.ggml.* from
///   - tokenizer.model, through sentencepiece, and tokens that only the files beside it have;
///   - or tokenizer.json: byte-level BPE whose pre-tokenizer llama.cpp has (pre_tokenizers.hpp), or BPE
///     with byte fallback;
///   - or none of them: the bytes themselves for a vocabulary of 256, and otherwise the note that there is no
///     vocabulary (llama.cpp then takes token ids only);
/// what tokenizer_config.json says of the tokens around a text, and the chat template. Throws gptq::error,
/// naming the file, when it is not such a tokenizer, has more tokens than the model, or this program was
/// built without sentencepiece.
void add_tokenizer(gptq::checkpoint::gguf_metadata& metadata, std::filesystem::path const& directory,
                   config const& c);

/// tokenizer.json of a file's own tokenizer, if it is byte-level BPE; nothing when it has none. Throws
/// gptq::error, naming the file, for others and for a pre-tokenizer that is not known.
std::optional<std::string> tokenizer_json_in(gptq::checkpoint::gguf_file const& file,
                                             std::string const& name);

/// The chat template in a model's directory: chat_template.jinja, or tokenizer_config.json's, the one called
/// "default" of a list. Nothing when there is none.
std::optional<std::string> chat_template_in(std::filesystem::path const& directory);

/// The same of a directory or a GGUF file, which has it among its metadata.
std::optional<std::string> chat_template_of(std::filesystem::path const& model);

}  // namespace lm
