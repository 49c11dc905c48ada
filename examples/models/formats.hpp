// The formats that the command line can ask for.
#pragma once

#include <gptq/format_spec.hpp>

namespace lm {

#if defined(MODELS_FEW_FORMATS)
using group_sizes = gptq::group_sizes<32, gptq::whole_row>;
#else
using group_sizes = gptq::group_sizes<32, 64, 128, gptq::whole_row>;
#endif

using formats =
    gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::symmetric, gptq::fixed_zero, gptq::half_step>,
                       gptq::bit_widths<2, 3, 4, 8>, group_sizes, gptq::scale_types<gptq::float16, float>>;

}  // namespace lm
