#include "decoder.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <gptq/error.hpp>

#include "experts.hpp"

namespace lm::device {
namespace {

constexpr std::size_t alignment = 256;
std::size_t aligned(std::size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

constexpr std::array all_stages{stage::query_key_value, stage::output, stage::gate_up, stage::down};

std::size_t at(stage s) { return static_cast<std::size_t>(s); }

/// Queries whose scores are computed together: those after them need not be.
constexpr index_t query_block = 512;

/// Calls visit(vector, pointer) for each of the layer's vectors, empty ones included.
template <class Layer, class Visit>
void visit_vectors(layer_source const& source, Layer&& layer, Visit&& visit) {
  visit(source.attention_norm, layer.attention_norm);
  visit(source.after_attention_norm, layer.after_attention_norm);
  visit(source.mlp_norm, layer.mlp_norm);
  visit(source.after_mlp_norm, layer.after_mlp_norm);
  visit(source.query_norm, layer.query_norm);
  visit(source.key_norm, layer.key_norm);
  visit(source.router, layer.router);
}

bool has_bias(std::vector<linear_source> const& linears) {
  return std::any_of(linears.begin(), linears.end(), [](auto const& l) { return !l.bias.empty(); });
}

}  // namespace

std::string name_of(number type) {
  return std::find_if(number_names.begin(), number_names.end(),
                      [&](auto const& n) { return n.second == type; })
      ->first;
}

double time_account::total() const {
  double sum = 0.0;
  for (double const seconds : of) sum += seconds;
  return sum;
}

std::string to_string(time_account const& times) {
  double const total = times.total();
  auto const share = [&](double seconds) { return total > 0.0 ? 100.0 * seconds / total : 0.0; };
  auto const of = [&](activity what) { return times.of[static_cast<std::size_t>(what)]; };
  return fmt::format(
      "{:.1f} s: forward {:.0f} %, attention {:.0f} %, Hessians {:.0f} %, factorization {:.0f} %, sweep "
      "{:.0f} %, other "
      "solving {:.0f} %, samples {:.0f} %, waiting for weights {:.0f} %; transfers beside, {:.1f} s",
      total, share(of(activity::forward)), share(of(activity::attention)), share(of(activity::hessian)),
      share(times.factorization), share(times.sweep),
      share(of(activity::solving) - times.factorization - times.sweep), share(of(activity::measuring)),
      share(of(activity::waiting)), times.transfers);
}

index_t layer_arithmetic::out(stage s) const {
  switch (s) {
    case stage::query_key_value:
      return query_size() + 2 * key_value_size();
    case stage::gate_up:
      return std::max(experts, index_t{1}) * 2 * intermediate;
    case stage::down:
      return std::max(experts, index_t{1}) * hidden;
    case stage::output:
      break;
  }
  return hidden;
}

index_t layer_arithmetic::in(stage s) const {
  return s == stage::output ? query_size() : s == stage::down ? intermediate : hidden;
}

void check(layer_source const& source) {
  layer_arithmetic const& a = source.arithmetic;
  auto const check_size = [](char const* name, std::vector<float> const& values, index_t size, bool needed) {
    if (static_cast<index_t>(values.size()) != size && (needed || !values.empty())) {
      throw gptq::error(fmt::format("{} has {} entries, not {}", name, values.size(), size));
    }
  };
  check_size("the norm before attention", source.attention_norm, a.hidden, true);
  check_size("the norm after attention", source.after_attention_norm, a.hidden, false);
  check_size("the norm before the MLP", source.mlp_norm, a.hidden, true);
  check_size("the norm after the MLP", source.after_mlp_norm, a.hidden, false);
  check_size("the norm of queries", source.query_norm, a.head_dim, false);
  check_size("the norm of keys", source.key_norm, a.head_dim, false);
  check_size("the router", source.router, a.experts * a.hidden, true);
  if (a.experts > 0 && (a.chosen < 1 || a.chosen > a.experts)) {
    throw gptq::error(fmt::format("a token cannot go to {} of {} experts", a.chosen, a.experts));
  }
  if (a.key_value_heads <= 0 || a.heads % a.key_value_heads != 0) {
    throw gptq::error(
        fmt::format("{} query heads cannot share {} key-value heads", a.heads, a.key_value_heads));
  }
  for (stage const s : all_stages) {
    index_t rows = 0;
    for (linear_source const& l : source.linears[at(s)]) {
      if (l.weight.columns != a.in(s)) {
        throw gptq::error(fmt::format("{} has {} inputs, not {}", l.name, l.weight.columns, a.in(s)));
      }
      check_size((l.name + ".bias").c_str(), l.bias, l.weight.rows, false);
      if (a.experts > 0 && !l.bias.empty() && (s == stage::gate_up || s == stage::down)) {
        throw gptq::error(l.name + ": the device adds no bias to what an expert makes");
      }
      rows += l.weight.rows;
      if (l.weight.type != source.linears[at(s)].front().weight.type) {
        throw gptq::error(l.name + " is not stored as the linear layers beside it");
      }
    }
    if (rows != a.out(s)) {
      throw gptq::error(
          fmt::format("the linear layers of a stage have {} outputs together, not {}", rows, a.out(s)));
    }
  }
}

std::size_t stored_bytes(layer_source const& source) {
  std::size_t sum = 0;
  for (auto const& linears : source.linears) {
    std::size_t matrix = 0;
    index_t rows = 0;
    for (linear_source const& l : linears) matrix += l.weight.bytes(), rows += l.weight.rows;
    sum +=
        aligned(matrix) + (has_bias(linears) ? aligned(static_cast<std::size_t>(rows) * sizeof(float)) : 0);
  }
  struct {
    int attention_norm, after_attention_norm, mlp_norm, after_mlp_norm, query_norm, key_norm, router;
  } none{};
  visit_vectors(source, none, [&](std::vector<float> const& values, int) {
    sum += aligned(values.size() * sizeof(float));
  });
  return sum;
}

void decoder_layer::fill(layer_source&& source) {
  check(source);
  if (auto const bytes = static_cast<index_t>(stored_bytes(source)); bytes > stored_.size()) {
    stored_ = array<char>();
    stored_ = array<char>::for_transfers(on_, bytes);
  }
  source_ = std::move(source);
  char* next = stored_.data();
  auto const place = [&](std::size_t bytes) { return std::exchange(next, next + aligned(bytes)); };
  for (stage const s : all_stages) {
    auto const& linears = source_.linears[at(s)];
    std::size_t bytes = 0;
    std::vector<float> bias;
    for (linear_source const& l : linears) bytes += l.weight.bytes();
    char* to = place(bytes);
    places_[at(s)] = {to, linears.front().weight.type};
    for (linear_source const& l : linears) {
      on_.transfer(std::exchange(to, to + l.weight.bytes()), l.weight.data, l.weight.bytes());
      if (!has_bias(linears)) continue;
      bias.insert(bias.end(), l.bias.begin(), l.bias.end());
      if (l.bias.empty()) bias.resize(bias.size() + static_cast<std::size_t>(l.weight.rows));
    }
    biases_[at(s)] = nullptr;
    if (bias.empty()) continue;
    char* const on_device = place(bias.size() * sizeof(float));
    on_.transfer(on_device, bias.data(), bias.size() * sizeof(float));
    biases_[at(s)] = reinterpret_cast<float const*>(on_device);
  }
  visit_vectors(source_, *this, [&](std::vector<float> const& values, float const*& pointer) {
    pointer = nullptr;
    if (values.empty()) return;
    char* const on_device = place(values.size() * sizeof(float));
    on_.transfer(on_device, values.data(), values.size() * sizeof(float));
    pointer = reinterpret_cast<float const*>(on_device);
  });
}

void decoder_layer::prepare(number type) {
  for (stage const s : all_stages) {
    numbers const stored = places_[at(s)];
    weights_[at(s)] = stored;
    if (stored.type == type) continue;
    index_t const count = arithmetic().out(s) * arithmetic().in(s);
    converted_[at(s)] = number_array(on_, count, type);
    weights_[at(s)] = converted_[at(s)];
    on_.convert(weights_[at(s)], stored, count);
  }
}

forward_pass::forward_pass(accelerator& on, number type, index_t length, std::span<rope_table const> ropes)
    : on_(on), type_(type), length_(length) {
  for (rope_table const& rope : ropes) {
    if (static_cast<index_t>(rope.cos.size()) < length * rope.rotated / 2 ||
        rope.cos.size() != rope.sin.size()) {
      throw gptq::error(fmt::format("rotary embeddings of {} tokens are too few", length));
    }
    ropes_.push_back({array<float>(on, rope.cos), array<float>(on, rope.sin), rope.rotated});
  }
}

index_t forward_pass::windows_at_a_time(layer_arithmetic const& a, std::size_t bytes) const {
  auto const size = static_cast<index_t>(size_of(type_));
  index_t const attention = (2 * a.out(stage::query_key_value) + 3 * a.query_size()) * size +
                            a.heads * std::min(query_block, length_) * length_ / length_ * 4;
  // Of an expert, what it takes and gives back besides, and what the router takes.
  index_t const mlp = a.experts > 0
                          ? a.chosen * (a.hidden * (size + 4) + 3 * a.intermediate * size) + a.hidden * 8
                          : 3 * a.intermediate * size;
  index_t const a_token = std::max(attention, mlp) + a.hidden * (2 * size + 8);
  return std::max(index_t{1}, static_cast<index_t>(bytes) / (a_token * length_));
}

void forward_pass::multiply(decoder_layer const& layer, stage s, index_t rows, numbers x, numbers y) const {
  index_t const out = layer.arithmetic().out(s);
  on_.multiply(product{.x = x,
                       .w = layer.weights(s),
                       .y = y,
                       .rows = rows,
                       .in = layer.arithmetic().in(s),
                       .out = out,
                       .stride = out});
  if (layer.bias(s) != nullptr) on_.add_bias(y, layer.bias(s), rows, out);
}

void forward_pass::add_output(decoder_layer const& layer, stage s, index_t rows, float* x, numbers from,
                              float const* norm) const {
  layer_arithmetic const& a = layer.arithmetic();
  product p{.x = from,
            .w = layer.weights(s),
            .y = {x, number::float32},
            .rows = rows,
            .in = a.in(s),
            .out = a.hidden,
            .stride = a.hidden};
  if (norm == nullptr && layer.bias(s) == nullptr) {
    p.alpha = a.residual_multiplier, p.beta = 1.0F;
    on_.multiply(p);
    return;
  }
  array<float> const y(on_, rows * a.hidden);
  p.y = {y.data(), number::float32};
  on_.multiply(p);
  on_.add_to_residual(x, y.data(), layer.bias(s), norm, rows, a.hidden, a.epsilon, a.residual_multiplier);
}

rotation forward_pass::turn(layer_arithmetic const& a) const {
  if (a.rope < 0) return {nullptr, nullptr, 0};
  table const& rope = ropes_[static_cast<std::size_t>(a.rope)];
  return {rope.cos.data(), rope.sin.data(), rope.rotated};
}

forward_pass::keys_and_values forward_pass::attend(layer_arithmetic const& a, index_t windows, numbers rows,
                                                   numbers to) const {
  head_shape const shape{windows, length_, a.key_value_heads, a.heads / a.key_value_heads, a.head_dim};
  number_array const q(on_, shape.tokens() * shape.query_size(), type_);
  number_array k(on_, shape.tokens() * shape.key_value_size(), type_);
  number_array v(on_, shape.tokens() * shape.key_value_size(), type_);
  on_.enter(activity::attention);
  on_.place_heads(q, k, v, rows, shape, turn(a));

  index_t const batch = windows * shape.key_value_heads;
  index_t const most = std::min(query_block, length_);
  array<float> const scores(on_, batch * most * shape.sharing * length_);
  number_array const mixed(on_, shape.tokens() * shape.query_size(), type_);
  for (index_t first = 0; first < length_; first += most) {
    score_block block{.first_query = first,
                      .queries = std::min(most, length_ - first),
                      .first_key = a.window > 0 ? std::max(index_t{0}, first + 1 - a.window) / 8 * 8 : 0,
                      .keys = 0,
                      .window = a.window,
                      .soft_cap = a.attention_soft_cap};
    block.keys = first + block.queries - block.first_key;
    index_t const query_rows = block.queries * shape.sharing;
    index_t const heads_of_window = length_ * shape.size;
    batched_product p{.x = q.from(first * shape.sharing * shape.size),
                      .w = k.from(block.first_key * shape.size),
                      .y = {scores.data(), number::float32},
                      .rows = query_rows,
                      .in = shape.size,
                      .out = block.keys,
                      .batch = batch,
                      .x_stride = shape.size,
                      .w_stride = shape.size,
                      .y_stride = block.keys,
                      .x_step = heads_of_window * shape.sharing,
                      .w_step = heads_of_window,
                      .y_step = query_rows * block.keys,
                      .transposed = true,
                      .alpha = a.attention_scale};
    on_.multiply(p);
    on_.softmax(scores.data(), type_, shape, block);
    index_t const numbers_a_score = 4 / static_cast<index_t>(size_of(type_));
    p = {.x = {scores.data(), type_},
         .w = v.from(block.first_key * shape.size),
         .y = mixed.from(first * shape.sharing * shape.size),
         .rows = query_rows,
         .in = block.keys,
         .out = shape.size,
         .batch = batch,
         .x_stride = numbers_a_score * block.keys,
         .w_stride = shape.size,
         .y_stride = shape.size,
         .x_step = numbers_a_score * query_rows * block.keys,
         .w_step = heads_of_window,
         .y_step = heads_of_window * shape.sharing,
         .transposed = false};
    on_.multiply(p);
  }
  on_.merge_heads(to, mixed, shape);
  on_.enter(activity::forward);
  return {std::move(k), std::move(v)};
}

void forward_pass::run_stage(decoder_layer const& layer, stage s, index_t windows, float* x, numbers from,
                             numbers to) const {
  layer_arithmetic const& a = layer.arithmetic();
  index_t const rows = windows * length_;
  switch (s) {
    case stage::query_key_value:
      on_.rms_norm(to, x, layer.attention_norm, rows, a.hidden, a.epsilon);
      return;
    case stage::output: {
      index_t const width = a.out(stage::query_key_value);
      number_array const projected(on_, rows * width, type_);
      multiply(layer, stage::query_key_value, rows, from, projected);
      if (layer.query_norm != nullptr) {
        on_.rms_norm_heads(projected, layer.query_norm, rows, width, 0, a.heads, a.head_dim, a.epsilon);
      }
      if (layer.key_norm != nullptr) {
        on_.rms_norm_heads(projected, layer.key_norm, rows, width, a.query_size(), a.key_value_heads,
                           a.head_dim, a.epsilon);
      }
      attend(a, windows, projected, to);
      return;
    }
    case stage::gate_up:
      add_output(layer, stage::output, rows, x, from, layer.after_attention_norm);
      on_.rms_norm(to, x, layer.mlp_norm, rows, a.hidden, a.epsilon);
      return;
    case stage::down: {
      number_array const projected(on_, rows * 2 * a.intermediate, type_);
      multiply(layer, stage::gate_up, rows, from, projected);
      on_.gate(to, projected, rows, a.intermediate, a.gate);
      return;
    }
  }
}

void forward_pass::finish(decoder_layer const& layer, index_t windows, float* x, numbers from) const {
  add_output(layer, stage::down, windows * length_, x, from, layer.after_mlp_norm);
}

void forward_pass::run_layer(decoder_layer const& layer, index_t windows, float* x) const {
  number_array input;
  index_t const rows = windows * length_;
  for (stage const s : all_stages) {
    if (s == stage::down && layer.arithmetic().experts > 0) {
      add_experts(on_, layer, route(on_, layer, windows, length_, x), input, rows, x);
      return;
    }
    number_array next(on_, rows * layer.arithmetic().in(s), type_);
    run_stage(layer, s, windows, x, input, next);
    input = std::move(next);
  }
  finish(layer, windows, x, input);
}

}  // namespace lm::device
