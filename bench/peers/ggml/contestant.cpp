// ggml as a contestant of compare.py: llama.cpp's with Q4_0 weights in its repacked buffers, or
// ik_llama.cpp's with its row-interleaved Q4_0_R8. Both quantize activations to 8 bits in blocks of 32.
#include <ggml.h>
#include <memory>
#include <string>
#include <vector>

#include <ggml-alloc.h>
#include <ggml-backend.h>
#if __has_include(<ggml-cpu.h>)
#include <ggml-cpu.h>
#define PEER_LLAMA_CPP 1
#else
#define PEER_LLAMA_CPP 0
#endif

#include "../contestant.hpp"

namespace {

#if PEER_LLAMA_CPP
constexpr ggml_type weight_type = GGML_TYPE_Q4_0;
constexpr char const* name = "ggml " PEER_VERSION " Q4_0 repacked";

ggml_backend_buffer_type_t weight_buffers() {
  ggml_log_set([](ggml_log_level, char const*, void*) {}, nullptr);  // a line a matrix
  ggml_backend_dev_t const cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  auto const extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
      ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts"));
  for (ggml_backend_buffer_type_t* type = extra(cpu); *type != nullptr; ++type) {
    if (std::string(ggml_backend_buft_name(*type)) == "CPU_REPACK") return *type;
  }
  std::cerr << "this ggml has no repacked weights\n";
  std::exit(1);
}

std::size_t quantize(std::vector<float> const& weights, std::vector<char>& data,
                     contestant::contest const& c) {
  return ggml_quantize_chunk(weight_type, weights.data(), data.data(), 0, c.out, c.in, nullptr);
}

/// Threads that stay awake between calls, for one turn.
struct threads {
  explicit threads(int count) {
    auto parameters = ggml_threadpool_params_default(count);
    parameters.poll = 100;
    pool.reset(ggml_threadpool_new(&parameters));
  }
  ggml_cplan plan(ggml_cgraph* graph, int count) const { return ggml_graph_plan(graph, count, pool.get()); }

  struct free {
    void operator()(ggml_threadpool* p) const { ggml_threadpool_free(p); }
  };
  std::unique_ptr<ggml_threadpool, free> pool;
};
#else
constexpr ggml_type weight_type = GGML_TYPE_Q4_0_R8;
constexpr char const* name = "ik_llama.cpp " PEER_VERSION " Q4_0_R8";

ggml_backend_buffer_type_t weight_buffers() { return ggml_backend_cpu_buffer_type(); }

std::size_t quantize(std::vector<float> const& weights, std::vector<char>& data,
                     contestant::contest const& c) {
  return ggml_quantize_chunk(weight_type, weights.data(), data.data(), 0, c.out, c.in, nullptr, nullptr);
}

/// OpenMP's, which fall asleep by themselves.
struct threads {
  explicit threads(int) {}
  ggml_cplan plan(ggml_cgraph* graph, int count) const { return ggml_graph_plan(graph, count); }
};
#endif

constexpr std::size_t graph_size = 4;  // a product, its operands

ggml_context* context(std::size_t tensors) {
  return ggml_init(
      {tensors * (ggml_tensor_overhead() + ggml_graph_overhead_custom(graph_size, false)), nullptr, true});
}

}  // namespace

int main(int argc, char** argv) {
  auto const c = contestant::parse(argc, argv);
  auto const weights = contestant::random(c.out * c.in, 1);
  auto const x = contestant::random(c.tokens * c.in, 2);
  std::size_t const bytes = ggml_row_size(weight_type, c.in) * static_cast<std::size_t>(c.out);
  std::vector<char> data(bytes);

  ggml_context* const stored = context(c.copies(bytes));
  std::vector<ggml_tensor*> matrices(c.copies(bytes));
  for (ggml_tensor*& w : matrices) w = ggml_new_tensor_2d(stored, weight_type, c.in, c.out);
  if (ggml_backend_alloc_ctx_tensors_from_buft(stored, weight_buffers()) == nullptr) return 1;
  if (quantize(weights, data, c) != bytes) return 1;
  for (ggml_tensor* w : matrices) ggml_backend_tensor_set(w, data.data(), 0, bytes);

  ggml_context* const computed = context(matrices.size() + 1);
  ggml_tensor* const input = ggml_new_tensor_2d(computed, GGML_TYPE_F32, c.in, c.tokens);
  std::vector<ggml_cgraph*> graphs;
  for (ggml_tensor* w : matrices) {
    graphs.push_back(ggml_new_graph_custom(computed, graph_size, false));
    ggml_build_forward_expand(graphs.back(), ggml_mul_mat(computed, w, input));
  }
  if (ggml_backend_alloc_ctx_tensors_from_buft(computed, ggml_backend_cpu_buffer_type()) == nullptr) return 1;
  ggml_backend_tensor_set(input, x.data(), 0, x.size() * sizeof(float));
  auto const y = static_cast<float*>(ggml_graph_node(graphs.front(), -1)->data);
  for (ggml_cgraph* graph : graphs) ggml_graph_node(graph, -1)->data = y;  // one y for all, as everyone has
  std::vector<unsigned char> work;

  auto const turn = [&](auto&& measure) {
    threads const pool(c.threads);
    ggml_cplan plan = pool.plan(graphs.front(), c.threads);
    work.resize(plan.work_size);
    plan.work_data = work.data();
    return measure([&](std::size_t index) { ggml_graph_compute(graphs[index % graphs.size()], &plan); });
  };
  turn([](auto&& call) { call(0); });
  contestant::check(c, weights.data(), x.data(), y);
  return contestant::serve(name, bytes,
                           [&] { return turn([](auto&& call) { return contestant::measure(call); }); });
}
