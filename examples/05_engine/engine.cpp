// A small engine for LLaMAs, all in this file: weights of 4 bits where they lie in a mapped file, threads of its own,
// kernels for every CPU of its kind, a cache of keys and values. It runs what
//   quantize_model examples/data/kjv-bytes --calibration examples/data/kjv-bytes/calibration.txt --scheme fixed_zero
//     --bits 4 --group-size 32 --output DIR
// has written (examples/models/packed_model.hpp says what is in DIR), and a byte is a token.
//
//   example_05_engine DIR "And God said" [TOKENS [THREADS [ISA]]]
//
// CMakeLists.txt has it compiled once as a program, and once for each ISA as that program's kernels.
#include <gptq/grouped_gemm.hpp>
#include <gptq/parallel.hpp>

using gptq::index_t;
using q4 = gptq::format<gptq::fixed_zero, 4, 32>;
using weights = gptq::packed_view<q4>;
using inputs = gptq::activations<gptq::precision::int8>;
using product = gptq::grouped_product<q4>;

/// A thread's share of what is large. x and y are [tokens, columns or rows of the matrix].
struct kernels {
  char const* isa;
  /// x to int8
  inputs (*prepare)(weights const& w, float const* x, index_t tokens, void* workspace,
                    gptq::token_range) noexcept;
  /// Several matrices that read the same x: q, k and v.
  void (*together)(product const* products, index_t count, inputs const& x, gptq::work_range) noexcept;
  /// y += x w'
  void (*add)(weights const& w, inputs const& x, float* y, gptq::row_range) noexcept;
  /// y = silu(x gate') * (x up')
  void (*gated)(weights const& gate, weights const& up, inputs const& x, float* y, gptq::row_range) noexcept;
};
template <class Isa>
kernels kernels_for();

#if defined(GPTQ_ISA)  // kernels for one ISA

template <>
kernels kernels_for<gptq::isa::native>() {
  return {
      gptq::isa::native::name.data(), gptq::prepare, gptq::grouped_gemm,
      [](weights const& w, inputs const& x, float* y, gptq::row_range rows) noexcept {
        gptq::gemm(w, x, gptq::output{y}, rows, gptq::add_residual{y, w.out});
      },
      [](weights const& gate, weights const& up, inputs const& x, float* y, gptq::row_range rows) noexcept {
        gptq::gated_gemm(gate, up, x, gptq::output{y}, rows, gptq::silu{});
      }};
}

#else  // the engine

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include <gptq/checkpoint/safetensors.hpp>
#include <gptq/dispatch.hpp>

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Threads that sleep between tasks. run(f) calls f(0) ... f(size() - 1), the first on the calling thread.
class pool {
 public:
  explicit pool(int threads) {
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { serve(t); });
  }
  ~pool() {
    task_ = nullptr;
    ++round_, round_.notify_all();
    for (auto& worker : workers_) worker.join();
  }
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  template <class F>
  void run(F const& f) {
    std::function<void(int)> const task = std::cref(f);
    task_ = &task;
    left_ = static_cast<int>(workers_.size());
    ++round_, round_.notify_all();
    f(0);
    for (int left = left_; left != 0; left = left_) left_.wait(left);
  }

 private:
  void serve(int thread) {
    for (unsigned seen = 0;; ++seen) {
      round_.wait(seen);
      if (task_ == nullptr) return;
      (*task_)(thread);
      if (--left_ == 0) left_.notify_one();
    }
  }
  std::vector<std::thread> workers_;
  std::function<void(int)> const* task_ = nullptr;
  std::atomic<unsigned> round_ = 0;
  std::atomic<int> left_ = 0;
};

struct config {
  index_t hidden, intermediate, layers, heads, kv_heads, head_size, positions;
  float epsilon;
  double theta;
  int end;

