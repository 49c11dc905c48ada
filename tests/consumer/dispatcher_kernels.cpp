#include <gptq/gemv.hpp>

#include "dispatcher.hpp"

template <>
gemv_function gemv_for<gptq::isa::native>() {
  return gptq::gemv;
}
