// An accelerator that is the host: the operations that a GPU runs, and products, Hessians and GPTQ by the
// library for the CPU. With it, everything of the device path but the GPU's own part is tested where there
// is none.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include <Eigen/Cholesky>

#include <gptq/hessian.hpp>
#include <gptq/packed.hpp>
#include <gptq/quantize.hpp>

#include "device/operations.hpp"

namespace test {

using gptq::matrix;
using lm::device::index_t;
using lm::device::number;
using lm::device::numbers;

/// One thread.
class host_team {
 public:
  explicit host_team(index_t scratch) : scratch_(static_cast<std::size_t>(scratch), NAN) {}
  int rank() const { return 0; }
  int size() const { return 1; }
  float sum(float value) const { return value; }
  float max(float value) const { return value; }
  float* scratch() { return scratch_.data(); }

 private:
  std::vector<float> scratch_;
};

class host_accelerator final : public lm::device::operations<host_accelerator> {
 public:
  /// The formats that it quantizes to.
  using formats =
      gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::symmetric>, gptq::bit_widths<4>,
                         gptq::group_sizes<32, gptq::whole_row>, gptq::scale_types<gptq::float16>>;

  ~host_accelerator() override {
    for (auto const& [data, bytes] : allocated_) std::free(data);
  }

  std::string name() const override { return "the host"; }
  void* allocate(std::size_t bytes) override {
    std::scoped_lock const lock(mutex_);
    if (bytes > free_) throw gptq::error("the device has no memory left");
    void* const data = std::aligned_alloc(256, (bytes + 256) / 256 * 256);
    std::memset(data, 0xff, bytes);  // NaN, so that nothing is used that was not written
    allocated_[data] = bytes;
    free_ -= bytes;
    most_ = std::max(most_, capacity_ - free_);
    return data;
  }
  void* allocate_for_transfers(std::size_t bytes) override { return allocate(bytes); }
  void release(void* data) noexcept override {
    std::scoped_lock const lock(mutex_);
    free_ += allocated_.at(data);
    allocated_.erase(data);
    std::free(data);
  }
  std::size_t free_bytes() const override { return free_; }
  std::size_t most_bytes() const override { return most_; }
  void set_capacity(std::size_t bytes) { free_ += bytes - capacity_, capacity_ = bytes; }
  void upload(void* to, void const* from, std::size_t bytes) override { copy(to, from, bytes); }
  void download(void* to, void const* from, std::size_t bytes) override { copy(to, from, bytes); }
  void synchronize() override {}
  void order_transfers() override {}
  void transfer(void* to, void const* from, std::size_t bytes) override { copy(to, from, bytes); }
  void await_transfers() override {}
  void enter(lm::device::activity) override {}
  lm::device::time_account take_times() override { return {}; }
  void fill_zero(void* data, std::size_t bytes) override { std::memset(data, 0, bytes); }

  void multiply(lm::device::product const& p) override {
    matrix const y = widen(p.x, p.rows, p.in, p.in) * widen(p.w, p.out, p.in, p.in).transpose();
    store(p.y, y, p.stride, p.alpha, p.beta);
  }
  void multiply(lm::device::batched_product const& p) override {
    for (index_t b = 0; b < p.batch; ++b) {
      matrix const x = widen(p.x.from(b * p.x_step), p.rows, p.in, p.x_stride);
      numbers const w = p.w.from(b * p.w_step);
      matrix const y = p.transposed ? matrix(x * widen(w, p.out, p.in, p.w_stride).transpose())
                                    : matrix(x * widen(w, p.in, p.out, p.w_stride));
      store(p.y.from(b * p.y_step), y, p.y_stride, p.alpha, 0.0F);
    }
  }

