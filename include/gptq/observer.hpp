// The layers that quantization hurt most, kept to be quantized again, finer.
//
//   gptq::observer worst(32);
//   worst.offer({name, [=] { return load(name); }, hessian, format, layer.report.loss, packed.bytes()});
//   ...                                                                   // each layer as it is quantized
//   auto table = worst.refine(quantize, accept);                          // until each has lost half its
//   loss auto table = worst.spend(64 << 20, quantize, accept);                 // or: 64 MiB, where they help
//   most
//
// The idea is that of GPTQ-for-LLaMa's --observe, which quantizes again what it has quantized already. Here
// every attempt starts from the original weight.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

#include <gptq/error.hpp>
#include <gptq/format_spec.hpp>
#include <gptq/hessian.hpp>
#include <gptq/solver/solution.hpp>

namespace gptq {

/// A layer as it was quantized, and what it takes to do that again.
struct observed_layer {
  std::string name;
  std::function<matrix()> weight;    ///< makes the original weight, [out, in], once for each attempt
  std::shared_ptr<hessian const> h;  ///< may be shared: q, k and v
  format_spec format;
  double loss = 0.0;  ///< quantize_report::loss
  index_t bytes = 0;  ///< of the packed matrix
};

/// One way to quantize a layer, and what came of it.
struct attempt {
  format_spec format;
  double loss = 0.0;
  index_t bytes = 0;
  double seconds = 0.0;  ///< 0 for what was not tried here: the layer as it was
};

/// All that was tried on a layer. attempts[0] is the layer as it was.
struct refinement {
  std::string name;
  std::vector<attempt> attempts;
  std::size_t chosen = 0;

  attempt const& before() const { return attempts.front(); }
  attempt const& after() const { return attempts[chosen]; }
};

/// The formats to try, in order: the group size halved down to 32 (a whole row's counts as 256), then the
/// next width of at least twice the bits, from the original group size on, up to 8 bits.
/// @param in  columns of the layer: groups that are no shorter than its rows are left out
std::vector<format_spec> finer_formats(format_spec const& from, index_t in);

/// Keeps the layers of the largest loss.
///
/// Memory: at most top_k names and different Hessians of K x K floats each; weights are not kept. With a
/// directory to spill to no Hessian is kept in memory, and files of 2 K (K + 1) bytes are, which go with the
/// observer. While it works: one weight, one Hessian (1.5 when it comes from a file), and up to two results.
class observer {
 public:
  /// @param spill_directory  where Hessians go; empty: they stay in memory
  explicit observer(std::size_t top_k = 32, std::filesystem::path spill_directory = {})
      : top_k_(top_k), spill_directory_(std::move(spill_directory)) {}

  /// Whether offer() would keep a layer of this loss.
  bool wants(double loss) const;
  /// Keeps the layer, and drops the one of the smallest loss if they are more than top_k now. Throws
  /// gptq::error when its Hessian cannot be spilled.
  void offer(observed_layer layer);

  std::size_t size() const { return kept_.size(); }
  /// The names of the kept layers, those of the largest loss first.
  std::vector<std::string> names() const;

  /// Tries finer_formats() on every kept layer until its loss is at most `target` times what it was, and
  /// takes that attempt, or else the best one. The layers with the largest loss come first.
  /// @param quantize  Result quantize(matrix&& weight, hessian const& h, format_spec const& format); a Result
  ///                  has members `report` (quantize_report) and `bytes` (of the packed matrix)
  /// @param accept    accept(std::string const& name, Result&& result), where a layer got better
  /// @throws          gptq::error of quantize, with the layer's name, or when a spilled Hessian is gone
  template <class Quantize, class Accept>
  std::vector<refinement> refine(Quantize&& quantize, Accept&& accept, double target = 0.5) const;

  /// Tries all finer_formats() on every kept layer and takes, again and again, what removes most loss for
  /// each further byte, as long as it fits into `extra_bytes` in all. Results are not kept while others are
  /// tried, so those that are chosen are computed twice. Otherwise as refine().
  template <class Quantize, class Accept>
  std::vector<refinement> spend(index_t extra_bytes, Quantize&& quantize, Accept&& accept) const;

 private:
  /// A Hessian in a file, which is removed with it.
  class spilled_hessian;
  struct entry {
    observed_layer layer;  ///< without its Hessian if that is spilled
    index_t in = 0;
    std::shared_ptr<spilled_hessian> spilled;
    std::weak_ptr<hessian const> original;  ///< tells whether another layer has the same

    refinement as_it_was() const { return {layer.name, {{layer.format, layer.loss, layer.bytes, 0.0}}, 0}; }
    std::shared_ptr<hessian const> load_hessian() const;
  };

  template <class Quantize>
  static auto quantize_again(entry const& e, hessian const& h, Quantize& quantize, format_spec const& format,
                             attempt& tried);
  std::shared_ptr<spilled_hessian> spill(std::shared_ptr<hessian const> const& h) const;

  std::size_t top_k_;
  std::filesystem::path spill_directory_;
  std::vector<entry> kept_;  ///< largest loss first
};

// ---- implementation -------------------------------------------------------------------------------------

inline std::vector<format_spec> finer_formats(format_spec const& from, index_t in) {
  constexpr int smallest = 32;
  constexpr int whole_row_counts_as = 256;
  std::vector<format_spec> formats;
  auto const add_halves = [&](format_spec format) {
    int size = format.group_size == whole_row ? whole_row_counts_as : format.group_size;
    for (size /= 2; size >= smallest && size % 8 == 0; size /= 2) {
      format.group_size = size;
      if (size < in) formats.push_back(format);
    }
  };
  add_halves(from);
  format_spec wider = from;
  for (int const bits : {4, 8}) {
    if (bits < 2 * from.bits) continue;
    wider.bits = bits;
    formats.push_back(wider);
    add_halves(wider);
  }
  return formats;
}

class observer::spilled_hessian {
 public:
  spilled_hessian(std::filesystem::path path, hessian const& h) : path_(std::move(path)) {
    try {
      std::ofstream out(path_, std::ios::binary | std::ios::trunc);
      h.save(out);
      out.close();
      if (!out) throw error("writing failed");
    } catch (error const& e) {
      remove();
      throw error(path_.string() + ": cannot be written: " + e.what());
    }
  }
  ~spilled_hessian() { remove(); }
  spilled_hessian(spilled_hessian const&) = delete;
  spilled_hessian& operator=(spilled_hessian const&) = delete;

