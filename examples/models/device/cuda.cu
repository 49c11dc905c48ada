// An accelerator that is a GPU.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <gptq/cuda/device.cuh>
#include <gptq/cuda/quantize.cuh>

#include "../formats.hpp"
#include "decoding.cuh"
#include "operations.hpp"
#include "packed_products.cuh"

namespace lm::device {
namespace {

using gptq::cuda::check;
using gptq::cuda::device_array;

/// Pinned host memory.
class pinned_memory {
 public:
  explicit pinned_memory(std::size_t bytes) {
    check(cudaMallocHost(&data_, bytes), "allocating memory for transfers");
  }
  pinned_memory(pinned_memory const&) = delete;
  ~pinned_memory() { (void)cudaFreeHost(data_); }
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

class stream {
 public:
  stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"); }
  stream(stream const&) = delete;
  ~stream() { (void)cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// A block's threads.
struct block_team {
  float* shared;  ///< of the operation

  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return static_cast<int>(blockDim.x); }
  __device__ float* scratch() const { return shared; }
  __device__ float sum(float value) const {
    return reduce(value, 0.0F, [](float a, float b) { return a + b; });
  }
  __device__ float max(float value) const {
    return reduce(value, -INFINITY, [](float a, float b) { return fmaxf(a, b); });
  }

 private:
  template <class Join>
  __device__ static float reduce(float value, float nothing, Join const& join) {
    __shared__ float of_warps[32];
    for (int step = 16; step > 0; step /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, step));
    if (blockDim.x == 32) return value;
    __syncthreads();  // what an earlier call has written is read
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    value = threadIdx.x % 32 < blockDim.x / 32 ? of_warps[threadIdx.x % 32] : nothing;
    for (int step = 16; step > 0; step /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
  }
};

/// A block a row.
template <class Operation>
__global__ void run_operation(Operation operation) {
  let_successor_start();
  wait_for_predecessor();
  extern __shared__ float shared[];
  block_team team{shared};
  operation(static_cast<index_t>(blockIdx.x), team);
}

__global__ void number_entries(index_t count, std::int32_t* entries) {
  index_t const i = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) entries[i] = static_cast<std::int32_t>(i);
}
/// Places of sorted entries, and where each key begins among sorted keys.
__global__ void place_entries(sorted_entries to, std::int32_t const* keys, index_t count, index_t key_count) {
  index_t const i = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) to.places[to.order[i]] = static_cast<std::int32_t>(i);
  if (i > key_count) return;
  index_t first = 0, last = count;
  while (first < last) {
    index_t const middle = (first + last) / 2;
    if (keys[middle] < i) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  to.starts[i] = static_cast<std::int32_t>(first);
}

cudaDataType_t cuda_type(number type) {
  return type == number::float32 ? CUDA_R_32F : type == number::float16 ? CUDA_R_16F : CUDA_R_16BF;
}

class gpu_hessian final : public hessian {
 public:
  gpu_hessian(gptq::cuda::context& ctx, index_t in) : h(ctx, in) {}

  void add(numbers x, index_t sequences, index_t length) override {
    with_number(x.type, [&]<class T>() { h.add(as<T>(x), sequences * length, sequences); });
  }
  index_t in_features() const override { return h.in_features(); }
  float const* sum() const override { return h.sum(); }
  void add_unequal(numbers x, index_t tokens, index_t sequences) override {
    with_number(x.type, [&]<class T>() { h.add(as<T>(x), tokens, sequences); });
  }
  void add_share(hessian const& other, double weight) override {
    auto const& o = static_cast<gpu_hessian const&>(other).h;
    gptq::cuda::context& ctx = h.context();
    index_t const count = o.in_features() * o.in_features();
    auto const factor = static_cast<float>(weight);
    device_array<float> scaled(ctx, count);
    check(cublasScopy_64(ctx.blas(), count, o.sum(), 1, scaled.data(), 1), "weighing a Hessian");
    check(cublasSscal_64(ctx.blas(), count, &factor, scaled.data(), 1), "weighing a Hessian");
    h.merge(gptq::cuda::hessian::from_sum(ctx, scaled.data(), o.in_features(), weight * o.tokens(),
                                          o.sequences()));
  }
  double tokens() const override { return h.tokens(); }
  index_t sequences() const override { return h.sequences(); }
  void download(float* sum) const override { h.download(sum); }

