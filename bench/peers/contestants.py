#!/usr/bin/env python3
"""Contestants of compare.py that are Python packages; contestant.hpp says what a contestant is.

    contestants.py ort|ort-fp32|torch <out> <in> <tokens> <threads> hot|cold

ort         ONNX Runtime, MatMulNBits with accuracy level 4: activations quantized to 8 bits; needs onnxruntime, onnx
ort-fp32    the same with accuracy level 1, float32 arithmetic
torch       PyTorch, _weight_int4pack_mm_for_cpu: bfloat16 activations, float32 sums; needs torch
All with symmetric 4-bit codes in groups of 128.
"""
import sys
import time

import numpy as np

GROUP = 128


def quantize(weights):
    """codes[out, groups, 128] in 0..15, zero 8, and float32 scales[out, groups]."""
    groups = weights.reshape(weights.shape[0], -1, GROUP)
    scales = np.abs(groups).max(axis=2) / 7
    codes = np.clip(np.rint(groups / scales[:, :, None]) + 8, 0, 15).astype(np.uint8)
    return codes, scales


def copies(size, cold):
    return (512 << 20) // size + 2 if cold else 1


def ort(codes, scales, x, threads, cold, accuracy_level):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    out, groups = scales.shape
    tokens, columns = x.shape
    packed = codes[:, :, 0::2] | codes[:, :, 1::2] << 4
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", K=columns, N=out,
                            bits=4, block_size=GROUP, accuracy_level=accuracy_level)
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [tokens, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [tokens, out])],
        [numpy_helper.from_array(packed, "codes"), numpy_helper.from_array(scales.ravel(), "scales")])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21),
                                                                   helper.make_opsetid("com.microsoft", 1)])
    serialized = model.SerializeToString()

    # One pool for the sessions of all matrices; it spins for a while after a call.
    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    y = onnxruntime.OrtValue.ortvalue_from_numpy(np.empty((tokens, out), np.float32))
    bound = []
    for _ in range(copies(packed.nbytes, cold)):
        session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
        binding.bind_ortvalue_output("y", y)
        bound.append((session._sess, binding._iobinding))  # what run_with_iobinding() calls, without its checks

    def call(index):
        session, binding = bound[index % len(bound)]
        session.run_with_iobinding(binding, None)

    kind = "int8" if accuracy_level == 4 else "float32"
    return f"onnxruntime {onnxruntime.__version__} {kind}", packed.nbytes + scales.nbytes, call, y.numpy


def torch_int4(codes, scales, x, threads, cold):
    import torch

    torch.set_num_threads(threads)
    out, groups = scales.shape
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        torch.from_numpy(codes.reshape(out, -1).astype(np.int32)), 1)
    parameters = torch.zeros(groups, out, 2, dtype=torch.bfloat16)  # scale, and what code 8 stands for: 0
    parameters[:, :, 0] = torch.from_numpy(scales.T.copy()).to(torch.bfloat16)
    size = packed.nbytes + parameters.nbytes
    matrices = [(packed.clone(), parameters.clone()) for _ in range(copies(size, cold))]
    inputs = torch.from_numpy(x).to(torch.bfloat16)
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    result = [None]

    def call(index):
        weights, grid = matrices[index % len(matrices)]
        result[0] = multiply(inputs, weights, GROUP, grid)

    return f"torch {torch.__version__} bfloat16", size, call, lambda: result[0].float().numpy()


def measure(call, first):
    """Median microseconds of calls for 0.15 s, at least three; how many there were."""
    times = []
    start = before = time.perf_counter()
    while len(times) < 3 or before - start < 0.15:
        call(first + len(times))
        after = time.perf_counter()
        times.append(after - before)
        before = after
    return 1e6 * sorted(times)[len(times) // 2], len(times)


def main():
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    kind = sys.argv[1]
    out, columns, tokens, threads = map(int, sys.argv[2:6])
    cold = sys.argv[6] == "cold"
    random = np.random.default_rng(1)
    weights = random.random((out, columns), np.float32) * 2 - 1
    x = random.random((tokens, columns), np.float32) * 2 - 1
    codes, scales = quantize(weights)
    if kind == "torch":
        name, size, call, result = torch_int4(codes, scales, x, threads, cold)
    else:
        name, size, call, result = ort(codes, scales, x, threads, cold, 4 if kind == "ort" else 1)
    call(0)
    expected = weights[:64] @ x[-1]
    error = np.linalg.norm(result()[-1, :64] - expected) / np.linalg.norm(expected)
    if not error < 0.17:
        sys.exit(f"wrong result: relative error {error}")
    print("ready", name, size, flush=True)
    index = 0
    for line in sys.stdin:
        if line.strip() == "run":
            microseconds, calls = measure(call, index)
            index += calls
            print(microseconds, flush=True)


if __name__ == "__main__":
    main()
