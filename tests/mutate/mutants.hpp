// What mutate.py plants: every mutant of a file is compiled into it at once, and GPTQ_MUTANT chooses one at run time.
#pragma once

#include <type_traits>

/// The mutant that is on; none is 0.
extern "C" int gptq_mutant_on;
/// For each mutant whether its place was come by. Shared by all processes of a test.
extern "C" unsigned char* gptq_mutants_reached;

namespace gptq_mutants {

/// Off in constant expressions, where mutants take a build of their own.
[[gnu::always_inline]] constexpr bool on(int number) noexcept {
  if (std::is_constant_evaluated()) return false;
  gptq_mutants_reached[number] = 1;
  return gptq_mutant_on == number;
}

}  // namespace gptq_mutants