  gptq::cuda::hessian h;
};

/// A point in a stream.
class event {
 public:
  explicit event(unsigned flags = cudaEventDisableTiming) {
    check(cudaEventCreateWithFlags(&event_, flags), "making an event");
  }
  event(event const&) = delete;
  event& operator=(event const&) = delete;
  ~event() { (void)cudaEventDestroy(event_); }

  void record(cudaStream_t in) { check(cudaEventRecord(event_, in), "recording an event"); }
  void hold_up(cudaStream_t other) const {
    check(cudaStreamWaitEvent(other, event_), "waiting for an event");
  }
  void wait() const { check(cudaEventSynchronize(event_), "waiting for the device"); }
  /// From another one to this one; both are over and were made with cudaEventDefault.
  double seconds_since(event const& start) const {
    float milliseconds = 0.0F;
    check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "reading an event's time");
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

class gpu_marker final : public marker {
 public:
  explicit gpu_marker(cudaStream_t in) { event_.record(in); }
  void wait() const override { event_.wait(); }

 private:
  event event_;
};

/// A graph.
class gpu_recording final : public recording {
 public:
  gpu_recording(cudaStream_t stream, std::function<void()> const& work) : stream_(stream) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "recording work");
    cudaGraph_t graph = nullptr;
    try {
      work();
    } catch (...) {
      (void)cudaStreamEndCapture(stream, &graph);
      if (graph != nullptr) (void)cudaGraphDestroy(graph);
      (void)cudaGetLastError();
      throw;
    }
    check(cudaStreamEndCapture(stream, &graph), "recording work");
    auto const made = cudaGraphInstantiate(&graph_, graph, 0);
    (void)cudaGraphDestroy(graph);
    check(made, "making a graph");
  }
  gpu_recording(gpu_recording const&) = delete;
  ~gpu_recording() override { (void)cudaGraphExecDestroy(graph_); }
  void replay() override { check(cudaGraphLaunch(graph_, stream_), "launching a graph"); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t graph_ = nullptr;
};

class cuda_accelerator final : public operations<cuda_accelerator> {
 public:
  cuda_accelerator() : ctx_(main_) {
    for (staging& s : staged_) s.memory = std::make_unique<pinned_memory>(staging_bytes);
    enter(activity::waiting);
  }
  ~cuda_accelerator() override { (void)cudaDeviceSynchronize(); }

