#include "kernels.hpp"

#include <array>
#include <cmath>
#include <vector>

#include <gptq/gemv.hpp>

#include "formats.hpp"

namespace lm {
namespace {

using gptq::index_t;
using gptq::precision;

template <class Format, precision Precision>
void gemv(packed_parts const& w, float const* x, float* y, index_t first_row, index_t last_row) noexcept {
  gptq::gemv<Precision>(view_of<Format>(w), x, y, {first_row, last_row});
}

using kernel_formats = gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::fixed_zero, gptq::half_step>,
                                          gptq::bit_widths<2, 3, 4, 8>, group_sizes>;

}  // namespace

gemv_kernel find_gemv(gptq::format_spec const& format, precision precision) {
  if (format.scales != gptq::scale_type::float16) return nullptr;
  gptq::format_spec same = format;
  if (same.scheme == "symmetric") same.scheme = "fixed_zero";  // without the lowest level, and else the same
  return gptq::with_format<kernel_formats>(same, [&]<class Format>() -> gemv_kernel {
    switch (precision) {
      case gptq::precision::int8:
        return gemv<Format, gptq::precision::int8>;
      case gptq::precision::int15:
        return gemv<Format, gptq::precision::int15>;
      default:
        return nullptr;
    }
  });
}

void round_to_int8(std::span<float> x, index_t group_columns, std::span<std::int32_t const> order) {
  // How activations are prepared depends on the chunks alone, whatever the format.
  auto const in = static_cast<index_t>(x.size());
  gptq::chunk_layout const chunks{in, group_columns};
  std::vector<char> workspace(gptq::workspace_bytes(chunks) + 64);
  auto const a = gptq::detail::activations_at<precision::int8>(chunks, chunks.count(), 1, workspace.data());
  gptq::detail::prepare_chunks<gptq::isa::native>(a, x.data(), in, in, order.empty() ? nullptr : order.data(),
                                                  0, chunks.count(), {0, 1});
  index_t stored = 0;
  for (index_t chunk = 0; chunk < chunks.count(); ++chunk) {
    for (index_t c = 0; c < chunks.columns(chunk); ++c, ++stored) {
      index_t const column = order.empty() ? stored : index_t{order[static_cast<std::size_t>(stored)]};
      x[static_cast<std::size_t>(column)] =
          a.scales[chunk] * static_cast<float>(a.digits[chunk * chunks.stride() + c]);
    }
  }
}

}  // namespace lm
