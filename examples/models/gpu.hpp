// Products, Hessians and GPTQ on a GPU, for programs that were built with nvcc; without Eigen, which nvcc
// takes long to read.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <gptq/format_spec.hpp>
#include <gptq/layer.hpp>
#include <gptq/options.hpp>

namespace lm {

/// A quantized layer of a format known at run time: the members of gptq::quantized_layer.
struct gpu_layer {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;
  std::vector<std::int32_t> order;
  gptq::quantize_report report;
};

/// The lower triangle of S[in, in] of some tokens, by columns.
struct gpu_sums {
  float const* sum;
  double tokens;
  gptq::index_t sequences;
};

/// A weight [out, in] in a GPU's memory.
struct gpu_matrix {
  gptq::index_t out;
  gptq::index_t in;

  gpu_matrix(gptq::index_t rows, gptq::index_t columns) : out(rows), in(columns) {}
  virtual ~gpu_matrix() = default;
};

/// The current CUDA device. Everything passed in and given back is on the host. One thread at a time, but for
/// upload() and multiply().
class gpu {
 public:
  /// Throws gptq::error when there is none, it is too old, or the program was built without CUDA.
  gpu();
  ~gpu();

  /// A copy of weight[out, in] on the device, which has to outlive it.
  std::shared_ptr<gpu_matrix const> upload(float const* weight, gptq::index_t out, gptq::index_t in);
  /// y[tokens, out] = x[tokens, in] weight', in float32.
  void multiply(gpu_matrix const& weight, float const* x, gptq::index_t tokens, float* y);

  /// Adds x[tokens, in], one sequence, to the sums S that take_hessian() gives; `in` may not change before
  /// that.
  void add_to_hessian(float const* x, gptq::index_t tokens, gptq::index_t in);
  /// S = sum of x x' over what was added since the last call, in float32: [in, in], both triangles.
  std::vector<float> take_hessian();

  /// gptq::cuda::quantize for weight[out, in]; held_out may be null.
  gpu_layer quantize(gptq::format_spec const& format, float const* weight, gptq::index_t out,
                     gptq::index_t in, gpu_sums const& h, gptq::quantize_options const& options,
                     gpu_sums const* held_out);

 private:
  struct state;
  std::unique_ptr<state> state_;
};

}  // namespace lm
