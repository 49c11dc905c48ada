"""GPTQ weight quantization and packed low-bit matrix products: the C++ library, numpy in and numpy out.

    layer = gptq.quantize(weight, x)            # weight[out, in], x[tokens, in]: float32
    packed = gptq.pack(layer)
    y = gptq.gemv(packed, x[0])
"""
from ._gptq import (Error, Layer, Packed, dequantize, from_gptq, gemm, gemv, isa, pack, quantize, read_safetensors,
                    round_to_nearest, to_gptq, write_safetensors)

__all__ = ["Error", "Layer", "Packed", "dequantize", "from_gptq", "gemm", "gemv", "isa", "pack", "quantize",
           "read_safetensors", "round_to_nearest", "to_gptq", "write_safetensors"]
