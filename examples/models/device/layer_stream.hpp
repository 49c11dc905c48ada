// The decoder layers of a model on a device, one after the other: each is copied there while the one before
// it computes.
#pragma once

#include <array>
#include <functional>
#include <future>
#include <utility>

#include "decoder.hpp"

namespace lm::device {

class layer_stream {
 public:
  /// @param load  a layer as the model has it; called once for each, in order, from another thread
  layer_stream(accelerator& on, number type, index_t layers, std::function<layer_source(index_t)> load)
      : on_(on),
        type_(type),
        layers_(layers),
        load_(std::move(load)),
        slots_{decoder_layer(on), decoder_layer(on)} {
    if (layers_ > 0) begin(0);
  }

  /// The next layer, ready to be run; the one before is no longer to be used. Leaves the device in
  /// activity::forward.
  decoder_layer& next() {
    loading_.get();
    on_.enter(activity::waiting);
    on_.await_transfers();
    on_.enter(activity::forward);
    decoder_layer& layer = slots_[static_cast<std::size_t>(next_ % 2)];
    layer.prepare(type_);
    if (++next_ < layers_) begin(next_);
    return layer;
  }

 private:
  void begin(index_t layer) {
    on_.order_transfers();
    loading_ = std::async(std::launch::async,
                          [this, layer] { slots_[static_cast<std::size_t>(layer % 2)].fill(load_(layer)); });
  }

  accelerator& on_;
  number type_;
  index_t layers_;
  std::function<layer_source(index_t)> load_;
  index_t next_ = 0;
  std::array<decoder_layer, 2> slots_;
  std::future<void> loading_;  // last: the rest outlives what it runs
};

}  // namespace lm::device
