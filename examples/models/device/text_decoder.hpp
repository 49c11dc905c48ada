// Continues a text on a device with a packed model: the prompt at once, then a token at a time, whose work is
// recorded once and replayed. Token and position are in the device's memory, so that nothing of the recording
// changes, and the host need not wait for a token before it asks for the next one.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "calibration.hpp"
#include "packed_layer.hpp"

namespace lm::device {

class text_decoder {
 public:
  struct choice {
    double temperature = 0.0;  ///< 0: always the likeliest token
    double top_p = 1.0;
    std::vector<double> random;  ///< in [0, 1), of each new token; may be empty where temperature is 0
  };

  /// Copies the model to the device. `capacity` positions have room for keys and values, in float16. `model.load`
  /// may give packed weights; it is called from this thread. Throws gptq::error when the device has too little
  /// memory.
  text_decoder(accelerator& on, model_source const& model, index_t capacity);
  ~text_decoder();

  /// Reads the first tokens of a text, and chooses the next. Throws gptq::error when they are none, or more than
  /// there is room for.
  void begin(std::span<std::int32_t const> prompt, choice how);
  /// Chooses one more token after the last one; returns before that is done. Throws gptq::error when the cache is
  /// full.
  void step();
  /// Tokens chosen since begin(), done or not.
  index_t chosen() const { return static_cast<index_t>(marks_.size()); }
  /// The i-th token chosen since begin(); waits for it. Throws gptq::error when logits were not finite.
  std::int32_t token(index_t i) const;

  /// Of the last token that was read, [vocabulary]; waits.
  std::vector<float> logits() const;
  /// Bytes that a token with so many before it reads: weights, keys and values.
  double bytes_a_token(index_t before) const;
  /// Whether the device multiplies all linear layers of decoder layers as they are packed.
  bool packed() const;

 private:
  void record();
  void choose() const;
  void multiply_output() const;
  index_t vocabulary() const { return output_->out(); }

  accelerator& on_;
  index_t capacity_;
  index_t hidden_;
  float embedding_multiplier_;
  float logit_multiplier_;
  float logit_soft_cap_;
  float epsilon_;
  std::vector<rope_table> ropes_;
  forward_pass tables_;  ///< of one token, for its rotary embeddings
  std::vector<packed_layer> layers_;
  std::vector<packed_layer::cache> caches_;
  number_array embedding_;
  std::unique_ptr<projection> output_;
  array<float> final_norm_;
  std::unique_ptr<packed_layer::token_memory> memory_;
  array<float> x_;
  array<float> logits_;
  array<char> attention_workspace_, choice_workspace_;
  array<std::int32_t> state_;  ///< token, position
  array<double> random_;       ///< by position
  std::int32_t* history_ = nullptr;
  choice how_;
  index_t prompt_ = 0;
  std::unique_ptr<recording> step_;
  std::vector<std::unique_ptr<marker>> marks_;
};

}  // namespace lm::device
