// Whatever a GGUF file holds, reading all of it ends in values or in a gptq::error, and within the file.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gptq/checkpoint/gguf.hpp>

#include "attempt.hpp"

namespace {

using namespace gptq::checkpoint;
using fuzz::attempt;
using fuzz::require;

void require_within(std::span<std::byte const> part, std::span<std::byte const> whole) {
  require(part.data() >= whole.data() && part.data() + part.size() <= whole.data() + whole.size());
}

template <class Format>
void pack(ggml_tensor const& tensor) {
  gptq::packed_matrix<Format> packed;
  if (attempt([&] { packed = to_packed<Format>(tensor); })) gptq::check(packed.view());
}

/// As what it is: errors about wrong types are cheap to test and slow to throw.
template <class Element>
void read_as(gguf_file const& file, std::string const& key, bool array) {
  if (array) {
    auto const elements = file.at<std::vector<Element>>(key);
    require(elements.size() == file.metadata().find(key)->second.count);
  } else {
    file.at<Element>(key);
  }
}

bool type_is_unknown(ggml_type type) {
  return !attempt([&] { type_name(type); });
}

void read_everything(gguf_file const& file, std::span<std::byte const> contents) {
  for (auto const& [name, value] : file.metadata()) {
    require_within(value.bytes, contents);
    bool const array = value.count.has_value();
    if (value.type == gguf_type::string) {
      read_as<std::string_view>(file, name, array);
    } else if (value.type != gguf_type::boolean) {
      read_as<double>(file, name, array);
    } else if (!array) {
      file.get<bool>(name);
    }
    if (value.type == gguf_type::i32 || value.type == gguf_type::u64) {
      std::string const& key = name;
      attempt([&] { read_as<std::int64_t>(file, key, array); });
    }
    to_string(value);
  }
  for (auto const& [name, described] : file.tensors()) {
    ggml_tensor const& tensor = described;
    require(file.find_tensor(name) == &tensor);
    require_within(tensor.bytes, contents);
    if (type_is_unknown(tensor.type)) {
      require(tensor.bytes.empty() && !is_decodable(tensor.type) && !to_string(tensor).empty());
      require(!attempt([&] { to_float(tensor); }));
      continue;
    }
    // An extent may be as large as it likes beside one of 0.
    std::size_t const elements =
        std::accumulate(tensor.shape.begin(), tensor.shape.end(), std::size_t{1}, std::multiplies<>());
    require(tensor.bytes.size() == elements / block_size(tensor.type) * block_bytes(tensor.type));
    bool const is_read = attempt([&] { require(to_float(tensor).size() == elements); });
    require(is_read == is_decodable(tensor.type));
    pack<gptq::format<gptq::fixed_zero, 4, 32>>(tensor);
    pack<gptq::format<gptq::asymmetric, 4, 32>>(tensor);
    pack<gptq::format<gptq::fixed_zero, 8, 32>>(tensor);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  auto const contents = std::as_bytes(std::span(data, size));
  std::optional<gguf_file> file;
  if (attempt([&] { file.emplace(contents, "fuzzed"); })) read_everything(*file, contents);
  return 0;
}
