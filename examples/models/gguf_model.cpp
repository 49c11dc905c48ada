#include "gguf_model.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <gptq/error.hpp>
#include <gptq/packed.hpp>

#include "forward.hpp"
#include "gguf_tokenizer.hpp"
#include "model.hpp"

namespace lm {
namespace {

namespace fs = std::filesystem;
using gptq::checkpoint::ggml_tensor;
using gptq::checkpoint::ggml_type;
using gptq::checkpoint::gguf_file;
using gptq::checkpoint::gguf_metadata;
using gptq::checkpoint::gguf_tensor_info;

constexpr std::string_view layer_prefix = "model.layers.";
constexpr char const* rope_factors_name = "rope_freqs.weight";

/// Names outside and inside of decoder layers, without ".weight".
constexpr std::array<std::pair<std::string_view, std::string_view>, 3> outer_names{
    {{"model.embed_tokens", "token_embd"}, {"model.norm", "output_norm"}, {"lm_head", "output"}}};
constexpr std::array<std::pair<std::string_view, std::string_view>, 9> layer_names{
    {{"input_layernorm", "attn_norm"},
     {"post_attention_layernorm", "ffn_norm"},
     {"self_attn.q_proj", "attn_q"},
     {"self_attn.k_proj", "attn_k"},
     {"self_attn.v_proj", "attn_v"},
     {"self_attn.o_proj", "attn_output"},
     {"mlp.gate_proj", "ffn_gate"},
     {"mlp.up_proj", "ffn_up"},
     {"mlp.down_proj", "ffn_down"}}};

/// Visits the names of all tensors of a model: visit(Hugging Face's, GGUF's).
template <class Visit>
void for_each_name(config const& c, Visit&& visit) {
  for (auto const& [ours, theirs] : outer_names) {
    visit(fmt::format("{}.weight", ours), fmt::format("{}.weight", theirs));
  }
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
    for (auto const& [ours, theirs] : layer_names) {
      visit(fmt::format("{}{}.{}.weight", layer_prefix, i, ours), fmt::format("blk.{}.{}.weight", i, theirs));
    }
  }
}

bool is_interleaved(std::string_view name) {
  return name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
}

/// Rows of a matrix, from Hugging Face's order to GGUF's.
std::vector<std::byte> interleave(std::span<std::byte const> rows, std::int64_t count,
                                  std::int64_t head_dim) {
  std::vector<std::byte> result(rows.size());
  auto const row_bytes = rows.size() / static_cast<std::size_t>(count);
  for (std::int64_t row = 0; row < count; ++row) {
    auto const from = rows.subspan(static_cast<std::size_t>(row) * row_bytes, row_bytes);
    std::copy(from.begin(), from.end(),
              result.begin() + static_cast<std::ptrdiff_t>(
                                   static_cast<std::size_t>(interleaved_row(row, head_dim)) * row_bytes));
  }
  return result;
}

// What can be written: type_for() of all of these, and their layers, unpacked.
using schemes = gptq::schemes<gptq::asymmetric, gptq::symmetric, gptq::fixed_zero, gptq::half_step>;
using formats =
    gptq::combinations<schemes, gptq::bit_widths<4, 8>, gptq::group_sizes<32, 64, 128, gptq::whole_row>>;

std::vector<std::byte> blocks_of(packed_linear const& packed, ggml_type type) {
  return gptq::with_format<formats>(packed.format(), [&]<class Format>() {
    return to_ggml(gptq::unpack(view_of<Format>(packed.parts())), type);
  });
}

/// A tensor that is not a linear layer.
struct plain_tensor {
  gguf_tensor_info info;
  stored_weight const* weight;

