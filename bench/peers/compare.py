#!/usr/bin/env python3
"""4-bit matrix products on the CPU, ours and other people's, side by side: same shapes, same cores, turns taken.

    cmake -S bench/peers -B build/peers -DGGML_DIR=<llama.cpp>/ggml -DIK_DIR=<ik_llama.cpp>/ggml
    cmake --build build/peers
    python3 bench/peers/compare.py --contestants build/peers

A call is y = x W', preparation of x included: m1-hot multiplies one token by a matrix again and again, m1-cold by
another matrix every time, gemm more tokens by one matrix. In every round each contestant computes for about 0.15 s
while the others rest; the table has medians over the rounds, and how many times as long as ours the others take.
Who cannot take part is named and left out. Everyone has groups of 128 but ggml, whose Q4_0 has groups of 32.
"""
import argparse
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = {"gptq": "gptq_contestant", "ggml": "ggml_contestant", "ik": "ik_contestant"}
PACKAGES = ["ort", "ort-fp32", "torch"]


class Contestant:
    """A process that has its data ready and computes when told to."""

    def __init__(self, command, environment):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True, env=environment)

    def ready(self):
        """Waits; None, or why it is not."""
        answer = self.process.stdout.readline().split()
        if answer[:1] != ["ready"]:
            return (self.process.communicate()[1].strip().splitlines() or ["it said nothing"])[-1]
        self.name, self.bytes = " ".join(answer[1:-1]), int(answer[-1])
        return None

    def run(self):
        """Microseconds of a call."""
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.communicate()


def busy(contestants):
    """Seconds that cores spent for others than these since the machine started; 0 where Linux is not there to tell."""
    try:
        everyone = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        ticks = sum(int(everyone[i]) for i in (1, 2, 3, 6, 7, 8))  # all but idle and waiting
        for contestant in contestants:
            own = Path(f"/proc/{contestant.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks -= int(own[11]) + int(own[12])
    except OSError:
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK")


def machine():
    try:
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)
    except (OSError, AttributeError):
        model = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "cores": cores}


def compete(commands, environment, case, rounds, left_out):
    """{peer: (name, bytes, [microseconds of every round])} for one case, and how many cores others kept busy."""
    arguments = [str(case[key]) for key in ("out", "in", "tokens", "threads", "memory")]
    started = {peer: Contestant(command + arguments, environment) for peer, command in commands.items()}
    ready = {}
    for peer, contestant in started.items():
        why_not = contestant.ready()
        if why_not is None:
            ready[peer] = contestant
        else:
            left_out[peer] = why_not
    times = {peer: [] for peer in ready}
    before, start = busy(ready.values()), time.perf_counter()
    for _ in range(rounds):
        for peer, contestant in ready.items():
            time.sleep(0.05)  # until the threads of the one before have stopped spinning
            times[peer].append(contestant.run())
    disturbance = (busy(ready.values()) - before) / (time.perf_counter() - start)
    for contestant in ready.values():
        contestant.close()
    return {peer: (contestant.name, contestant.bytes, times[peer]) for peer, contestant in ready.items()}, disturbance


def rate(case, size, microseconds):
    """What a vector is limited by, bytes of weights; what a matrix is limited by, operations."""
    if case["tokens"] == 1:
        return f"{size / microseconds * 1e-3:.1f} GB/s"
    return f"{2 * case['out'] * case['in'] * case['tokens'] / microseconds * 1e-3:.0f} Gop/s"


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--contestants", required=True, type=Path, help="the build directory of bench/peers")
    options.add_argument("--peers", default="gptq,ggml,ik,ort,torch", help="of " + ",".join([*PROGRAMS, *PACKAGES]))
    options.add_argument("--cases", default="m1-hot,m1-cold,gemm")
    options.add_argument("--threads", default="1,2")
    options.add_argument("--shapes", default="4096x4096,11008x4096,4096x11008", help="rows x columns of the weights")
    options.add_argument("--tokens", default="4,16,128,512", help="of gemm")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--json", type=Path, help="writes every single time, too")
    options = options.parse_args()

    unknown = set(options.peers.split(",")) - {*PROGRAMS, *PACKAGES}
    if unknown:
        sys.exit("compare.py: nobody is called " + ", ".join(sorted(unknown)))
    isa = (options.contestants / "isa").read_text() if (options.contestants / "isa").exists() else "unknown"
    environment = dict(os.environ)
    if isa == "avx2":  # PyTorch knows how; ONNX Runtime always takes what the CPU has
        environment |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    commands, left_out = {}, {}
    for peer in options.peers.split(","):
        if peer in PACKAGES:
            commands[peer] = [sys.executable, str(Path(__file__).with_name("contestants.py")), peer]
        elif (program := options.contestants / PROGRAMS[peer]).exists():
            commands[peer] = [str(program)]
        else:
            left_out[peer] = f"{program} is not there"

    memories = {"m1-hot": ([1], "hot"), "m1-cold": ([1], "cold"),
                "gemm": ([int(t) for t in options.tokens.split(",")], "hot")}
    cases = []
    for shape, kind, threads in itertools.product(options.shapes.split(","), options.cases.split(","),
                                                  options.threads.split(",")):
        out, columns = map(int, shape.split("x"))
        tokens, memory = memories[kind]
        cases += [{"out": out, "in": columns, "tokens": t, "threads": int(threads), "memory": memory} for t in tokens]

    host = machine()
    print(f"{host['cpu']}, {host['cores']} cores; compiled for: {isa}; medians of {options.rounds} rounds")
    heading = f"{'weights':<12}{'tokens':>7}{'threads':>8}{'':>6}"
    for peer in commands:
        heading += f"{peer + ' us':>12}" + (f"{'':>13}" if peer == "gptq" else f"{'ratio':>7}")
    print(heading)
    names, results = {}, []
    for case in cases:
        result, disturbance = compete(commands, environment, case, options.rounds, left_out)
        medians = {peer: statistics.median(times) for peer, (_, _, times) in result.items()}
        names |= {peer: name for peer, (name, _, _) in result.items()}
        line = f"{case['out']}x{case['in']}".ljust(12)
        line += f"{case['tokens']:>7}{case['threads']:>8}{case['memory']:>6}"
        for peer in commands:
            line += f"{medians[peer]:>12.0f}" if peer in medians else f"{'-':>12}"
            if peer == "gptq":
                line += f"{rate(case, result[peer][1], medians[peer]) if peer in medians else '':>13}"
            else:
                both = peer in medians and "gptq" in medians
                line += f"{medians[peer] / medians['gptq']:>7.2f}" if both else f"{'-':>7}"
        print(line + (f"   others kept {disturbance:.1f} cores busy" if disturbance > 0.1 else ""), flush=True)
        results.append({**case, "disturbance": disturbance,
                        "bytes": {peer: size for peer, (_, size, _) in result.items()},
                        "microseconds": {peer: times for peer, (_, _, times) in result.items()}})
    for peer, name in names.items():
        print(f"{peer}: {name}")
    for peer, why in left_out.items():
        print(f"{peer} left out: {why}")
    if options.json:
        options.json.write_text(json.dumps({"machine": host, "isa": isa, "names": names, "left_out": left_out,
                                            "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
