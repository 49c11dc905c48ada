#!/usr/bin/env python3
"""What others make of the layers that we write.

  tests/interop/layers.py --build build

Installs compressed-tensors, autoawq, gguf, onnx and onnxruntime (and torch, unless it is there) from the package
registry into a virtual environment under --work, has write_layers write random layers in every format, and compares
every weight with what the format's own package decodes: compressed-tensors' decompressor in the scales' type and in
float32, AutoAWQ's dequantize_gemm, gguf's dequantize (bit for bit), and the rows of the matrix that ONNX Runtime's
MatMulNBits multiplies by when its input is the identity. --build takes a build directory with the target write_layers.
The exit status is 1 when one of these does not hold.
"""
import argparse
import importlib.util
import json
import pathlib
import sys
import types

from common import check, enter_environment, finish, run

PACKAGES = ["numpy", "torch", "safetensors==0.8.0", "transformers==5.24.0", "compressed-tensors==0.20.0", "gguf==0.19.0",
            "onnx==1.23.2", "onnxruntime==1.32.0", "psutil"]
AWQ = ["--no-deps", "--no-build-isolation", "autoawq==0.2.9"]  # what else it asks for, its packing does not use

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--build", type=pathlib.Path, required=True)
PARSER.add_argument("--work", type=pathlib.Path, default=pathlib.Path("build/interop"))
ARGUMENTS = PARSER.parse_args()
enter_environment(ARGUMENTS.work / "layers_environment", PACKAGES, AWQ, system_site_packages=True)

import gguf  # noqa: E402
import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from safetensors import safe_open  # noqa: E402


def import_dequantize_gemm():
    """AutoAWQ's, without the __init__ of packages that want models of another transformers."""
    folder = pathlib.Path(importlib.util.find_spec("awq").origin).parent
    package = types.ModuleType("awq")
    package.__path__ = [str(folder)]
    sys.modules["awq"] = package
    from awq.utils.packing_utils import dequantize_gemm
    return dequantize_gemm


def compare(name, ours, theirs):
    check(ours.shape == theirs.shape and torch.equal(ours, theirs), f"{name}: weights differ")


def check_compressed(name, what, t):
    in_groups = what["group_size"] > 0
    weights = QuantizationArgs(num_bits=what["bits"], symmetric=what["symmetric"],
                               strategy="group" if in_groups else "channel",
                               group_size=what["group_size"] if in_groups else None)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    state = {key: value for key, value in t.items() if key != "weight"}
    decoded = PackedQuantizationCompressor.decompress(dict(state), scheme)["weight"]
    compare(name, t["weight"].to(decoded.dtype), decoded)
    wide = dict(state, weight_scale=state["weight_scale"].float())
    compare(name + " in float32", t["weight"], PackedQuantizationCompressor.decompress(wide, scheme)["weight"])
    # And its own packing of these codes is ours.
    packed = PackedQuantizationCompressor.compress({"weight": t["weight"], "weight_scale": wide["weight_scale"],
                                                    **zero_point(state, scheme)}, scheme)
    for key in ("weight_packed", "weight_zero_point"):
        if key in state:
            check(torch.equal(packed[key], state[key]), f"{name}: {key} differs from the package's own")


def zero_point(state, scheme):
    if "weight_zero_point" not in state:
        return {}
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    rows = int(state["weight_shape"][0])
    shape = torch.Size([rows, state["weight_scale"].shape[1]])
    return {"weight_zero_point": unpack_from_int32(state["weight_zero_point"], scheme.weights.num_bits, shape, 0)}


def check_awq(name, what, t, dequantize):
    wide = dequantize(t["qweight"], t["qzeros"], t["scales"], 4, what["group_size"]).t()
    compare(name, t["weight"].to(wide.dtype), wide)


def check_ggml(name, what, t):
    decoded = gguf.quants.dequantize(t["blocks"].numpy(), gguf.GGMLQuantizationType(what["type"]))
    check(np.array_equal(decoded.astype(np.float32).reshape(t["weight"].shape), t["weight"].numpy()),
          f"{name}: weights differ")


def check_onnx(name, what, t):
    out, columns = t["weight"].shape
    is_half = t["scales"].dtype == torch.float16
    element = TensorProto.FLOAT16 if is_half else TensorProto.FLOAT
    inputs = ["A"] + [key if key in t else "" for key in ("B", "scales", "zero_points", "g_idx")]
    while inputs[-1] == "":
        inputs.pop()
    node = helper.make_node("MatMulNBits", inputs, ["Y"], domain="com.microsoft", K=columns, N=out, bits=what["bits"],
                            block_size=what["block_size"], accuracy_level=1)
    given = [numpy_helper.from_array(t[key].numpy(), key) for key in inputs[1:] if key]
    graph = helper.make_graph([node], "layer", [helper.make_tensor_value_info("A", element, [columns, columns])],
                              [helper.make_tensor_value_info("Y", element, [columns, out])], given)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21),
                                                    helper.make_opsetid("com.microsoft", 1)])
    model.ir_version = 10
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    identity = np.eye(columns, dtype=np.float16 if is_half else np.float32)
    y = torch.from_numpy(session.run(None, {"A": identity})[0]).t()
    # In float16 the sum of scale code and -scale zero is rounded, as it is in the operator's own kernels.
    if is_half:
        check(float((t["weight"] - y.float()).abs().max()) <= 2**-7, f"{name}: weights differ")
    else:
        compare(name, t["weight"], y)


def main():
    ARGUMENTS.work.mkdir(parents=True, exist_ok=True)
    file = ARGUMENTS.work / "layers.safetensors"
    run(ARGUMENTS.build / "tests/write_layers", file)
    dequantize = import_dequantize_gemm()
    counts = {}
    with safe_open(file, "pt") as layers:
        tensors = {key: layers.get_tensor(key) for key in layers.keys()}
        cases = {name: json.loads(text) for name, text in layers.metadata().items()}
    for name, what in sorted(cases.items()):
        t = {key.split("/", 1)[1]: value for key, value in tensors.items() if key.split("/", 1)[0] == name}
        kind = what["kind"]
        counts[kind] = counts.get(kind, 0) + 1
        if kind == "compressed":
            check_compressed(name, what, t)
        elif kind == "awq":
            check_awq(name, what, t, dequantize)
        elif kind == "ggml":
            check_ggml(name, what, t)
        else:
            check_onnx(name, what, t)
    print(", ".join(f"{kind}: {count} layers" for kind, count in counts.items()))
    finish()


if __name__ == "__main__":
    main()
