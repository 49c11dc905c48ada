// Compiled once for each ISA, which is gptq::isa::native here.
#include "kernels.hpp"

#include <gptq/epilogue.hpp>

namespace gptq::c_interface {
namespace {

template <class T>
void prepare_as(int8_activations const& a, gptq_input const& x, std::int32_t const* order,
                token_range share) {
  detail::prepare_chunks<isa::native>(a, static_cast<T const*>(x.data), static_cast<index_t>(x.stride),
                                      a.chunks.in, order, 0, a.chunks.count(), share);
}

void prepare(int8_activations const& a, gptq_input const& x, std::int32_t const* order,
             token_range share) noexcept {
  switch (x.type) {
    case GPTQ_FLOAT32:
      return prepare_as<float>(a, x, order, share);
    case GPTQ_FLOAT16:
      return prepare_as<float16>(a, x, order, share);
    default:
      return prepare_as<bfloat16>(a, x, order, share);
  }
}

template <storage_format Format>
void multiply(gptq_matrix const& w, index_t first, int8_activations const& x, token_range tokens, float* y,
              index_t stride, row_range rows) noexcept {
  detail::product_slab<isa::native>(view<Format>(w), first, x, tokens, y, stride, rows);
}

template <class T>
void multiply_add_to(product multiply, gptq_matrix const& w, int8_activations const& x, gptq_output const& y,
                     row_range rows, gptq_epilogue const& epilogue) {
  auto const bias = [&](float* v, index_t token, index_t row, index_t count) {
    if (epilogue.bias != nullptr) add_bias{epilogue.bias}(v, token, row, count);
  };
  auto const residual = [&](float* v, index_t token, index_t row, index_t count) {
    if (epilogue.residual == nullptr) return;
    add_residual<T>{static_cast<T const*>(epilogue.residual), static_cast<index_t>(epilogue.residual_stride)}(
        v, token, row, count);
  };
  output<T> const to{static_cast<T*>(y.data), static_cast<index_t>(y.stride)};
  alignas(64) float slab[detail::slab_floats];
  token_range const all{0, x.tokens};
  index_t const height = detail::slab_height(all);
  detail::for_each_slab(all, rows, [&](token_range tokens, index_t first, row_range some) {
    multiply(w, first, x, tokens, slab, height, some);
    detail::finish_slab(slab, height, tokens, first, some, to, 0, w.rows, bias, residual);
  });
}

void multiply_add(product multiply, gptq_matrix const& w, int8_activations const& x, gptq_output const& y,
                  row_range rows, gptq_epilogue const& epilogue) noexcept {
  switch (y.type) {
    case GPTQ_FLOAT32:
      return multiply_add_to<float>(multiply, w, x, y, rows, epilogue);
    case GPTQ_FLOAT16:
      return multiply_add_to<float16>(multiply, w, x, y, rows, epilogue);
    default:
      return multiply_add_to<bfloat16>(multiply, w, x, y, rows, epilogue);
  }
}

template <class... Formats>
constexpr kernels table(format_list<Formats...> /*formats*/) {
  return {isa::native::name.data(), prepare, {multiply<Formats>...}, multiply_add};
}

}  // namespace

template <>
kernels const& kernels_for<isa::native>() noexcept {
  static constexpr kernels all = table(formats{});
  return all;
}

}  // namespace gptq::c_interface
