// Everything but CUDA and checkpoints.
#pragma once

#include <gptq/error.hpp>
#include <gptq/float16.hpp>
#include <gptq/format.hpp>
#include <gptq/grid.hpp>
#include <gptq/hessian.hpp>
#include <gptq/input_error.hpp>
#include <gptq/layer.hpp>
#include <gptq/observer.hpp>
#include <gptq/packed.hpp>
#include <gptq/quantize.hpp>
#include <gptq/reference.hpp>
#include <gptq/scheme.hpp>
