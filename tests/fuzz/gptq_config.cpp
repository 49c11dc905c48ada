// Whatever a GPTQ configuration says, it is refused with a gptq::error, or it says the same when it is written and
// read again, of every layer.
//
// An input is a line with the name of a layer, and JSON.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include <gptq/checkpoint/gptq_config.hpp>

#include "attempt.hpp"

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  using namespace gptq::checkpoint;
  std::string const text(reinterpret_cast<char const*>(data), size);
  std::size_t const line = text.find('\n');
  if (line == text.npos) return 0;
  std::string const layer = text.substr(0, line);
  auto const json = nlohmann::ordered_json::parse(text.substr(line + 1), nullptr, false);
  if (json.is_discarded()) return 0;
  std::optional<gptq_config> config;
  if (!fuzz::attempt([&] { config = parse_gptq_config(json, "fuzzed"); })) return 0;
  auto const expected = layer_config(*config, layer);
  auto const again = parse_gptq_config(nlohmann::ordered_json::parse(to_json(*config).dump()), "written");
  fuzz::require(again.layers == config->layers && again.version == config->version);
  fuzz::require(layer_config(again, layer) == expected);
  return 0;
}
