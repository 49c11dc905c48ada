#include "shared_layers.hpp"

#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "report.hpp"

namespace lm {
namespace {

using nlohmann::ordered_json;

/// The other ranks get the packed layer of rank `from`, for which nothing is returned; `description` is what
/// else it tells.
std::unique_ptr<packed_linear> broadcast(ranks& world, packed_linear const* mine, ordered_json& description,
                                         int from) {
  std::string text;
  if (world.rank() == from) {
    packed_parts const parts = mine->parts();
    description["format"] = json_of(mine->format());
    description["parts"] = {parts.out,           parts.in,           parts.codes.size(),
                            parts.scales.size(), parts.zeros.size(), parts.order.size()};
    text = description.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  }
  broadcast(world, text, from);
  std::vector<std::span<std::byte const>> pieces;
  if (world.rank() == from) {
    packed_parts const parts = mine->parts();
    for (auto const piece : {parts.codes, parts.scales, parts.zeros, std::as_bytes(parts.order)}) {
      // Each to memory of its own there; nothing is written to it here.
      broadcast(world, {const_cast<std::byte*>(piece.data()), piece.size()}, from);
    }
    return nullptr;
  }
  description = ordered_json::parse(text);
  struct memory {
    std::vector<std::byte> codes, scales, zeros;
    std::vector<std::int32_t> order;
  };
  auto const owner = std::make_shared<memory>();
  auto const sizes = description.at("parts").get<std::vector<std::size_t>>();
  owner->codes.resize(sizes[2]), owner->scales.resize(sizes[3]), owner->zeros.resize(sizes[4]);
  owner->order.resize(sizes[5]);
  broadcast(world, owner->codes, from), broadcast(world, owner->scales, from);
  broadcast(world, owner->zeros, from),
      broadcast(world, std::as_writable_bytes(std::span(owner->order)), from);
  auto const& f = description.at("format");
  gptq::format_spec const format{
      f.at("scheme").get<std::string>(), f.at("bits").get<int>(), f.at("group_size").get<int>(),
      f.at("scales") == "float16" ? gptq::scale_type::float16 : gptq::scale_type::float32};
  return make_packed(format,
                     {static_cast<gptq::index_t>(sizes[0]), static_cast<gptq::index_t>(sizes[1]),
                      owner->codes, owner->scales, owner->zeros, owner->order},
                     owner);
}

}  // namespace

solved_linear broadcast(ranks& world, solved_linear&& mine, int from) {
  if (world.size() == 1) return std::move(mine);
  ordered_json description;
  if (world.rank() == from) description["report"] = json_of(mine.report);
  auto packed = broadcast(world, mine.packed.get(), description, from);
  if (packed != nullptr) mine = {report_of(description.at("report")), std::move(packed)};
  return std::move(mine);
}

void broadcast_packed(ranks& world, model& m) {
  if (world.size() == 1) return;
  for (std::int64_t i = 0; i < m.config().num_hidden_layers; ++i) {
    for (std::size_t place = 0; place < m.config().layer(i).linears.size(); ++place) {
      ordered_json nothing_else;
      auto packed = broadcast(world, m.packed(i, place), nothing_else, 0);
      if (packed != nullptr) m.replace(i, place, std::move(packed));
    }
  }
}

}  // namespace lm
