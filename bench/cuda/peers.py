#!/usr/bin/env python3
"""PyTorch's own 4-bit product, _weight_int4pack_mm (bfloat16, groups of 128), and Marlin's (float16), beside ours.

    git clone https://github.com/IST-DASLab/marlin
    python3 bench/cuda/peers.py --bench build/cuda/bench/bench_cuda_products --marlin marlin
        [--shape 4096x4096]... [--tokens 16]... [--json file]

All are measured as bench_cuda_products does: weights rotated through more than 512 MB, a CUDA graph, the median.
Needs PyTorch with CUDA, and nvcc for Marlin.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import tempfile

import torch

ROTATED = 600 << 20
GROUP = 128


def median_microseconds(launch, launches, repeats):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        launch(0)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(launches):
            launch(i)
    times = []
    for i in range(repeats + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(1e3 * start.elapsed_time(end) / launches)
    return statistics.median(times)


def int4pack(rows, columns, tokens):
    copies = ROTATED // (rows * columns // 2) + 1
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device="cuda")
    packed = [torch.ops.aten._convert_weight_to_int4pack(codes, 8) for _ in range(copies)]
    scales = torch.full((columns // GROUP, rows, 2), 0.01, dtype=torch.bfloat16, device="cuda")
    x = torch.randn(tokens, columns, dtype=torch.bfloat16, device="cuda")
    few = tokens > 16
    return median_microseconds(
        lambda i: torch.ops.aten._weight_int4pack_mm(x, packed[i % copies], GROUP, scales),
        copies if few else max(copies, 24),
        5 if few else 15,
    )


# The policy by which Marlin's copies of weights leave the cache first is an illegal instruction on Hopper; weights that
# are rotated are not in the cache anyway.
CACHE_HINT = {
    "createpolicy.fractional.L2::evict_first.b64 p, 1.0;": "",
    ".L2::cache_hint [%0], [%1], %2, p;": " [%0], [%1], %2;",
}
MARLIN = """
extern "C" int marlin_product(void const* x, void const* codes, void* y, void* scales, int tokens, int rows,
                              int columns, void* locks, void* stream) {{
  return marlin_cuda(x, codes, y, scales, tokens, rows, columns, locks, {group}, 0, static_cast<cudaStream_t>(stream));
}}
"""


class Marlin:
    """The kernel of a checkout of Marlin, compiled without its Python package."""

    # Partial sums of a row of blocks wait for one another at so many locks.
    MOST_PARALLEL = 16

    def __init__(self, checkout, directory):
        with open(os.path.join(checkout, "marlin", "marlin_cuda_kernel.cu")) as file:
            source = file.read()
        for with_hint, without in CACHE_HINT.items():
            source = source.replace(with_hint, without)
        unit, library = os.path.join(directory, "marlin.cu"), os.path.join(directory, "marlin.so")
        with open(unit, "w") as file:
            file.write(source + MARLIN.format(group=GROUP))
        major, minor = torch.cuda.get_device_capability()
        options = f"-arch sm_{major}{minor} -O3 -std=c++17 --expt-relaxed-constexpr -w -shared -Xcompiler -fPIC".split()
        subprocess.run(["nvcc", *options, "-o", library, unit], check=True)
        self.call = ctypes.CDLL(library).marlin_product
        self.call.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int] * 3 + [ctypes.c_void_p] * 2

    def product(self, x, codes, scales, y, locks):
        result = self.call(
            x.data_ptr(),
            codes.data_ptr(),
            y.data_ptr(),
            scales.data_ptr(),
            x.shape[0],
            y.shape[1],
            x.shape[1],
            locks.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
        if result != 0:
            raise RuntimeError(f"Marlin refuses {tuple(y.shape)} by {x.shape[1]}: {result}")

    def microseconds(self, rows, columns, tokens):
        """None for a shape that it does not take."""
        if rows % 256 != 0 or columns % 128 != 0:
            return None
        copies = ROTATED // (rows * columns // 2) + 1
        x = torch.randn(tokens, columns, dtype=torch.float16, device="cuda")
        y = torch.full((tokens, rows), float("nan"), dtype=torch.float16, device="cuda")
        scales = torch.full((columns // GROUP, rows), 2.0**-6, dtype=torch.float16, device="cuda")
        locks = torch.zeros(rows // 128 * self.MOST_PARALLEL, dtype=torch.int32, device="cuda")
        # Codes of 9 are weights of 1, in whatever order: each sum is that of x.
        codes = torch.full((columns // 16, rows * 2), -0x66666667, dtype=torch.int32, device="cuda")
        self.product(x, codes, scales, y, locks)
        expected = (x.float().sum(1, keepdim=True) * 2.0**-6).expand(-1, rows)
        torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())
        codes = [torch.randint(-(2**31), 2**31, codes.shape, dtype=torch.int32, device="cuda") for _ in range(copies)]
        few = tokens > 16
        return median_microseconds(
            lambda i: self.product(x, codes[i % copies], scales, y, locks),
            copies if few else max(copies, 24),
            5 if few else 15,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True, help="bench_cuda_products")
    parser.add_argument("--shape", action="append", help="out x in, as 4096x4096")
    parser.add_argument("--tokens", action="append", help="of a product")
    parser.add_argument("--marlin", help="a checkout of Marlin")
    parser.add_argument("--json", help="write the results here, too")
    arguments = parser.parse_args()

    options = [option for shape in arguments.shape or [] for option in ("--shape", shape)]
    options += [option for tokens in arguments.tokens or [] for option in ("--tokens", tokens)]
    with tempfile.TemporaryDirectory() as directory:
        ours = os.path.join(directory, "ours.json")
        subprocess.run([arguments.bench, "--all-columns", "--json", ours, *options], check=True, stdout=subprocess.DEVNULL)
        with open(ours) as file:
            results = json.load(file)
        marlin = Marlin(arguments.marlin, directory) if arguments.marlin else None

    print(f"{results['device']}; 4 bits, groups of 128; microseconds, and how many times as long as ours\n")
    print("|    out x in    | tokens | reading |   ours  |   cuBLAS, float16  |  PyTorch int4pack  |       Marlin       |")
    print("|----------------|--------|---------|---------|--------------------|--------------------|--------------------|")
    for row in results["results"]:
        if row["tokens"] > 128:
            continue
        row["int4pack"] = int4pack(row["out"], row["in"], row["tokens"])
        row["marlin"] = marlin and marlin.microseconds(row["out"], row["in"], row["tokens"])
        peers = [
            "-" if row[peer] is None else f"{row[peer]:10.2f} ({row[peer] / row['ours']:.2f})"
            for peer in ("cublas", "int4pack", "marlin")
        ]
        print(
            f"| {row['out']:6d} x {row['in']:5d} | {row['tokens']:6d} | {row['reading']:7.2f} | {row['ours']:7.2f} |"
            + "".join(f" {peer:>18s} |" for peer in peers),
            flush=True,
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
