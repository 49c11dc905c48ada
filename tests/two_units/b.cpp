#include "quantize_in_b.hpp"

gptq::packed_matrix<gptq::format<gptq::asymmetric, 4, 32>> quantize_in_b(gptq::matrix const& weight,
                                                                         gptq::hessian const& hessian) {
  return gptq::pack(gptq::quantize<gptq::format<gptq::asymmetric, 4, 32>>(weight, hessian));
}