  void add_cross_products(float* sum, numbers a, numbers b, index_t tokens, index_t in) override {
    Eigen::Map<matrix>(sum, in, in) += widen(a, tokens, in, in).transpose() * widen(b, tokens, in, in);
  }
  bool divide_by(lm::device::hessian const& h, float added, float* x, index_t rows) override {
    index_t const n = h.in_features();
    Eigen::MatrixXf s = Eigen::Map<Eigen::MatrixXf const>(h.sum(), n, n);
    s.diagonal().array() += added;
    Eigen::LLT<Eigen::MatrixXf> const factor(s);
    if (factor.info() != Eigen::Success) return false;
    Eigen::Map<matrix> m(x, rows, n);
    m = factor.solve(m.transpose()).transpose().eval();
    return true;
  }
  void sort(lm::device::sorted_entries const& to, std::int32_t const* keys, index_t count,
            index_t key_count) override {
    std::iota(to.order, to.order + count, 0);
    std::stable_sort(to.order, to.order + count, [&](auto a, auto b) { return keys[a] < keys[b]; });
    for (index_t i = 0; i < count; ++i) to.places[to.order[i]] = static_cast<std::int32_t>(i);
    for (index_t key = 0, i = 0; key <= key_count; ++key) {
      while (i < count && keys[to.order[i]] < key) ++i;
      to.starts[key] = static_cast<std::int32_t>(i);
    }
  }
  std::unique_ptr<lm::device::packed_weight> new_packed(gptq::format_spec const& format,
                                                        lm::packed_parts const& parts) override {
    // As a GPU has none for some formats: here for code books, say, and float scales.
    if (format.bits != 4 || format.scales != gptq::scale_type::float16) return nullptr;
    if (format.scheme != "asymmetric" && format.scheme != "symmetric") return nullptr;
    return gptq::with_format<formats>(
        format, [&]<class Format>() -> std::unique_ptr<lm::device::packed_weight> {
          auto made = std::make_unique<host_packed>();
          made->w.resize(parts.out, parts.in);
          auto view = lm::view_of<Format>(parts);
          gptq::dequantize(view, {0, parts.out}, made->w.data());
          made->permutation.resize(parts.order.size());
          for (std::size_t i = 0; i < parts.order.size(); ++i) {
            made->permutation[static_cast<std::size_t>(parts.order[i])] = static_cast<std::int32_t>(i);
          }
          return made;
        });
  }
  void multiply(lm::device::packed_product const& p) override {
    auto const& w = static_cast<host_packed const&>(p.w);
    matrix x = widen(p.x, p.rows, w.in(), w.in());
    if (p.arranged && w.places() != nullptr) {
      matrix const arranged = x;
      for (index_t c = 0; c < w.in(); ++c) x.col(c) = arranged.col(w.places()[c]);
    }
    store(p.y, x * w.w.transpose(), w.out(), 1.0F, 0.0F);
  }
  /// In plain loops, in double.
  void attend(lm::device::cached_attention const& a) override {
    auto const& s = a.shape;
    index_t const position = *a.position, half = a.turn.rotated / 2, queries = s.key_value_heads * s.sharing;
    auto const head = [&](index_t number, float const* norm, bool turned) {
      std::vector<double> v(static_cast<std::size_t>(s.size));
      double squares = 0.0;
      for (index_t i = 0; i < s.size; ++i) {
        index_t const at = number * s.size + i;
        auto& value = v[static_cast<std::size_t>(i)];
        value = static_cast<double>(a.rows[at]) + (a.bias == nullptr ? 0.0 : static_cast<double>(a.bias[at]));
        squares += value * value;
      }
      double const factor =
          1.0 / std::sqrt(squares / static_cast<double>(s.size) + static_cast<double>(a.epsilon));
      for (index_t i = 0; norm != nullptr && i < s.size; ++i) {
        v[static_cast<std::size_t>(i)] *= factor * static_cast<double>(norm[i]);
      }
      for (index_t i = 0; turned && i < half; ++i) {
        auto const cos = static_cast<double>(a.turn.cos[position * half + i]),
                   sin = static_cast<double>(a.turn.sin[position * half + i]);
        auto &low = v[static_cast<std::size_t>(i)], &high = v[static_cast<std::size_t>(i + half)];
        double const turned_low = low * cos - high * sin;
        high = high * cos + low * sin, low = turned_low;
      }
      return v;
    };
    for (index_t k = 0; k < s.key_value_heads; ++k) {
      gptq::float16* const keys = a.keys + k * s.length * s.size;
      gptq::float16* const values = a.values + k * s.length * s.size;
      auto const key = head(queries + k, a.key_norm, true);
      auto const value = head(queries + s.key_value_heads + k, nullptr, false);
      for (index_t i = 0; i < s.size; ++i) {
        keys[position * s.size + i] = gptq::float16(static_cast<float>(key[static_cast<std::size_t>(i)]));
        values[position * s.size + i] = gptq::float16(static_cast<float>(value[static_cast<std::size_t>(i)]));
      }
      index_t const first = a.window > 0 ? std::max<index_t>(0, position + 1 - a.window) : 0;
      for (index_t h = k * s.sharing; h < (k + 1) * s.sharing; ++h) {
        auto const query = head(h, a.query_norm, true);
        std::vector<double> weights;
        double sum = 0.0;
        for (index_t p = first; p <= position; ++p) {
          double score = 0.0;
          for (index_t i = 0; i < s.size; ++i) {
            score += query[static_cast<std::size_t>(i)] *
                     static_cast<double>(static_cast<float>(keys[p * s.size + i]));
          }
          score *= static_cast<double>(a.scale);
          auto const cap = static_cast<double>(a.soft_cap);
          if (cap > 0.0) score = cap * std::tanh(score / cap);
          weights.push_back(std::exp(score));
          sum += weights.back();
        }
        for (index_t i = 0; i < s.size; ++i) {
          double mixed = 0.0;
          for (index_t p = first; p <= position; ++p) {
            mixed += weights[static_cast<std::size_t>(p - first)] / sum *
                     static_cast<double>(static_cast<float>(values[p * s.size + i]));
          }
          index_t const at = h * s.size + i;
          a.to[a.places == nullptr ? at : index_t{a.places[at]}] = gptq::float16(static_cast<float>(mixed));
        }
      }
    }
  }
  std::size_t attention_bytes(lm::device::head_shape const&) const override { return 256; }
  void choose(lm::device::token_choice const& c) override {
    std::vector<std::pair<float, std::int32_t>> logits;
    bool finite = true;
    for (index_t i = 0; i < c.count; ++i) {
      float logit = c.multiplier * c.logits[i];
      if (c.soft_cap > 0.0F) logit = c.soft_cap * std::tanh(logit / c.soft_cap);
      finite = finite && std::isfinite(logit);
      logits.emplace_back(-logit, static_cast<std::int32_t>(i));
    }
    std::sort(logits.begin(), logits.end());
    std::size_t chosen = 0;
    if (c.temperature > 0.0) {
      std::vector<double> sums;
      for (auto const& [less, token] : logits) {
        double const weight = std::exp(static_cast<double>(logits.front().first - less) / c.temperature);
        sums.push_back((sums.empty() ? 0.0 : sums.back()) + weight);
      }
      std::size_t kept = 0;
      while (sums[kept] < c.top_p * sums.back()) ++kept;
      while (sums[chosen] <= c.random[*c.position + 1] * sums[kept] && chosen < kept) ++chosen;
    }
    ++*c.position;
    *c.token = finite ? logits[chosen].second : 0;
    c.history[*c.position] = finite ? logits[chosen].second : -1;
  }
  std::size_t choice_bytes(index_t) const override { return 256; }

