// Models as GGUF files: what llama.cpp calls their tensors and settings, read and written.
//
// For some architectures llama.cpp rotates neighbouring elements of a head; Hugging Face's weights are for
// rotating one half of it against the other. There the files differ in the order of the rows of q and k:
// element j of half h of a head is row 2 j + h of that head in GGUF. Columns stay as they are. The experts of
// a decoder layer are one tensor. Norms of Gemma are stored with the 1 that is added to them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include <gptq/checkpoint/gguf.hpp>
#include <gptq/format_spec.hpp>

#include "config.hpp"
#include "weights.hpp"

namespace lm {

class model;

/// Whether a model is one GGUF file and not a directory.
bool is_gguf(std::filesystem::path const& path);

/// Where a model's tokenizer is: its directory, or that of its file.
std::filesystem::path directory_of(std::filesystem::path const& path);

/// The row in a GGUF file of row `row` of q or k, in heads of `head_dim` rows.
std::int64_t interleaved_row(std::int64_t row, std::int64_t head_dim);

/// The settings of a file. Throws gptq::error, naming the file and the key, when one is missing, is out of
/// range, or asks for something that is not implemented here.
config config_of(gptq::checkpoint::gguf_file const& file, std::filesystem::path const& path);

/// Its tensors by the names that a directory has for them.
std::map<std::string, stored_weight, std::less<>> weights_of(gptq::checkpoint::gguf_file const& file,
                                                             config const& c);

/// The block type for linear layers of a format: the smallest that holds it. Throws gptq::error, with the
/// reason and what can be held, when there is none.
gptq::checkpoint::ggml_type gguf_type_of(gptq::format_spec const& format);

/// Throws gptq::error for whatever write_gguf_model() would refuse of such a model, its tokenizer included,
/// once its linear layers are in this format.
void check_gguf(model const& m, std::filesystem::path const& source, gptq::format_spec const& format,
                std::optional<gptq::checkpoint::ggml_type> embeddings);

/// Which blocks a linear layer becomes.
enum class gguf_blocks {
  of_format,  ///< gguf_type_of() of its format: what is no scale or minimum of float16 is rounded
  exact       ///< the smallest that decode to its weights
};

/// Writes directory/model.gguf, a model all of whose linear layers are packed with their columns in order.
/// Vectors become float32; embeddings and output layer are written as they are stored.
/// @param source      the model's own directory or file, for its tokenizer
/// @param embeddings  the type of embeddings and output layer instead: F32, F16, BF16 or Q8_0
/// @throws gptq::error when a layer cannot be held or the disk does not take the file; nothing of it is left
///   then
void write_gguf_model(std::filesystem::path const& directory, model const& m,
                      std::filesystem::path const& source,
                      std::optional<gptq::checkpoint::ggml_type> embeddings,
                      gguf_blocks blocks = gguf_blocks::of_format);

/// What write_gguf_model() calls its file.
inline constexpr char const* gguf_name = "model.gguf";

}  // namespace lm
