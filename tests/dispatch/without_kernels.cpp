// A program that calls dispatch() and does not link the library that has kernels for several ISAs.
#include <gptq/dispatch.hpp>

int main() {
  return gptq::dispatch(gptq::isa::dispatched{}, []<class Isa>() { return Isa::supported() ? 0 : 1; });
}
