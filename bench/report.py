#!/usr/bin/env python3
"""Measures into JSON that says where it comes from, and makes tables of a document, or a page of plots, from such files.

    python3 bench/report.py measure OUT.json PROGRAM [ARGUMENTS...]    runs a Google Benchmark program
    python3 bench/report.py tables bench/README.md [--check]           writes the document's tables again
    python3 bench/report.py page OUT.html [--note TEXT] FILE...        plots, with matplotlib: page.py says of which files

A table stands in the document between two comments, of which the first says what it is made of:

    <!-- table results/zen4/gemv.json | {out} x {in} | {5}, {threads} threads | read_share:.2f -->
    <!-- end -->

that is the file, relative to the document; what names a row; what names a column (nothing: one column a value); and the
values, with Python's format for each. In braces are parts of a benchmark's name, gemv/fixed_zero/4/.../hot/out:4096: the
number of a part, from 0, or what stands before its colon; {name} is all of it. Repetitions become their median. A
column's heading is the value's name, or what comes after = in seconds:.1f=CPU seconds. A line above the table names
commit, machine, compiler and flags. With --check nothing is written, and the status is 1 where a table is not what its
file says.
"""
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- table (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def context(compiler="g++"):
    """Commit, machine and compiler of what is measured here and now."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    changed = output("git", "status", "--porcelain", "--untracked-files=no")
    return {"commit": output("git", "rev-parse", "--short", "HEAD") + (" and changes" if changed else ""),
            "machine": f"{len(os.sched_getaffinity(0))} cores, {cpu[1] if cpu else os.uname().machine}",
            "compiler": output(compiler, "--version").splitlines()[0]}


def measure(out, program, *arguments):
    # For google Benchmark a comma separates entries.
    entries = ",".join(f"{key}={value.replace(',', ';')}" for key, value in context().items())
    os.execv(program, [program, f"--benchmark_out={out}", "--benchmark_out_format=json", f"--benchmark_context={entries}",
                       *arguments])


def parts(name):
    """The parts of a benchmark's name by number and by key."""
    named = {"name": name}
    for i, part in enumerate(name.split("/")):
        key, _, value = part.rpartition(":")
        named[key or str(i)] = value
    return named


def fill(pattern, name):
    named = parts(name)
    return re.sub(r"\{(.*?)\}", lambda m: named[m[1]], pattern)


def table(document, specification):
    """The text between the two comments."""
    file, row, column, *values = (part.strip() for part in specification.split("|"))
    data = json.loads((document.parent / file).read_text())
    benchmarks = [b for b in data["benchmarks"] if b.get("run_type", "iteration") == "iteration"]
    cells, rows, headings = {}, [], []
    for value in values:
        measure_and_format, _, title = value.partition("=")
        key, _, form = measure_and_format.partition(":")
        for b in benchmarks:
            heading = (fill(column, b["name"]) if column else "") or title or key
            if column and len(values) > 1:
                heading += f", {title or key}"
            r = fill(row, b["name"])
            rows += [r] if r not in rows else []
            headings += [heading] if heading not in headings else []
            if key in b:
                cells.setdefault((r, heading), (form, []))[1].append(b[key])
    where = data["context"]
    lines = ["*" + "; ".join(str(where[key]) for key in ("machine", "compiler", "flags") if key in where)
             + f"; commit {where['commit']}.*", "",
             "| | " + " | ".join(headings) + " |", "|---" * (len(headings) + 1) + "|"]
    for r in rows:
        entries = [cells.get((r, h)) for h in headings]
        lines.append(f"| {r} | " + " | ".join(format(statistics.median(e[1]), e[0]) if e else "" for e in entries) + " |")
    return "\n".join(lines) + "\n"


def tables(path, check=False):
    document = Path(path)
    text = document.read_text()
    made = TABLE.sub(lambda m: m[1] + table(document, m[2]) + m[4], text)
    if check:
        if made != text:
            sys.exit(f"report.py: a table of {path} is not what its file says: python3 bench/report.py tables {path}")
    else:
        document.write_text(made)


if __name__ == "__main__":
    if len(sys.argv) > 3 and sys.argv[1] == "measure":
        measure(*sys.argv[2:])
    elif len(sys.argv) in (3, 4) and sys.argv[1] == "tables" and sys.argv[3:] in ([], ["--check"]):
        tables(sys.argv[2], len(sys.argv) == 4)
    elif len(sys.argv) > 3 and sys.argv[1] == "page":
        from page import page  # it needs matplotlib, and what is above does not
        note = sys.argv[4] if sys.argv[3] == "--note" else ""
        page(sys.argv[2], sys.argv[5 if note else 3:], note)
    else:
        sys.exit(__doc__)