  /// Refuses by name what this engine does not do.
  explicit config(std::filesystem::path const& file) {
    std::ifstream in(file);
    if (!in) throw gptq::error(file.string() + ": cannot be opened");
    auto const json = nlohmann::json::parse(in);
    auto const refuse = [&](std::string const& what) { throw gptq::error(file.string() + ": " + what); };
    if (json.at("model_type") != "llama") refuse("this engine runs model_type llama alone");
    if (json.at("vocab_size") != 256) refuse("this engine has no tokenizer: a token has to be a byte");
    if (json.value("rope_scaling", nlohmann::json()) != nullptr) refuse("rope_scaling");
    if (json.value("attention_bias", false) || json.value("mlp_bias", false)) refuse("biases");
    if (json.value("hidden_act", "silu") != "silu") refuse("hidden_act has to be silu");
    if (!json.contains("quantization_config")) refuse("not quantized");
    for (auto const& [name, format] : json["quantization_config"].at("layers").items()) {
      if (format.at("scheme") != "fixed_zero" || format.at("bits") != 4 || format.at("group_size") != 32 ||
          format.at("scales") != "float16") {
        refuse(name + ": this engine has kernels for fixed_zero, 4 bits, groups of 32, float16 alone");
      }
    }
    hidden = json.at("hidden_size"), intermediate = json.at("intermediate_size");
    layers = json.at("num_hidden_layers");
    heads = json.at("num_attention_heads");
    kv_heads = json.value("num_key_value_heads", heads);
    head_size = json.value("head_dim", hidden / std::max<index_t>(heads, 1));
    positions = json.at("max_position_embeddings");
    epsilon = json.at("rms_norm_eps");
    theta = json.value("rope_theta", 10000.0);
    end = json.at("eos_token_id");
    if (std::min({hidden, intermediate, layers, head_size, positions}) < 1 || kv_heads < 1 ||
        heads % kv_heads != 0) {
      refuse("sizes that make no model");
    }
  }
};

struct layer {
  weights q, k, v, o, gate, up, down;
  std::vector<float> attention_norm, mlp_norm;
  std::vector<float> keys, values;  ///< the cache: [positions, kv_heads * head_size]
};

class engine {
 public:
  engine(std::filesystem::path const& directory, kernels const& run, int threads)
      : c_(directory / "config.json"), file_(directory / "model.safetensors"), run_(run), pool_(threads) {
    embeddings_ = floats("model.embed_tokens.weight", 256 * c_.hidden);
    bool const tied = file_.find("lm_head.weight") == nullptr;
    output_ = tied ? embeddings_ : floats("lm_head.weight", 256 * c_.hidden);
    norm_ = floats("model.norm.weight", c_.hidden);
    for (index_t i = 0; i < c_.layers; ++i) {
      std::string const name = "model.layers." + std::to_string(i) + ".";
      layer l;
      index_t const q = c_.heads * c_.head_size, kv = c_.kv_heads * c_.head_size;
      l.q = matrix(name + "self_attn.q_proj", q, c_.hidden);
      l.k = matrix(name + "self_attn.k_proj", kv, c_.hidden);
      l.v = matrix(name + "self_attn.v_proj", kv, c_.hidden);
      l.o = matrix(name + "self_attn.o_proj", c_.hidden, q);
      l.gate = matrix(name + "mlp.gate_proj", c_.intermediate, c_.hidden);
      l.up = matrix(name + "mlp.up_proj", c_.intermediate, c_.hidden);
      l.down = matrix(name + "mlp.down_proj", c_.hidden, c_.intermediate);
      if (l.q.order != nullptr || l.gate.order != nullptr) {  // matrices share what x is prepared for
        throw gptq::error(name + "*: columns in orders of their own; quantize without act-order");
      }
      l.attention_norm = floats(name + "input_layernorm.weight", c_.hidden);
      l.mlp_norm = floats(name + "post_attention_layernorm.weight", c_.hidden);
      l.keys.resize(static_cast<std::size_t>(c_.positions * kv));
      l.values.resize(l.keys.size());
      layers_.push_back(std::move(l));
    }
  }

  bool is_end(int token) const { return token == c_.end; }

  /// The likeliest next token, after these at the positions that follow those before.
  int next(std::string_view tokens) {
    auto const n = static_cast<index_t>(tokens.size());
    if (seen_ + n > c_.positions) throw gptq::error("more tokens than the model has positions");
    resize(n);
    for (index_t t = 0; t < n; ++t) {
      auto const id = static_cast<unsigned char>(tokens[static_cast<std::size_t>(t)]);
      std::copy_n(embeddings_.begin() + id * c_.hidden, c_.hidden, x_.begin() + t * c_.hidden);
    }
    for (layer& l : layers_) {
      attend(l, n);
      mlp(l, n);
    }
    seen_ += n;
    normalize(x_.data() + (n - 1) * c_.hidden, norm_, h_.data());
    int best = 0;
    float most = -INFINITY;
    for (int id = 0; id < 256; ++id) {
      float const logit = dot(output_.data() + id * c_.hidden, h_.data(), c_.hidden);
      if (logit > most) most = logit, best = id;
    }
    return best;
  }

