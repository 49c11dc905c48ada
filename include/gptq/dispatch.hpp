// Choosing kernels at run time: one program for every CPU of its kind, with kernels for several.
//
// kernels.hpp declares a table of functions, whatever the program needs, and that there is one for each ISA:
//
//   struct kernels {
//     void (*gemv)(gptq::packed_view<q4> const& w, float const* x, float* y) noexcept;
//   };
//   template <class Isa>
//   kernels kernels_for();
//
// kernels.cpp is compiled once for each ISA, with its flags, by gptq_dispatch(engine SOURCES kernels.cpp) in
// CMakeLists.txt (cmake/dispatch.cmake), and fills the table of the one that it is compiled for:
//
//   template <> kernels kernels_for<gptq::isa::native>() {
//     return {.gemv = gptq::gemv};
//   }
//
// main.cpp takes the best table that its CPU can run, once, at the start:
//
//   auto const table = []<class Isa>() { return kernels_for<Isa>(); };
//   kernels const run = gptq::dispatch(gptq::isa::dispatched{}, table);
//   run.gemv(w, x, y);
//
// A danger: where several object files have the same inline function or template, the linker keeps one copy for
// all of them. If that is the copy compiled for AVX-512, say, a CPU without it stops at an illegal instruction.
// This library's kernels have names of their own for each ISA. In a file of yours that is compiled for several,
// use static functions or those of an unnamed namespace, and no templates of the standard library.
// examples/04_runtime_dispatch is a whole program.
//
// isa::dispatched is the list of ISAs that the target `engine` has kernels for. All that link the target see it: the
// kernels may be in a library, and dispatch() be called in the program. With several such libraries, whose lists
// differ, #include <gptq_dispatch/engine.hpp> and take gptq::isa::dispatched_by::engine, the list of that one. Without
// gptq_dispatch() the list is isa::native alone, and the same sources make an ordinary program; compilers for x86-64
// warn where it is isa::generic.
//
// Without CMake: compile kernels.cpp once for each ISA, with -DGPTQ_ISA=avx2, say, and the compiler's flags for it
// (cmake/isa.cmake has a table); and what includes this header with the list of them, best first:
// -DGPTQ_DISPATCH_ISAS=avx512vnni,avx2,generic.
#pragma once

#include <optional>
#include <string_view>
#include <type_traits>

#include <gptq/isa.hpp>
#include <gptq/isa/dispatched.hpp>

#if defined(__cpp_exceptions)
#include <string>

#include <gptq/error.hpp>
#endif

namespace gptq {

/// Calls `f.template operator()<Isa>()` with the first ISA of the list that this CPU can run, and returns its
/// result in a std::optional, empty if it can run none of them. isa::generic runs everywhere. f has to return the
/// same type for every ISA. Needs no exceptions.
template <class... Isas, class F>
auto try_dispatch(isa::list<Isas...> /*isas*/, F&& f) {
  using result = std::common_type_t<decltype(f.template operator()<Isas>())...>;
  std::optional<result> found;
  ((!found && Isas::supported() ? (void)found.emplace(f.template operator()<Isas>()) : (void)0), ...);
  return found;
}

/// The name of the first ISA of isa::all that this CPU can run: what to compare with the one that was taken, or to
/// tell a user.
inline std::string_view best_isa() {
  return *try_dispatch(isa::all{}, []<class Isa>() { return Isa::name; });
}

#if defined(__cpp_exceptions)

/// Calls `f.template operator()<Isa>()` with the first ISA of the list that this CPU can run and returns its
/// result, of the same type for every ISA. Throws gptq::error when it can run none of them; isa::generic runs
/// everywhere.
template <class... Isas, class F>
decltype(auto) dispatch(isa::list<Isas...> isas, F&& f);

/// The same with the ISA called `name`: for tests, and for those who know better. Throws gptq::error when it is not
/// in the list, or this CPU cannot run it.
template <class... Isas, class F>
decltype(auto) dispatch(isa::list<Isas...> isas, std::string_view name, F&& f);

// ---- implementation -------------------------------------------------------------------------------------

namespace detail {

template <class... Isas>
std::string isa_names(isa::list<Isas...>) {
  std::string all;
  ((all += all.empty() ? "" : ", ", all += Isas::name), ...);
  return all;
}

template <class All, class F, class First, class... Rest>
decltype(auto) dispatch_supported(F& f, isa::list<First, Rest...>) {
  if (First::supported()) return f.template operator()<First>();
  if constexpr (sizeof...(Rest) == 0) {
    throw error("this CPU can run none of the kernels in this program: " + isa_names(All{}));
  } else {
    return dispatch_supported<All>(f, isa::list<Rest...>{});
  }
}

template <class All, class F, class First, class... Rest>
decltype(auto) dispatch_named(std::string_view name, F& f, isa::list<First, Rest...>) {
  if (name == First::name) {
    if (!First::supported()) throw error("this CPU cannot run kernels for " + std::string(name));
    return f.template operator()<First>();
  }
  if constexpr (sizeof...(Rest) == 0) {
    throw error("no kernels for '" + std::string(name) + "' in this program, only for " + isa_names(All{}));
  } else {
    return dispatch_named<All>(name, f, isa::list<Rest...>{});
  }
}

}  // namespace detail

template <class... Isas, class F>
decltype(auto) dispatch(isa::list<Isas...> isas, F&& f) {
  return detail::dispatch_supported<isa::list<Isas...>>(f, isas);
}

template <class... Isas, class F>
decltype(auto) dispatch(isa::list<Isas...> isas, std::string_view name, F&& f) {
  return detail::dispatch_named<isa::list<Isas...>>(name, f, isas);
}

#endif

}  // namespace gptq