  std::unique_ptr<lm::device::recording> record(std::function<void()> const& work) override {
    struct repeated final : lm::device::recording {
      std::function<void()> work;
      void replay() override { work(); }
    };
    auto made = std::make_unique<repeated>();
    made->work = work;
    return made;
  }
  std::unique_ptr<lm::device::marker> mark() override {
    struct done final : lm::device::marker {
      void wait() const override {}
    };
    return std::make_unique<done>();
  }
  void* allocate_visible(std::size_t bytes) override { return allocate(bytes); }
  void release_visible(void* data) noexcept override { release(data); }

  std::unique_ptr<lm::device::hessian> new_hessian(index_t in, number) override {
    return std::make_unique<host_hessian>(in);
  }
  std::unique_ptr<lm::device::quantized> quantize(gptq::format_spec const& format,
                                                  std::span<lm::device::weight const> weights,
                                                  lm::device::hessian const& h,
                                                  gptq::quantize_options const& options,
                                                  lm::device::hessian const* held_out) override {
    auto const& sum = static_cast<host_hessian const&>(h).h;
    auto const* const others = held_out == nullptr ? nullptr : &static_cast<host_hessian const*>(held_out)->h;
    auto result = std::make_unique<host_quantized>();
    gptq::with_format<formats>(format, [&]<class Format>() {
      for (lm::device::weight const& w : weights) {
        auto layer = gptq::quantize<Format>(Eigen::Map<matrix const>(w.data, w.out, sum.in_features()), sum,
                                            options, others);
        result->weights.push_back(gptq::dequantize(layer));
        result->reports.push_back(layer.report);
        result->layers.push_back({layer.codes, layer.scales, layer.zeros, layer.order});
      }
    });
    return result;
  }
  double quadratic_form(float const* w, index_t out, index_t in, lm::device::hessian const& h) override {
    Eigen::MatrixXf const s =
        static_cast<host_hessian const&>(h).h.sum().template selfadjointView<Eigen::Lower>();
    Eigen::Map<matrix const> const m(w, out, in);
    return (m * s).cwiseProduct(m).cast<double>().sum();
  }