 private:
  /// A matrix where it lies in the mapped file.
  weights matrix(std::string const& name, index_t out, index_t in) const {
    auto const bytes = [&](char const* part) {
      auto const* const tensor = file_.find(name + part);
      return tensor == nullptr ? std::span<std::byte const>() : tensor->bytes;
    };
    auto const codes = bytes(".codes"), scales = bytes(".scales"), order = bytes(".order");
    weights w;
    gptq::fault what =
        gptq::make_view(w, out, in, {reinterpret_cast<std::uint8_t const*>(codes.data()), codes.size()},
                        {reinterpret_cast<gptq::float16 const*>(scales.data()), scales.size() / 2}, {},
                        {reinterpret_cast<std::int32_t const*>(order.data()), order.size() / 4});
    if (what == gptq::fault::none) what = gptq::find_fault(w).what;
    if (what != gptq::fault::none) throw gptq::error(name + ": " + gptq::message(what));
    return w;
  }
  std::vector<float> floats(std::string const& name, index_t count) const {
    auto const* const tensor = file_.find(name);
    auto values = tensor == nullptr ? std::vector<float>() : gptq::checkpoint::to_float(*tensor);
    if (static_cast<index_t>(values.size()) != count)
      throw gptq::error(name + ": missing, or of another size");
    return values;
  }

  void resize(index_t tokens) {
    auto const n = static_cast<std::size_t>(tokens);
    for (auto* v : {&x_, &h_}) v->resize(n * norm_.size());
    for (auto* v : {&q_, &attended_}) v->resize(n * static_cast<std::size_t>(c_.heads * c_.head_size));
    inner_.resize(n * static_cast<std::size_t>(c_.intermediate));
    auto const& l = layers_.front();
    workspace_.resize(
        std::max({gptq::workspace_bytes(l.q.layout(), tokens), gptq::workspace_bytes(l.o.layout(), tokens),
                  gptq::workspace_bytes(l.down.layout(), tokens)}));
  }

