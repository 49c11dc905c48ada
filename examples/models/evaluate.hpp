// Perplexity on held-out windows.
#pragma once

#include <functional>
#include <span>

#include "gpu.hpp"
#include "model.hpp"
#include "tokens.hpp"

namespace lm {

/// exp of the mean negative log-likelihood of each window's tokens but its first, given those before it in
/// the window. With arithmetic::float32 one decoder layer is decoded at a time; the output layer is a slice
/// of the vocabulary at a time.
/// @param windows  at least one, of the same length of at least 2
/// @param advance  called windows.size() * (layers + 1) times, from any thread
/// @param device   makes the products, with arithmetic::float32; null: the CPU
double perplexity(
    model const& m, std::span<token_window const> windows, arithmetic how, int threads,
    std::function<void()> const& advance = [] {}, gpu* device = nullptr);

}  // namespace lm
