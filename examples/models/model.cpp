

#include "model.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>
#include <sys/mman.h>

#include <gptq/error.hpp>
#include <gptq/parallel.hpp>

#include "checkpoint_model.hpp"
#include "gguf_model.hpp"
#include "gptq_model.hpp"
#include "threads.hpp"
#include "vectors.hpp"

namespace lm {
namespace {

using gptq::checkpoint::tensor_view;

constexpr std::array<char const*, linears> names{"self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj",
                                                 "self_attn.o_proj", "mlp.up_proj",      "mlp.gate_proj",
                                                 "mlp.down_proj"};
constexpr char const* embedding_name = "model.embed_tokens.weight";
constexpr char const* output_name = "lm_head.weight";
constexpr char const* final_norm_name = "model.norm.weight";

std::string norm_name(std::int64_t layer, char const* which) {
  return fmt::format("model.layers.{}.{}_layernorm.weight", layer, which);
}
constexpr char const* attention_norm_name = "input";
constexpr char const* mlp_norm_name = "post_attention";

std::pair<std::int64_t, std::int64_t> shape_of(config const& c, linear l) {
  switch (l) {
    case linear::k_proj:
    case linear::v_proj:
      return {c.key_value_size(), c.hidden_size};
    case linear::q_proj:
      return {c.query_size(), c.hidden_size};
    case linear::o_proj:
      return {c.hidden_size, c.query_size()};
    case linear::up_proj:
    case linear::gate_proj:
      return {c.intermediate_size, c.hidden_size};
    case linear::down_proj:
      return {c.hidden_size, c.intermediate_size};
  }
  return {};
}

/// All tensors that an unquantized model of this configuration has, with their shapes: visit(name, shape).
template <class Visit>
void for_each_tensor(config const& c, Visit&& visit) {
  using shape = std::vector<std::size_t>;
  auto const hidden = static_cast<std::size_t>(c.hidden_size);
  auto const vocab = static_cast<std::size_t>(c.vocab_size);
  visit(embedding_name, shape{vocab, hidden});
  for (std::int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    visit(norm_name(layer, attention_norm_name), shape{hidden});
    visit(norm_name(layer, mlp_norm_name), shape{hidden});
    for (std::size_t l = 0; l < linears; ++l) {
      auto const [out, in] = shape_of(c, linear(l));
      visit(full_name(layer, linear(l)) + ".weight",
            shape{static_cast<std::size_t>(out), static_cast<std::size_t>(in)});
    }
  }
  visit(final_norm_name, shape{hidden});
  if (!c.tie_word_embeddings) visit(output_name, shape{vocab, hidden});
}

bool is_linear(std::string const& tensor) { return tensor.ends_with("_proj.weight"); }

/// Takes the whole pages of a mapped tensor out of memory; they come back from the file when they are read.
/// Otherwise all of a large model would count as this process's memory in the end.
void drop_pages(stored_weight const& weight) {
  auto const page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  auto const bytes = weight.bytes();
  auto const begin = reinterpret_cast<std::uintptr_t>(bytes.data());
  std::uintptr_t const first = (begin + page - 1) / page * page;
  std::uintptr_t const last = (begin + bytes.size()) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

row_vector to_vector(stored_weight const& weight) {
  row_vector values(static_cast<Eigen::Index>(weight.shape()[0]));
  weight.rows(0, 1, values.data());
  return values;
}

matrix rows(stored_weight const& weight, std::int64_t first, std::int64_t count) {
  matrix values(count, static_cast<Eigen::Index>(weight.shape()[1]));
  weight.rows(first, count, values.data());
  return values;
}

/// The products of two rows, as they are stored, with x. Conversion and products in one loop: then they take
/// little longer than reading the rows. (sgemv of OpenBLAS 0.3.21 takes two to three times as long.)
template <class Stored>
std::array<float, 2> dot_two(std::array<std::byte const*, 2> rows, row_vector const& x) {
  constexpr auto size = static_cast<Eigen::Index>(sizeof(Stored));
  constexpr Eigen::Index ahead = 4096;  // bytes that processors do not ask for by themselves: past a page
  vector sums[2][2] = {};               // of each row two, or each addition would wait for the last
  auto const add = [&](std::size_t j, Eigen::Index i, Eigen::Index count) {
    vector inputs{};
    load(x.data() + i, static_cast<std::size_t>(count), inputs);
    for (std::size_t r = 0; r < 2; ++r) {
      vector weights{};
      load(reinterpret_cast<Stored const*>(rows[r]) + i, static_cast<std::size_t>(count), weights);
      sums[r][j] += weights * inputs;
    }
  };
  Eigen::Index i = 0;
  for (; i + 2 * lanes <= x.size(); i += 2 * lanes) {
    for (std::byte const* const row : rows) {
      for (Eigen::Index line = 0; line < 2 * lanes * size; line += 64) {
        __builtin_prefetch(row + i * size + ahead + line, 0, 2);
      }
    }
    add(0, i, lanes);
    add(1, i + lanes, lanes);
  }
  for (; i < x.size(); i += lanes) add(0, i, std::min(lanes, x.size() - i));
  return {sum_of(sums[0][0] + sums[0][1]), sum_of(sums[1][0] + sums[1][1])};
}

/// y = W x for rows as they are stored, one after another: those of the first half beside those of the
/// second, because two places in turn are read faster than one.
template <class Stored>
void multiply_rows(std::byte const* w, row_vector const& x, std::span<float> y) {
  std::size_t const row_bytes = static_cast<std::size_t>(x.size()) * sizeof(Stored), half = y.size() / 2;
  for (std::size_t i = 0; i < half; ++i) {
    auto const two = dot_two<Stored>({w + i * row_bytes, w + (half + i) * row_bytes}, x);
    y[i] = two[0], y[half + i] = two[1];
  }
  if (y.size() % 2 == 1) {
    std::byte const* const last = w + 2 * half * row_bytes;
    y.back() = dot_two<Stored>({last, last}, x)[0];
  }
}

void multiply_rows(gptq::checkpoint::dtype type, std::byte const* w, row_vector const& x,
                   std::span<float> y) {
  using gptq::checkpoint::dtype;
  type == dtype::f32   ? multiply_rows<float>(w, x, y)
  : type == dtype::f16 ? multiply_rows<gptq::float16>(w, x, y)
                       : multiply_rows<gptq::bfloat16>(w, x, y);
}

}  // namespace

std::span<linear const> linears_of(stage s) {
  static constexpr std::array all{linear::k_proj,  linear::v_proj,    linear::q_proj,   linear::o_proj,
                                  linear::up_proj, linear::gate_proj, linear::down_proj};
  std::span<linear const> const view(all);
  switch (s) {
    case stage::query_key_value:
      return view.subspan(0, 3);
    case stage::output:
      return view.subspan(3, 1);
    case stage::gate_up:
      return view.subspan(4, 2);
    case stage::down:
      return view.subspan(6, 1);
  }
  return {};
}

std::int64_t input_size(config const& c, stage s) { return shape_of(c, linears_of(s).front()).second; }

std::string full_name(std::int64_t layer, linear l) {
  return fmt::format("model.layers.{}.{}", layer, names[static_cast<std::size_t>(l)]);
}

std::unique_ptr<packed_linear> find_packed(gptq::checkpoint::tensor_map const& tensors,
                                           std::string const& name, gptq::format_spec const& format,
                                           std::int64_t out, std::int64_t in,
                                           std::shared_ptr<void const> owner) {
  using gptq::checkpoint::dtype;
  auto const bytes_of = [&](char const* suffix, dtype type, bool optional) -> std::span<std::byte const> {
    auto const found = tensors.find(name + suffix);
    if (found == tensors.end() && optional) return {};
    if (found == tensors.end()) throw gptq::error("has no tensor '" + name + suffix + "'");
    tensor_view const& tensor = found->second;
    auto const misaligned = reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % element_bytes(type);
    if (tensor.type != type || tensor.shape.size() != 1 || misaligned != 0) {
      throw gptq::error(fmt::format("tensor '{}{}' is {}, not an aligned row of {}", name, suffix,
                                    to_string(tensor), type_name(type)));
    }
    return tensor.bytes;
  };
  packed_parts parts{out, in, {}, {}, {}, {}};
  parts.codes = bytes_of(".codes", dtype::u8, false);
  parts.scales =
      bytes_of(".scales", format.scales == gptq::scale_type::float16 ? dtype::f16 : dtype::f32, false);
  parts.zeros = bytes_of(".zeros", dtype::u8, true);
  auto const order = bytes_of(".order", dtype::i32, true);
  parts.order = {reinterpret_cast<std::int32_t const*>(order.data()), order.size() / sizeof(std::int32_t)};
  try {
    return make_packed(format, parts, std::move(owner));
  } catch (gptq::error const& e) {
    throw gptq::error(fmt::format("'{}': {}", name, e.what()));
  }
}

model::model(std::filesystem::path const& path)
    : path_(path), config_(read_config(path)), files_(path, config_) {
  packed_.resize(static_cast<std::size_t>(config_.num_hidden_layers));
  if (config_.quantized()) attach_packed();
  for_each_tensor(config_, [&](std::string const& name, std::vector<std::size_t> const& shape) {
    if (is_linear(name) && is_packed(name)) return;
    stored_weight const& weight = files_.at(name);
    if (weight.shape() != shape) {
      stored_weight expected = weight;
      std::visit([&](auto& tensor) { tensor.shape = shape; }, expected.tensor);
      throw gptq::error(fmt::format("{}: tensor '{}' is {}, but {} makes it {}", path.string(), name,
                                    to_string(weight), is_gguf(path) ? "its metadata" : "config.json",
                                    to_string(expected)));
    }
    if (!weight.is_readable()) {
      throw gptq::error(
          fmt::format("{}: tensor '{}' is {}: only {} can be read", path.string(), name, to_string(weight),
                      is_gguf(path) ? "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K and Q6_K"
                                    : "F32, F16 and BF16"));
    }
  });
  final_norm_ = to_vector(files_.at(final_norm_name));
}

void model::attach_packed() {
  if (config_.checkpoint && config_.checkpoint->method == checkpoint_method::gptq) {
    config_.checkpoint->version = version_of(files_.safetensors(), *config_.checkpoint, path_);
  }
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    for (std::size_t l = 0; l < linears; ++l) {
      std::string const name = full_name(i, linear(l));
      if (config_.checkpoint) {
        if (is_packed(name + ".weight")) replace(i, linear(l), read_checkpoint(i, linear(l)));
        continue;
      }
      auto const format = config_.packed.find(name);
      if (format == config_.packed.end()) {
        throw gptq::error(path_.string() + ": config.json has no format for '" + name + "'");
      }
      auto const [out, in] = shape_of(config_, linear(l));
      try {
        // The files live as long as this model, so nobody else has to keep them.
        replace(i, linear(l), find_packed(files_.safetensors(), name, format->second, out, in, nullptr));
      } catch (gptq::error const& e) {
        throw gptq::error(path_.string() + ": " + e.what());
      }
    }
  }
}

bool model::is_packed(std::string const& weight) const {
  return config_.quantized() && !files_.all().contains(weight);
}

std::unique_ptr<packed_linear> model::read_checkpoint(std::int64_t layer, linear l) const {
  auto const [out, in] = shape_of(config_, l);
  try {
    return lm::read_checkpoint(files_.safetensors(), full_name(layer, l), *config_.checkpoint, out, in);
  } catch (gptq::error const& e) {
    throw gptq::error(path_.string() + ": " + e.what());
  }
}

std::string model::fingerprint() const {
  constexpr std::size_t most =
      4096;  // bytes of a tensor: reading all of them takes minutes for a large model
  std::string description;
  for (auto const& [name, weight] : files_.all()) {
    auto const bytes = weight.bytes();
    description += name + to_string(weight) + lm::fingerprint(bytes.first(std::min(most, bytes.size())));
  }
  return lm::fingerprint(std::as_bytes(std::span(description)));
}

void model::require_unquantized() const {
  bool const is_source = config_.checkpoint && config_.checkpoint->method != checkpoint_method::gptq;
  if (config_.quantized() && !is_source) {
    throw gptq::error(path_.string() + ": the model is quantized already");
  }
}

void model::for_each_float_tensor(
    std::function<void(std::string const&, tensor_view const&)> const& visit) const {
  for_each_float_weight([&](std::string const& name, stored_weight const& weight) {
    visit(name, weight.as_safetensors(decoded_[name]));
  });
}

void model::for_each_float_weight(
    std::function<void(std::string const&, stored_weight const&)> const& visit) const {
  for_each_tensor(config_, [&](std::string const& name, auto const&) {
    if (!is_linear(name)) visit(name, files_.at(name));
  });
}

std::int64_t model::parameters() const {
  std::size_t count = 0;
  for_each_tensor(config_, [&](std::string const&, std::vector<std::size_t> const& shape) {
    count += shape.size() == 1 ? shape[0] : shape[0] * shape[1];
  });
  return static_cast<std::int64_t>(count);
}

matrix model::embed(std::span<token const> tokens) const {
  stored_weight const& table = files_.at(embedding_name);
  matrix x(static_cast<Eigen::Index>(tokens.size()), config_.hidden_size);
  for (Eigen::Index t = 0; t < x.rows(); ++t) x.row(t) = rows(table, tokens[static_cast<std::size_t>(t)], 1);
  return x;
}

std::string name_of(arithmetic how) {
  return std::find_if(arithmetic_names.begin(), arithmetic_names.end(),
                      [&](auto const& entry) { return entry.second == how; })
      ->first;
}

void float_layer::multiply_all(std::span<linear const> some, matrix const& x, matrix* y) const {
  for (linear const l : some) {
    matrix const& weight = (*this)[l];
    y->resize(x.rows(), weight.rows());
    (y++)->noalias() = x * weight.transpose();
  }
}

std::size_t float_layer::bytes() const {
  std::size_t sum = 0;
  for (matrix const& weight : weights) sum += static_cast<std::size_t>(weight.size()) * sizeof(float);
  return sum;
}

void packed_layer::multiply_all(std::span<linear const> some, matrix const& x, matrix* y) const {
  auto const entry_of = [&](std::size_t i) -> entry const& {
    return weights[static_cast<std::size_t>(some[i])];
  };
  for (std::size_t i = 0; i < some.size(); ++i) y[i].resize(x.rows(), entry_of(i).weight.out);
  // So few bytes that they are read from memory for the first token only; each call arranges x again.
  constexpr gptq::index_t cached_rows = 256;
  run_parts(threads, [&](int part) noexcept {
    for (std::size_t i = 0; i < some.size(); ++i) {
      auto const& [weight, gemv] = entry_of(i);
      auto const share = gptq::row_share(weight.out, part, threads);
      gptq::index_t const step = x.rows() == 1 ? weight.out : cached_rows;
      for (gptq::index_t first = share.first; first < share.last; first += step) {
        for (Eigen::Index t = 0; t < x.rows(); ++t) {
          gemv(weight, x.row(t).data(), y[i].row(t).data(), first, std::min(first + step, share.last));
        }
      }
    }
  });
}

std::size_t packed_layer::bytes() const {
  std::size_t sum = 0;
  for (entry const& e : weights) sum += e.weight.bytes();
  return sum;
}

float_layer model::load(std::int64_t layer, int threads) const {
  float_layer result;
  result.attention_norm = to_vector(files_.at(norm_name(layer, attention_norm_name)));
  result.mlp_norm = to_vector(files_.at(norm_name(layer, mlp_norm_name)));
  auto const& packed = packed_[static_cast<std::size_t>(layer)];
  for_each(linears, threads, [&](std::ptrdiff_t i) {
    auto const l = linear(i);
    auto const [out, in] = shape_of(config_, l);
    if (auto const& replacement = packed[static_cast<std::size_t>(i)]; replacement != nullptr) {
      result[l].resize(out, in);
      replacement->dequantize(result[l].data());
    } else {
      stored_weight const& weight = files_.at(full_name(layer, l) + ".weight");
      result[l] = rows(weight, 0, out);
      drop_pages(weight);
      if (auto const grids = grids_.find(full_name(layer, l)); grids != grids_.end()) {
        lm::round_to(grids->second, result[l]);
      }
    }
  });
  return result;
}

void model::round_to(model_grids grids) {
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    for (std::size_t l = 0; l < linears; ++l) {
      std::string const name = full_name(i, linear(l));
      if (packed(i, linear(l)) != nullptr) throw gptq::error(name + ": is quantized already");
      auto const found = grids.find(name);
      if (found == grids.end()) throw gptq::error(name + ": there are no grids for it");
      auto const [out, in] = shape_of(config_, linear(l));
      try {
        check_shape(found->second, out, in);
      } catch (gptq::error const& e) {
        throw gptq::error(name + ": " + e.what());
      }
    }
  }
  grids_ = std::move(grids);
}