  static float dot(float const* a, float const* b, index_t n) {
    float sum[8] = {};
    for (index_t i = 0; i < n; ++i) sum[i % 8] += a[i] * b[i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }

  void normalize(float const* x, std::vector<float> const& weight, float* y) const {
    float const scale = 1.0F / std::sqrt(dot(x, x, c_.hidden) / static_cast<float>(c_.hidden) + c_.epsilon);
    for (index_t i = 0; i < c_.hidden; ++i) y[i] = x[i] * scale * weight[static_cast<std::size_t>(i)];
  }

  /// Rows of x made ready for `w`, every thread some of the tokens. `norm` may be null.
  inputs prepare(weights const& w, std::vector<float> const& x, std::vector<float> const* norm,
                 index_t tokens) {
    float const* const from = norm != nullptr ? h_.data() : x.data();
    pool_.run([&](int thread) {
      auto const mine = gptq::token_share(tokens, thread, pool_.size());
      for (index_t t = mine.first; norm != nullptr && t < mine.last; ++t) {
        normalize(x.data() + t * c_.hidden, *norm, h_.data() + t * c_.hidden);
      }
      run_.prepare(w, from, tokens, workspace_.data(), mine);
    });
    return run_.prepare(w, from, tokens, workspace_.data(), {0, 0});  // no work: where it all lies
  }

  /// Turns the heads of a row at a position: element i of a head with element i + head_size / 2.
  void rotate(float* row, index_t heads, index_t position) const {
    index_t const half = c_.head_size / 2;
    for (index_t i = 0; i < half; ++i) {
      double const angle =
          static_cast<double>(position) *
          std::pow(c_.theta, -2.0 * static_cast<double>(i) / static_cast<double>(c_.head_size));
      auto const sin = static_cast<float>(std::sin(angle)), cos = static_cast<float>(std::cos(angle));
      for (index_t head = 0; head < heads; ++head) {
        float& low = row[head * c_.head_size + i];
        float& high = row[head * c_.head_size + i + half];
        float const turned = low * cos - high * sin;
        high = high * cos + low * sin;
        low = turned;
      }
    }
  }

  /// softmax(q k' / sqrt(head_size)) v of one head of a token, which sees `count` positions.
  void attend_head(layer const& l, float const* q, index_t head, index_t count, std::vector<float>& p,
                   float* y) const {
    index_t const width = c_.kv_heads * c_.head_size, at = head / (c_.heads / c_.kv_heads) * c_.head_size;
    float const scale = 1.0F / std::sqrt(static_cast<float>(c_.head_size));
    p.resize(static_cast<std::size_t>(count));
    for (index_t i = 0; i < count; ++i) {
      p[static_cast<std::size_t>(i)] = scale * dot(q, l.keys.data() + i * width + at, c_.head_size);
    }
    float const top = *std::max_element(p.begin(), p.end());
    float sum = 0.0F;
    for (float& value : p) sum += value = std::exp(value - top);
    std::fill_n(y, c_.head_size, 0.0F);
    for (index_t i = 0; i < count; ++i) {
      float const share = p[static_cast<std::size_t>(i)] / sum;
      float const* const v = l.values.data() + i * width + at;
      for (index_t j = 0; j < c_.head_size; ++j) y[j] += share * v[j];
    }
  }

  /// x += attention(norm(x))
  void attend(layer& l, index_t n) {
    index_t const width = c_.kv_heads * c_.head_size, q_width = c_.heads * c_.head_size;
    inputs const a = prepare(l.q, x_, &l.attention_norm, n);
    float* const k = l.keys.data() + seen_ * width;  // straight into the cache
    product const products[] = {
        {l.q, {0, n}, {q_.data()}}, {l.k, {0, n}, {k}}, {l.v, {0, n}, {l.values.data() + seen_ * width}}};
    index_t const work = gptq::grouped_work(products, 3);
    pool_.run(
        [&](int thread) { run_.together(products, 3, a, gptq::work_share(work, thread, pool_.size())); });
    for (index_t t = 0; t < n; ++t) {
      rotate(q_.data() + t * q_width, c_.heads, seen_ + t);
      rotate(k + t * width, c_.kv_heads, seen_ + t);
    }
    pool_.run([&](int thread) {
      std::vector<float> p;
      for (index_t i = thread; i < n * c_.heads; i += pool_.size()) {
        index_t const at = i / c_.heads * q_width + i % c_.heads * c_.head_size;
        attend_head(l, q_.data() + at, i % c_.heads, seen_ + i / c_.heads + 1, p, attended_.data() + at);
      }
    });
    add(l.o, attended_, n);
  }

  /// x += down(silu(gate(norm(x))) * up(norm(x)))
  void mlp(layer const& l, index_t n) {
    inputs const a = prepare(l.gate, x_, &l.mlp_norm, n);
    pool_.run([&](int thread) {
      run_.gated(l.gate, l.up, a, inner_.data(), gptq::row_share(c_.intermediate, thread, pool_.size()));
    });
    add(l.down, inner_, n);
  }

  /// x += y w'
  void add(weights const& w, std::vector<float> const& y, index_t n) {
    inputs const a = prepare(w, y, nullptr, n);
    pool_.run([&](int thread) { run_.add(w, a, x_.data(), gptq::row_share(w.out, thread, pool_.size())); });
  }

  config c_;
  gptq::checkpoint::safetensors_file file_;  // mapped; the layers' weights are in it
  kernels run_;
  pool pool_;
  std::vector<layer> layers_;
  std::vector<float> embeddings_, output_, norm_;
  index_t seen_ = 0;  // positions in the cache
  std::vector<float> x_, h_, q_, attended_, inner_;
  std::vector<char> workspace_;
};

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3 || *argv[2] == 0) {
    std::fprintf(stderr, "example_05_engine DIR PROMPT [TOKENS [THREADS [ISA]]]\n");
    return 2;
  }
  int const most = argc > 3 ? std::atoi(argv[3]) : 64;
  int const threads =
      argc > 4 ? std::max(1, std::atoi(argv[4])) : static_cast<int>(std::thread::hardware_concurrency());
  auto const table = []<class Isa>() { return kernels_for<Isa>(); };
  kernels const run = argc > 5 ? gptq::dispatch(gptq::isa::dispatched{}, argv[5], table)
                               : gptq::dispatch(gptq::isa::dispatched{}, table);
  engine llama(argv[1], run, threads);

  std::string_view const text = argv[2];
  std::printf("%s", argv[2]);
  double const start = now();
  int token = llama.next(text), count = 0;  // all of the prompt at once
  double const prompt = now() - start;
  while (count < most && !llama.is_end(token)) {
    char const byte = static_cast<char>(token);
    std::putchar(byte);
    std::fflush(stdout);
    if (++count < most) token = llama.next({&byte, 1});
  }
  std::printf("\n");
  std::fprintf(stderr, "%s, %d threads: prompt of %zu tokens %.4f s, %d tokens at %.0f a second\n", run.isa,
               threads, text.size(), prompt, count, count / (now() - start - prompt));
  return 0;
} catch (std::exception const& e) {
  std::fprintf(stderr, "example_05_engine: %s\n", e.what());
  return 1;
}

#endif
