#!/usr/bin/env python3
"""Compares quantize_model with what the published code made of the same model.

usage: figures.py PROGRAM MODEL WINDOW CALIBRATION EVALUATION REFERENCE.json [BITS GROUP_SIZE]

REFERENCE.json lists runs, each with "method", "bits", "group_size", "ppl" and "layers" (losses by "LAYER.NAME").
Runs quantize_model --quality reference --true-sequential on the first 128 calibration windows for every method that it has,
prints one line each, and exits with 1 when a layer's loss is off by more than 2 % or a perplexity by more than 0.02.
"""
import json
import subprocess
import sys
import tempfile

METHODS = {
    "rtn asym": ["--scheme", "asymmetric", "--rtn"],
    "rtn sym": ["--scheme", "fixed_zero", "--rtn"],
    "gptq asym": ["--scheme", "asymmetric"],
    "gptq asym act-order": ["--scheme", "asymmetric", "--act-order"],
    "gptq sym act-order": ["--scheme", "fixed_zero", "--act-order"],
    "gptq asym act-order mse": ["--scheme", "asymmetric", "--act-order", "--mse"],
    "gptq sym act-order mse": ["--scheme", "fixed_zero", "--act-order", "--mse"],
    "gptq -7..7 act-order": ["--scheme", "symmetric", "--act-order"],
    "gptq half-step act-order": ["--scheme", "half_step", "--act-order"],
}


def quantize(program, model, window, calibration, evaluation, run):
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as out:
        subprocess.run(
            [program, model, "--calibration", calibration, "--evaluation", evaluation, "--window", window,
             "--quality", "reference", "--true-sequential", "--no-float-baseline", "--bits", str(run["bits"]),
             "--group-size", str(run["group_size"]), "--log", out.name] + METHODS[run["method"]],
            check=True, stdout=subprocess.DEVNULL)
        events = [json.loads(line) for line in open(out.name)]
    return {"layers": [e for e in events if e["event"] == "layer"], **events[-1]}


def main(program, model, window, calibration, evaluation, reference, bits=None, group_size=None):
    failed = False
    print(f"{'method':26} {'bits':>4} {'group':>5} {'perplexity':>10} {'published':>10} {'loss':>10} {'published':>10} "
          f"{'largest deviation of a layer':>28}")
    for run in json.load(open(reference)):
        if run["method"] not in METHODS or (bits and (run["bits"], run["group_size"]) != (int(bits), int(group_size))):
            continue
        ours = quantize(program, model, window, calibration, evaluation, run)
        off = {}
        for layer in ours["layers"]:  # model.layers.0.self_attn.q_proj -> 0.q_proj
            parts = layer["name"].split(".")
            name = f"{parts[2]}.{parts[-1]}"
            off[name] = layer["loss"] / run["layers"][name] - 1
        worst = max(off, key=lambda name: abs(off[name]))
        bad = abs(off[worst]) > 0.02 or abs(ours["perplexity"] - run["ppl"]) > 0.02
        failed = failed or bad
        print(f"{run['method']:26} {run['bits']:4} {run['group_size']:5} {ours['perplexity']:10.4f} {run['ppl']:10.4f} "
              f"{ours['loss']:10.2f} {run['loss_sum']:10.2f} {off[worst]:+13.2%} {worst:14}{'  <-' if bad else ''}",
              flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) not in (7, 9):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
