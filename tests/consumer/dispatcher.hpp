#pragma once

#include <gptq/packed.hpp>

using weights = gptq::packed_view<gptq::format<gptq::fixed_zero, 4, 8>>;
using gemv_function = void (*)(weights const& w, float const* x, float* y) noexcept;

template <class Isa>
gemv_function gemv_for();