  std::vector<std::byte> bytes() const {
    if (auto const* const stored = std::get_if<ggml_tensor>(&weight->tensor);
        stored != nullptr && stored->type == info.type) {
      return {stored->bytes.begin(), stored->bytes.end()};
    }
    // A slice at a time in float32.
    constexpr std::int64_t slice = 1024;
    auto const columns = static_cast<std::int64_t>(info.shape.back());
    auto const count = info.shape.size() == 1 ? 1 : static_cast<std::int64_t>(info.shape[0]);
    std::vector<std::byte> result;
    for (std::int64_t first = 0; first < count; first += slice) {
      auto const rows = std::min(slice, count - first);
      std::vector<float> values(static_cast<std::size_t>(rows * columns));
      weight->rows(first, rows, values.data());
      auto const encoded = gptq::checkpoint::from_float(info.type, values);
      result.insert(result.end(), encoded.begin(), encoded.end());
    }
    return result;
  }
};

/// The type that keeps a tensor as it is.
ggml_type type_of(stored_weight const& weight) {
  if (auto const* const stored = std::get_if<ggml_tensor>(&weight.tensor)) return stored->type;
  switch (std::get<gptq::checkpoint::tensor_view>(weight.tensor).type) {
    case gptq::checkpoint::dtype::f16:
      return ggml_type::f16;
    case gptq::checkpoint::dtype::bf16:
      return ggml_type::bf16;
    default:
      return ggml_type::f32;
  }
}

/// What llama.cpp calls the types of most of a file's weights.
std::uint32_t file_type_of(ggml_type type) {
  switch (type) {
    case ggml_type::q4_0:
      return 2;
    case ggml_type::q4_1:
      return 3;
    default:
      return 7;  // Q8_0
  }
}

gguf_metadata metadata_of(config const& c, fs::path const& source, ggml_type type) {
  gguf_metadata metadata;
  auto const put = [&](char const* key, std::int64_t value) {
    metadata.add(fmt::format("llama.{}", key), static_cast<std::uint32_t>(value));
  };
  metadata.add("general.architecture", "llama");
  metadata.add("general.type", "model");
  auto const name = fs::absolute(source).lexically_normal();
  metadata.add("general.name", (name.has_filename() ? name : name.parent_path()).filename().string());
  metadata.add("general.file_type", file_type_of(type));
  metadata.add("general.quantization_version", std::uint32_t{2});
  put("block_count", c.num_hidden_layers);
  put("context_length", c.max_position_embeddings);
  put("embedding_length", c.hidden_size);
  put("feed_forward_length", c.intermediate_size);
  put("attention.head_count", c.num_attention_heads);
  put("attention.head_count_kv", c.num_key_value_heads);
  put("attention.key_length", c.head_dim);
  put("attention.value_length", c.head_dim);
  put("rope.dimension_count", c.head_dim);
  put("vocab_size", c.vocab_size);
  metadata.add("llama.attention.layer_norm_rms_epsilon", static_cast<float>(c.rms_norm_eps));
  metadata.add("llama.rope.freq_base", static_cast<float>(c.rope_theta));
  if (is_gguf(source)) {
    gguf_file const file(source);
    for (auto const& [key, value] : file.metadata()) {
      if (key.starts_with("tokenizer.")) metadata.add(key, value);
    }
  } else {
    add_tokenizer(metadata, source, c);
  }
  return metadata;
}

/// By how much each rotary frequency is slowed down: all that Llama 3's scaling comes to.
std::vector<float> rope_factors_of(config const& c) {
  config plain = c;
  plain.rope_scaling.reset();
  plain.rope_factors.clear();
  auto const from = rope_frequencies(plain);
  auto const to = rope_frequencies(c);
  std::vector<float> factors;
  for (std::size_t i = 0; i < from.size(); ++i) factors.push_back(static_cast<float>(from[i] / to[i]));
  return factors;
}

}  // namespace

bool is_gguf(fs::path const& path) { return fs::is_regular_file(path); }

fs::path directory_of(fs::path const& path) { return is_gguf(path) ? path.parent_path() : path; }

std::int64_t interleaved_row(std::int64_t row, std::int64_t head_dim) {
  std::int64_t const in_head = row % head_dim;
  std::int64_t const half = in_head / (head_dim / 2);
  return row - in_head + 2 * (in_head % (head_dim / 2)) + half;
}

