// The kernels of the ISA GPTQ_TEST_ISA, compiled with its flags, as kernels_test.cpp calls them.
#include <gptq/gemm.hpp>

#include "kernel_cases.hpp"

namespace {

using gptq::index_t;
using gptq::precision;
using gptq::storage_format;
using test::plain_view;
using test::x_type;
using isa_under_test = gptq::isa::GPTQ_TEST_ISA;

/// Activations in a workspace as activations.hpp documents them: digits, sums, scales; or floats.
template <storage_format Format, precision Precision>
gptq::activations<Precision> activations_in(plain_view const& w, void const* workspace, index_t tokens) {
  gptq::activations<Precision> a;
  a.chunks = {w.in, Format::group_columns(w.in)};
  a.order = w.order;
  a.tokens = tokens;
  auto const* bytes = static_cast<char const*>(workspace);
  if constexpr (Precision == precision::float32) {
    a.values = reinterpret_cast<float const*>(bytes);
  } else {
    index_t const cells = a.chunks.count() * tokens;
    index_t const rows = cells * gptq::digit_planes(Precision);
    a.digits = reinterpret_cast<std::int8_t const*>(bytes);
    a.sums = reinterpret_cast<gptq::digit_sums const*>(bytes + rows * a.chunks.stride());
    a.scales = reinterpret_cast<float const*>(bytes + rows * (a.chunks.stride() + 12));
  }
  return a;
}

template <storage_format Format, precision Precision>
void gemv(plain_view const& w, void const* workspace, index_t tokens, float* y, index_t first, index_t last) {
  gptq::gemv<Precision, isa_under_test>(
      test::typed<Format>(w), activations_in<Format, Precision>(w, workspace, tokens), y, {first, last});
}

template <storage_format Format, precision Precision>
void gemm(plain_view const& w, void const* workspace, index_t tokens, float* y, index_t first, index_t last) {
  gptq::gemm<Precision, isa_under_test>(
      test::typed<Format>(w), activations_in<Format, Precision>(w, workspace, tokens), y, {first, last});
}

template <storage_format Format, precision Precision>
void raw_gemv(plain_view const& w, x_type type, void const* x, float* y, index_t first, index_t last) {
  auto const view = test::typed<Format>(w);
  auto const call = [&]<class T>(T const* values) {
    gptq::gemv<Precision, isa_under_test>(view, values, y, {first, last});
  };
  if (type == x_type::float32) call(static_cast<float const*>(x));
  // Where one type works and the preparation of the others does, so do they; once more to be sure.
  if constexpr (Format::group_size == 128) {
    if (type == x_type::float16) call(static_cast<gptq::float16 const*>(x));
    if (type == x_type::bfloat16) call(static_cast<gptq::bfloat16 const*>(x));
  }
}

// Where gemm is slow to compile, one of each number of planes is enough by default.
#if defined(GPTQ_TEST_LESS_GEMM) && !defined(GPTQ_TEST_EVERY_KERNEL)
constexpr bool every_gemm = false;
#else
constexpr bool every_gemm = true;
#endif
template <class Format, precision Precision>
constexpr bool is_one_of_few = Format::bits == (Precision == precision::int8    ? 4
                                                : Precision == precision::int15 ? 3
                                                : Precision == precision::int23 ? 8
                                                                                : 2);

template <class Format, precision Precision, int Parts>
constexpr test::kernel kernel_of(test::kernel_case<Format, Precision, Parts>) {
  test::kernel k{Precision, gemv<Format, Precision>, nullptr, nullptr};
  if constexpr ((Parts & test::with_gemm) != 0 && (every_gemm || is_one_of_few<Format, Precision>)) {
    k.gemm = gemm<Format, Precision>;
  }
  if constexpr ((Parts & test::with_raw) != 0) k.raw_gemv = raw_gemv<Format, Precision>;
  return k;
}

template <class List>
struct table;
template <class... Cases>
struct table<test::case_list<Cases...>> {
  static constexpr test::kernel kernels[] = {kernel_of(Cases{})...};
};

template <int GroupSize, precision Precision>
struct prepared {
  using format = gptq::format<gptq::symmetric, 4, GroupSize>;

  static std::size_t bytes(index_t in, index_t tokens) {
    return gptq::workspace_bytes<Precision>(gptq::packed_layout<format>{16, in}, tokens);
  }
  static void run(plain_view const& w, x_type type, void const* x, index_t tokens, void* workspace,
                  index_t first, index_t last) {
    auto const call = [&]<class T>(T const* values) {
      gptq::prepare<Precision, isa_under_test>(test::typed<format>(w), values, tokens, workspace,
                                               {first, last});
    };
    if (type == x_type::float32) call(static_cast<float const*>(x));
    if (type == x_type::float16) call(static_cast<gptq::float16 const*>(x));
    if (type == x_type::bfloat16) call(static_cast<gptq::bfloat16 const*>(x));
  }
  static constexpr test::preparation value{Precision, GroupSize, bytes, run};
};

constexpr test::preparation preparations[] = {
    prepared<gptq::whole_row, precision::int8>::value, prepared<200, precision::int15>::value,
    prepared<24, precision::int23>::value, prepared<64, precision::float32>::value};

#if defined(__FMA__) || defined(__aarch64__)
constexpr bool fused = true;
#else
constexpr bool fused = false;
#endif

}  // namespace

constinit test::architecture const test::architecture_under_test{
    isa_under_test::name, gptq::isa::native::name, fused, table<test::cases>::kernels, preparations};
