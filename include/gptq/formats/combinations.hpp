// Lists of formats: joined, and as the product of schemes, widths, group sizes and scale types.
#pragma once

#include <gptq/format.hpp>

namespace gptq::detail {

template <class... Lists>
struct concatenation {
  using type = format_list<>;
};
template <class... Formats>
struct concatenation<format_list<Formats...>> {
  using type = format_list<Formats...>;
};
template <class... A, class... B, class... Lists>
struct concatenation<format_list<A...>, format_list<B...>, Lists...>
    : concatenation<format_list<A..., B...>, Lists...> {};

template <class Schemes, class Widths, class Groups, class Scales>
struct cross_product;
template <class... S, int... B, int... G, class... T>
struct cross_product<schemes<S...>, bit_widths<B...>, group_sizes<G...>, scale_types<T...>> {
  template <class Scheme, int Bits, int GroupSize>
  using over_scales = format_list<format<Scheme, Bits, GroupSize, T>...>;
  template <class Scheme, int Bits>
  using over_groups = typename concatenation<over_scales<Scheme, Bits, G>...>::type;
  template <class Scheme>
  using over_widths = typename concatenation<over_groups<Scheme, B>...>::type;
  using type = typename concatenation<over_widths<S>...>::type;
};

}  // namespace gptq::detail
