#!/usr/bin/env python3
"""One benchmark of two builds, in turns, so that what else the machine does falls on both: has a change cost speed?

    python3 bench/builds.py BEFORE AFTER [--filter REGEX] [--rounds N] [--at-most RATIO]

BEFORE and AFTER are the same program of two builds, such as build/release/bench/bench_gemv of two clones. Prints, for each
benchmark that both have, time after / time before, of medians and of the best rounds, and their geometric means. Ends with 1
when the mean of the best rounds is above --at-most.
"""
import argparse
import json
import statistics
import subprocess
import sys


def measure(program, pattern):
    """Seconds (or whatever unit the program prints) by name, but for benchmarks that were skipped."""
    done = subprocess.run([program, f"--benchmark_filter={pattern}", "--benchmark_format=json"],
                          stdout=subprocess.PIPE, text=True, check=True)
    return {b["name"]: b["real_time"] for b in json.loads(done.stdout)["benchmarks"]
            if not b.get("error_occurred") and b.get("run_type", "iteration") == "iteration"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--filter", default=".")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-most", type=float, help="ratio of the best rounds' means that is not a failure yet")
    args = parser.parse_args()

    times = {"before": {}, "after": {}}
    for r in range(args.rounds):
        turns = [("before", args.before), ("after", args.after)]
        for which, program in turns if r % 2 == 0 else reversed(turns):
            for name, time in measure(program, args.filter).items():
                times[which].setdefault(name, []).append(time)
    names = [name for name in times["before"] if name in times["after"]]
    if not names:
        sys.exit(f"no benchmark of both is called {args.filter}")
    ratios = {take.__name__: [take(times["after"][name]) / take(times["before"][name]) for name in names]
              for take in (statistics.median, min)}
    print(f"{'after / before':76} {'median':>7} {'best':>7}")
    for name, median, best in zip(names, ratios["median"], ratios["min"]):
        print(f"{name.split('/iterations:')[0]:76} {median:7.3f} {best:7.3f}")
    means = {of: statistics.geometric_mean(values) for of, values in ratios.items()}
    print(f"{'geometric mean of ' + str(len(names)):76} {means['median']:7.3f} {means['min']:7.3f}")
    if args.at_most is not None and means["min"] > args.at_most:
        sys.exit(1)


if __name__ == "__main__":
    main()
