

#include "model.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <string_view>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>
#include <sys/mman.h>

#include <gptq/error.hpp>
#include <gptq/parallel.hpp>

#include "checkpoint_model.hpp"
#include "forward.hpp"
#include "gguf_model.hpp"
#include "gptq_model.hpp"
#include "threads.hpp"
#include "vectors.hpp"

namespace lm {
namespace {

using gptq::checkpoint::tensor_view;

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

/// A norm's, with what some architectures add to all of them.
row_vector norm_weights(stored_weight const& weight, config const& c) {
  row_vector values = to_vector(weight);
  if (c.norm_offset != 0.0) values.array() += static_cast<float>(c.norm_offset);
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

std::string model::embedding_name() const {
  std::string const name = config_.embedding_name();
  // Some checkpoints keep tied weights under the output layer's name alone.
  if (config_.tie_word_embeddings && !files_.all().contains(name)) {
    std::string const output = config_.output_name + ".weight";
    if (files_.all().contains(output)) return output;
  }
  return name;
}

/// All tensors that an unquantized model of this configuration has: visit(name, shape, whether it is the
/// weight of a linear layer).
template <class Visit>
void model::for_each_tensor(Visit&& visit) const {
  using shape = std::vector<std::size_t>;
  auto const unsigned_of = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  auto const hidden = unsigned_of(config_.hidden_size);
  auto const vocab = unsigned_of(config_.vocab_size);
  visit(embedding_name(), shape{vocab, hidden}, false);
  for (decoder_description const& layer : config_.layers) {
    for (norm_layer const& n : layer.norms) visit(n.name + ".weight", shape{unsigned_of(n.size)}, false);
    if (!layer.router.empty())
      visit(layer.router + ".weight", shape{unsigned_of(config_.num_experts), hidden}, false);
    for (linear_layer const& l : layer.linears) {
      visit(l.name + ".weight", shape{unsigned_of(l.out), unsigned_of(l.in)}, true);
      if (l.bias) visit(l.name + ".bias", shape{unsigned_of(l.out)}, false);
    }
  }
  visit(config_.final_norm_name(), shape{hidden}, false);
  bool const is_linear = config_.checkpoint && config_.checkpoint->output;
  if (!config_.tie_word_embeddings) visit(config_.output_name + ".weight", shape{vocab, hidden}, is_linear);
}

model::model(std::filesystem::path const& path)
    : path_(path), config_(read_config(path)), files_(path, config_) {
  for (decoder_description const& layer : config_.layers) packed_.emplace_back(layer.linears.size());
  if (config_.quantized()) attach_packed();
  check_tensors();
  refuse_unknown_tensors();
  final_norm_ = norm_weights(files_.at(config_.final_norm_name()), config_);
}

void model::check_tensors() const {
  for_each_tensor([&](std::string const& name, std::vector<std::size_t> const& shape, bool is_linear) {
    if (is_linear && is_packed(name)) return;
    stored_weight const& weight = files_.at(name);
    if (weight.shape() != shape) {
      stored_weight expected = weight;
      std::visit([&](auto& tensor) { tensor.shape = shape; }, expected.tensor);
      throw gptq::error(fmt::format("{}: tensor '{}' is {}, but {} makes it {}", path_.string(), name,
                                    to_string(weight), is_gguf(path_) ? "its metadata" : "config.json",
                                    to_string(expected)));
    }
    if (!weight.is_readable()) {
      throw gptq::error(
          fmt::format("{}: tensor '{}' is {}: only {} can be read", path_.string(), name, to_string(weight),
                      is_gguf(path_) ? "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q4_K and Q6_K"
                                     : "F32, F16 and BF16"));
    }
  });
}

/// What nobody takes may change what the model computes.
void model::refuse_unknown_tensors() const {
  std::set<std::string, std::less<>> known;
  for_each_tensor([&](std::string const& name, auto const&, bool is_linear) {
    if (!is_linear || !is_packed(name)) {
      known.insert(name);
      return;
    }
    std::string const layer = name.substr(0, name.size() - std::string_view(".weight").size());
    for (char const* const suffix :
         {".codes", ".scales", ".zeros", ".order", ".qweight", ".qzeros", ".g_idx", ".weight_packed",
          ".weight_scale", ".weight_zero_point", ".weight_g_idx", ".weight_shape"}) {
      known.insert(layer + suffix);
    }
  });
  if (config_.tie_word_embeddings) known.insert(config_.output_name + ".weight");
  for (auto const& [name, weight] : files_.all()) {
    if (known.contains(name) || is_other_part(name)) continue;
    if (name.ends_with(".rotary_emb.inv_freq")) continue;  // what config.json says, worked out
    // GPTQ checkpoints give every linear layer a bias.
    if (config_.quantized() && name.ends_with(".bias") && weight.is_readable() &&
        weight.shape().size() == 1) {
      row_vector values(static_cast<Eigen::Index>(weight.shape()[0]));
      weight.rows(0, 1, values.data());
      if (values.isZero(0.0F)) continue;
    }
    throw gptq::error(fmt::format("{}: tensor '{}' is in the file, but nothing in this model takes it",
                                  path_.string(), name));
  }
}

bool model::is_other_part(std::string_view name) const {
  return std::any_of(config_.other_parts.begin(), config_.other_parts.end(),
                     [&](std::string const& part) { return name.starts_with(part); });
}

void model::attach_packed() {
  if (config_.checkpoint && config_.checkpoint->method == checkpoint_method::gptq) {
    config_.checkpoint->version = version_of(files_.safetensors(), *config_.checkpoint, path_);
  }
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    auto const& linears = config_.layer(i).linears;
    for (std::size_t l = 0; l < linears.size(); ++l) {
      linear_layer const& layer = linears[l];
      if (config_.checkpoint) {
        if (is_packed(layer.name + ".weight")) {
          replace(i, l, read_checkpoint(layer.name, layer.out, layer.in));
        }
        continue;
      }
      auto const format = config_.packed.find(layer.name);
      if (format == config_.packed.end()) {
        throw gptq::error(path_.string() + ": config.json has no format for '" + layer.name + "'");
      }
      try {
        // The files live as long as this model, so nobody else has to keep them.
        replace(i, l,
                find_packed(files_.safetensors(), layer.name, format->second, layer.out, layer.in, nullptr));
      } catch (gptq::error const& e) {
        throw gptq::error(path_.string() + ": " + e.what());
      }
    }
  }
  if (config_.checkpoint && config_.checkpoint->output && is_packed(config_.output_name + ".weight")) {
    auto const vocab = static_cast<std::size_t>(config_.vocab_size);
    auto const hidden = static_cast<std::size_t>(config_.hidden_size);
    packed_tensor quantized{{vocab, hidden},
                            read_checkpoint(config_.output_name, config_.vocab_size, config_.hidden_size)};
    packed_output_ = stored_weight{std::move(quantized)};
  }
}

bool model::is_packed(std::string const& weight) const {
  if (!config_.quantized() || files_.all().contains(weight)) return false;
  std::string const layer = weight.substr(0, weight.size() - std::string_view(".weight").size());
  return !config_.checkpoint || config_.checkpoint->find_format(layer);
}

std::unique_ptr<packed_linear> model::read_checkpoint(std::string const& name, std::int64_t out,
                                                      std::int64_t in) const {
  try {
    return lm::read_checkpoint(files_.safetensors(), name, *config_.checkpoint, out, in);
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
  for (auto const& [name, tensor] : files_.safetensors()) {
    if (is_other_part(name)) visit(name, tensor);
  }
}

void model::for_each_float_weight(
    std::function<void(std::string const&, stored_weight const&)> const& visit) const {
  for_each_tensor([&](std::string const& name, auto const&, bool is_linear) {
    if (!is_linear) visit(name, files_.at(name));
  });
}

void model::for_each_packed(
    std::function<void(linear_layer const&, packed_linear const&)> const& visit) const {
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    auto const& linears = config_.layer(i).linears;
    for (std::size_t place = 0; place < linears.size(); ++place) {
      packed_linear const* const layer = packed(i, place);
      if (layer == nullptr) throw gptq::error(linears[place].name + " is not quantized");
      visit(linears[place], *layer);
    }
  }
}

std::int64_t model::parameters() const {
  std::size_t count = 0;
  for_each_tensor([&](std::string const&, std::vector<std::size_t> const& shape, bool) {
    count += shape.size() == 1 ? shape[0] : shape[0] * shape[1];
  });
  return static_cast<std::int64_t>(count);
}

matrix model::embed(std::span<token const> tokens) const {
  stored_weight const& table = files_.at(embedding_name());
  matrix x(static_cast<Eigen::Index>(tokens.size()), config_.hidden_size);
  for (Eigen::Index t = 0; t < x.rows(); ++t) x.row(t) = rows(table, tokens[static_cast<std::size_t>(t)], 1);
  if (config_.embedding_scale != 1.0) x *= static_cast<float>(config_.embedding_scale);
  return x;
}

std::string name_of(arithmetic how) {
  return std::find_if(arithmetic_names.begin(), arithmetic_names.end(),
                      [&](auto const& entry) { return entry.second == how; })
      ->first;
}

std::size_t decoder_layer::bytes(std::int64_t experts_per_token) const {
  std::size_t sum = static_cast<std::size_t>(router.size()) * sizeof(float);
  for (std::size_t l = 0; l < description->linears.size(); ++l) {
    if (description->linears[l].expert < experts_per_token) sum += bytes_of(l);
  }
  return sum;
}

void decoder_layer::multiply_and_add_bias(std::span<std::size_t const> places, matrix const& x,
                                          matrix* y) const {
  multiply_all(places, x, y);
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (row_vector const& bias = biases[places[i]]; bias.size() > 0) y[i].rowwise() += bias;
  }
}

void float_layer::multiply_all(std::span<std::size_t const> places, matrix const& x, matrix* y) const {
  for (std::size_t const l : places) {
    matrix const& weight = weights[l];
    y->resize(x.rows(), weight.rows());
    (y++)->noalias() = x * weight.transpose();
  }
}

std::size_t float_layer::bytes_of(std::size_t place) const {
  return static_cast<std::size_t>(weights[place].size()) * sizeof(float);
}

void packed_layer::multiply_all(std::span<std::size_t const> places, matrix const& x, matrix* y) const {
  for (std::size_t i = 0; i < places.size(); ++i) y[i].resize(x.rows(), weights[places[i]].weight.out);
  // So few bytes that they are read from memory for the first token only; each call arranges x again.
  constexpr gptq::index_t cached_rows = 256;
  run_parts(threads, [&](int part) noexcept {
    for (std::size_t i = 0; i < places.size(); ++i) {
      auto const& [weight, gemv] = weights[places[i]];
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

std::size_t packed_layer::bytes_of(std::size_t place) const { return weights[place].weight.bytes(); }

void model::load_small(std::int64_t layer, decoder_layer& result) const {
  decoder_description const& description = config_.layer(layer);
  result.description = &description;
  for (norm_layer const& n : description.norms) {
    result.norms[static_cast<std::size_t>(n.kind)] = norm_weights(files_.at(n.name + ".weight"), config_);
  }
  for (linear_layer const& l : description.linears) {
    result.biases.push_back(l.bias ? to_vector(files_.at(l.name + ".bias")) : row_vector());
  }
  if (!description.router.empty()) {
    result.router = rows(files_.at(description.router + ".weight"), 0, config_.num_experts);
  }
}

float_layer model::load(std::int64_t layer, int threads) const {
  float_layer result;
  load_small(layer, result);
  auto const& linears = config_.layer(layer).linears;
  result.weights.resize(linears.size());
  for_each(static_cast<std::ptrdiff_t>(linears.size()), threads, [&](std::ptrdiff_t i) {
    auto const place = static_cast<std::size_t>(i);
    linear_layer const& l = linears[place];
    matrix& weight = result.weights[place];
    if (packed_linear const* const replacement = packed(layer, place)) {
      weight.resize(l.out, l.in);
      replacement->dequantize(weight.data());
      return;
    }
    stored_weight const& stored = files_.at(l.name + ".weight");
    weight = rows(stored, 0, l.out);
    drop_pages(stored);
    if (auto const grids = grids_.find(l.name); grids != grids_.end()) lm::round_to(grids->second, weight);
  });
  return result;
}

void model::round_to(model_grids grids) {
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    auto const& linears = config_.layer(i).linears;
    for (std::size_t place = 0; place < linears.size(); ++place) {
      linear_layer const& l = linears[place];
      if (packed(i, place) != nullptr) throw gptq::error(l.name + ": is quantized already");
      auto const found = grids.find(l.name);
      if (found == grids.end()) throw gptq::error(l.name + ": there are no grids for it");
      try {
        check_shape(found->second, l.out, l.in);
      } catch (gptq::error const& e) {
        throw gptq::error(l.name + ": " + e.what());
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
  load_small(layer, *result);
  result->threads = gptq::linalg::thread_count(threads);
  auto const& linears = config_.layer(layer).linears;
  for (std::size_t place = 0; place < linears.size(); ++place) {
    packed_linear const* const weight = packed(layer, place);
    if (weight == nullptr) throw gptq::error(linears[place].name + " is not quantized");
    auto const kernel =
        find_gemv(weight->format(), how == arithmetic::int8 ? gptq::precision::int8 : gptq::precision::int15);
    if (kernel == nullptr) {
      throw gptq::error(linears[place].name + ": no kernels for " + to_string(weight->format()));
    }
    result->weights.push_back({weight->parts(), kernel});
  }
  return result;
}

matrix model::original(std::int64_t layer, std::size_t place) const {
  linear_layer const& l = config_.layer(layer).linears[place];
  std::string const name = l.name + ".weight";
  if (!is_packed(name)) return rows(files_.at(name), 0, l.out);
  matrix weight(l.out, l.in);
  read_checkpoint(l.name, l.out, l.in)->dequantize(weight.data());
  return weight;
}

stored_weight const& model::output() const {
  if (packed_output_) return *packed_output_;
  return files_.at(config_.tie_word_embeddings ? embedding_name() : config_.output_name + ".weight");
}

std::size_t model::output_bytes() const {
  auto const* const quantized = std::get_if<packed_tensor>(&output().tensor);
  return quantized != nullptr ? quantized->packed->parts().bytes() : output().bytes().size();
}

matrix model::output_rows(std::int64_t first, std::int64_t count) const {
  return rows(output(), first, count);
}

row_vector model::logits(row_vector const& x, int threads) const {
  stored_weight const& weight = output();
  row_vector y(config_.vocab_size);
  int const parts = gptq::linalg::thread_count(threads);
  if (auto const* const quantized = std::get_if<packed_tensor>(&weight.tensor)) {
    if (auto const kernel = find_gemv(quantized->packed->format(), gptq::precision::int15)) {
      run_parts(parts, [&](int part) noexcept {
        auto const share = gptq::row_share(config_.vocab_size, part, parts);
        kernel(quantized->packed->parts(), x.data(), y.data(), share.first, share.last);
      });
      scale_logits(config_, y);
      return y;
    }
  }
  auto const type = weight.float_type();
  auto const row_bytes = weight.bytes().size() / static_cast<std::size_t>(config_.vocab_size);
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
  scale_logits(config_, y);
  return y;
}

void model::replace(std::int64_t layer, std::size_t place, std::unique_ptr<packed_linear> packed) {
  packed_[static_cast<std::size_t>(layer)][place] = std::move(packed);
}

}  // namespace lm
