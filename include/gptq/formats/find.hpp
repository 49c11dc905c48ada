// The search of with_format() (format_spec.hpp) for a format with given values, and the error when there is none.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gptq/error.hpp>
#include <gptq/format.hpp>

namespace gptq::detail {

/// @tparam Spec  format_spec
template <class Spec, class... Formats>
[[noreturn]] void throw_not_compiled_in(Spec const& spec, format_list<Formats...>) {
  std::vector<std::string> names, widths, groups, scales;
  auto const note = [](std::vector<std::string>& seen, std::string value) {
    if (std::find(seen.begin(), seen.end(), value) == seen.end()) seen.push_back(std::move(value));
  };
  (
      [&] {
        note(names, std::string(std::string_view(Formats::scheme::name)));
        note(widths, std::to_string(Formats::bits));
        note(groups, std::to_string(Formats::group_size));
        note(scales, std::string(to_string(Formats::scales)));
      }(),
      ...);
  auto const join = [](std::vector<std::string> const& values) {
    std::string all;
    for (auto const& value : values) all += (all.empty() ? "" : ", ") + value;
    return all;
  };
  throw error("format (" + to_string(spec) + ") is not compiled into this program; it has schemes " +
              join(names) + "; bits " + join(widths) + "; group sizes " + join(groups) + "; scales " +
              join(scales) +
              (sizeof...(Formats) < names.size() * widths.size() * groups.size() * scales.size()
                   ? " (not in every combination)"
                   : ""));
}

/// Calls f.operator()<Format>() with the first format of the list that has the values of `spec`.
/// @tparam All   the whole list, for the error when there is none
/// @tparam Spec  format_spec
template <class All, class Spec, class F, class First, class... Rest>
decltype(auto) find_format(Spec const& spec, F& f, format_list<First, Rest...>) {
  if (std::string_view(First::scheme::name) == spec.scheme && First::bits == spec.bits &&
      First::group_size == spec.group_size && First::scales == spec.scales) {
    return f.template operator()<First>();
  }
  if constexpr (sizeof...(Rest) == 0) {
    throw_not_compiled_in(spec, All{});
  } else {
    return find_format<All>(spec, f, format_list<Rest...>{});
  }
}

}  // namespace gptq::detail
