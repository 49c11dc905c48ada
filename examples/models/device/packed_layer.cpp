#include "packed_layer.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>

#include <gptq/error.hpp>

namespace lm::device {
namespace {

constexpr std::array all_stages{stage::query_key_value, stage::output, stage::gate_up, stage::down};

/// An empty array for no values: then its pointer is null.
array<float> to_device(accelerator& on, std::vector<float> const& values) {
  return values.empty() ? array<float>() : array<float>(on, values);
}

/// Packed matrices one below the other, as one.
struct joined {
  packed_parts parts;
  std::vector<std::byte> codes, scales, zeros;

  explicit joined(std::span<linear_source const> linears) {
    for (linear_source const& l : linears) {
      packed_parts const& p = l.packed->parts;
      parts.out += p.out;
      codes.insert(codes.end(), p.codes.begin(), p.codes.end());
      scales.insert(scales.end(), p.scales.begin(), p.scales.end());
      zeros.insert(zeros.end(), p.zeros.begin(), p.zeros.end());
    }
    parts.in = linears.front().packed->parts.in;
    parts.codes = codes, parts.scales = scales, parts.zeros = zeros;
    parts.order = linears.front().packed->parts.order;
  }
};

/// Whether the rows of packed matrices follow one another in blocks of whole ones, with columns in one order.
bool can_be_joined(std::span<linear_source const> linears) {
  packed_source const* const first = linears.front().packed ? &*linears.front().packed : nullptr;
  for (std::size_t i = 0; i < linears.size(); ++i) {
    if (first == nullptr || !linears[i].packed) return false;
    packed_source const& p = *linears[i].packed;
    if (p.format != first->format || !std::ranges::equal(p.parts.order, first->parts.order)) return false;
    if (i + 1 < linears.size() && p.parts.out % gptq::packed_rows != 0) return false;
  }
  return true;
}

}  // namespace

projection::projection(accelerator& on, std::span<linear_source const> linears, index_t in)
    : on_(on), in_(in) {
  std::vector<float> bias;
  bool any_bias = false;
  for (linear_source const& l : linears) {
    out_ += l.weight.rows;
    any_bias |= !l.bias.empty();
    bias.insert(bias.end(), l.bias.begin(), l.bias.end());
    bias.resize(static_cast<std::size_t>(out_));
  }
  if (any_bias) bias_ = to_device(on, bias);
  if (linears.size() > 1 && can_be_joined(linears)) {
    joined const all(linears);
    if (auto weight = on.new_packed(linears.front().packed->format, all.parts)) {
      parts_.push_back({std::move(weight), {}, out_});
      return;
    }
  }
  for (linear_source const& l : linears) {
    index_t const size = l.weight.rows * in;
    if (l.packed) {
      if (auto weight = on.new_packed(l.packed->format, l.packed->parts)) {
        parts_.push_back({std::move(weight), {}, l.weight.rows});
        continue;
      }
    }
    std::vector<float> decoded;
    host_matrix from = l.weight;
    if (l.packed) {
      decoded.resize(static_cast<std::size_t>(size));
      l.packed->decode(decoded.data());
      from.data = decoded.data(), from.type = number::float32;
    }
    number_array const stored(on, size, from.type);
    on.upload(numbers(stored).data, from.data, from.bytes());
    parts_.push_back({nullptr, number_array(on, size, number::float16), l.weight.rows});
    on.convert(parts_.back().dense, stored, size);
    on.synchronize();
  }
}

std::size_t projection::bytes() const {
  std::size_t sum = static_cast<std::size_t>(bias_.size()) * sizeof(float);
  for (part const& p : parts_) {
    sum += p.packed != nullptr ? p.packed->bytes() : static_cast<std::size_t>(p.out * in_) * 2;
  }
  return sum;
}

bool projection::packed() const {
  return std::all_of(parts_.begin(), parts_.end(), [](part const& p) { return p.packed != nullptr; });
}

std::int32_t const* projection::places() const {
  return parts_.size() == 1 && parts_.front().packed != nullptr ? parts_.front().packed->places() : nullptr;
}

void projection::multiply(part const& p, numbers x, index_t rows, numbers y, bool arranged) const {
  if (p.packed != nullptr) {
    on_.multiply(packed_product{*p.packed, x, y, rows, arranged});
  } else {
    on_.multiply(
        product{.x = x, .w = p.dense, .y = y, .rows = rows, .in = in_, .out = p.out, .stride = p.out});
  }
}

void projection::multiply(numbers x, index_t rows, numbers y) const {
  if (parts_.size() == 1) return multiply(parts_.front(), x, rows, y, false);
  index_t first = 0;
  for (part const& p : parts_) {
    number_array const some(on_, rows * p.out, y.type);
    multiply(p, x, rows, some, false);
    on_.copy_rows(y.from(first), out_, some, p.out, rows, p.out);
    first += p.out;
  }
}

void projection::multiply_one(numbers x, float* y) const {
  for (part const& p : parts_) {
    multiply(p, x, 1, {y, number::float32}, parts_.size() == 1);
    y += p.out;
  }
}

packed_layer::packed_layer(accelerator& on, layer_source&& source)
    : on_(on),
      arithmetic_(source.arithmetic),
      attention_norm_(to_device(on, source.attention_norm)),
      after_attention_norm_(to_device(on, source.after_attention_norm)),
      mlp_norm_(to_device(on, source.mlp_norm)),
      after_mlp_norm_(to_device(on, source.after_mlp_norm)),
      query_norm_(to_device(on, source.query_norm)),
      key_norm_(to_device(on, source.key_norm)) {
  check(source);
  for (stage const s : all_stages) {
    stages_.emplace_back(on, source.linears[static_cast<std::size_t>(s)], arithmetic_.in(s));
  }
}

std::size_t packed_layer::bytes() const {
  std::size_t sum = 0;
  for (projection const& p : stages_) sum += p.bytes();
  for (auto const* const norm :
       {&attention_norm_, &after_attention_norm_, &mlp_norm_, &after_mlp_norm_, &query_norm_, &key_norm_}) {
    sum += static_cast<std::size_t>(norm->size()) * sizeof(float);
  }
  return sum;
}

bool packed_layer::packed() const {
  return std::all_of(stages_.begin(), stages_.end(), [](projection const& p) { return p.packed(); });
}

forward_pass::keys_and_values packed_layer::run(forward_pass const& pass, index_t windows, float* x) const {
  layer_arithmetic const& a = arithmetic_;
  index_t const rows = windows * pass.length(), width = a.out(stage::query_key_value);
  auto const project = [&](stage s, numbers from, numbers to) {
    (*this)[s].multiply(from, rows, to);
    if ((*this)[s].bias() != nullptr) on_.add_bias(to, (*this)[s].bias(), rows, a.out(s));
  };
  number_array const normed(on_, rows * a.hidden, number::float16);
  number_array const added(on_, rows * a.hidden, number::float16);
  on_.rms_norm(normed, x, attention_norm_.data(), rows, a.hidden, a.epsilon);
  forward_pass::keys_and_values kept;
  {
    number_array const projected(on_, rows * width, number::float16);
    number_array const mixed(on_, rows * a.query_size(), number::float16);
    project(stage::query_key_value, normed, projected);
    if (query_norm_.size() > 0) {
      on_.rms_norm_heads(projected, query_norm_.data(), rows, width, 0, a.heads, a.head_dim, a.epsilon);
    }
    if (key_norm_.size() > 0) {
      on_.rms_norm_heads(projected, key_norm_.data(), rows, width, a.query_size(), a.key_value_heads,
                         a.head_dim, a.epsilon);
    }
    kept = pass.attend(a, windows, projected, mixed);
    (*this)[stage::output].multiply(mixed, rows, added);
  }
  on_.add_and_norm(x, added, (*this)[stage::output].bias(), after_attention_norm_.data(),
                   a.residual_multiplier, normed, mlp_norm_.data(), nullptr, rows, a.hidden, a.epsilon);
  number_array const projected(on_, rows * 2 * a.intermediate, number::float16);
  number_array const gated(on_, rows * a.intermediate, number::float16);
  project(stage::gate_up, normed, projected);
  on_.gate(gated, projected, rows, a.intermediate, a.gate);
  (*this)[stage::down].multiply(gated, rows, added);
  on_.add_and_norm(x, added, (*this)[stage::down].bias(), after_mlp_norm_.data(), a.residual_multiplier,
                   normed, mlp_norm_.data(), nullptr, rows, a.hidden, a.epsilon);
  return kept;
}

packed_layer::token_memory::token_memory(accelerator& on, std::span<packed_layer const> layers) {
  index_t widest = 0, longest = 0;
  for (packed_layer const& l : layers) {
    for (stage const s : all_stages) {
      widest = std::max(widest, l.arithmetic().out(s)), longest = std::max(longest, l.arithmetic().in(s));
    }
  }
  normed = number_array(on, layers.front().arithmetic().hidden, number::float16);
  product = array<float>(on, widest);
  input = number_array(on, longest, number::float16);
}

void packed_layer::step(float* x, token_memory const& memory, cache const& kept, token_place const& place,
                        float const* next, std::int32_t const* next_places) const {
  layer_arithmetic const& a = arithmetic_;
  float* const y = memory.product.data();
  numbers const sums{y, number::float32};
  auto const at = [](numbers n) { return static_cast<gptq::float16*>(n.data); };
  projection const &qkv = (*this)[stage::query_key_value], &output = (*this)[stage::output],
                   &gate_up = (*this)[stage::gate_up], &down = (*this)[stage::down];
  qkv.multiply_one(memory.normed, y);
  on_.attend(cached_attention{
      .rows = y,
      .bias = qkv.bias(),
      .query_norm = query_norm_.data(),
      .key_norm = key_norm_.data(),
      .epsilon = a.epsilon,
      .shape = {1, place.capacity, a.key_value_heads, a.heads / a.key_value_heads, a.head_dim},
      .turn = place.turn,
      .position = place.position,
      .keys = at(kept.keys),
      .values = at(kept.values),
      .window = a.window,
      .scale = a.attention_scale,
      .soft_cap = a.attention_soft_cap,
      .to = at(memory.input),
      .places = output.places(),
      .workspace = place.workspace});
  output.multiply_one(memory.input, y);
  on_.add_and_norm(x, sums, output.bias(), after_attention_norm_.data(), a.residual_multiplier, memory.normed,
                   mlp_norm_.data(), gate_up.places(), 1, a.hidden, a.epsilon);
  gate_up.multiply_one(memory.normed, y);
  on_.gate_one(memory.input, y, gate_up.bias(), down.places(), a.intermediate, a.gate);
  down.multiply_one(memory.input, y);
  on_.add_and_norm(x, sums, down.bias(), after_mlp_norm_.data(), a.residual_multiplier, memory.normed, next,
                   next_places, 1, a.hidden, a.epsilon);
}

}  // namespace lm::device
