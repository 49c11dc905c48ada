#include "text_decoder.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include <gptq/error.hpp>

namespace lm::device {
namespace {

/// A matrix of the host as float16, or as bfloat16 where it is that.
number_array to_device(accelerator& on, host_matrix const& from) {
  index_t const size = from.rows * from.columns;
  number_array stored(on, size, from.type);
  on.upload(numbers(stored).data, from.data, from.bytes());
  if (from.type != number::float32) return stored;
  number_array rounded(on, size, number::float16);
  on.convert(rounded, stored, size);
  on.synchronize();
  return rounded;
}

}  // namespace

text_decoder::text_decoder(accelerator& on, model_source const& model, index_t capacity)
    : on_(on),
      capacity_(capacity),
      hidden_(model.hidden),
      embedding_multiplier_(model.embedding_multiplier),
      logit_multiplier_(model.logit_multiplier),
      logit_soft_cap_(model.logit_soft_cap),
      epsilon_(model.epsilon),
      ropes_(model.ropes),
      tables_(on, number::float16, capacity, ropes_),
      embedding_(to_device(on, model.embedding)),
      final_norm_(on, model.final_norm) {
  for (index_t i = 0; i < model.layers; ++i) {
    layers_.emplace_back(on, model.load(i));
    layer_arithmetic const& a = layers_.back().arithmetic();
    index_t const size = capacity * a.key_value_size();
    caches_.push_back({number_array(on, size, number::float16), number_array(on, size, number::float16)});
    head_shape const shape{1, capacity, a.key_value_heads, a.heads / a.key_value_heads, a.head_dim};
    if (auto const bytes = static_cast<index_t>(on.attention_bytes(shape));
        bytes > attention_workspace_.size()) {
      attention_workspace_ = array<char>(on, bytes);
      on.fill_zero(attention_workspace_.data(), static_cast<std::size_t>(bytes));
    }
  }
  linear_source output{"the output layer", model.output, {}, model.packed_output};
  output_ = std::make_unique<projection>(on, std::span(&output, 1), hidden_);
  memory_ = std::make_unique<packed_layer::token_memory>(on, layers_);
  x_ = array<float>(on, hidden_);
  logits_ = array<float>(on, vocabulary());
  auto const choosing = static_cast<index_t>(on.choice_bytes(vocabulary()));
  choice_workspace_ = array<char>(on, choosing);
  on.fill_zero(choice_workspace_.data(), static_cast<std::size_t>(choosing));
  state_ = array<std::int32_t>(on, 2);
  random_ = array<double>(on, capacity + 1);
  history_ = static_cast<std::int32_t*>(
      on.allocate_visible(static_cast<std::size_t>(capacity + 1) * sizeof(std::int32_t)));
}

text_decoder::~text_decoder() {
  on_.synchronize();
  on_.release_visible(history_);
}

void text_decoder::multiply_output() const { output_->multiply_one(memory_->normed, logits_.data()); }

void text_decoder::choose() const {
  on_.choose(token_choice{.logits = logits_.data(),
                          .count = vocabulary(),
                          .multiplier = logit_multiplier_,
                          .soft_cap = logit_soft_cap_,
                          .temperature = how_.temperature,
                          .top_p = how_.top_p,
                          .random = random_.data(),
                          .token = state_.data(),
                          .position = state_.data() + 1,
                          .history = history_,
                          .workspace = choice_workspace_.data()});
}

void text_decoder::begin(std::span<std::int32_t const> prompt, choice how) {
  auto const length = static_cast<index_t>(prompt.size());
  if (length == 0) throw gptq::error("the prompt has no tokens");
  if (length > capacity_) {
    throw gptq::error(fmt::format("a prompt of {} tokens, and room for {}", length, capacity_));
  }
  bool const as_before = step_ != nullptr && how.temperature == how_.temperature && how.top_p == how_.top_p;
  how_ = std::move(how);
  prompt_ = length;
  marks_.clear();
  std::vector<double> random(static_cast<std::size_t>(capacity_ + 1));
  std::copy_n(how_.random.begin(),
              std::min(how_.random.size(), random.size() - static_cast<std::size_t>(length)),
              random.begin() + length);
  on_.upload(random_.data(), random.data(), random.size() * sizeof(double));
  std::int32_t const state[2] = {prompt.back(), static_cast<std::int32_t>(length - 1)};
  on_.upload(state_.data(), state, sizeof state);

  array<std::int32_t> const ids(on_, prompt);
  array<float> const x(on_, length * hidden_);
  on_.embed(x.data(), embedding_, ids.data(), length, hidden_, embedding_multiplier_);
  forward_pass const pass(on_, number::float16, length, ropes_);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    auto const made = layers_[i].run(pass, 1, x.data());
    layer_arithmetic const& a = layers_[i].arithmetic();
    index_t const run = length * a.head_dim, room = capacity_ * a.head_dim;
    on_.copy_rows(caches_[i].keys, room, made.keys, run, a.key_value_heads, run);
    on_.copy_rows(caches_[i].values, room, made.values, run, a.key_value_heads, run);
  }
  on_.add_and_norm(x.data() + (length - 1) * hidden_, {nullptr, number::float32}, nullptr, nullptr, 1.0F,
                   memory_->normed, final_norm_.data(), output_->places(), 1, hidden_, epsilon_);
  multiply_output();
  choose();
  marks_.push_back(on_.mark());
  if (!as_before) step_ = nullptr;
}