  hessian load() const {
    std::ifstream in(path_, std::ios::binary);
    if (!in) throw error(path_.string() + ": cannot be opened");
    try {
      return hessian::load(in);
    } catch (error const& e) {
      throw error(path_.string() + ": " + e.what());
    }
  }

 private:
  void remove() const {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }

  std::filesystem::path path_;
};

inline std::shared_ptr<hessian const> observer::entry::load_hessian() const {
  return spilled ? std::make_shared<hessian const>(spilled->load()) : layer.h;
}

inline bool observer::wants(double loss) const {
  return top_k_ > 0 && (kept_.size() < top_k_ || loss > kept_.back().layer.loss);
}

inline void observer::offer(observed_layer layer) {
  if (!wants(layer.loss)) return;
  entry e{std::move(layer), 0, nullptr, {}};
  e.in = e.layer.h->in_features();
  e.original = e.layer.h;
  if (!spill_directory_.empty()) {
    e.spilled = spill(e.layer.h);
    e.layer.h = nullptr;
  }
  auto const after =
      std::upper_bound(kept_.begin(), kept_.end(), e.layer.loss,
                       [](double loss, entry const& other) { return loss > other.layer.loss; });
  kept_.insert(after, std::move(e));
  if (kept_.size() > top_k_) kept_.pop_back();
}

inline std::shared_ptr<observer::spilled_hessian> observer::spill(
    std::shared_ptr<hessian const> const& h) const {
  for (entry const& e : kept_) {
    if (e.original.lock() == h) return e.spilled;
  }
  static std::atomic<unsigned> count{0};  // of all observers of this process
  return std::make_shared<spilled_hessian>(
      spill_directory_ / ("hessian-" + std::to_string(::getpid()) + "-" + std::to_string(count++)), *h);
}

inline std::vector<std::string> observer::names() const {
  std::vector<std::string> all;
  for (entry const& e : kept_) all.push_back(e.layer.name);
  return all;
}

template <class Quantize>
auto observer::quantize_again(entry const& e, hessian const& h, Quantize& quantize, format_spec const& format,
                              attempt& tried) {
  try {
    detail::stopwatch const watch;
    auto result = quantize(e.layer.weight(), h, format);
    tried = {format, result.report.loss, result.bytes, watch.seconds()};
    return result;
  } catch (error const& failure) {
    throw error(e.layer.name + ", again with " + to_string(format) + ": " + failure.what());
  }
}

template <class Quantize, class Accept>
std::vector<refinement> observer::refine(Quantize&& quantize, Accept&& accept, double target) const {
  std::vector<refinement> table;
  for (entry const& e : kept_) {
    refinement r = e.as_it_was();
    auto const h = e.load_hessian();
    std::optional<decltype(quantize(matrix(), *h, e.layer.format))> best;
    for (format_spec const& format : finer_formats(e.layer.format, e.in)) {
      if (r.after().loss <= target * e.layer.loss) break;
      attempt tried;
      auto result = quantize_again(e, *h, quantize, format, tried);
      r.attempts.push_back(tried);
      if (tried.loss < r.after().loss) {
        r.chosen = r.attempts.size() - 1;
        best = std::move(result);
      }
    }
    if (best) accept(r.name, std::move(*best));
    table.push_back(std::move(r));
  }
  return table;
}

template <class Quantize, class Accept>
std::vector<refinement> observer::spend(index_t extra_bytes, Quantize&& quantize, Accept&& accept) const {
  std::vector<refinement> table;
  for (entry const& e : kept_) {
    refinement r = e.as_it_was();
    auto const h = e.load_hessian();
    for (format_spec const& format : finer_formats(e.layer.format, e.in)) {
      attempt tried;
      quantize_again(e, *h, quantize, format, tried);
      r.attempts.push_back(tried);
    }
    table.push_back(std::move(r));
  }
  index_t left = extra_bytes;
  for (;;) {
    refinement* most = nullptr;
    std::size_t choice = 0;
    double most_per_byte = 0.0;
    for (refinement& r : table) {
      for (std::size_t i = 1; i < r.attempts.size(); ++i) {
        index_t const bytes = r.attempts[i].bytes - r.after().bytes;
        double const gain = r.after().loss - r.attempts[i].loss;
        if (!(gain > 0.0) || bytes > left) continue;
        double const per_byte =
            bytes <= 0 ? std::numeric_limits<double>::infinity() : gain / static_cast<double>(bytes);
        if (per_byte > most_per_byte) {
          most = &r;
          choice = i;
          most_per_byte = per_byte;
        }
      }
    }
    if (most == nullptr) break;
    left -= most->attempts[choice].bytes - most->after().bytes;
    most->chosen = choice;
  }
  for (std::size_t i = 0; i < table.size(); ++i) {
    if (table[i].chosen == 0) continue;
    attempt again;
    accept(table[i].name,
           quantize_again(kept_[i], *kept_[i].load_hessian(), quantize, table[i].after().format, again));
  }
  return table;
}

}  // namespace gptq
