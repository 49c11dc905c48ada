#!/usr/bin/env python3
"""The published GPTQ algorithm, written plainly in PyTorch, beside bench_quantize: same shapes, same cores, one run.

    python3 bench/peers/quantize.py --bench build/release/bench/bench_quantize [--size 4096] [--rounds 3]

Needs PyTorch (pip install torch). Rounds alternate between the two, so that a neighbour on a shared machine slows
both; the table shows medians.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

try:
    import torch
except ImportError:
    sys.exit("quantize.py: PyTorch is missing; install it with: pip install torch")


def gptq(weight, hessian, bits=4, group_size=128, damping=0.01, block=128):
    """Symmetric-range codes with act-order, as IST-DASLab/gptq computes them: inverse, Cholesky, column loop."""
    w, h = weight.clone(), hessian.clone()
    columns, top = w.shape[1], 2**bits - 1
    order = torch.argsort(torch.diag(h), descending=True)
    w, h = w[:, order], h[order][:, order]
    h.diagonal().add_(damping * torch.mean(torch.diag(h)))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    quantized = torch.zeros_like(w)
    loss = torch.zeros((), device=w.device)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        now, errors = w[:, start:end].clone(), torch.zeros_like(w[:, start:end])
        factor = upper[start:end, start:end]
        for i in range(end - start):
            column, pivot = now[:, i], factor[i, i]
            if (start + i) % group_size == 0:
                group = w[:, start + i : start + i + group_size]
                scale = (2 * group.abs().amax(1) / top).unsqueeze(1)
            codes = torch.clamp(torch.round(column.unsqueeze(1) / scale) + 2 ** (bits - 1), 0, top)
            decoded = (scale * (codes - 2 ** (bits - 1))).flatten()
            quantized[:, start + i] = decoded
            error = (column - decoded) / pivot
            loss += (error**2).sum() / 2
            now[:, i:] -= error.unsqueeze(1) * factor[i, i:].unsqueeze(0)
            errors[:, i] = error
        w[:, end:] -= errors @ upper[start:end, end:]
    return quantized[:, torch.argsort(order)], loss.item()


def ours(bench, size):
    """Milliseconds, share of SGEMM and its rate from one run of bench_quantize."""
    name = f"quantize/fixed_zero_4_128_act_order/out:{size}/in:{size}/manual_time"
    text = subprocess.run([bench, f"--benchmark_filter=^{name}$", "--benchmark_format=json"], check=True,
                          capture_output=True, text=True).stdout
    result = json.loads(text)["benchmarks"][0]
    return result["real_time"], result["of_sgemm"]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bench", required=True, help="the bench_quantize program")
    options.add_argument("--size", type=int, default=4096, help="rows and columns of the layer: 1024 or 4096")
    options.add_argument("--rounds", type=int, default=3)
    options = options.parse_args()
    torch.set_num_threads(os.cpu_count())
    size = options.size
    weight = torch.rand(size, size) * 2 - 1
    x = (torch.rand(size * 3 // 2, size) * 2 - 1) / torch.sqrt(1.0 + torch.arange(size) % 97)
    hessian = x.T @ x
    rows = []
    for _ in range(options.rounds):
        milliseconds, share = ours(options.bench, size)
        start = time.perf_counter()
        gptq(weight, hessian)
        rows.append((milliseconds, share, 1e3 * (time.perf_counter() - start)))
    mine, share, theirs = (statistics.median(column) for column in zip(*rows))
    print(f"{size} x {size}, 4 bits, groups of 128, act-order, {os.cpu_count()} cores, median of {options.rounds}")
    print(f"  gptq          {mine:9.0f} ms   {100 * share:.0f} % of the SGEMM rate")
    print(f"  PyTorch {torch.__version__:<6}{theirs:9.0f} ms")
    print(f"  ratio         {theirs / mine:9.1f}")


if __name__ == "__main__":
    main()
