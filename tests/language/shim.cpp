// Compiled without exceptions and RTTI, and linked by a C compiler, without C++'s library.
#include "shim.h"

#include <gptq/dispatch.hpp>
#include <gptq/gemm.hpp>
#include <gptq/parallel.hpp>
#include <gptq/reference.hpp>

using q4 = gptq::format<gptq::fixed_zero, 4, 8>;

extern "C" int shim_multiply(unsigned char const* codes, unsigned long code_bytes,
                             unsigned short const* scales, unsigned long scale_count, long out, long in,
                             float const* x, float* y) {
  gptq::packed_view<q4> w;
  auto const* const typed = reinterpret_cast<gptq::float16 const*>(scales);
  gptq::fault what = gptq::make_view(w, out, in, {codes, code_bytes}, {typed, scale_count});
  if (what == gptq::fault::none) what = gptq::find_fault(w).what;
  if (what != gptq::fault::none) return static_cast<int>(what);

  // Three ways to the same results.
  gptq::gemv(w, x, y);
  alignas(64) static char workspace[4096];
  static float again[256];
  double exact[256];
  if (out > 256 || gptq::workspace_bytes(w.layout()) > sizeof workspace) return -1;
  auto const a = gptq::prepare(w, x, 1, workspace);
  what = gptq::checked_gemm(w, a, {again, static_cast<unsigned long>(out)}, {0, out});
  if (what != gptq::fault::none) return static_cast<int>(what);
  auto const one_after_another = [](int parts, auto const& f) {
    for (int part = 0; part < parts; ++part) f(part);
  };
  gptq::parallel_gemv(w, x, y, one_after_another, 3);
  gptq::reference::gemv(w, x, exact);
  for (long row = 0; row < out; ++row) {
    if (again[row] != y[row] || static_cast<double>(y[row]) != exact[row]) return -2;
  }
  return 0;
}

extern "C" char const* shim_message(int what) { return gptq::message(static_cast<gptq::fault>(what)); }

extern "C" char const* shim_isa() {
  auto const name = []<class Isa>() { return Isa::name.data(); };
  return gptq::try_dispatch(gptq::isa::compiled{}, name).value_or("none");
}
