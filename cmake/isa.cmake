# The one table of compiler flags: what a translation unit needs for the kernels of an architecture
# (include/gptq/isa.hpp).

# gptq_isa_flags(<isa> <out-var>): its flags, a list; empty where every compiler for that CPU has it anyway.
function(gptq_isa_flags isa out)
  set(generic "")
  set(avx2 -mavx2 -mfma -mf16c)
  set(avxvnni ${avx2} -mavxvnni)
  set(avx512bw ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  set(avx512vnni ${avx512bw} -mavx512vnni)
  set(amx_int8 ${avx512vnni} -mamx-tile -mamx-int8)
  set(neon "")
  set(neon_dotprod -march=armv8.2-a+dotprod)
  if(NOT isa MATCHES "^(generic|avx2|avxvnni|avx512bw|avx512vnni|amx_int8|neon|neon_dotprod)$")
    message(FATAL_ERROR "gptq_isa_flags: no architecture is called ${isa}")
  endif()
  set(${out} ${${isa}} PARENT_SCOPE)
endfunction()

# gptq_isa_compiles(<isa> <out-var>): whether this compiler, for the CPU it compiles for, takes the flags and
# has the architecture with them.
function(gptq_isa_compiles isa out)
  gptq_isa_flags(${isa} flags)
  set(CMAKE_REQUIRED_FLAGS)
  set(CMAKE_REQUIRED_DEFINITIONS ${flags})
  set(CMAKE_CXX_STANDARD 20)
  # Of a target that may be installed or of this project.
  get_target_property(CMAKE_REQUIRED_INCLUDES gptq::kernels INTERFACE_INCLUDE_DIRECTORIES)
  string(REGEX REPLACE "\\$<BUILD_INTERFACE:([^>]*)>" "\\1" CMAKE_REQUIRED_INCLUDES "${CMAKE_REQUIRED_INCLUDES}")
  string(GENEX_STRIP "${CMAKE_REQUIRED_INCLUDES}" CMAKE_REQUIRED_INCLUDES)
  set(CMAKE_REQUIRED_QUIET TRUE)
  include(CheckCXXSourceCompiles)
  check_cxx_source_compiles("
    #include <gptq/isa/all.hpp>
    #include <type_traits>
    template <class Isa, class... Isas>
    constexpr bool among(gptq::isa::list<Isas...>) { return (std::is_same_v<Isa, Isas> || ...); }
    static_assert(among<gptq::isa::${isa}>(gptq::isa::compiled{}));
    static_assert(sizeof(gptq::detail::operations<gptq::isa::${isa}>) > 0);
    int main() {}" gptq_isa_${isa}_compiles)
  set(${out} ${gptq_isa_${isa}_compiles} PARENT_SCOPE)
endfunction()
