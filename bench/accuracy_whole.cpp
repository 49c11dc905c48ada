#include "accuracy_whole.hpp"

#include <vector>

#include "quantization.hpp"

namespace accuracy {

std::span<whole_method const> whole_methods() {
  using enum gptq::quality;
  static std::vector<whole_method> const all{
      {"A",
       "the published default: act-order, range of the weights",
       {.quality = reference, .act_order = true}},
      {"B",
       "the published best: static act-order, mse search",
       {.quality = reference, .mse = true, .act_order = true, .static_groups = true}},
      {"fast", "the library's default", {fast}},
      {"fast, half", "and half of what the inputs' error asks for", {fast}, false, 0.5},
      {"fast, all", "and all of it", {fast}, false, 1.0},
      {"fast, chosen",
       "and what is best of it on held-out tokens",
       {.quality = fast, .act_order = true},
       true,
       1.0},
      {"best", "the library's best, with held-out tokens", {.quality = best, .act_order = true}, true},
      {"best, half",
       "and half of what the inputs' error asks for, at most",
       {.quality = best, .act_order = true},
       true,
       0.5},
      {"best, chosen",
       "and what is best of it on held-out tokens",
       {.quality = best, .act_order = true},
       true,
       1.0},
      {"tuned layers",
       "best, half, and 100 steps on the scales of each decoder layer",
       {.quality = best, .act_order = true},
       true,
       0.5,
       lm::tuning{.scope = lm::tuning_scope::layer, .steps = 100}},
      {"tuned",
       "best, half, and 100 steps on the scales of the model",
       {.quality = best, .act_order = true},
       true,
       0.5,
       lm::tuning{.steps = 100}},
  };
  return all;
}

window_scores quantize_whole(std::filesystem::path const& model, gptq::format_spec format,
                             whole_method const& how, std::span<lm::token_window const> calibration,
                             std::size_t held_out, std::span<lm::token_window const> evaluation,
                             predictions const& exact, int threads) {
  lm::model m(model);
  lm::quantization whole;
  if (how.options.quality == gptq::quality::reference) format.scales = gptq::scale_type::float32;
  whole.quantize.format = format;
  whole.quantize.options = how.options;
  whole.quantize.options.threads = threads;
  whole.quantize.options.measure_output_error = false;
  whole.true_sequential = true;
  whole.propagate = how.propagate;
  whole.held_out_windows = how.held_out ? held_out : 0;
  whole.threads = threads;
  lm::quantize_model(m, calibration, whole, {});
  if (how.tune) {
    lm::tuning options = *how.tune;
    options.threads = threads;
    lm::tune_model(m, calibration, held_out, options, {});
  }
  return predictions(m, evaluation, threads).against(exact);
}

}  // namespace accuracy
