#!/usr/bin/env python3
"""The published GPTQ algorithm, written plainly in PyTorch, on the GPU, beside bench_cuda_quantize: one run, one card.

    python3 bench/peers/cuda_quantize.py --bench build/cuda/bench/bench_cuda_quantize

Needs PyTorch with CUDA. PyTorch's times are medians of three calls after a short one; matrix products in float32.
"""
import argparse
import json
import statistics
import subprocess
import tempfile
import time

import torch

from quantize import gptq


def theirs(out, columns, rounds):
    torch.manual_seed(1)
    weight = torch.rand(out, columns, device="cuda") * 2 - 1
    hessian = torch.zeros(columns, columns, device="cuda")
    for _ in range(0, columns * 3 // 2, 8192):
        x = (torch.rand(8192, columns, device="cuda") * 2 - 1) / torch.sqrt(1.0 + torch.arange(columns, device="cuda") % 97)
        hessian += x.T @ x
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        gptq(weight, hessian)
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bench", required=True, help="the bench_cuda_quantize program")
    options.add_argument("--json", help="write the results there")
    options = options.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([options.bench, "--json", file.name], check=True)
        ours = json.load(file)
    theirs(256, 256, 1)
    print(f"\n{torch.cuda.get_device_name()}, PyTorch {torch.__version__}\n   out x in      PyTorch ms   gptq ms     ratio")
    for result in ours["results"]:
        if result["case"] != "quantize":
            continue
        out, columns = result["out"], result["in"]
        result["ms_pytorch"] = theirs(out, columns, 3 if columns < 20000 else 1)
        print(f"{out:6} x {columns:6}  {result['ms_pytorch']:10.0f} {result['ms_float32']:10.2f} "
              f"{result['ms_pytorch'] / result['ms_float32']:8.0f}", flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(ours, file, indent=1)


if __name__ == "__main__":
    main()
