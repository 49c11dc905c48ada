// Whatever a GGUF file holds, reading all of it ends in values or in a gptq::error.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gptq/checkpoint/gguf.hpp>

namespace {

using namespace gptq::checkpoint;

template <class Action>
void attempt(Action&& action) {
  try {
    action();
  } catch (gptq::error const&) {
  }
}

/// As what it is: errors about wrong types are cheap to test and slow to throw.
template <class Element>
void read_as(gguf_file const& file, std::string const& key, bool array) {
  if (array) {
    file.get<std::vector<Element>>(key);
  } else {
    file.get<Element>(key);
  }
}

void read_everything(gguf_file const& file) {
  for (auto const& [name, value] : file.metadata()) {
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
    attempt([&] { to_float(tensor); });
    attempt([&] { to_packed<gptq::format<gptq::fixed_zero, 4, 32>>(tensor); });
    attempt([&] { to_packed<gptq::format<gptq::asymmetric, 4, 32>>(tensor); });
    attempt([&] { to_packed<gptq::format<gptq::fixed_zero, 8, 32>>(tensor); });
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  attempt([&] { read_everything(gguf_file(std::as_bytes(std::span(data, size)), "fuzzed")); });
  return 0;
}
