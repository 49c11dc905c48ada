#include "experts.hpp"

#include <algorithm>

namespace lm::device {

index_t routed_tokens::sequences(index_t expert) const {
  index_t sum = 0;
  for (auto i = static_cast<std::size_t>(expert * windows);
       i < static_cast<std::size_t>((expert + 1) * windows); ++i) {
    sum += starts[i + 1] > starts[i] ? 1 : 0;
  }
  return sum;
}

routed_tokens route(accelerator& on, decoder_layer const& layer, index_t windows, index_t length,
                    float const* x) {
  layer_arithmetic const& a = layer.arithmetic();
  index_t const rows = windows * length, entries = rows * a.chosen;
  array<float> const normed(on, rows * a.hidden), logits(on, rows * a.experts);
  on.rms_norm({normed.data(), number::float32}, x, layer.mlp_norm, rows, a.hidden, a.epsilon);
  on.multiply(product{.x = {normed.data(), number::float32},
                      .w = {const_cast<float*>(layer.router), number::float32},
                      .y = {logits.data(), number::float32},
                      .rows = rows,
                      .in = a.hidden,
                      .out = a.experts,
                      .stride = a.experts});
  routed_tokens routed{array<std::int32_t>(on, entries),
                       array<std::int32_t>(on, entries),
                       array<float>(on, entries),
                       {},
                       windows};
  array<std::int32_t> const keys(on, entries), starts(on, a.experts * windows + 1);
  on.choose_experts({logits.data(), windows, length, a.experts, a.chosen, a.normalized, keys.data(),
                     routed.weights.data()});
  on.sort({routed.order.data(), routed.places.data(), starts.data()}, keys.data(), entries,
          a.experts * windows);
  for (std::int32_t const start : starts.host()) routed.starts.push_back(start);
  return routed;
}

void gather_routed(accelerator& on, decoder_layer const& layer, routed_tokens const& routed, index_t first,
                   index_t count, numbers normed, numbers to) {
  layer_arithmetic const& a = layer.arithmetic();
  on.gather_entries(to, normed, routed.order.data() + routed.begin(first), a.chosen,
                    routed.begin(first + count) - routed.begin(first), a.hidden);
}

void run_expert(accelerator& on, decoder_layer const& layer, index_t expert, numbers x, index_t rows,
                numbers to) {
  layer_arithmetic const& a = layer.arithmetic();
  if (rows == 0) return;
  number_array const projected(on, rows * 2 * a.intermediate, to.type);
  on.multiply(product{.x = x,
                      .w = layer.weights(stage::gate_up).from(expert * 2 * a.intermediate * a.hidden),
                      .y = projected,
                      .rows = rows,
                      .in = a.hidden,
                      .out = 2 * a.intermediate,
                      .stride = 2 * a.intermediate});
  on.gate(to, projected, rows, a.intermediate, a.gate);
}

void add_experts(accelerator& on, decoder_layer const& layer, routed_tokens const& routed, numbers normed,
                 index_t rows, float* x) {
  layer_arithmetic const& a = layer.arithmetic();
  number_array const gathered(on, routed.entries() * a.hidden, normed.type);
  gather_routed(on, layer, routed, 0, a.experts, normed, gathered);
  array<float> const outputs(on, routed.entries() * a.hidden);
  for (index_t e = 0; e < a.experts; ++e) {
    index_t const first = routed.begin(e), count = routed.count(e);
    if (count == 0) continue;
    number_array const hidden(on, count * a.intermediate, normed.type);
    run_expert(on, layer, e, gathered.from(first * a.hidden), count, hidden);
    on.multiply(product{.x = hidden,
                        .w = layer.weights(stage::down).from(e * a.hidden * a.intermediate),
                        .y = {outputs.data() + first * a.hidden, number::float32},
                        .rows = count,
                        .in = a.intermediate,
                        .out = a.hidden,
                        .stride = a.hidden});
  }
  array<float> const sum(on, rows * a.hidden);
  on.add_entries(sum.data(), outputs.data(), routed.weights.data(), routed.places.data(), rows, a.chosen,
                 a.hidden);
  on.add_to_residual(x, sum.data(), nullptr, layer.after_mlp_norm, rows, a.hidden, a.epsilon,
                     a.residual_multiplier);
}

}  // namespace lm::device
