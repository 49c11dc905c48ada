#!/usr/bin/env python3
"""PyTorch's own 4-bit product, _weight_int4pack_mm (bfloat16, groups of 128), beside ours.

    python3 bench/cuda/peers.py --bench build/cuda/bench/bench_cuda_products [--shape 4096x4096]... [--json file]

Both are measured as bench_cuda_products does: weights rotated through more than 512 MB, a CUDA graph, the median.
Needs PyTorch with CUDA.
"""

import argparse
import json
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True, help="bench_cuda_products")
    parser.add_argument("--shape", action="append", help="out x in, as 4096x4096")
    parser.add_argument("--json", help="write the results here, too")
    arguments = parser.parse_args()

    with tempfile.NamedTemporaryFile(suffix=".json") as ours:
        shapes = [option for shape in arguments.shape or [] for option in ("--shape", shape)]
        subprocess.run([arguments.bench, "--json", ours.name, *shapes], check=True, stdout=subprocess.DEVNULL)
        results = json.load(ours)

    print(f"{results['device']}; 4 bits, groups of 128; microseconds\n")
    print("|    out x in    | tokens | reading |   ours | PyTorch int4pack | int4pack / ours |")
    print("|----------------|--------|---------|--------|------------------|-----------------|")
    for row in results["results"]:
        if row["tokens"] > 128:
            continue
        row["int4pack"] = int4pack(row["out"], row["in"], row["tokens"])
        print(
            f"| {row['out']:6d} x {row['in']:5d} | {row['tokens']:6d} | {row['reading']:7.2f} | {row['ours']:6.2f} |"
            f" {row['int4pack']:16.1f} | {row['int4pack'] / row['ours']:15.2f} |",
            flush=True,
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