config config_of(gguf_file const& file, fs::path const& path) {
  auto const refuse = [&](std::string const& key, std::string const& why) {
    throw gptq::error(fmt::format("{}: metadata '{}' {}", path.string(), key, why));
  };
  constexpr std::int64_t limit = std::int64_t{1} << 24;
  auto const size = [&](char const* name, std::optional<std::int64_t> missing = std::nullopt) {
    std::string const key = fmt::format("llama.{}", name);
    auto const given = file.get<std::int64_t>(key);
    std::int64_t const value = given ? *given : missing ? *missing : file.at<std::int64_t>(key);
    if (value < 1 || value > limit) {
      refuse(key, fmt::format("is {}: not between 1 and {}", value, limit));
    }
    return value;
  };
  auto const positive = [&](char const* name, std::optional<double> missing = std::nullopt) {
    std::string const key = fmt::format("llama.{}", name);
    auto const given = file.get<double>(key);
    double const value = given ? *given : missing ? *missing : file.at<double>(key);
    if (!(value > 0.0) || !std::isfinite(value)) refuse(key, fmt::format("is {}: not positive", value));
    return value;
  };
  if (auto const name = file.at<std::string_view>("general.architecture"); name != "llama") {
    refuse("general.architecture", fmt::format("is {}: only llama is implemented", name));
  }
  if (file.get<std::int64_t>("llama.expert_count").value_or(0) != 0) {
    refuse("llama.expert_count", "is there: mixtures of experts are not implemented");
  }
  if (auto const scaling = file.get<std::string_view>("llama.rope.scaling.type").value_or("none");
      scaling != "none") {
    refuse("llama.rope.scaling.type", fmt::format("is {}: not implemented", scaling));
  }

  config c{};
  c.num_hidden_layers = size("block_count");
  if (static_cast<std::size_t>(c.num_hidden_layers) > file.tensors().size()) {
    refuse("llama.block_count",
           fmt::format("is {}, more than the file's {} tensors", c.num_hidden_layers, file.tensors().size()));
  }
  c.max_position_embeddings = size("context_length");
  c.hidden_size = size("embedding_length");
  c.intermediate_size = size("feed_forward_length");
  c.num_attention_heads = size("attention.head_count");
  c.num_key_value_heads = size("attention.head_count_kv", c.num_attention_heads);
  c.rms_norm_eps = positive("attention.layer_norm_rms_epsilon");
  c.rope_theta = positive("rope.freq_base", 10000.0);
  c.tie_word_embeddings = file.find_tensor("output.weight") == nullptr;
  auto const* const embeddings = file.find_tensor("token_embd.weight");
  if (embeddings == nullptr || embeddings->shape.size() != 2) {
    throw gptq::error(path.string() + ": has no matrix 'token_embd.weight'");
  }
  c.vocab_size = size("vocab_size", static_cast<std::int64_t>(embeddings->shape[0]));
  auto const token_of = [&](char const* key) {
    auto const id = file.get<std::int64_t>(key);
    if (id && (*id < 0 || *id >= c.vocab_size)) {
      refuse(key, fmt::format("is {}: not a token of the vocabulary", *id));
    }
    return id;
  };
  if (auto const bos = token_of("tokenizer.ggml.bos_token_id")) {
    c.bos_token_id = static_cast<std::int32_t>(*bos);
  }
  if (auto const eos = token_of("tokenizer.ggml.eos_token_id")) {
    c.eos_token_id = {static_cast<std::int32_t>(*eos)};
  }

  if (!file.get<std::int64_t>("llama.attention.key_length") && c.hidden_size % c.num_attention_heads != 0) {
    refuse("llama.attention.head_count",
           "does not divide llama.embedding_length, and there is no key_length");
  }
  c.head_dim = size("attention.key_length", c.hidden_size / c.num_attention_heads);
  if (c.head_dim % 2 != 0) throw gptq::error(path.string() + ": heads of an odd size cannot be rotated");
  for (auto const* const key : {"attention.value_length", "rope.dimension_count"}) {
    if (std::int64_t const value = size(key, c.head_dim); value != c.head_dim) {
      refuse(fmt::format("llama.{}", key),
             fmt::format("is {}: only the size of a head is implemented", value));
    }
  }
  if (c.num_attention_heads % c.num_key_value_heads != 0) {
    refuse("llama.attention.head_count_kv", "does not divide llama.attention.head_count");
  }
  if (auto const* const factors = file.find_tensor(rope_factors_name)) {
    c.rope_factors = to_float(*factors);
    if (c.rope_factors.size() != static_cast<std::size_t>(c.head_dim / 2) ||
        !std::all_of(c.rope_factors.begin(), c.rope_factors.end(),
                     [](float f) { return f > 0.0F && std::isfinite(f); })) {
      throw gptq::error(fmt::format("{}: tensor '{}' is not one positive factor for each pair of a head",
                                    path.string(), rope_factors_name));
    }
  }
  return c;
}

