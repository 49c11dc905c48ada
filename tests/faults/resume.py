#!/usr/bin/env python3
"""Whether a run that was stopped anywhere ends, resumed, in the bytes of an undisturbed one.

  tests/faults/resume.py --build build/dev [--model DIR --calibration FILE] [--calls 60] [--kills 200] [--seed 1]

Needs the targets quantize_model and gptq_faults, and by default quantizes the small model of examples/data, for each
--format:
  1. once undisturbed;
  2. with a full disk (ENOSPC from a call on), a broken one (EIO at it), a kill before it and a kill in the middle of a
     write, at --calls calls on files in the output directory, evenly among them (0: at every one);
  3. with kill -9 at --kills random moments, as often as it takes to get to the end.
After each stop the output directory must hold no file whose name says that it is whole and that is not, and --resume has
to come to the end with every file equal to that of the undisturbed run. The exit status is 1 when one does not.
"""
import argparse
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

DATA = pathlib.Path(__file__).resolve().parents[2] / "examples/data/kjv-bytes"
ENOSPC, EIO = 28, 5
FAULTS = [("a full disk", f"error {ENOSPC} all"), ("a broken disk", f"error {EIO}"), ("a kill", "kill 0"),
          ("a kill in a write", "kill_in_write 0")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, default=DATA)
    parser.add_argument("--calibration", type=pathlib.Path, default=DATA / "calibration.txt")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("build/resume"))
    parser.add_argument("--format", nargs="+", default=["packed", "gptq", "gguf"])
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


class job:
    """A run of the quantizer into a directory of its own."""

    def __init__(self, args, written):
        self.library = (args.build / "tests/libgptq_faults.so").resolve()
        self.output = (args.work / written).resolve()
        scheme = ["--scheme", "fixed_zero", "--group-size", "32"]  # what every format can hold
        self.command = [str(c) for c in [
            args.build / "examples/models/quantize_model", args.model, "--calibration", args.calibration, "--samples", 2,
            "--window", 64, "--quality", "plain", "--no-float-baseline", "--threads", 1, *scheme, "--format", written,
            "--output", self.output]]

    def clear(self):
        shutil.rmtree(self.output, ignore_errors=True)

    def start(self, resume, faults=None, log=None):
        environment = dict(os.environ)
        if faults is not None:
            environment.update(LD_PRELOAD=str(self.library), GPTQ_FAULTS=f"{self.output} {faults}")
        if log is not None:
            environment["GPTQ_FAULTS_LOG"] = str(log)
        return subprocess.Popen(self.command + ["--resume"] * resume, env=environment, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True)

    def run(self, resume, faults=None, log=None):
        process = self.start(resume, faults, log)
        _, words = process.communicate()
        return process.returncode, words.strip()

    def files(self):
        """The finished files and the bytes in them."""
        found = {}
        for path in sorted(self.output.rglob("*")):
            name = str(path.relative_to(self.output))
            if path.is_file() and not name.startswith("unfinished/") and ".part-" not in name:
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def finish(self):
        """Resumes to the end. A stop after the last file is no stop."""
        status, words = self.run(True)
        if status != 0 and "holds a model already" not in words:
            return f"--resume ended with {status}: {words}"
        return ""


def compare(what, work, expected, failures):
    files = work.files()
    wrong = sorted(name for name in expected.keys() | files.keys() if expected.get(name) != files.get(name))
    if wrong:
        failures.append(f"{what}: {', '.join(wrong)} differ")


def check_whole(what, work, expected, failures):
    """Before it is resumed: what is there under its name is whole."""
    for name, digest in work.files().items():
        if expected.get(name) != digest:
            failures.append(f"{what}: {name} is there and not whole")


def try_faults(work, calls, chosen, expected, failures):
    for at in chosen:
        for name, fault in FAULTS:
            if "write" in name and calls[at] != "write":
                continue
            what = f"{name} at call {at} ({calls[at]})"
            work.clear()
            status, words = work.run(False, f"{at} {fault}")
            if "kill" in fault:
                if status != -signal.SIGKILL:
                    failures.append(f"{what}: the program was not killed")
            elif status != 0 and not words:
                failures.append(f"{what}: failed without a word")
            elif status < 0:
                failures.append(f"{what}: died of signal {-status}")
            check_whole(what, work, expected, failures)
            problem = work.finish()
            if problem:
                failures.append(f"{what}: {problem}")
            compare(what, work, expected, failures)


def try_kills(work, count, seconds, expected, failures):
    killed = 0
    while killed < count:
        work.clear()
        resume = False
        while True:
            process = work.start(resume)
            try:
                _, words = process.communicate(timeout=random.uniform(0, 1.1 * seconds))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                killed += 1
                check_whole(f"kill {killed}", work, expected, failures)
                resume = (work.output / "unfinished").exists() or bool(work.files())
                continue
            if process.returncode != 0 and "holds a model already" not in words:
                failures.append(f"after kill {killed}: --resume ended with {process.returncode}: {words.strip()}")
            break
        compare(f"after kill {killed}", work, expected, failures)
    return killed


def main():
    args = arguments()
    random.seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    failures = []
    for written in args.format:
        work = job(args, written)
        work.clear()
        log = args.work / "calls"
        start = time.monotonic()
        status, words = work.run(False, "-1 none 0", log)
        seconds = time.monotonic() - start
        if status != 0:
            sys.exit(f"{written}: status {status}: {words}")
        expected = work.files()
        calls = log.read_text().split()
        work.clear()
        work.run(False)
        compare(f"{written}, run twice", work, expected, failures)
        step = max(1, len(calls) // args.calls) if args.calls else 1
        chosen = list(range(0, len(calls), step))
        if chosen[-1] != len(calls) - 1:
            chosen.append(len(calls) - 1)
        before = len(failures)
        try_faults(work, calls, chosen, expected, failures)
        killed = try_kills(work, args.kills, seconds, expected, failures)
        print(f"{written}: {len(expected)} files, faults at {len(chosen)} of {len(calls)} calls, {killed} kills in runs "
              f"of {seconds:.1f} s, {len(failures) - before} failures", flush=True)
    if failures:
        print("\nFAILED:", *failures, sep="\n  ")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
