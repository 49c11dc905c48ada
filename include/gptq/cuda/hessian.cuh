// The Hessian of a layer's output error, as in hessian.hpp, on the GPU.
//
//   gptq::cuda::hessian h(ctx, in_features);
//   for (auto const& x : calibration) h.add(x.data, x.tokens);     // x[tokens, in] on the device, one
//   sequence
#pragma once

#include <algorithm>
#include <cstddef>
#include <cublas_v2.h>
#include <string>
#include <utility>

#include <gptq/cuda/context.cuh>
#include <gptq/cuda/error.cuh>
#include <gptq/float16.hpp>
#include <gptq/format.hpp>

namespace gptq::cuda {

/// S = sum over tokens of x x', in float32 on the device; K x K floats of memory. All work is ordered by the
/// context's stream, and nothing waits for it.
class hessian {
 public:
  /// @param in_features  width of the inputs, positive
  hessian(context& ctx, index_t in_features);

  /// Adds one sequence x[tokens, in], row-major, on the device: sums of tokens * K^2 products on the tensor
  /// cores, exact products with sums in float32. Throws invalid_argument on a negative number of tokens. A
  /// NaN or an infinity is not looked for here: quantize() finds it in the sum and names the input.
  void add(float16 const* x, index_t tokens);
  void add(bfloat16 const* x, index_t tokens);
  /// The same in float32 throughout, without tensor cores: several times as slow.
  void add(float const* x, index_t tokens);

  /// Adds what another one has seen. Throws invalid_argument when the widths differ.
  void merge(hessian const& other);

  /// Replaces what has been seen by a sum from elsewhere, [K, K] on the host or the device, of which the
  /// lower triangle by columns (the upper one by rows) is used. It has been copied when this returns.
  void assign(float const* sum, double tokens, index_t sequences);
  /// Copies S, both triangles, to [K, K] floats on the host, and waits for them.
  void download(float* sum) const { sum_.download(sum); }

  index_t in_features() const { return in_; }
  double tokens() const { return tokens_; }
  /// Number of add() calls.
  index_t sequences() const { return sequences_; }
  /// S on the device, both triangles.
  float const* sum() const { return sum_.data(); }
  /// 2 / sequences: H = scale() * S.
  double scale() const { return sequences_ == 0 ? 0.0 : 2.0 / static_cast<double>(sequences_); }

 private:
  void add_products(void const* x, std::size_t size, cudaDataType_t type, index_t tokens);
  void mirror();

  context& ctx_;
  index_t in_;
  detail::device_array<float> sum_;
  double tokens_ = 0.0;
  index_t sequences_ = 0;
};

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

inline constexpr int mirror_tile = 32;

/// Copies the lower triangle of a[n, n], by columns, to the upper one.
template <int Tile = mirror_tile>
__global__ void mirror_lower(float* a, index_t n) {
  __shared__ float tile[Tile][Tile + 1];
  if (blockIdx.y > blockIdx.x) return;
  index_t const row = index_t{blockIdx.x} * Tile;
  index_t const column = index_t{blockIdx.y} * Tile;
  for (int j = threadIdx.y; j < Tile; j += blockDim.y) {
    index_t const r = row + threadIdx.x;
    if (r < n && column + j < n) tile[j][threadIdx.x] = a[(column + j) * n + r];
  }
  __syncthreads();
  for (int j = threadIdx.y; j < Tile; j += blockDim.y) {
    index_t const r = column + threadIdx.x;
    index_t const c = row + j;
    if (r < c && c < n) a[c * n + r] = tile[threadIdx.x][j];
  }
}

}  // namespace detail

inline hessian::hessian(context& ctx, index_t in_features) : ctx_(ctx), in_(in_features) {
  if (in_features <= 0) {
    throw invalid_argument("hessian: in_features is " + std::to_string(in_features) + ", not positive");
  }
  sum_ = detail::device_array<float>(ctx, in_ * in_);
  sum_.fill_bytes(0);
}

inline void hessian::mirror() {
  auto const tiles = static_cast<unsigned>((in_ + detail::mirror_tile - 1) / detail::mirror_tile);
  launch(detail::mirror_lower<>,
         {.grid = {tiles, tiles}, .block = {detail::mirror_tile, 8}, .stream = ctx_.stream()}, sum_.data(),
         in_);
}

inline void hessian::add_products(void const* x, std::size_t size, cudaDataType_t type, index_t tokens) {
  if (tokens < 0) {
    throw invalid_argument("hessian: " + std::to_string(tokens) + " tokens");
  }
  if (tokens > 0) {
    // The lower triangle in strips of columns, each wide enough to fill the device.
    index_t const strip = std::max(index_t{2048}, (in_ / 8 + 255) / 256 * 256);
    float const one = 1.0F;
    for (index_t first = 0; first < in_; first += strip) {
      auto const* const rows = static_cast<char const*>(x) + static_cast<std::size_t>(first) * size;
      check(cublasGemmEx_64(ctx_.blas(), CUBLAS_OP_N, CUBLAS_OP_T, in_ - first, std::min(strip, in_ - first),
                            tokens, &one, rows, type, in_, rows, type, in_, &one,
                            sum_.data() + first * in_ + first, CUDA_R_32F, in_, CUBLAS_COMPUTE_32F,
                            CUBLAS_GEMM_DEFAULT),
            "multiplying activations");
    }
    mirror();
  }
  tokens_ += static_cast<double>(tokens);
  ++sequences_;
}

inline void hessian::add(float16 const* x, index_t tokens) { add_products(x, 2, CUDA_R_16F, tokens); }
inline void hessian::add(bfloat16 const* x, index_t tokens) { add_products(x, 2, CUDA_R_16BF, tokens); }
inline void hessian::add(float const* x, index_t tokens) { add_products(x, 4, CUDA_R_32F, tokens); }

inline void hessian::merge(hessian const& other) {
  if (other.in_ != in_) {
    throw invalid_argument("hessian: cannot merge a width of " + std::to_string(other.in_) + " into one of " +
                           std::to_string(in_));
  }
  float const one = 1.0F;
  check(cublasSaxpy_64(ctx_.blas(), in_ * in_, &one, other.sum_.data(), 1, sum_.data(), 1),
        "adding Hessians");
  tokens_ += other.tokens_;
  sequences_ += other.sequences_;
}

inline void hessian::assign(float const* sum, double tokens, index_t sequences) {
  if (!(tokens > 0.0) || sequences <= 0) {
    throw invalid_argument("hessian: tokens and sequences must be positive");
  }
  check(cudaMemcpyAsync(sum_.data(), sum, static_cast<std::size_t>(in_ * in_) * sizeof(float),
                        cudaMemcpyDefault, ctx_.stream()),
        "copying a Hessian");
  ctx_.synchronize();
  mirror();
  tokens_ = tokens;
  sequences_ = sequences;
}

}  // namespace gptq::cuda