std::map<std::string, stored_weight, std::less<>> weights_of(gguf_file const& file, config const& c) {
  std::map<std::string, stored_weight, std::less<>> weights;
  for_each_name(c, [&](std::string const& ours, std::string const& theirs) {
    if (auto const* const tensor = file.find_tensor(theirs)) {
      weights[ours] = {*tensor, is_interleaved(ours) ? c.head_dim : 0};
    }
  });
  return weights;
}

ggml_type gguf_type_of(gptq::format_spec const& format) {
  if (format.scales == gptq::scale_type::float32) {
    throw gptq::error("GGUF blocks have float16 scales: float32 ones would be rounded after the fact");
  }
  if (format.bits != 4 && format.bits != 8) {
    throw gptq::error(
        fmt::format("GGUF has no blocks for codes of {} bits as they are here: 4 bits (Q4_0, Q4_1) "
                    "and 8 bits (Q8_0) can be written",
                    format.bits));
  }
  return gptq::with_format<formats>(format, []<class Format>() {
    ggml_type const type = gptq::checkpoint::type_for(Format::levels).value_or(ggml_type::q8_0);
    check_type(type, Format::levels, Format::group_size);
    return type;
  });
}

void check_gguf_rows(config const& c) {
  for (std::int64_t const columns : {c.hidden_size, c.query_size(), c.intermediate_size}) {
    if (columns % 32 != 0) {
      throw gptq::error(
          fmt::format("GGUF has blocks of 32 weights: rows of {} are not whole blocks", columns));
    }
  }
}

void write_gguf_model(fs::path const& directory, model const& m, fs::path const& source,
                      std::optional<ggml_type> embeddings) {
  std::error_code failure;
  fs::create_directories(directory, failure);
  if (failure) throw gptq::error(directory.string() + ": cannot be made: " + failure.message());
  config const& c = m.config();
  std::map<std::string, std::string> gguf_names;
  for_each_name(c, [&](std::string const& ours, std::string const& theirs) { gguf_names[ours] = theirs; });

  struct linear_tensor {
    std::string name;
    gguf_tensor_info info;
    packed_linear const* packed;
  };
  std::vector<linear_tensor> layers;
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
    for (std::size_t l = 0; l < linears; ++l) {
      std::string const name = full_name(i, linear(l)) + ".weight";
      auto const* const packed = m.packed(i, linear(l));
      if (packed == nullptr) throw gptq::error(name + " is not quantized");
      auto const parts = packed->parts();
      layers.push_back({name,
                        {gguf_names.at(name),
                         gguf_type_of(packed->format()),
                         {static_cast<std::size_t>(parts.out), static_cast<std::size_t>(parts.in)}},
                        packed});
    }
  }
  std::vector<plain_tensor> others;
  m.for_each_float_weight([&](std::string const& name, stored_weight const& weight) {
    bool const is_vector = weight.shape().size() == 1;
    ggml_type const type = is_vector ? ggml_type::f32 : embeddings.value_or(type_of(weight));
    others.push_back({{gguf_names.at(name), type, weight.shape()}, &weight});
  });
  std::vector<gguf_tensor_info> infos;
  for (plain_tensor const& t : others) infos.push_back(t.info);
  auto const factors = rope_factors_of(c);
  bool const scaled = std::any_of(factors.begin(), factors.end(), [](float f) { return f != 1.0F; });
  if (scaled) infos.push_back({rope_factors_name, ggml_type::f32, {factors.size()}});
  for (linear_tensor const& t : layers) infos.push_back(t.info);

  gptq::checkpoint::gguf_writer out(directory / gguf_name, metadata_of(c, source, layers.front().info.type),
                                    std::move(infos));
  for (plain_tensor const& t : others) {
    try {
      out.write(t.bytes());
    } catch (gptq::error const& e) {
      throw gptq::error(t.info.name + ": " + e.what());
    }
  }
  if (scaled) out.write(std::as_bytes(std::span(factors)));
  for (linear_tensor const& t : layers) {
    try {
      auto const blocks = blocks_of(*t.packed, t.info.type);
      auto const rows = static_cast<std::int64_t>(t.info.shape[0]);
      out.write(is_interleaved(t.name) ? interleave(blocks, rows, c.head_dim) : blocks);
    } catch (gptq::error const& e) {
      throw gptq::error(t.name + ": " + e.what());
    }
  }
  out.finish();
}

}  // namespace lm
