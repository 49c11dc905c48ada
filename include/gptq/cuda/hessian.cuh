// The Hessian of a layer's output error, as in hessian.hpp, on the GPU.
//
//   gptq::cuda::context ctx(stream);
//   gptq::cuda::hessian h(ctx, in_features);
//   h.add(x, tokens);                       // x[tokens, in] on the device, one sequence
//
// As on the CPU, it is S = sum over tokens of x x' that is kept, added up, given and taken; H = scale() * S,
// the published solvers' matrix, is only what losses are reported in.
//
//   auto taken = gptq::cuda::hessian::from_sum(ctx, sum, in_features, tokens, sequences);  // from a CPU, say
#pragma once

#include <cstddef>
#include <cuda_runtime.h>
#include <string>

#include <gptq/config.hpp>
#include <gptq/cuda/error.cuh>
#include <gptq/cuda/kernels/rank_update.cuh>
#include <gptq/cuda/memory.cuh>
#include <gptq/float16.hpp>

namespace gptq::cuda {

/// S in float32 on the device; K x K floats of memory. All work is ordered by the context's stream, and
/// nothing waits for it unless it says so.
class hessian {
 public:
  /// @param ctx          has to outlive it
  /// @param in_features  width of the inputs, positive
  hessian(context& ctx, index_t in_features) : ctx_(&ctx), in_(in_features) {
    if (in_features <= 0) {
      throw invalid_argument("hessian: in_features is " + std::to_string(in_features) + ", not positive");
    }
    sum_ = device_array<float>(ctx, in_ * in_);
    sum_.fill_bytes(0);
  }

  /// An already accumulated S[in, in] on the host or the device, of which the lower triangle by columns (the
  /// upper one by rows) is used. It has been copied when this returns.
  static hessian from_sum(context& ctx, float const* sum, index_t in_features, double tokens,
                          index_t sequences) {
    if (!(tokens > 0.0) || sequences <= 0) {
      throw invalid_argument("hessian: tokens and sequences must be positive");
    }
    hessian h(ctx, in_features);
    auto const bytes = static_cast<std::size_t>(in_features * in_features) * sizeof(float);
    check(cudaMemcpyAsync(h.sum_.data(), sum, bytes, cudaMemcpyDefault, ctx.stream()), "copying a Hessian");
    ctx.synchronize();
    detail::mirror(h.sum_.data(), in_features, ctx.stream());
    h.tokens_ = tokens;
    h.sequences_ = sequences;
    return h;
  }

  /// Adds x[tokens, in], row-major, on the device, one sequence or several, one after another: sums of
  /// tokens * K^2 products on the tensor cores, exact products with sums in float32; several sequences at a
  /// time are faster. Of 0 tokens it adds nothing. Throws invalid_argument on a negative number of tokens, or
  /// of sequences that is not positive. A NaN or an infinity is not looked for here: quantize() finds it in
  /// the sum and names the input.
  void add(float16 const* x, index_t tokens, index_t sequences = 1) {
    add_products(x, CUDA_R_16F, tokens, sequences);
  }
  void add(bfloat16 const* x, index_t tokens, index_t sequences = 1) {
    add_products(x, CUDA_R_16BF, tokens, sequences);
  }
  /// The same in float32 throughout, without tensor cores: several times as slow.
  void add(float const* x, index_t tokens, index_t sequences = 1) {
    add_products(x, CUDA_R_32F, tokens, sequences);
  }

  /// Adds what another one has seen. Throws invalid_argument when the widths differ.
  void merge(hessian const& other) {
    if (other.in_ != in_) {
      throw invalid_argument("hessian: cannot merge a width of " + std::to_string(other.in_) +
                             " into one of " + std::to_string(in_));
    }
    detail::add_to(sum_.data(), other.sum_.data(), in_ * in_, ctx_->blas());
    tokens_ += other.tokens_;
    sequences_ += other.sequences_;
  }

  index_t in_features() const { return in_; }
  double tokens() const { return tokens_; }
  /// Of all add() calls that had tokens.
  index_t sequences() const { return sequences_; }
  /// S on the device, both triangles.
  float const* sum() const { return sum_.data(); }
  /// Copies S, both triangles, to [K, K] floats on the host, and waits for them.
  void download(float* sum) const { sum_.download(sum); }
  /// 2 / sequences: H = scale() * S.
  double scale() const { return sequences_ == 0 ? 0.0 : 2.0 / static_cast<double>(sequences_); }

  /// What it was made with.
  cuda::context& context() const { return *ctx_; }

 private:
  void add_products(void const* x, cudaDataType_t type, index_t tokens, index_t sequences) {
    if (tokens < 0) throw invalid_argument("hessian: " + std::to_string(tokens) + " tokens");
    if (sequences <= 0) throw invalid_argument("hessian: " + std::to_string(sequences) + " sequences");
    if (tokens == 0) return;
    detail::add_rank_update(sum_.data(), in_, x, type, tokens, ctx_->blas());
    detail::mirror(sum_.data(), in_, ctx_->stream());
    tokens_ += static_cast<double>(tokens);
    sequences_ += sequences;
  }

  cuda::context* ctx_;
  index_t in_;
  device_array<float> sum_;
  double tokens_ = 0.0;
  index_t sequences_ = 0;
};

}  // namespace gptq::cuda
