// The version of this library. CMakeLists.txt reads it here, and so do the installed package and pkg-config.
//
//   static_assert(GPTQ_VERSION >= 200);    // 10000 * major + 100 * minor + patch: at least 0.2.0
//
// Versions are semantic (semver.org): names in public headers change with the minor version while the major one is
// 0, and with the major one after that. CHANGELOG.md says which. The bytes of packed matrices never change; another
// layout would get another name.
#pragma once

/// The parts of the version.
/// @{
#define GPTQ_VERSION_MAJOR 0
#define GPTQ_VERSION_MINOR 2
#define GPTQ_VERSION_PATCH 0
/// @}

/// 10000 * major + 100 * minor + patch
#define GPTQ_VERSION (10000 * GPTQ_VERSION_MAJOR + 100 * GPTQ_VERSION_MINOR + GPTQ_VERSION_PATCH)
