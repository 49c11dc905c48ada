// A point in a stream.
#pragma once

#include <cuda_runtime.h>

#include <gptq/cuda/error.cuh>

namespace gptq::cuda::detail {

class event {
 public:
  explicit event(unsigned flags = cudaEventDisableTiming) {
    check(cudaEventCreateWithFlags(&event_, flags), "making an event");
  }
  event(event const&) = delete;
  event& operator=(event const&) = delete;
  ~event() { (void)cudaEventDestroy(event_); }

  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "recording an event"); }
  void hold_up(cudaStream_t stream) const {
    check(cudaStreamWaitEvent(stream, event_), "waiting for an event");
  }
  /// Seconds from another one to this one; both are over and were made with cudaEventDefault.
  double seconds_since(event const& start) const {
    float milliseconds = 0.0F;
    check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "reading an event's time");
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace gptq::cuda::detail
