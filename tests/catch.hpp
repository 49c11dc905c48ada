// Catch2, version 2 or 3: the one that CMake has found, as a machine may have headers of both.
#pragma once

#if GPTQ_CATCH2_MAJOR >= 3
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
#endif
