#include "quantize_model.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include <gptq/error.hpp>
#include <gptq/hessian.hpp>

#include "forward.hpp"
#include "threads.hpp"

namespace llama {
namespace {

/// A decoder layer on its way from float32 to packed.
class decoder_quantizer {
 public:
  decoder_quantizer(model& m, std::int64_t layer, quantization const& how, context const& ctx,
                    std::function<void(linear_report const&)> const& done)
      : model_(m), index_(layer), how_(how), ctx_(ctx), done_(done), weights_(m.load(layer, how.threads)) {}

  /// Stage by stage: each sees the stages before it quantized. x becomes the decoder layer's output.
  void run_sequentially(std::vector<matrix>& x, std::function<void()> const& advance) {
    std::vector<matrix> input(x.size());
    for (stage const s : stages) {
      for_each_window(x, [&](std::size_t w) { run_stage(ctx_, weights_, s, x[w], input[w]); });
      gptq::hessian h = new_hessian(s);
      add(h, s, input);
      quantize(s, h);
    }
    for_each_window(x, [&](std::size_t w) {
      finish(weights_, x[w], input[w]);
      advance();
    });
  }

  /// All inputs from the unquantized layer, then all of it quantized, then run again: x becomes its output.
  void run_at_once(std::vector<matrix>& x, std::function<void()> const& advance) {
    std::vector<gptq::hessian> hessians;
    for (stage const s : stages) hessians.push_back(new_hessian(s));

    // A few windows at a time: what the stages leave behind is as large as all activations otherwise.
    auto const batch = 4 * static_cast<std::size_t>(gptq::detail::thread_count(how_.threads));
    for (std::size_t first = 0; first < x.size(); first += batch) {
      std::vector<matrix> copies(x.begin() + static_cast<std::ptrdiff_t>(first),
                                 x.begin() + static_cast<std::ptrdiff_t>(std::min(first + batch, x.size())));
      std::vector<matrix> input(copies.size());
      for (stage const s : stages) {
        for_each_window(copies, [&](std::size_t w) { run_stage(ctx_, weights_, s, copies[w], input[w]); });
        add(hessians[static_cast<std::size_t>(s)], s, input);
      }
    }
    for (stage const s : stages) quantize(s, hessians[static_cast<std::size_t>(s)]);
    for_each_window(x, [&](std::size_t w) {
      run_layer(ctx_, weights_, x[w]);
      advance();
    });
  }

 private:
  template <class Piece>
  void for_each_window(std::vector<matrix> const& windows, Piece&& piece) const {
    for_each(static_cast<std::ptrdiff_t>(windows.size()), how_.threads,
             [&](std::ptrdiff_t w) { piece(static_cast<std::size_t>(w)); });
  }

  gptq::hessian new_hessian(stage s) const {
    return gptq::hessian(input_size(model_.config(), s), how_.threads);
  }

  /// Counts the inputs of a stage's linear layers, one matrix a sequence.
  void add(gptq::hessian& h, stage s, std::vector<matrix> const& input) const {
    try {
      for (matrix const& sequence : input) h.add(sequence);
    } catch (gptq::error const& e) {
      throw gptq::error("input of " + full_name(index_, linears_of(s).front()) + ": " + e.what());
    }
  }

  /// Quantizes a stage's linear layers and puts what was packed in their place.
  void quantize(stage s, gptq::hessian const& h) {
    for (linear const l : linears_of(s)) {
      linear_report report{full_name(index_, l), weights_[l].rows(), weights_[l].cols(), 0, {}};
      try {
        auto result = how_.quantize(std::move(weights_[l]), h);
        report.quality = result.report;
        report.packed_bytes = result.packed->bytes();
        weights_[l].resize(report.out, report.in);
        result.packed->dequantize(weights_[l].data());
        model_.replace(index_, l, std::move(result.packed));
      } catch (gptq::error const& e) {
        throw gptq::error(report.name + ": " + e.what());
      }
      done_(report);
    }
  }

  model& model_;
  std::int64_t index_;
  quantization const& how_;
  context const& ctx_;
  std::function<void(linear_report const&)> const& done_;
  decoder_layer weights_;
};

}  // namespace

void quantize_model(model& m, std::span<token_window const> windows, quantization const& how,
                    std::function<void(linear_report const&)> const& done,
                    std::function<void()> const& advance) {
  set_blas_threads(how.threads);
  auto const angles = make_rotations(m.config(), static_cast<std::int64_t>(windows.front().size()));
  context const ctx{m.config(), angles};
  std::vector<matrix> x;
  for (token_window const window : windows) x.push_back(m.embed(window));
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
    decoder_quantizer layer(m, i, how, ctx, done);
    if (how.true_sequential) {
      layer.run_sequentially(x, advance);
    } else {
      layer.run_at_once(x, advance);
    }
  }
}

}  // namespace llama
