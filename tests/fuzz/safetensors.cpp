// Whatever a safetensors file holds, it is refused with a gptq::error, or it is what the format says, and all
// of it can be read.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>

#include <gptq/checkpoint/safetensors.hpp>

#include "attempt.hpp"

namespace {

using namespace gptq::checkpoint;
using fuzz::require;

constexpr std::size_t length_bytes = 8;

std::size_t header_bytes(std::uint8_t const* data, std::size_t size) {
  std::uint64_t bytes = 0;
  std::memcpy(&bytes, data, length_bytes);
  return static_cast<std::size_t>(std::min<std::uint64_t>(bytes, size - length_bytes));
}

void check(safetensors_file const& file, std::span<std::byte const> contents) {
  auto const data = contents.subspan(
      length_bytes + header_bytes(reinterpret_cast<std::uint8_t const*>(contents.data()), contents.size()));
  std::size_t covered = 0;
  for (auto const& [name, tensor] : file.tensors()) {
    require(file.find(name) == &tensor);
    require(tensor.bytes.data() >= data.data() &&
            tensor.bytes.data() + tensor.bytes.size() <= data.data() + data.size());
    covered += tensor.bytes.size();
    std::size_t elements = 1;
    for (std::size_t const extent : tensor.shape) elements *= extent;  // 0, or as many as fit into memory
    if (tensor.type == dtype::unknown) {
      require(!fuzz::attempt([&] { to_float(tensor); }));
    } else {
      require(elements * element_bytes(tensor.type) == tensor.bytes.size());
    }
    require(!to_string(tensor).empty());
    if (is_float(tensor.type)) require(to_float(tensor).size() == elements);
  }
  require(covered == data.size());
}

/// The largest end of a tensor that a header names, found without parsing it.
std::size_t data_bytes(std::string_view header) {
  constexpr std::string_view key = "\"data_offsets\":[";
  std::size_t most = 0;
  for (std::size_t at = header.find(key); at != header.npos; at = header.find(key, at + key.size())) {
    std::size_t const comma = header.find(',', at + key.size());
    if (comma == header.npos) break;
    std::size_t end = 0;
    for (char const digit : header.substr(comma + 1, 5)) {
      if (digit < '0' || digit > '9') break;
      end = 10 * end + static_cast<std::size_t>(digit - '0');
    }
    most = std::max(most, end);
  }
  return most;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  auto const contents = std::as_bytes(std::span(data, size));
  std::optional<safetensors_file> file;
  if (fuzz::attempt([&] { file.emplace(contents, "fuzzed"); })) check(*file, contents);
  return 0;
}

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

/// Most often the header alone is changed, and what depends on its length and offsets with it: else few files
/// get beyond the first checks.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
  if (seed % 8 == 0 || size < length_bytes || max_size < 2 * length_bytes) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  std::size_t const room = max_size - length_bytes;
  std::uint64_t const header = LLVMFuzzerMutate(data + length_bytes, header_bytes(data, size), room);
  std::memcpy(data, &header, length_bytes);
  std::size_t const wanted = data_bytes({reinterpret_cast<char const*>(data + length_bytes), header});
  std::size_t const start = length_bytes + static_cast<std::size_t>(header);
  if (wanted > max_size - start) return start;
  std::memset(data + start, static_cast<int>(seed >> 3 & 255U), wanted);
  return start + wanted;
}
