#include "from_model.hpp"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <utility>

namespace lm::device {
namespace {

using gptq::checkpoint::dtype;

constexpr std::array all_stages{stage::query_key_value, stage::output, stage::gate_up, stage::down};

lm::stage stage_of_model(stage s) {
  constexpr std::array same{lm::stage::query_key_value, lm::stage::output, lm::stage::gate_up,
                            lm::stage::down};
  return same[static_cast<std::size_t>(s)];
}

std::optional<number> number_type(stored_weight const& weight) {
  auto const type = weight.float_type();
  if (!type) return std::nullopt;
  return *type == dtype::f32 ? number::float32 : *type == dtype::f16 ? number::float16 : number::bfloat16;
}

/// A matrix where it lies in its file, or decoded.
host_matrix load_matrix(stored_weight const& weight) {
  auto const rows = static_cast<index_t>(weight.shape()[0]),
             columns = static_cast<index_t>(weight.shape()[1]);
  if (auto const type = number_type(weight)) return {weight.bytes().data(), *type, rows, columns, nullptr};
  auto const decoded = std::make_shared<matrix>(rows, columns);
  weight.rows(0, rows, decoded->data());
  return {decoded->data(), number::float32, rows, columns, decoded};
}

std::vector<float> to_vector(row_vector const& values) {
  return {values.data(), values.data() + values.size()};
}

/// Whether a stage's weights are all where they can be taken as they are stored, in one type.
bool is_plain(model const& m, index_t layer, std::vector<std::size_t> const& places) {
  auto const& linears = m.config().layer(layer).linears;
  std::optional<number> common;
  for (std::size_t const place : places) {
    if (m.packed(layer, place) != nullptr || m.is_rounded()) return false;
    auto const type = number_type(m.stored(linears[place].name + ".weight"));
    if (!type || (common && *common != *type)) return false;
    common = type;
  }
  return true;
}

packed_source pack_source(packed_linear const& packed) {
  return {packed.format(), packed.parts(), [&packed](float* weight) { packed.dequantize(weight); }};
}

/// @param keep_packed  leave packed linear layers as they are
layer_source load_layer(model const& m, index_t i, int threads, bool keep_packed) {
  config const& c = m.config();
  decoder_description const& d = c.layer(i);
  float_layer small;
  m.load_small(i, small);
  layer_source s;
  layer_arithmetic& a = s.arithmetic;
  a.hidden = c.hidden_size;
  a.heads = c.num_attention_heads, a.key_value_heads = c.num_key_value_heads, a.head_dim = c.head_dim;
  a.intermediate = d.input_size(lm::stage::down);
  if (d.experts) {
    a.experts = c.num_experts, a.chosen = c.experts_per_token, a.normalized = c.normalize_expert_weights;
    s.router = {small.router.data(), small.router.data() + small.router.size()};
  }
  a.epsilon = static_cast<float>(c.rms_norm_eps);
  a.attention_scale = static_cast<float>(c.attention_scale);
  a.attention_soft_cap = static_cast<float>(c.attention_softcap);
  a.window = d.sliding_window;
  a.rope = d.rope;
  a.gate = c.act == activation::silu ? gate_function::silu : gate_function::gelu_tanh;
  a.residual_multiplier = static_cast<float>(c.residual_scale);
  s.attention_norm = to_vector(small[norm::attention]);
  s.after_attention_norm = to_vector(small[norm::attention_output]);
  s.mlp_norm = to_vector(small[norm::mlp]);
  s.after_mlp_norm = to_vector(small[norm::mlp_output]);
  s.query_norm = to_vector(small[norm::query]);
  s.key_norm = to_vector(small[norm::key]);
  std::shared_ptr<float_layer> decoded;
  for (stage const at : all_stages) {
    auto const places = row_order(d, at);
    bool const plain = is_plain(m, i, places);
    for (std::size_t const place : places) {
      linear_layer const& l = d.linears[place];
      linear_source source{l.name, {}, to_vector(small.biases[place]), {}};
      packed_linear const* const packed = keep_packed ? m.packed(i, place) : nullptr;
      if (packed != nullptr) {
        source.weight = {nullptr, number::float32, l.out, l.in, nullptr};
        source.packed = pack_source(*packed);
      } else if (plain) {
        source.weight = load_matrix(m.stored(l.name + ".weight"));
      } else {
        if (decoded == nullptr) decoded = std::make_shared<float_layer>(m.load(i, threads));
        source.weight = {decoded->weights[place].data(), number::float32, l.out, l.in, decoded};
      }
      s.linears[static_cast<std::size_t>(at)].push_back(std::move(source));
    }
  }
  return s;
}

}  // namespace

std::vector<std::size_t> row_order(decoder_description const& d, stage s) {
  constexpr std::array order{linear::q_proj,   linear::k_proj,       linear::v_proj,
                             linear::qkv_proj, linear::o_proj,       linear::gate_proj,
                             linear::up_proj,  linear::gate_up_proj, linear::down_proj};
  auto const rank = [&](std::size_t place) {
    return std::find(order.begin(), order.end(), d.linears[place].kind) - order.begin();
  };
  bool const of_experts = d.experts && (s == stage::gate_up || s == stage::down);
  std::vector<std::size_t> places;
  for (std::int64_t expert = of_experts ? 0 : no_expert;; ++expert) {
    auto of_one = d.linears_of(stage_of_model(s), expert);
    if (of_one.empty()) break;
    std::sort(of_one.begin(), of_one.end(), [&](std::size_t a, std::size_t b) { return rank(a) < rank(b); });
    places.insert(places.end(), of_one.begin(), of_one.end());
    if (!of_experts) break;
  }
  return places;
}

std::string unsupported_packed_part(config const& c) {
  bool const experts = std::any_of(c.layers.begin(), c.layers.end(), [](auto const& d) { return d.experts; });
  return experts ? "layers of experts" : "";
}

number exact_activations(model const& m) {
  std::optional<number> common;
  for (index_t i = 0; i < m.config().num_hidden_layers; ++i) {
    for (linear_layer const& l : m.config().layer(i).linears) {
      std::size_t const place = m.config().layer(i).index(l.kind, l.expert);
      if (!is_plain(m, i, {place})) return number::float32;
      auto const type = number_type(m.stored(l.name + ".weight"));
      if (common && *common != *type) return number::float32;
      common = type;
    }
  }
  return common.value_or(number::float32);
}

namespace {

model_source make_source(model const& m, index_t positions, int threads, bool keep_packed) {
  config const& c = m.config();
  model_source source;
  source.layers = c.num_hidden_layers;
  source.hidden = c.hidden_size;
  source.embedding = load_matrix(m.embedding());
  source.embedding_multiplier = static_cast<float>(c.embedding_scale);
  for (rotations const& r : make_rotations(c, positions)) {
    source.ropes.push_back({{r.cos.data(), r.cos.data() + r.cos.size()},
                            {r.sin.data(), r.sin.data() + r.sin.size()},
                            2 * r.cos.cols()});
  }
  source.load = [&m, threads, keep_packed](index_t layer) {
    return load_layer(m, layer, threads, keep_packed);
  };
  source.final_norm = to_vector(m.final_norm());
  source.epsilon = static_cast<float>(c.rms_norm_eps);
  auto const* const packed = keep_packed ? std::get_if<packed_tensor>(&m.output().tensor) : nullptr;
  if (packed != nullptr) {
    source.output = {nullptr, number::float32, c.vocab_size, c.hidden_size, nullptr};
    source.packed_output = pack_source(*packed->packed);
  } else {
    source.output = load_matrix(m.output());
  }
  source.logit_multiplier = static_cast<float>(c.logit_scale);
  source.logit_soft_cap = static_cast<float>(c.logit_softcap);
  return source;
}

}  // namespace

model_source make_source(model const& m, index_t positions, int threads) {
  return make_source(m, positions, threads, false);
}

host_matrix output_matrix(model const& m) { return load_matrix(m.output()); }

model_source make_packed_source(model const& m, index_t positions, int threads) {
  return make_source(m, positions, threads, true);
}

}  // namespace lm::device
