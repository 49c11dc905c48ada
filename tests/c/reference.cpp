#include "reference.h"

#include <gptq/epilogue.hpp>
#include <gptq/packed_file.hpp>

namespace {

template <class Format, class X, class Y>
int multiply(std::span<std::byte const> bytes, gptq_input const& x, gptq::index_t tokens, void* workspace,
             gptq_output const& y, gptq_epilogue const& e) {
  gptq::packed_view<Format> w;
  gptq::fault const what = gptq::open_packed(w, bytes);
  if (what != gptq::fault::none) return static_cast<int>(what);
  auto const a = gptq::prepare(w, gptq::input<X>{static_cast<X const*>(x.data), x.stride}, tokens, workspace,
                               {0, tokens});
  gptq::output<Y> const to{static_cast<Y*>(y.data), y.stride};
  gptq::add_bias const bias{e.bias};
  gptq::add_residual<Y> const residual{static_cast<Y const*>(e.residual), e.residual_stride};
  gptq::row_range const rows{0, w.out};
  if (e.bias != nullptr && e.residual != nullptr) {
    gptq::gemm(w, a, to, rows, bias, residual);
  } else {
    gptq::gemm(w, a, to, rows);
  }
  return 0;
}

template <class Format>
int multiply(std::span<std::byte const> bytes, gptq_input const& x, gptq::index_t tokens, void* workspace,
             gptq_output const& y, gptq_epilogue const& e) {
  if (x.type == GPTQ_FLOAT32 && y.type == GPTQ_FLOAT32) {
    return multiply<Format, float, float>(bytes, x, tokens, workspace, y, e);
  }
  if (x.type == GPTQ_FLOAT16 && y.type == GPTQ_FLOAT16) {
    return multiply<Format, gptq::float16, gptq::float16>(bytes, x, tokens, workspace, y, e);
  }
  return multiply<Format, gptq::bfloat16, gptq::bfloat16>(bytes, x, tokens, workspace, y, e);
}

}  // namespace

int reference_is_missing(void) { return gptq::isa::native::supported() ? 0 : 1; }

int reference_multiply(gptq_format format, void const* bytes, size_t size, gptq_input x, int64_t tokens,
                       void* workspace, gptq_output y, gptq_epilogue epilogue) {
  std::span<std::byte const> const file{static_cast<std::byte const*>(bytes), size};
  if (format.scheme == GPTQ_ASYMMETRIC) {
    return multiply<gptq::format<gptq::asymmetric, 4, 32>>(file, x, tokens, workspace, y, epilogue);
  }
  return multiply<gptq::format<gptq::fixed_zero, 4, gptq::whole_row>>(file, x, tokens, workspace, y,
                                                                      epilogue);
}
