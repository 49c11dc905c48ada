#include "gguf_layers.hpp"

#include <algorithm>
#include <optional>
#include <utility>
#include <variant>

#include <fmt/format.h>

#include <gptq/checkpoint/repack.hpp>
#include <gptq/error.hpp>
#include <gptq/packed.hpp>

#include "formats.hpp"
#include "gguf_model.hpp"
#include "model.hpp"

namespace lm {
namespace {

using gptq::checkpoint::ggml_tensor;
using gptq::checkpoint::ggml_type;

/// What blocks hold, by spec_for().
using block_formats = gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::fixed_zero>,
                                         gptq::bit_widths<4, 8>, gptq::group_sizes<32>>;

/// The rows of a GGUF file in the order that they have here.
template <gptq::storage_format Format>
gptq::quantized_layer<Format> in_our_order(gptq::quantized_layer<Format> const& stored,
                                           std::int64_t head_dim) {
  gptq::quantized_layer<Format> layer = stored;
  auto const copy_row = [&](auto const& from, auto& to, gptq::index_t columns, std::int64_t source,
                            std::int64_t row) {
    if (!from.empty()) std::copy_n(from.begin() + source * columns, columns, to.begin() + row * columns);
  };
  for (std::int64_t row = 0; row < layer.out; ++row) {
    std::int64_t const source = interleaved_row(row, head_dim);
    copy_row(stored.codes, layer.codes, layer.in, source, row);
    copy_row(stored.scales, layer.scales, layer.groups(), source, row);
    copy_row(stored.zeros, layer.zeros, layer.groups(), source, row);
  }
  return layer;
}

// What is looked at for types that hold it: all but scales in float32.
using exact_formats =
    gptq::combinations<gptq::schemes<gptq::asymmetric, gptq::symmetric, gptq::fixed_zero, gptq::half_step>,
                       gptq::bit_widths<2, 3, 4, 8>, group_sizes>;

/// Calls use(layer) with what is packed, unpacked.
template <class Use>
auto unpacked(packed_linear const& packed, Use const& use) {
  if (packed.format().scales == gptq::scale_type::float32) {
    throw gptq::error("GGUF blocks have float16 scales, and these are in float32");
  }
  return gptq::with_format<exact_formats>(
      packed.format(), [&]<class Format>() { return use(gptq::unpack(view_of<Format>(packed.parts()))); });
}

}  // namespace

std::unique_ptr<packed_linear> read_blocks(stored_weight const& weight) {
  auto const* const tensor = std::get_if<ggml_tensor>(&weight.tensor);
  if (tensor == nullptr) throw gptq::error(to_string(weight) + " is not quantized");
  return gptq::with_format<block_formats>(
      gptq::checkpoint::spec_for(tensor->type), [&]<class Format>() -> std::unique_ptr<packed_linear> {
        auto layer = gptq::checkpoint::repack_from_ggml<Format>(*tensor);
        if (weight.interleaved != 0) layer = in_our_order(layer, weight.interleaved);
        auto const owner = std::make_shared<gptq::packed_matrix<Format>>(gptq::pack(layer));
        return make_packed(gptq::to_spec<Format>(), parts_of(std::as_const(*owner).view()), owner);
      });
}

void pack_blocks(model& m) {
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
    auto const& linears = m.config().layer(i).linears;
    for (std::size_t place = 0; place < linears.size(); ++place) {
      try {
        m.replace(i, place, read_blocks(m.stored(linears[place].name + ".weight")));
      } catch (gptq::error const& e) {
        throw gptq::error(linears[place].name + ": " + e.what());
      }
    }
  }
}

ggml_type exact_type(std::vector<named_layer> const& layers) {
  std::optional<ggml_type> all;
  for (auto const& [name, packed] : layers) {
    try {
      auto const type = unpacked(*packed, [](auto const& layer) {
        auto const smallest = gptq::checkpoint::lossless_type(layer);
        if (!smallest) gptq::checkpoint::repack_to_ggml(layer, ggml_type::q8_0);  // throws, with the reason
        return smallest.value();
      });
      // Larger types have all levels of smaller ones, but for Q4_1's and Q5_1's: those would be refused when written.
      if (!all || gptq::checkpoint::block_bytes(type) > gptq::checkpoint::block_bytes(*all)) all = type;
    } catch (gptq::error const& e) {
      throw gptq::error(name + ": " + e.what());
    }
  }
  return all.value();
}

std::vector<std::byte> exact_blocks(packed_linear const& layer, ggml_type type) {
  return unpacked(layer,
                  [&](auto const& unpacked) { return gptq::checkpoint::repack_to_ggml(unpacked, type); });
}

}  // namespace lm