bool model::has_kernels() const {
  for (auto const& layer : packed_) {
    for (auto const& l : layer) {
      if (l == nullptr || find_gemv(l->format(), gptq::precision::int8) == nullptr) return false;
    }
  }
  return true;
}

std::unique_ptr<decoder_layer> model::load(std::int64_t layer, arithmetic how, int threads) const {
  if (how == arithmetic::float32) return std::make_unique<float_layer>(load(layer, threads));
  auto result = std::make_unique<packed_layer>();
  result->attention_norm = to_vector(files_.at(norm_name(layer, attention_norm_name)));
  result->mlp_norm = to_vector(files_.at(norm_name(layer, mlp_norm_name)));
  result->threads = gptq::linalg::thread_count(threads);
  for (std::size_t l = 0; l < linears; ++l) {
    packed_linear const* const weight = packed(layer, linear(l));
    if (weight == nullptr) throw gptq::error(full_name(layer, linear(l)) + " is not quantized");
    auto const kernel =
        find_gemv(weight->format(), how == arithmetic::int8 ? gptq::precision::int8 : gptq::precision::int15);
    if (kernel == nullptr) {
      throw gptq::error(full_name(layer, linear(l)) + ": no kernels for " + to_string(weight->format()));
    }
    result->weights[l] = {weight->parts(), kernel};
  }
  return result;
}

