// What observer.hpp does: which formats to try on a layer, trying them, and where bytes remove most loss.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gptq/error.hpp>
#include <gptq/format_spec.hpp>
#include <gptq/hessian.hpp>
#include <gptq/solver/solution.hpp>
#include <gptq/solver/spilled_hessian.hpp>

namespace gptq::solver {

inline std::vector<format_spec> list_finer_formats(format_spec const& from, index_t in) {
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

/// A layer that is kept, with its Hessian in memory or in a file.
template <class Layer>
struct observed {
  Layer layer;  ///< without its Hessian if that is spilled
  index_t in = 0;
  std::shared_ptr<spilled_hessian> spilled;
  std::weak_ptr<hessian const> original;  ///< tells whether another layer has the same

  std::shared_ptr<hessian const> load_hessian() const {
    return spilled ? std::make_shared<hessian const>(spilled->load()) : layer.h;
  }
};

/// Keeps a layer among the `most` of the largest loss, the largest first. With a directory to spill to, its
/// Hessian goes there, unless it has already been written for another layer.
template <class Layer>
void keep(std::vector<observed<Layer>>& kept, std::size_t most, std::filesystem::path const& spill_directory,
          Layer layer) {
  observed<Layer> added{std::move(layer), 0, nullptr, {}};
  added.in = added.layer.h->in_features();
  added.original = added.layer.h;
  if (!spill_directory.empty()) {
    for (auto const& other : kept) {
      if (other.original.lock() == added.layer.h) added.spilled = other.spilled;
    }
    if (!added.spilled) added.spilled = std::make_shared<spilled_hessian>(spill_directory, *added.layer.h);
    added.layer.h = nullptr;
  }
  auto const after = std::upper_bound(kept.begin(), kept.end(), added.layer.loss,
                                      [](double loss, auto const& other) { return loss > other.layer.loss; });
  kept.insert(after, std::move(added));
  if (kept.size() > most) kept.pop_back();
}

/// Quantizes a layer again and notes what came of it.
template <class Layer, class Quantize, class Attempt>
auto quantize_again(observed<Layer> const& kept, hessian const& h, Quantize& quantize,
                    format_spec const& format, Attempt& tried) {
  try {
    stopwatch const watch;
    auto result = quantize(kept.layer.weight(), h, format);
    tried = {format, result.report.loss, result.bytes, watch.seconds()};
    return result;
  } catch (error const& failure) {
    throw error(kept.layer.name + ", again with " + to_string(format) + ": " + failure.what());
  }
}

template <class Refinement, class Layer>
Refinement as_it_was(observed<Layer> const& kept) {
  return {kept.layer.name, {{kept.layer.format, kept.layer.loss, kept.layer.bytes, 0.0}}, 0};
}

/// Tries finer formats on a layer until its loss is at most `target` times what it was, or to the last one.
template <class Refinement, class Layer, class Quantize, class Accept>
Refinement refine_layer(observed<Layer> const& kept, Quantize& quantize, Accept& accept, double target) {
  auto r = as_it_was<Refinement>(kept);
  auto const h = kept.load_hessian();
  std::optional<decltype(quantize(matrix(), *h, kept.layer.format))> best;
  for (format_spec const& format : list_finer_formats(kept.layer.format, kept.in)) {
    if (r.after().loss <= target * kept.layer.loss) break;
    typename decltype(r.attempts)::value_type tried;
    auto result = quantize_again(kept, *h, quantize, format, tried);
    r.attempts.push_back(tried);
    if (tried.loss < r.after().loss) {
      r.chosen = r.attempts.size() - 1;
      best = std::move(result);
    }
  }
  if (best) accept(r.name, std::move(*best));
  return r;
}

/// Tries all finer formats on a layer and takes none.
template <class Refinement, class Layer, class Quantize>
Refinement try_all(observed<Layer> const& kept, Quantize& quantize) {
  auto r = as_it_was<Refinement>(kept);
  auto const h = kept.load_hessian();
  for (format_spec const& format : list_finer_formats(kept.layer.format, kept.in)) {
    typename decltype(r.attempts)::value_type tried;
    quantize_again(kept, *h, quantize, format, tried);
    r.attempts.push_back(tried);
  }
  return r;
}

/// Takes, again and again, the attempt that removes most loss for each further byte, as long as it fits into
/// what is left of `bytes`.
template <class Refinement>
void choose_attempts(std::vector<Refinement>& table, index_t bytes) {
  for (;;) {
    Refinement* most = nullptr;
    std::size_t choice = 0;
    double most_per_byte = 0.0;
    for (Refinement& r : table) {
      for (std::size_t i = 1; i < r.attempts.size(); ++i) {
        index_t const more = r.attempts[i].bytes - r.after().bytes;
        double const gain = r.after().loss - r.attempts[i].loss;
        if (!(gain > 0.0) || more > bytes) continue;
        double const per_byte =
            more <= 0 ? std::numeric_limits<double>::infinity() : gain / static_cast<double>(more);
        if (per_byte > most_per_byte) {
          most = &r;
          choice = i;
          most_per_byte = per_byte;
        }
      }
    }
    if (most == nullptr) return;
    bytes -= most->attempts[choice].bytes - most->after().bytes;
    most->chosen = choice;
  }
}

/// Quantizes a layer once more, as it was chosen.
template <class Refinement, class Layer, class Quantize, class Accept>
void accept_chosen(Refinement const& r, observed<Layer> const& kept, Quantize& quantize, Accept& accept) {
  if (r.chosen == 0) return;
  typename decltype(r.attempts)::value_type again;
  accept(r.name, quantize_again(kept, *kept.load_hessian(), quantize, r.after().format, again));
}

}  // namespace gptq::solver