  std::string name() const override {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, gpu_.id), "asking for the device's name");
    return properties.name;
  }
  void* allocate(std::size_t bytes) override { return allocate(bytes, main_); }
  void* allocate_for_transfers(std::size_t bytes) override { return allocate(bytes, transfers_); }
  void release(void* data) noexcept override { (void)cudaFreeAsync(data, main_); }
  std::size_t free_bytes() const override {
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for the device's memory");
    std::uint64_t reserved = 0, used = 0;
    check(cudaMemPoolGetAttribute(ctx_.pool(), cudaMemPoolAttrReservedMemCurrent, &reserved),
          "asking for a pool's memory");
    check(cudaMemPoolGetAttribute(ctx_.pool(), cudaMemPoolAttrUsedMemCurrent, &used),
          "asking for a pool's memory");
    return free + (reserved - used);
  }
  std::size_t most_bytes() const override {
    std::uint64_t most = 0;
    check(cudaMemPoolGetAttribute(ctx_.pool(), cudaMemPoolAttrUsedMemHigh, &most),
          "asking for a pool's memory");
    return most;
  }
  void upload(void* to, void const* from, std::size_t bytes) override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, main_), "copying to the device");
  }
  void download(void* to, void const* from, std::size_t bytes) override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, main_), "copying from the device");
    synchronize();
  }
  void synchronize() override { ctx_.synchronize(); }

  void order_transfers() override {
    computed_.record(main_);
    computed_.hold_up(transfers_);
  }
  void transfer(void* to, void const* from, std::size_t bytes) override {
    auto const start = std::chrono::steady_clock::now();
    for (std::size_t done = 0; done < bytes; done += staging_bytes) {
      std::size_t const size = std::min(staging_bytes, bytes - done);
      staging& s = staged_[next_staging_++ % staged_.size()];
      s.copied.wait();
      std::memcpy(s.memory->data(), static_cast<char const*>(from) + done, size);
      check(cudaMemcpyAsync(static_cast<char*>(to) + done, s.memory->data(), size, cudaMemcpyHostToDevice,
                            transfers_),
            "copying to the device");
      s.copied.record(transfers_);
    }
    transfer_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  void await_transfers() override {
    transferred_.record(transfers_);
    transferred_.hold_up(main_);
  }

  void enter(activity what) override {
    if (!marks_.empty() && marks_.back().first == what) return;
    marks_.emplace_back(what, now());
  }
  time_account take_times() override {
    auto const end = now();
    synchronize();
    time_account account;
    for (std::size_t i = 0; i < marks_.size(); ++i) {
      event const& next = i + 1 < marks_.size() ? *marks_[i + 1].second : *end;
      account.of[static_cast<std::size_t>(marks_[i].first)] += next.seconds_since(*marks_[i].second);
    }
    activity const last = marks_.back().first;
    marks_.clear();
    enter(last);
    account.transfers = std::exchange(transfer_seconds_, 0.0);
    return account;
  }

  void fill_zero(void* data, std::size_t bytes) override {
    check(cudaMemsetAsync(data, 0, bytes, main_), "filling memory on the device");
  }

  void sort(sorted_entries const& to, std::int32_t const* keys, index_t count, index_t key_count) override {
    constexpr unsigned threads = 256;
    auto const blocks = [](index_t n) { return static_cast<unsigned>((n + threads - 1) / threads); };
    device_array<std::int32_t> sorted(ctx_, count), entries(ctx_, count);
    gptq::cuda::launch(number_entries, {.grid = blocks(count), .block = threads, .stream = main_}, count,
                       entries.data());
    int bits = 1;
    while (index_t{1} << bits < key_count) ++bits;
    std::size_t bytes = 0;
    auto const sort_into = [&](void* memory) {
      check(cub::DeviceRadixSort::SortPairs(memory, bytes, keys, sorted.data(), entries.data(), to.order,
                                            static_cast<int>(count), 0, bits, main_),
            "sorting entries");
    };
    sort_into(nullptr);
    device_array<char> memory(ctx_, static_cast<index_t>(bytes));
    sort_into(memory.data());
    gptq::cuda::launch(place_entries,
                       {.grid = blocks(std::max(count, key_count + 1)), .block = threads, .stream = main_},
                       to, sorted.data(), count, key_count);
  }

  void multiply(product const& p) override {
    bool const one_row = p.rows == 1 && p.in % 8 == 0 && p.beta == 0.0F && p.x.type == number::float16 &&
                         p.w.type == number::float16 && p.y.type == number::float32;
    if (one_row) {
      constexpr int rows = 2 * dense_threads / 32;
      auto const blocks = std::min<index_t>((p.out + rows - 1) / rows, 8 * gpu_.multiprocessors);
      gptq::cuda::launch(multiply_row,
                         {.grid = static_cast<unsigned>(blocks),
                          .block = dense_threads,
                          .shared_memory = static_cast<std::size_t>(p.in) * 2,
                          .stream = main_,
                          .overlap = recording_},
                         as<float16>(p.w), as<float16>(p.x), as<float>(p.y), p.out, static_cast<int>(p.in),
                         p.alpha);
      return;
    }
    // By columns, as cuBLAS has them, y' = w x'.
    check(cublasGemmEx_64(ctx_.blas(), CUBLAS_OP_T, CUBLAS_OP_N, p.out, p.rows, p.in, &p.alpha, p.w.data,
                          cuda_type(p.w.type), p.in, p.x.data, cuda_type(p.x.type), p.in, &p.beta, p.y.data,
                          cuda_type(p.y.type), p.stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "multiplying activations");
  }
  void multiply(batched_product const& p) override {
    float const zero = 0.0F;
    check(cublasGemmStridedBatchedEx_64(ctx_.blas(), p.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, CUBLAS_OP_N,
                                        p.out, p.rows, p.in, &p.alpha, p.w.data, cuda_type(p.w.type),
                                        p.w_stride, p.w_step, p.x.data, cuda_type(p.x.type), p.x_stride,
                                        p.x_step, &zero, p.y.data, cuda_type(p.y.type), p.y_stride, p.y_step,
                                        p.batch, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "multiplying heads");
  }

  void add_cross_products(float* sum, numbers a, numbers b, index_t tokens, index_t in) override {
    float const one = 1.0F;
    check(cublasGemmEx_64(ctx_.blas(), CUBLAS_OP_N, CUBLAS_OP_T, in, in, tokens, &one, b.data,
                          cuda_type(b.type), in, a.data, cuda_type(a.type), in, &one, sum, CUDA_R_32F, in,
                          CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "multiplying errors");
  }
  bool divide_by(hessian const& h, float added, float* x, index_t rows) override {
    index_t const n = h.in_features();
    device_array<float> factor(ctx_, n * n);
    check(cudaMemcpyAsync(factor.data(), h.sum(), static_cast<std::size_t>(n * n) * sizeof(float),
                          cudaMemcpyDeviceToDevice, main_),
          "copying a Hessian");
    run_rows(n, 1, 0, add_to_diagonal_rows{factor.data(), n, added});
    std::size_t device_bytes = 0, host_bytes = 0;
    check(cusolverDnXpotrf_bufferSize(ctx_.solver(), ctx_.solver_parameters(), CUBLAS_FILL_MODE_LOWER, n,
                                      CUDA_R_32F, factor.data(), n, CUDA_R_32F, &device_bytes, &host_bytes),
          "sizing a Cholesky factorization");
    device_array<char> workspace(ctx_, static_cast<index_t>(device_bytes));
    std::vector<char> host_workspace(host_bytes);
    device_array<int> info(ctx_, 1);
    check(cusolverDnXpotrf(ctx_.solver(), ctx_.solver_parameters(), CUBLAS_FILL_MODE_LOWER, n, CUDA_R_32F,
                           factor.data(), n, CUDA_R_32F, workspace.data(), device_bytes,
                           host_workspace.data(), host_bytes, info.data()),
          "factorizing a Hessian");
    int minor = 0;
    info.download(&minor);
    if (minor != 0) return false;
    // By columns a row is a column, and the matrix symmetric.
    check(cusolverDnXpotrs(ctx_.solver(), ctx_.solver_parameters(), CUBLAS_FILL_MODE_LOWER, n, rows,
                           CUDA_R_32F, factor.data(), n, CUDA_R_32F, x, n, info.data()),
          "solving with a Hessian");
    synchronize();
    return true;
  }
  std::unique_ptr<packed_weight> new_packed(gptq::format_spec const& format,
                                            packed_parts const& parts) override {
    auto made = new_packed_weight(ctx_, format, parts);
    if (made != nullptr) reserve(token_workspaces_, made->workspace_bytes(1));
    return made;
  }
  void multiply(packed_product const& p) override {
    auto const& w = static_cast<gpu_packed_weight const&>(p.w);
    if (p.rows > 1) {
      auto const bytes = w.workspace_bytes(p.rows);
      if (!workspaces_.empty() && static_cast<std::size_t>(workspaces_.back().size()) < bytes)
        workspaces_.clear();
      reserve(workspaces_, bytes);
    }
    auto const& memory = (p.rows > 1 ? workspaces_ : token_workspaces_).back();
    w.multiply(p, {main_, ctx_.blas(), memory.data(), static_cast<std::size_t>(memory.size()), recording_});
  }
  void add_and_norm(float* x, numbers y, float const* bias, float const* norm, float multiplier,
                    numbers normed, float const* weight, std::int32_t const* places, index_t rows,
                    index_t columns, float epsilon) override {
    if (y.type == number::bfloat16 || normed.type != number::float16 || columns > most_norm_columns) {
      return operations::add_and_norm(x, y, bias, norm, multiplier, normed, weight, places, rows, columns,
                                      epsilon);
    }
    auto const go = [&]<int Each, class Y>() {
      gptq::cuda::launch(add_and_norm_block<Each, Y>,
                         {.grid = static_cast<unsigned>(rows),
                          .block = norm_threads,
                          .stream = main_,
                          .overlap = recording_},
                         x, as<Y>(y), bias, norm, multiplier, as<float16>(normed), weight, places,
                         static_cast<int>(columns), epsilon);
    };
    auto const of_type = [&]<class Y>() {
      columns <= norm_threads       ? go.template operator()<1, Y>()
      : columns <= 4 * norm_threads ? go.template operator()<4, Y>()
      : columns <= 8 * norm_threads ? go.template operator()<8, Y>()
                                    : go.template operator()<16, Y>();
    };
    y.type == number::float32 ? of_type.template operator()<float>() : of_type.template operator()<float16>();
  }
  void gate(numbers y, numbers x, index_t rows, index_t columns, gate_function f) override {
    if (y.type == number::float32 || columns % 8 != 0) return operations::gate(y, x, rows, columns, f);
    index_t const eights = rows * (columns / 8);
    if (eights == 0) return;
    auto const go = [&]<class T>() {
      gptq::cuda::launch(f == gate_function::silu ? gate_eights<T, gate_function::silu>
                                                  : gate_eights<T, gate_function::gelu_tanh>,
                         {.grid = static_cast<unsigned>((eights + 255) / 256), .block = 256, .stream = main_},
                         as<T>(y), as<T>(x), eights, columns);
    };
    y.type == number::float16 ? go.template operator()<float16>() : go.template operator()<bfloat16>();
  }
  void gate_one(numbers y, float const* x, float const* bias, std::int32_t const* places, index_t columns,
                gate_function f) override {
    if (y.type != number::float16) return operations::gate_one(y, x, bias, places, columns, f);
    gptq::cuda::launch(
        f == gate_function::silu ? gate_row<gate_function::silu> : gate_row<gate_function::gelu_tanh>,
        {.grid = static_cast<unsigned>((columns + gate_threads - 1) / gate_threads),
         .block = gate_threads,
         .stream = main_,
         .overlap = recording_},
        as<float16>(y), x, bias, places, static_cast<int>(columns));
  }
  void attend(cached_attention const& a) override { launch_attention(a, main_, recording_, gpu_); }
  std::size_t attention_bytes(head_shape const& shape) const override {
    return attention_plan(shape, gpu_.multiprocessors).bytes(shape);
  }
  void choose(token_choice const& c) override { launch_choice(c, main_, recording_); }
  std::size_t choice_bytes(index_t count) const override { return choice_memory(count).bytes; }

  std::unique_ptr<recording> record(std::function<void()> const& work) override {
    recording_ = true;
    try {
      auto made = std::make_unique<gpu_recording>(main_, work);
      recording_ = false;
      return made;
    } catch (...) {
      recording_ = false;
      throw;
    }
  }
  std::unique_ptr<marker> mark() override { return std::make_unique<gpu_marker>(main_); }
  void* allocate_visible(std::size_t bytes) override {
    void* data = nullptr;
    check(cudaMallocHost(&data, bytes), "allocating memory that both see");
    return data;
  }
  void release_visible(void* data) noexcept override { (void)cudaFreeHost(data); }

  std::unique_ptr<hessian> new_hessian(index_t in, number) override {
    return std::make_unique<gpu_hessian>(ctx_, in);
  }
  std::unique_ptr<quantized> quantize(gptq::format_spec const& format, std::span<weight const> weights,
                                      hessian const& h, gptq::quantize_options const& options,
                                      hessian const* held_out) override;
  double quadratic_form(float const* w, index_t out, index_t in, hessian const& h) override {
    device_array<float> product(ctx_, out * in);
    device_array<double> sums(ctx_, out);
    float const one = 1.0F, none = 0.0F;
    check(cublasGemmEx_64(ctx_.blas(), CUBLAS_OP_N, CUBLAS_OP_N, in, out, in, &one,
                          static_cast<gpu_hessian const&>(h).h.sum(), CUDA_R_32F, in, w, CUDA_R_32F, in,
                          &none, product.data(), CUDA_R_32F, in, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "measuring a layer's output");
    dot(sums.data(), w, product.data(), out, in);
    std::vector<double> host(static_cast<std::size_t>(out));
    sums.download(host.data());
    double total = 0.0;
    for (double const sum : host) total += sum;
    return total;
  }

  template <class Operation>
  void run_rows(index_t rows, index_t columns, index_t scratch, Operation const& operation) {
    auto const shared = static_cast<std::size_t>(scratch) * sizeof(float);
    if (shared > static_cast<std::size_t>(gpu_.shared_memory) - 1024) {
      throw gptq::error("a window of " + std::to_string(scratch) +
                        " tokens is too long: the device holds a row of attention of " +
                        std::to_string((gpu_.shared_memory - 1024) / 4));
    }
    // A row alone has the device for itself.
    unsigned const threads = columns >= 1024 && rows == 1 ? 1024
                             : columns >= 1024            ? 256
                             : columns > 128              ? 128
                                                          : 32;
    gptq::cuda::launch(run_operation<Operation>,
                       {.grid = static_cast<unsigned>(rows),
                        .block = threads,
                        .shared_memory = shared,
                        .stream = main_,
                        .overlap = recording_},
                       operation);
  }
  cudaStream_t fetching() const { return fetching_; }

 private:
  struct staging {
    std::unique_ptr<pinned_memory> memory;
    event copied;
  };
  static constexpr std::size_t staging_bytes = std::size_t{16} << 20;

  /// Has the last of some workspaces have so many bytes; recordings may go on using those before it.
  void reserve(std::vector<device_array<char>>& workspaces, std::size_t bytes) {
    auto const size = std::max<index_t>(256, static_cast<index_t>(bytes));
    if (workspaces.empty() || workspaces.back().size() < size) workspaces.emplace_back(ctx_, size);
  }
  std::unique_ptr<event> now() const {
    auto mark = std::make_unique<event>(cudaEventDefault);
    mark->record(main_);
    return mark;
  }
  void* allocate(std::size_t bytes, cudaStream_t for_stream) {
    void* data = nullptr;
    auto const status =
        cudaMallocFromPoolAsync(&data, std::max(bytes, std::size_t{256}), ctx_.pool(), for_stream);
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      throw gptq::error("the device has no " + std::to_string(bytes >> 20) + " MiB left (" +
                        std::to_string(free_bytes() >> 20) +
                        " MiB free): fewer or shorter windows take less");
    }
    check(status, "allocating memory on the device");
    return data;
  }

  gptq::cuda::device gpu_ = gptq::cuda::device::current();
  stream main_;
  stream transfers_;
  stream fetching_;
  gptq::cuda::context ctx_;
  std::vector<device_array<char>> token_workspaces_, workspaces_;  ///< of products with packed weights
  bool recording_ = false;
  event computed_;
  event transferred_;
  std::array<staging, 4> staged_;
  std::size_t next_staging_ = 0;
  double transfer_seconds_ = 0.0;
  std::vector<std::pair<activity, std::unique_ptr<event>>> marks_;
};

template <class Format>
class gpu_quantized final : public quantized {
 public:
  gpu_quantized(cuda_accelerator& on, gptq::cuda::context& ctx, gptq::cuda::quantized_layers<Format>&& layers)
      : on_(on), layers_(std::move(layers)) {
    for (index_t i = 0; i < layers_.size(); ++i) {
      auto& order = orders_.emplace_back(ctx, static_cast<index_t>(layers_.order(i).size()));
      if (order.size() > 0) order.upload(layers_.order(i).data());
    }
  }

  gptq::quantize_report const& report(std::size_t layer) const override {
    return layers_.report(static_cast<index_t>(layer));
  }
  std::int32_t const* order(std::size_t layer) const override {
    return orders_[layer].size() > 0 ? orders_[layer].data() : nullptr;
  }
  void dequantize(std::size_t layer, numbers to, float const* minus) const override {
    auto const i = static_cast<index_t>(layer);
    coded_rows const from{layers_.codes(i), layers_.scales(i), layers_.zeros(i),
                          order(layer),     layers_.in(),      Format::group_columns(layers_.in()),
                          Format::levels};
    with_number(to.type, [&]<class T>() {
      on_.run_rows(layers_.out(i), layers_.in(), 0,
                   dequantize_rows<T>{as<T>(to), minus, from, from.groups()});
    });
  }
  host_layer fetch(std::size_t layer) const override {
    auto const i = static_cast<index_t>(layer);
    auto const out = static_cast<std::size_t>(layers_.out(i)), in = static_cast<std::size_t>(layers_.in());
    auto const grids = out * static_cast<std::size_t>(Format::groups(layers_.in()));
    host_layer copy{std::vector<std::uint8_t>(out * in), std::vector<float>(grids),
                    std::vector<std::uint8_t>(Format::has_zero_point ? grids : 0), layers_.order(i)};
    take(copy.codes, layers_.codes(i)), take(copy.scales, layers_.scales(i)),
        take(copy.zeros, layers_.zeros(i));
    return copy;
  }

 private:
  template <class T>
  void take(std::vector<T>& to, T const* from) const {
    if (to.empty()) return;
    check(cudaMemcpyAsync(to.data(), from, to.size() * sizeof(T), cudaMemcpyDeviceToHost, on_.fetching()),
          "copying from the device");
    check(cudaStreamSynchronize(on_.fetching()), "waiting for the device");
  }

  cuda_accelerator& on_;
  gptq::cuda::quantized_layers<Format> layers_;
  std::vector<device_array<std::int32_t>> orders_;  ///< of each layer; empty: itself
};

std::unique_ptr<quantized> cuda_accelerator::quantize(gptq::format_spec const& format,
                                                      std::span<weight const> weights, hessian const& h,
                                                      gptq::quantize_options const& options,
                                                      hessian const* held_out) {
  std::vector<gptq::cuda::weight_view> views;
  for (weight const& w : weights) views.push_back({w.data, w.out});
  return gptq::with_format<formats>(format, [&]<class Format>() -> std::unique_ptr<quantized> {
    return std::make_unique<gpu_quantized<Format>>(
        *this, ctx_,
        gptq::cuda::quantize<Format>(
            views, static_cast<gpu_hessian const&>(h).h, gptq::cuda::quantize_options::from(options),
            held_out == nullptr ? nullptr : &static_cast<gpu_hessian const*>(held_out)->h));
  });
}

}  // namespace

std::unique_ptr<accelerator> make_cuda_accelerator() { return std::make_unique<cuda_accelerator>(); }

}  // namespace lm::device
