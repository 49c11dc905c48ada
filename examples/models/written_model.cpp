#include "written_model.hpp"

#include <gptq/error.hpp>

#include "checkpoint_model.hpp"
#include "config.hpp"
#include "gptq_model.hpp"
#include "packed_model.hpp"

namespace lm {

using gptq::checkpoint::ggml_type;
using gptq::checkpoint::gptq_version;

void check_options(output_format format, std::optional<ggml_type> const& embeddings,
                   std::optional<std::size_t> const& shard_bytes) {
  if (embeddings && format != output_format::gguf) throw gptq::error("--embeddings is about --format gguf");
  if (shard_bytes && (format == output_format::gguf || format == output_format::packed)) {
    throw gptq::error("--shard-size is about --format gptq, gptq_v2, awq and compressed-tensors");
  }
}

void check_output(output_format format, model const& m, std::filesystem::path const& source,
                  gptq::format_spec const& layers, std::optional<ggml_type> const& embeddings) {
  if (format == output_format::gguf) {
    check_gguf(m, source, layers, embeddings);
    return;
  }
  if (is_gguf(source)) json_of(m.config());  // whether there is a config.json of it
  switch (format) {
    case output_format::gptq:
    case output_format::gptq_v2:
      check_gptq(layers, m.config());
      break;
    case output_format::awq:
      check_awq(layers, m.config());
      break;
    case output_format::compressed_tensors:
      check_compressed(layers, m.config());
      break;
    default:
      break;
  }
}

void write_model(std::filesystem::path const& directory, model const& m, std::filesystem::path const& source,
                 output_format format, output_options const& options) {
  switch (format) {
    case output_format::packed:
      write_packed_model(directory, m, source);
      break;
    case output_format::gguf:
      write_gguf_model(directory, m, source, options.embeddings, options.blocks);
      break;
    case output_format::gptq:
    case output_format::gptq_v2:
      write_gptq_model(directory, m, source,
                       format == output_format::gptq ? gptq_version::v1 : gptq_version::v2, options.method,
                       options.shard_bytes);
      break;
    case output_format::awq:
      write_awq_model(directory, m, source, options.shard_bytes);
      break;
    case output_format::compressed_tensors:
      write_compressed_model(directory, m, source, options.shard_bytes);
      break;
  }
}

}  // namespace lm
