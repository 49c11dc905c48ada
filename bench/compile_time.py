#!/usr/bin/env python3
"""What the headers cost those who include them: seconds, peak memory and bytes of code of typical translation units.

    python3 bench/compile_time.py [--compiler g++] [--flags "-O2 -march=native"] [--only REGEX] [--json FILE]

Seconds are CPU time of the compiler in user mode, best of --repeat; memory is what its largest process had; code is the
text section of the object file. Needs Eigen and nlohmann-json for the units that include them (--include adds a
directory), and `size` of binutils. Ends with 1 when a unit does not compile, and with 2 when one misses its goal.
"""
import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import report

ROOT = Path(__file__).resolve().parent.parent
EIGEN = "/usr/include/eigen3"

FORMATS = [f"gptq::format<gptq::{scheme}, {bits}, {group}>"
           for group in (128, 32) for bits in (4, 3, 2, 8) for scheme in ("fixed_zero", "asymmetric")]


def include(*headers):
    return "".join(f"#include <gptq/{h}>\n" for h in headers)


def gemv(count):
    return include("gemv.hpp") + "".join(
        f"void f{i}(gptq::packed_view<{f}> const& w, float const* x, float* y) {{ gptq::gemv(w, x, y); }}\n"
        for i, f in enumerate(FORMATS[:count]))


def gemm(count):
    return include("gemm.hpp") + "".join(
        f"void f{i}(gptq::packed_view<{f}> const& w, gptq::activations<gptq::precision::int8> const& a, float* y) "
        "{ gptq::gemm(w, a, y); }\n" for i, f in enumerate(FORMATS[:count]))


def quantize(count):
    return include("quantize.hpp") + "".join(
        f"gptq::quantized_layer<{f}> f{i}(gptq::matrix const& w, gptq::hessian const& h) "
        f"{{ return gptq::quantize<{f}>(w, h, {{.act_order = true}}); }}\n" for i, f in enumerate(FORMATS[:count]))


# What it is called, the code, the compiler's flags of its own, and what it is meant to cost at most: seconds, MB.
UNITS = [
    ("#include <gptq/gemm.hpp>", include("gemm.hpp"), [], None, None),
    ("gemv, 1 format", gemv(1), [], 1.5, None),
    ("gemv, 4 formats", gemv(4), [], None, None),
    ("gemv, 16 formats", gemv(16), [], None, None),
    ("gemm, 1 format", gemm(1), [], 1.5, None),
    ("#include <gptq/quantize.hpp>", include("quantize.hpp"), [], None, None),
    ("quantize, 1 format", quantize(1), [], 8, 600),
    ("quantize, 4 formats", quantize(4), [], None, None),
    ("quantize, 1 format, solver elsewhere", quantize(1), ["-DGPTQ_SOLVER_ELSEWHERE"], None, None),
    ("quantize, 4 formats, solver elsewhere", quantize(4), ["-DGPTQ_SOLVER_ELSEWHERE"], None, None),
    ("#include <gptq/checkpoint/safetensors.hpp>", include("checkpoint/safetensors.hpp"), [], None, None),
    ("#include <gptq/checkpoint/gguf.hpp>", include("checkpoint/gguf.hpp"), [], None, None),
    ("#include <gptq/checkpoint/gptq.hpp>", include("checkpoint/gptq.hpp"), [], None, None),
    ("#include <gptq/gptq.hpp>", include("gptq.hpp"), [], None, None),
]


def compile_once(command):
    """CPU seconds in user mode and peak memory in MB, or None if it fails."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return (usage.ru_utime, usage.ru_maxrss / 1024) if process.returncode == 0 else None


def measure(code, command, folder, repeat):
    source, result = folder / "unit.cpp", folder / "unit.o"
    source.write_text(code)
    runs = [compile_once(command + ["-c", str(source), "-o", str(result)]) for _ in range(repeat)]
    if None in runs:
        return None
    text = subprocess.run(["size", str(result)], check=True, capture_output=True, text=True).stdout
    return {"seconds": round(min(r[0] for r in runs), 2), "peak_mb": round(max(r[1] for r in runs)),
            "code_bytes": int(text.splitlines()[1].split()[0])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--flags", default="-O2 -march=native")
    parser.add_argument("--include", action="append", default=[EIGEN])
    parser.add_argument("--only", default="")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json")
    arguments = parser.parse_args()

    # What tools like ccache remember would not be measured.
    os.environ["CCACHE_DISABLE"] = "1"
    command = [arguments.compiler, "-std=c++20", f"-I{ROOT}/include", *shlex.split(arguments.flags)]
    command += [part for directory in arguments.include for part in ("-isystem", directory)]
    results, status = [], 0
    print(f"{'':44}{'seconds':>9}{'peak MB':>9}{'code, kB':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for name, code, flags, seconds, megabytes in UNITS:
            if not re.search(arguments.only, name):
                continue
            result = measure(code, command + flags, Path(folder), arguments.repeat)
            if result is None:
                sys.exit(f"compile_time.py: {name} does not compile")
            missed = [f"goal {goal} {unit}" for goal, unit, value in
                      ((seconds, "s", result["seconds"]), (megabytes, "MB", result["peak_mb"])) if goal and value > goal]
            status = 2 if missed else status
            print(f"{name:44}{result['seconds']:9.1f}{result['peak_mb']:9}{result['code_bytes'] / 1000:10.0f}"
                  f"  {', '.join(missed)}", flush=True)
            results.append({"name": name, **result})
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(
            {"context": {**report.context(arguments.compiler), "flags": arguments.flags}, "benchmarks": results}, indent=1) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
