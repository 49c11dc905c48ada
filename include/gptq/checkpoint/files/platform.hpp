// Files as the system at hand has them.
#pragma once

#if defined(_WIN32)
#include <gptq/checkpoint/files/windows.hpp>
#else
#include <gptq/checkpoint/files/mapping.hpp>
#include <gptq/checkpoint/files/new_file.hpp>
#include <gptq/checkpoint/files/system_calls.hpp>
#endif
