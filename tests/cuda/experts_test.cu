// Experts in one launch against the reference: sorted and not, every entry with its own row of x or one for
// some.
#include <array>
#include <cmath>

#include <gptq/cuda/experts.cuh>

#include "product_check.cuh"

using gptq::format;
using gptq::index_t;
namespace cuda = gptq::cuda;

namespace {

template <class Format, class X, class Y>
void check_experts(int experts, index_t rows, index_t in, index_t entries, int of_token, bool permuted,
                   bool spoiled, test::random& random) {
  INFO(experts << " experts of " << rows << " x " << in << ", " << entries << " entries, " << of_token
               << " of a token" << (permuted ? ", permuted" : "")
               << (spoiled ? ", with ids that are none" : ""));
  index_t const out = experts * rows, tokens = (entries + of_token - 1) / of_token;
  auto const packed = test::random_matrix<Format>(out, in, permuted, random);
  cuda::prepacked_matrix<Format> const w(packed.view());
  std::vector<test::host_number<X>> x;
  for (index_t i = 0; i < tokens * in; ++i) x.push_back(test::host_number<X>(random.normal()));
  std::vector<std::int32_t> ids;
  for (index_t i = 0; i < entries; ++i) {
    // Some experts get most of the entries, some none, and the last of all has its turn.
    ids.push_back(random.below(3) == 0 ? experts - 1 : random.below(3) == 0 ? 0 : random.below(experts));
  }
  if (spoiled) ids.front() = -1, ids[test::at(entries / 2)] = experts, ids.back() = 1 << 30;
  std::vector<double> all(test::at(tokens * out)), expected;
  gptq::reference::gemm(packed.view(), x.data(), tokens, all.data());
  for (index_t i = 0; i < entries; ++i) {
    for (index_t row = 0; row < rows; ++row) {
      bool const known = ids[test::at(i)] >= 0 && ids[test::at(i)] < experts;
      expected.push_back(known ? all[test::at(i / of_token * out + ids[test::at(i)] * rows + row)] : NAN);
    }
  }
  test::device_vector<std::int32_t> const device_ids(ids);
  test::device_vector<test::host_number<X>> const device_x(x);
  index_t const stride = rows + 5;
  test::device_vector<test::host_number<Y>> const y(test::at(entries * stride));
  test::device_vector<std::uint8_t> const memory(cuda::sorting_bytes(entries, experts)),
      workspace(cuda::gemv_workspace_bytes<X>(w.view(), tokens));
  auto const sent = cuda::sort_by_expert(device_ids.data(), entries, experts, memory.data());
  cuda::grouped_gemm(w.view(), sent, reinterpret_cast<X const*>(device_x.data()), of_token,
                     gptq::output{reinterpret_cast<Y*>(y.data()), stride},
                     {.workspace = workspace.data(), .workspace_bytes = workspace.size()});
  auto const result = y.host();
  std::vector<Y> typed;
  std::vector<double> compared;
  int wrong = 0;
  for (index_t i = 0; i < entries; ++i) {
    for (index_t row = 0; row < stride; ++row) {
      auto const value = result[test::at(i * stride + row)];
      double const should = row < rows ? expected[test::at(i * rows + row)] : NAN;
      wrong += std::isnan(static_cast<float>(value)) != std::isnan(should);
      if (std::isnan(should)) continue;
      Y number;
      std::memcpy(static_cast<void*>(&number), &value, sizeof(number));
      typed.push_back(number);
      compared.push_back(should);
    }
  }
  CHECK(wrong == 0);
  test::check_close(typed, compared);
}

}  // namespace

TEST_CASE("experts agree with the reference") {
  if (!test::have_gpu()) return;
  auto random = test::fresh_random();
  using q4 = format<gptq::symmetric, 4, 128>;
  check_experts<q4, __half, __half>(4, 48, 264, 8, 8, false, false, random);
  check_experts<q4, __half, __half>(5, 32, 136, 16, 1, false, true, random);
  check_experts<q4, __half, __half>(40, 16, 392, 17, 1, true, false, random);
  check_experts<q4, __half, __half>(33, 48, 264, 120, 8, false, true, random);
  check_experts<q4, __half, __half>(3, 80, 264, 300, 2, false, false, random);
  check_experts<q4, __half, __half>(1, 16, 128, 40, 1, false, false, random);
  check_experts<q4, __half, __half>(1000, 16, 128, 2500, 4, false, true, random);
}

TEST_CASE("experts refuse what cannot be") {
  if (!test::have_gpu()) return;
  auto* const p = reinterpret_cast<std::uint32_t*>(256);
  auto* const ids = reinterpret_cast<std::int32_t*>(p);
  auto* const x = reinterpret_cast<__half*>(p);
  cuda::prepacked_view<format<gptq::symmetric, 4, 128>> w{
      .codes = p, .scales = reinterpret_cast<gptq::float16*>(p), .out = 128, .in = 256};
  CHECK_THROWS_AS(cuda::sort_by_expert(ids, 100, 1025, p), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::sort_by_expert(ids, 100, 0, p), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::sort_by_expert(ids, -1, 4, p), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::sort_by_expert(ids, 100, 4, nullptr), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::sort_by_expert(nullptr, 4, 4, p), cuda::invalid_argument);
  auto const sent = cuda::sort_by_expert(ids, 8, 4, nullptr);
  CHECK_THROWS_AS(cuda::grouped_gemm(w, sent, x, 0, gptq::output{x}), cuda::invalid_argument);
  CHECK_THROWS_AS(cuda::grouped_gemm(w, sent, x, 8, gptq::output{x, 31}), cuda::invalid_argument);
  w.out = 96;  // 24 rows each
  CHECK_THROWS_AS(cuda::grouped_gemm(w, sent, x, 8, gptq::output{x}), cuda::invalid_argument);
  CHECK_NOTHROW(cuda::sort_by_expert(nullptr, 0, 4, nullptr));
}