  template <class Operation>
  void run_rows(index_t rows, index_t, index_t scratch, Operation const& operation) {
    host_team team(scratch);
    for (index_t row = 0; row < rows; ++row) operation(row, team);
  }

 private:
  struct host_hessian final : lm::device::hessian {
    explicit host_hessian(index_t in) : h(in) {}
    void add(numbers x, index_t sequences, index_t length) override {
      for (index_t s = 0; s < sequences; ++s) {
        h.add(widen(x.from(s * length * h.in_features()), length, h.in_features(), h.in_features()));
      }
    }
    index_t in_features() const override { return h.in_features(); }
    float const* sum() const override {
      both = h.sum().template selfadjointView<Eigen::Lower>();
      return both.data();
    }
    void add_unequal(numbers x, index_t tokens, index_t sequences) override {
      gptq::hessian all(h.in_features());
      all.add(widen(x, tokens, h.in_features(), h.in_features()));
      h.merge(gptq::hessian::from_sum(all.sum(), all.tokens(), sequences));
    }
    void add_share(lm::device::hessian const& other, double weight) override {
      auto const& o = static_cast<host_hessian const&>(other).h;
      Eigen::MatrixXf const sum = static_cast<float>(weight) * o.sum();
      h.merge(gptq::hessian::from_sum(sum, weight * o.tokens(), o.sequences()));
    }
    double tokens() const override { return h.tokens(); }
    index_t sequences() const override { return h.sequences(); }
    void download(float* sum) const override {
      std::memcpy(sum, h.sum().data(), sizeof(float) * static_cast<std::size_t>(h.sum().size()));
    }
    gptq::hessian h;
    mutable Eigen::MatrixXf both;
  };
  struct host_packed final : lm::device::packed_weight {
    index_t out() const override { return w.rows(); }
    index_t in() const override { return w.cols(); }
    std::size_t bytes() const override { return static_cast<std::size_t>(w.size()) / 2; }
    std::int32_t const* places() const override { return permutation.empty() ? nullptr : permutation.data(); }
    matrix w;
    std::vector<std::int32_t> permutation;
  };
  struct host_quantized final : lm::device::quantized {
    gptq::quantize_report const& report(std::size_t layer) const override { return reports[layer]; }
    std::int32_t const* order(std::size_t layer) const override {
      return layers[layer].order.empty() ? nullptr : layers[layer].order.data();
    }
    void dequantize(std::size_t layer, numbers to, float const* minus) const override {
      matrix w = weights[layer];
      if (minus != nullptr) w -= Eigen::Map<matrix const>(minus, w.rows(), w.cols());
      store(to, w, w.cols(), 1.0F, 0.0F);
    }
    lm::device::host_layer fetch(std::size_t layer) const override { return layers[layer]; }
    std::vector<matrix> weights;
    std::vector<gptq::quantize_report> reports;
    std::vector<lm::device::host_layer> layers;
  };

  static void copy(void* to, void const* from, std::size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  static matrix widen(numbers n, index_t rows, index_t columns, index_t stride) {
    matrix m(rows, columns);
    lm::device::with_number(n.type, [&]<class T>() {
      for (index_t r = 0; r < rows; ++r) {
        for (index_t c = 0; c < columns; ++c)
          m(r, c) = static_cast<float>(static_cast<T*>(n.data)[r * stride + c]);
      }
    });
    return m;
  }
  static void store(numbers n, matrix const& m, index_t stride, float alpha, float beta) {
    lm::device::with_number(n.type, [&]<class T>() {
      for (index_t r = 0; r < m.rows(); ++r) {
        for (index_t c = 0; c < m.cols(); ++c) {
          T& y = static_cast<T*>(n.data)[r * stride + c];
          y = T(alpha * m(r, c) + (beta == 0.0F ? 0.0F : beta * static_cast<float>(y)));
        }
      }
    });
  }

  std::mutex mutex_;
  std::map<void*, std::size_t> allocated_;
  std::size_t capacity_ = std::size_t{1} << 40;
  std::size_t free_ = capacity_;
  std::size_t most_ = 0;
};

}  // namespace test