void text_decoder::record() {
  step_ = on_.record([this] {
    on_.embed(x_.data(), embedding_, state_.data(), 1, hidden_, embedding_multiplier_);
    on_.add_and_norm(x_.data(), {nullptr, number::float32}, nullptr, nullptr, 1.0F, memory_->normed,
                     layers_.front().attention_norm(), layers_.front()[stage::query_key_value].places(), 1,
                     hidden_, epsilon_);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      bool const last = i + 1 == layers_.size();
      packed_layer::token_place const place{
          state_.data() + 1, capacity_, tables_.turn(layers_[i].arithmetic()), attention_workspace_.data()};
      layers_[i].step(x_.data(), *memory_, caches_[i], place,
                      last ? final_norm_.data() : layers_[i + 1].attention_norm(),
                      last ? output_->places() : layers_[i + 1][stage::query_key_value].places());
    }
    multiply_output();
    choose();
  });
}

void text_decoder::step() {
  if (chosen() == 0) throw gptq::error("there is no text to continue");
  if (prompt_ + chosen() > capacity_) {
    throw gptq::error(fmt::format("the cache has room for {} tokens, and is full", capacity_));
  }
  if (step_ == nullptr) record();
  step_->replay();
  marks_.push_back(on_.mark());
}

std::int32_t text_decoder::token(index_t i) const {
  marks_.at(static_cast<std::size_t>(i))->wait();
  std::int32_t const chosen = history_[prompt_ + i];
  if (chosen < 0) {
    throw gptq::error(
        "the logits are not finite: activations of this model are beyond float16, or its weights "
        "are damaged");
  }
  return chosen;
}

std::vector<float> text_decoder::logits() const {
  auto values = logits_.host();
  for (float& v : values) {
    v *= logit_multiplier_;
    if (logit_soft_cap_ > 0.0F) v = logit_soft_cap_ * std::tanh(v / logit_soft_cap_);
  }
  return values;
}

double text_decoder::bytes_a_token(index_t before) const {
  std::size_t sum = output_->bytes();
  for (packed_layer const& l : layers_) sum += l.bytes();
  double cached = 0.0;
  for (packed_layer const& l : layers_) {
    layer_arithmetic const& a = l.arithmetic();
    index_t const seen = a.window > 0 ? std::min(a.window, before + 1) : before + 1;
    cached += static_cast<double>(seen * a.key_value_size()) * 4.0;
  }
  return static_cast<double>(sum) + cached;
}

bool text_decoder::packed() const {
  return std::all_of(layers_.begin(), layers_.end(), [](packed_layer const& l) { return l.packed(); });
}

}  // namespace lm::device