matrix model::original(std::int64_t layer, linear l) const {
  auto const [out, in] = shape_of(config_, l);
  std::string const name = full_name(layer, l) + ".weight";
  if (!is_packed(name)) return rows(files_.at(name), 0, out);
  matrix weight(out, in);
  read_checkpoint(layer, l)->dequantize(weight.data());
  return weight;
}

stored_weight const& model::output() const {
  return files_.at(config_.tie_word_embeddings ? embedding_name : output_name);
}

std::span<std::byte const> model::output_bytes() const { return output().bytes(); }

matrix model::output_rows(std::int64_t first, std::int64_t count) const {
  return rows(output(), first, count);
}

row_vector model::logits(row_vector const& x, int threads) const {
  stored_weight const& weight = output();
  auto const type = weight.float_type();
  auto const row_bytes = weight.bytes().size() / static_cast<std::size_t>(config_.vocab_size);
  row_vector y(config_.vocab_size);
  int const parts = gptq::linalg::thread_count(threads);
  std::vector<row_vector> decoded(type ? 0 : static_cast<std::size_t>(parts),
                                  row_vector(config_.hidden_size));
  run_parts(parts, [&](int part) noexcept {
    auto const share = gptq::row_share(config_.vocab_size, part, parts);
    std::span<float> const logits(y.data() + share.first, static_cast<std::size_t>(share.last - share.first));
    if (type) {
      multiply_rows(*type, weight.bytes().data() + static_cast<std::size_t>(share.first) * row_bytes, x,
                    logits);
      return;
    }
    row_vector& row = decoded[static_cast<std::size_t>(part)];
    for (std::size_t i = 0; i < logits.size(); ++i) {
      weight.rows(share.first + static_cast<std::int64_t>(i), 1, row.data());
      multiply_rows<float>(reinterpret_cast<std::byte const*>(row.data()), x, logits.subspan(i, 1));
    }
  });
  return y;
}

void model::replace(std::int64_t layer, linear l, std::unique_ptr<packed_linear> packed) {
  packed_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(l)] = std::move(packed);
}

}  // namespace lm
