"""What the scripts beside this share: their options, an environment with other people's packages, and their checks."""
import argparse
import os
import pathlib
import re
import subprocess
import sys

FAILURES = []


def arguments_of(description, *, evaluation=True):
    """A parser with the options that all scripts have; those about perplexity with `evaluation`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--calibration", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("build/interop"))
    if evaluation:
        parser.add_argument("--evaluation", type=pathlib.Path, required=True)
        parser.add_argument("--window", type=int, default=256)
    return parser


def enter_environment(environment, *installs, system_site_packages=False):
    """Goes on in this virtual environment, made with one call of pip install for each of `installs` when it is not
    there. Then forgets where the script is: it may have the name of a package."""
    python = environment / "bin" / "python"
    if pathlib.Path(sys.prefix).resolve() == environment.resolve():
        sys.path.pop(0)
        return
    if not (environment / "complete").exists():
        site = ["--system-site-packages"] if system_site_packages else []
        subprocess.run([sys.executable, "-m", "venv", *site, environment], check=True)
        for packages in installs:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (environment / "complete").touch()
    os.execv(python, [str(python), *sys.argv])


def check(holds, what):
    if not holds:
        FAILURES.append(what)
        print(f"  FAILED: {what}")


def run(program, *options):
    """What a program prints; ends with its words when it fails."""
    done = subprocess.run([str(c) for c in [program, *options]], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{program}: status {done.returncode}\n{done.stderr}")
    return done.stdout


def quantize_model(arguments, *options):
    run(arguments.build / "examples/models/quantize_model", arguments.model, "--calibration", arguments.calibration,
        *options)


def our_perplexity(arguments, path, windows):
    """As our perplexity program reads it."""
    printed = run(arguments.build / "examples/models/perplexity", path, arguments.evaluation, "--window",
                  arguments.window, "--arithmetic", "float32", "--eval-windows", windows)
    return float(re.search(r"^float32\s+(\S+)", printed, re.M).group(1))


def finish():
    """Ends the script: status 1 and a list when a check has failed."""
    if FAILURES:
        print("\nFAILED:", *FAILURES, sep="\n  ")
    sys.exit(1 if FAILURES else 0)
