// What the programs have a device do with a model: quantize it, and measure it on a text.
#pragma once

#include "../generation.hpp"
#include "../quantization.hpp"
#include "accelerator.hpp"

namespace lm::device {

/// What of a run is not done on a device, in words; empty: all of it is.
std::string unsupported_part(config const& c, quantization const& how);

/// quantize_model() on a device. Packing and writing are done while the next layers are computed; the events
/// come from other threads than the caller's. Throws as calibrate() does.
void quantize_model(accelerator& on, number activations, model& m, std::span<token_window const> windows,
                    quantization const& how, quantization_events const& events, unfinished_run const* saved);

/// perplexity() on a device.
double perplexity(accelerator& on, number activations, model const& m, std::span<token_window const> windows,
                  int threads, std::function<void()> const& advance);

/// The same with linear layers multiplied as they are packed, and activations of float16; those that the device has no
/// kernels for are decoded to float16.
double packed_perplexity(accelerator& on, model const& m, std::span<token_window const> windows, int threads,
                         std::function<void()> const& advance);

/// generate() on a device, with linear layers as they are packed, activations, keys and values in float16; those that
/// the device has no kernels for are decoded to float16. Tokens are chosen on the device, a few before the host has
/// seen the first of them.
/// @param threads  decode what is not packed
generated_text generate(accelerator& on, model const& m, std::span<token const> prompt, std::int64_t most,
                        sampling const& how, int threads, std::function<void(token)> const& next);

}  // namespace lm::device
