#pragma once

#include <gptq/gptq.hpp>

gptq::packed_matrix<gptq::format<gptq::asymmetric, 4, 32>> quantize_in_b(gptq::matrix const& weight,
                                                                         gptq::hessian const& hessian);
