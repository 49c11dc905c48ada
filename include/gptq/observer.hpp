// The layers that quantization hurt most, kept to be quantized again, finer.
//
//   gptq::observer worst(32);
//   for (auto const& [name, h, layer, bytes] : quantized_layers) {  // each layer as it is quantized
//     worst.offer({name, [n = name] { return load(n); }, h, gptq::to_spec<q4>(), layer.report.loss, bytes});
//   }
//   auto halved = worst.refine(quantize, accept);            // until each has half its loss, if any attempt does
//   auto spent = worst.spend(64 << 20, quantize, accept);    // or: 64 MiB, where they remove most of it
//
// The idea is that of GPTQ-for-LLaMa's --observe, which quantizes again what it has quantized already. Here
// every attempt starts from the original weight.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gptq/format_spec.hpp>
#include <gptq/hessian.hpp>
#include <gptq/solver/observed.hpp>

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

/// The formats to try, in order: the group size halved again and again, down to 32 (a whole row's counts as
/// 256); then each of 4 and 8 bits that is at least twice the width, with the original group size and its halves.
/// @param in  columns of the layer: halves that are no shorter than its rows are left out
inline std::vector<format_spec> finer_formats(format_spec const& from, index_t in) {
  return solver::list_finer_formats(from, in);
}

/// Keeps the layers of the largest loss.
///
/// Memory: at most top_k names and different Hessians of K x K floats each; weights are not kept. With a
/// directory to spill to no Hessian is kept in memory, and files of 40 + 2 K (K + 1) bytes are, which go with
/// the observer. While it works: one weight, one Hessian (1.5 when it comes from a file), and up to two
/// results.
class observer {
 public:
  /// @param spill_directory  where Hessians go; empty: they stay in memory
  explicit observer(std::size_t top_k = 32, std::filesystem::path spill_directory = {})
      : top_k_(top_k), spill_directory_(std::move(spill_directory)) {}

  /// Whether offer() would keep a layer of this loss.
  bool wants(double loss) const {
    return top_k_ > 0 && (kept_.size() < top_k_ || loss > kept_.back().layer.loss);
  }
  /// Keeps the layer, and drops the one of the smallest loss if they are more than top_k now. Throws
  /// gptq::error when its Hessian cannot be spilled.
  void offer(observed_layer layer) {
    if (wants(layer.loss)) solver::keep(kept_, top_k_, spill_directory_, std::move(layer));
  }

  std::size_t size() const { return kept_.size(); }
  /// The names of the kept layers, those of the largest loss first.
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (auto const& kept : kept_) all.push_back(kept.layer.name);
    return all;
  }

  /// Tries finer_formats() on every kept layer until its loss is at most `target` times what it was, and
  /// takes that attempt, or else the best one. The layers with the largest loss come first.
  /// @param quantize  Result quantize(matrix&& weight, hessian const& h, format_spec const& format); a Result
  ///                  has members `report` (quantize_report) and `bytes` (of the packed matrix)
  /// @param accept    accept(std::string const& name, Result&& result), where a layer got better
  /// @throws          gptq::error of quantize, with the layer's name, or when a spilled Hessian is gone
  template <class Quantize, class Accept>
  std::vector<refinement> refine(Quantize&& quantize, Accept&& accept, double target = 0.5) const {
    std::vector<refinement> table;
    for (auto const& kept : kept_) {
      table.push_back(solver::refine_layer<refinement>(kept, quantize, accept, target));
    }
    return table;
  }

  /// Tries all finer_formats() on every kept layer and takes, again and again, what removes most loss for
  /// each further byte, as long as it fits into `extra_bytes` in all. Results are not kept while others are
  /// tried, so those that are chosen are computed twice. Otherwise as refine().
  template <class Quantize, class Accept>
  std::vector<refinement> spend(index_t extra_bytes, Quantize&& quantize, Accept&& accept) const {
    std::vector<refinement> table;
    for (auto const& kept : kept_) table.push_back(solver::try_all<refinement>(kept, quantize));
    solver::choose_attempts(table, extra_bytes);
    for (std::size_t i = 0; i < table.size(); ++i)
      solver::accept_chosen(table[i], kept_[i], quantize, accept);
    return table;
  }

 private:
  std::size_t top_k_;
  std::filesystem::path spill_directory_;
  std::vector<solver::observed<observed_layer>> kept_;  ///< largest loss first
};

}  // namespace gptq
