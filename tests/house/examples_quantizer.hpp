// What the examples in the heads of the quantizer's headers take for granted.
#pragma once

#include <string>
#include <vector>

#include <gptq/gptq.hpp>

using q4 = gptq::format<gptq::asymmetric, 4, 128>;
extern gptq::index_t in_features;
extern std::vector<gptq::matrix> calibration;
extern gptq::matrix weight;
extern gptq::hessian h;
