#!/usr/bin/env python3
"""Plants small bugs in the library and the example programs, and says which of them no test sees.

  mutate.py draw   [--seed 1] [--list mutants.json]              draws the list: before any is tried
  mutate.py run    --list mutants.json [--work build/mutate]     builds and tries them: results in WORK/results.json
  mutate.py report WORK/results.json [--survivors]               killed and survived, by area and by operator
  mutate.py self-test                                            whether this does what it says

Mutants come from operators: comparison, off_by_one, sign, dropped_check, dropped_term, swapped_arguments,
dropped_statement. tests.json has the areas, how many are drawn in each, what is left out, and the test programs that see
a file. Within an area operators take turns, each drawing one of its sites that is left; at most one in ten stands in a
constant expression. What does not compile is no mutant, and is not counted.

All mutants are compiled at once into a copy of the tree, each behind a condition, and the environment variable
GPTQ_MUTANT turns one on; so a list costs one build. Every test case is run once with none on, which says which mutants
it comes by and how long it takes; then each mutant is tried with the cases that come by it, shortest first, until one
fails. What does not compile that way (constant expressions, other types) or no case comes by is compiled alone, and the
test programs of tests.json for its file are run in whole; so are survivors, which constant expressions could hide.
"""
import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from operators import Mutant, operators  # noqa: E402
from source import Source  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OPERATORS = ["comparison", "off_by_one", "sign", "dropped_check", "dropped_term", "swapped_arguments", "dropped_statement"]
SEEN = ("killed", "timeout")
# What compilers say of arguments in the wrong order, and would of the mutant alone.
MISFIT = re.compile(r"no matching function|cannot convert|invalid conversion|invalid initialization")


def table():
    return json.loads((HERE / "tests.json").read_text())


# ---- draw ----
def area_of(path, areas):
    return next((a["name"] for a in areas if any(re.fullmatch(p, path) for p in a["files"])), None)


def draw(seed, scale=1.0):
    chosen = table()
    files = subprocess.run(["git", "ls-files", "include", "examples"], cwd=ROOT, check=True, capture_output=True,
                           text=True).stdout.split()
    sites = collections.defaultdict(lambda: collections.defaultdict(list))
    for path in sorted(f for f in files if f.endswith((".hpp", ".cpp"))):
        if any(re.fullmatch(p, path) for p in chosen["left_out"]):
            continue
        area = area_of(path, chosen["areas"])
        for mutant in operators(Source(path, (ROOT / path).read_text())):
            sites[area][mutant.operator].append(mutant)
    mutants = []
    for area in chosen["areas"]:
        stream = random.Random(f"{seed} {area['name']}")
        left = sites[area["name"]]
        for operator in OPERATORS:
            stream.shuffle(left[operator])
        wanted = round(area["mutants"] * scale)
        constants, drawn, taken, turn = wanted // 10, 0, set(), 0
        while drawn < wanted and any(left[o] for o in OPERATORS):
            operator = OPERATORS[turn % len(OPERATORS)]
            turn += 1
            while left[operator]:
                mutant = left[operator].pop()
                place = (mutant.file, mutant.start, mutant.end)
                if mutant.constant and constants == 0 or place in taken:
                    continue
                constants -= mutant.constant
                taken.add(place)
                mutants.append({"area": area["name"], **mutant._asdict()})
                drawn += 1
                break
    for number, mutant in enumerate(mutants, 1):
        mutant["id"] = number
    return mutants


# ---- instrument ----
def planted(text, mutants):
    """The text with all mutants in it, none of them on. Lines stay where they are."""
    def write(begin, end, inner):
        out, at = [], begin
        while inner:
            m = inner[0]
            inside = [n for n in inner[1:] if n["end"] <= m["end"]]
            inner = inner[1 + len(inside):]
            original = write(m["start"], m["end"], inside)
            on = f"gptq_mutants::on({m['id']})"
            if m["statement"]:
                replaced = f"{{ if (!{on}) {{ {original} }} }}"
            elif m["text"] == "false" or m["text"].startswith("static_cast<bool>("):
                replaced = f"({on} ? {m['text']} : static_cast<bool>({original}))"
            else:
                replaced = f"({on} ? ({m['text']}) : ({original}))"
            out += [text[at:m["start"]], replaced]
            at = m["end"]
        out.append(text[at:end])
        return "".join(out)

    ordered, last = [], []
    for m in sorted(mutants, key=lambda m: (m["start"], -m["end"], m["id"])):
        last = [e for e in last if e > m["start"]]
        if any(m["end"] > e for e in last):
            raise ValueError(f"{m['file']}:{m['line']}: across another")
        last.append(m["end"])
        ordered.append(m)
    return write(0, len(text), ordered)


def alone(text, mutant):
    return text[:mutant["start"]] + mutant["text"] + text[mutant["end"]:]


# ---- the tree with mutants ----
class Tree:
    """A copy of the tree, built with the mutants in it."""

    def __init__(self, work, jobs):
        self.work, self.jobs = pathlib.Path(work).resolve(), jobs
        self.source = self.work / "tree"
        self.build = self.source / "build/dev"
        self.runtime = self.work / "mutants.o"
        self.log = self.work / "build.log"

    def copy(self, planted_files):
        """Of all but those that plant() writes."""
        self.work.mkdir(parents=True, exist_ok=True)
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
        for name in filter(None, files):
            if name in planted_files:
                continue
            target = self.source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self.write(target, (ROOT / name).read_bytes())
            target.chmod((ROOT / name).stat().st_mode)
        subprocess.run(["g++", "-O2", "-c", HERE / "mutants.cpp", "-o", self.runtime], check=True)

    @staticmethod
    def write(path, content, quietly=False):
        """Unless it is there already: what has not changed is not compiled again. Quietly: nor what has, by those that
        have read it; a mutant that does not compile in one unit may stay in others, where it is never on."""
        if path.exists() and path.read_bytes() == content:
            return
        before = path.stat().st_mtime_ns if path.exists() and quietly else None
        path.write_bytes(content)
        if before is not None:
            os.utime(path, ns=(before, before))

    def configure(self):
        subprocess.run(["cmake", "--preset", "dev", "-DGPTQ_COMPONENTS=gptq;checkpoint", "-DGPTQ_WERROR=OFF", "-DGPTQ_C=OFF",
                        "-DGPTQ_BUILD_BENCHMARKS=OFF", "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O0",
                        "-DCMAKE_CXX_FLAGS=-w -Wno-narrowing -DGPTQ_TEST_FEW_KERNELS", f"-DCMAKE_CXX_STANDARD_LIBRARIES={self.runtime}"],
                       cwd=self.source, check=True, stdout=subprocess.DEVNULL)

    def plant(self, file, mutants, own=None, quietly=False):
        text = (ROOT / file).read_text()
        for m in mutants if own is None else [own]:
            if text[m["start"]:m["end"]] != m["original"]:
                raise SystemExit(f"{file}:{m['line']} has changed since the list was drawn")
        text = planted(text, mutants) if own is None else alone(text, own)
        (self.source / file).parent.mkdir(parents=True, exist_ok=True)
        self.write(self.source / file, f'#include "{HERE}/mutants.hpp"\n{text}'.encode(), quietly)

    def ninja(self, targets, all_errors=True):
        run = subprocess.run(["ninja", "-k", "0" if all_errors else "1", "-j", str(self.jobs), "-C", self.build, *targets],
                             text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        with self.log.open("a") as log:
            log.write(run.stdout)
        return run.returncode, run.stdout

    def suspects(self, output, mutants):
        """The mutants on the lines that errors name; those for which the error is that arguments do not fit."""
        found, misfits = set(), set()
        for line in output.splitlines():
            where = re.match(r"(\S+?):(\d+):\d+:.*?(error: .*|required from)", line)
            if not where:
                continue
            path = pathlib.Path(where.group(1))
            path = path if path.is_absolute() else self.build / path
            try:
                name = str(path.resolve().relative_to(self.source))
            except ValueError:
                continue
            at = int(where.group(2)) - 1  # below the #include of plant()
            here = [m for m in mutants if m["file"] == name and m["line"] <= at <= m["line"] + m["original"].count("\n")]
            found |= {m["id"] for m in here}
            if len(here) == 1 and here[0]["operator"] == "swapped_arguments" and MISFIT.search(where.group(3)):
                misfits.add(here[0]["id"])
        return found, misfits


# ---- test cases ----
Case = collections.namedtuple("Case", "program name")


def cases_of(program):
    """The test cases of a program of Catch2; [""] for one that is none."""
    listed = subprocess.run([program, "--list-test-names-only"], capture_output=True, text=True, timeout=60,
                            cwd=pathlib.Path(program).parent)
    names = [line.strip() for line in listed.stdout.splitlines() if line.strip()]
    if not names or pathlib.Path(program).name.startswith("example"):
        return [Case(program, "")]
    return [Case(program, n) for n in names]


def attempt(case, mutant, limit, reached=None):
    """(verdict, seconds) of one case with a mutant on."""
    environment = dict(os.environ, GPTQ_MUTANT=str(mutant))
    environment.pop("GPTQ_MUTANTS_REACHED", None)
    if reached is not None:
        reached.write_bytes(bytes(1 << 16))
        environment["GPTQ_MUTANTS_REACHED"] = str(reached)
    name = re.sub(r"([\\,\[\]])", r"\\\1", case.name)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as scratch:
        environment["TMPDIR"] = scratch
        process = subprocess.Popen([case.program] + ([name] if name else []), env=environment, start_new_session=True,
                                   cwd=scratch, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            status = process.wait(timeout=limit)
            verdict = "survived" if status == 0 else "skipped" if status == 77 and mutant == 0 else "killed"
        except subprocess.TimeoutExpired:
            verdict = "timeout"
        try:  # what the test has started, too
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    return verdict, time.monotonic() - started


def limit_of(seconds):
    return 10 + 10 * seconds


# ---- run ----
class Run:
    def __init__(self, options):
        self.options = options
        self.mutants = json.loads(pathlib.Path(options.list).read_text())
        self.tree = Tree(options.work, options.jobs)
        self.results_path = self.tree.work / "results.json"
        self.results = {}
        if self.results_path.exists():
            self.results = {r["id"]: r for r in json.loads(self.results_path.read_text())}
        self.tests = table()["tests"]

    def say(self, words):
        print(time.strftime("%H:%M:%S"), words, flush=True)

    def chosen(self, mutant):
        return re.match(self.options.files, mutant["file"])

    def keep(self, mutant, verdict, by="", way="together", seconds=0.0):
        self.results[mutant["id"]] = {**mutant, "verdict": verdict, "by": by, "built": way, "seconds": round(seconds, 1)}
        temporary = self.results_path.with_suffix(".part")
        temporary.write_text(json.dumps([self.results[i] for i in sorted(self.results)], indent=1) + "\n")
        temporary.replace(self.results_path)

    def targets_of(self, file):
        for row in self.tests:
            found = re.match(row["files"], file)
            if found:
                return [found.expand(t) for t in row["targets"]]
        return []

    def all_targets(self):
        names = dict.fromkeys(t for m in self.mutants if self.chosen(m) for t in self.targets_of(m["file"]))
        known = self.tree.ninja(["-t", "targets", "all"])[1]
        return [t for t in names if re.search(rf"^{re.escape(t)}:", known, re.M)]

    def build(self):
        """All mutants that compile so, together. Returns those that do not."""
        known = self.tree.work / "apart.json"  # from an earlier run of the list
        apart = {m["id"] for m in self.mutants if m["constant"]} | set(json.loads(known.read_text()) if known.exists() else [])
        targets = self.all_targets()
        by_file = collections.defaultdict(list)
        for m in self.mutants:
            by_file[m["file"]].append(m)

        def plant(quietly=False):
            for file, mutants in by_file.items():
                self.tree.plant(file, [m for m in mutants if m["id"] not in apart], quietly=quietly)
            known.write_text(json.dumps(sorted(apart)) + "\n")
        plant()
        for turn in range(30):
            status, output = self.tree.ninja(targets)
            if status == 0:
                return targets, apart
            new, misfits = self.tree.suspects(output, [m for m in self.mutants if m["id"] not in apart])
            for m in self.mutants:
                if m["id"] in misfits:
                    self.keep(m, "does not compile")
            self.say(f"build {turn + 1}: {len(new)} mutants are compiled alone")
            if not new:
                raise SystemExit(f"the build fails, and no mutant is known to be why: {self.tree.log}")
            apart |= new
            known.write_text(json.dumps(sorted(apart)) + "\n")
            plant(quietly=True)
        raise SystemExit("the build does not come to an end")

    def programs(self, targets):
        found = []
        for target in targets:
            paths = [p for p in self.tree.build.rglob(target) if p.is_file() and os.access(p, os.X_OK)]
            found += [str(p) for p in paths[:1]]
        return found

    def baseline(self, programs):
        """For every case what it comes by, and how long it takes."""
        cached = self.tree.work / "baseline.json"
        stamp = [[p, os.stat(p).st_mtime] for p in programs]
        if cached.exists():
            known = json.loads(cached.read_text())
            if known["stamp"] == stamp:
                return [(Case(*c), set(r), s) for c, r, s in known["cases"]]
        cases = [c for p in programs for c in cases_of(p)]
        self.say(f"{len(cases)} test cases of {len(programs)} programs, with no mutant on")
        found = []

        def one(case):
            with tempfile.NamedTemporaryFile(prefix="reached-") as file:
                path = pathlib.Path(file.name)
                verdict, seconds = attempt(case, 0, 900, path)
                return case, verdict, seconds, {i for i, b in enumerate(path.read_bytes()) if b}
        with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
            for case, verdict, seconds, reached in pool.map(one, cases):
                if verdict != "survived":
                    self.say(f"left out, for with no mutant on it is {verdict}: {case.program} {case.name!r}")
                    continue
                found.append((case, reached, seconds))
        cached.write_text(json.dumps({"stamp": stamp, "cases": [[list(c), sorted(r), s] for c, r, s in found]}))
        return found

    def try_together(self, mutant, baseline):
        cases = sorted((s, c) for c, reached, s in baseline if mutant["id"] in reached)
        spent = 0.0
        for seconds, case in cases:
            verdict, took = attempt(case, mutant["id"], limit_of(seconds))
            spent += took
            if verdict in SEEN:
                return verdict, f"{pathlib.Path(case.program).name}: {case.name}", spent
        return ("survived" if cases else "unreached"), "", spent

    def try_alone(self, mutant, durations):
        targets = [t for t in self.targets_of(mutant["file"]) if t in durations]
        others = [m for m in self.mutants if m["file"] == mutant["file"] and m["id"] not in self.apart]
        self.tree.plant(mutant["file"], [], own=mutant)
        started = time.monotonic()
        try:
            for target in targets:
                status, _ = self.tree.ninja([target], all_errors=False)
                if status != 0:
                    return "does not compile", target, time.monotonic() - started
                program = self.programs([target])[0]
                verdict, _ = attempt(Case(program, ""), 0, limit_of(durations[target]))
                if verdict in SEEN:
                    return verdict, target, time.monotonic() - started
            return "survived", "", time.monotonic() - started
        finally:
            self.tree.plant(mutant["file"], others)

    def main(self):
        self.tree.copy({m["file"] for m in self.mutants})
        for file in {m["file"] for m in self.mutants}:  # CMake wants all of them
            if not (self.tree.source / file).exists():
                self.tree.plant(file, [])
        self.tree.configure()
        targets, self.apart = self.build()
        baseline = self.baseline(self.programs(targets))
        durations = collections.Counter()
        for case, _, seconds in baseline:
            durations[pathlib.Path(case.program).name] += seconds
        self.say(f"{len(self.mutants)} mutants; {len(self.apart)} to be compiled alone")
        final = SEEN + ("survived", "does not compile")
        waiting = [m for m in self.mutants if self.chosen(m) and m["id"] not in self.apart and
                   self.results.get(m["id"], {}).get("verdict") not in final]

        def one(mutant):
            return mutant, self.try_together(mutant, baseline)
        with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
            for number, (mutant, (verdict, by, seconds)) in enumerate(pool.map(one, waiting), 1):
                self.keep(mutant, verdict, by, "together", seconds)
                if verdict not in SEEN or number % 25 == 0:
                    self.say(f"{number} of {len(waiting)}: {mutant['id']} {mutant['file']}:{mutant['line']} {verdict}")
        if self.options.together:
            return
        waiting = [m for m in self.mutants if self.chosen(m) and self.results.get(m["id"], {}).get("built") != "alone" and
                   self.results.get(m["id"], {}).get("verdict") not in SEEN + ("does not compile",)]
        waiting.sort(key=lambda m: (m["id"] not in self.apart, m["id"]))
        for mutant in waiting:
            if self.options.until and time.strftime("%H:%M") >= self.options.until:
                self.say("no time is left for the rest")
                break
            verdict, by, seconds = self.try_alone(mutant, durations)
            self.keep(mutant, verdict, by, "alone", seconds)
            self.say(f"alone, {seconds:.0f} s: {mutant['id']} {mutant['file']}:{mutant['line']} {verdict}")


# ---- report ----
def share(results):
    counted = [r for r in results if r["verdict"] != "does not compile"]
    seen = sum(r["verdict"] in SEEN for r in counted)
    return f"{seen:4} of {len(counted):4} ({100 * seen / len(counted):5.1f} %)" if counted else "   none"


def report(results, survivors):
    lines = []
    for key in ("area", "operator"):
        lines.append(f"by {key}:")
        for name in dict.fromkeys(r[key] for r in results):
            lines.append(f"  {name:20} {share([r for r in results if r[key] == name])}")
    count = collections.Counter(r["verdict"] for r in results)
    lines += [f"all:                   {share(results)}", "  " + ", ".join(f"{n} {v}" for v, n in count.most_common())]
    if survivors:
        for r in results:
            if r["verdict"] not in SEEN + ("does not compile",):
                lines.append(f"\n{r['id']} {r['file']}:{r['line']} {r['operator']} ({r['verdict']}, built {r['built']})")
                lines.append(f"  - {' '.join(r['original'].split())}\n  + {r['text'] or '(nothing)'}")
    return "\n".join(lines)


# ---- self-test ----
SNIPPET = """\
#include <algorithm>
#include <stdexcept>
int positive(int a) {
  if (a < 0) throw std::runtime_error("negative");
  return a;
}
int less(int a, int b) { return a < b ? a * 2 + b : b - a; }
int apart(int a, int b) { return a - b; }
int three(int a, int b) {
  int x = apart(a, b);
  x = std::min(x + 1, 100);
  x += a;
  return -x;
}
int never(int a) { return a > 1 << 30 ? a + 0 : a; }
constexpr int two = 1 + 1;
int fixed() { return two; }
"""
CHECKS = """\
#include "snippet.hpp"
int main() {
  bool ok = less(1, 2) == 4 && less(2, 1) == -1 && less(2, 2) == 0 && three(5, 2) == -9 && three(200, 1) == -300 && fixed() == 2;
  ok = ok && apart(7, 3) == 4 && never(5) == 5;
  try {
    positive(-1);
    ok = false;
  } catch (std::exception const&) {
  }
  return ok && positive(0) == 0 && positive(1) == 1 ? 0 : 1;
}
"""


def self_test():
    failures = []

    def expect(what, condition):
        if not condition:
            failures.append(what)
    found = list(operators(Source("snippet.hpp", SNIPPET)))
    pairs = {(m.operator, m.original, m.text) for m in found}
    for wanted in [("comparison", "a < b", "a <= b"), ("dropped_check", "a < 0", "false"), ("sign", "-x", "x"),
                   ("sign", "a * 2 + b", "a * 2 - b"), ("dropped_term", "a * 2 + b", "a * 2"), ("dropped_term", "a * 2 + b", "b"),
                   ("swapped_arguments", "apart(a, b)", "apart(b, a)"), ("dropped_statement", "x += a;", ""),
                   ("off_by_one", "100", "101"), ("off_by_one", "100", "99"), ("sign", "x += a", "x -= a"),
                   ("dropped_term", "std::min(x + 1, 100)", "100"), ("off_by_one", "2", "3")]:
        expect(f"not found: {wanted}", wanted in pairs)
    expect("a declaration is no call", not any(m.original.startswith(("positive(int", "apart(int")) for m in found))
    expect("drawn twice, two lists", draw(7, 0.1) == draw(7, 0.1))
    expect("another seed, the same list", draw(7, 0.1) != draw(8, 0.1))
    mutants = [{**m._asdict(), "id": i} for i, m in enumerate(found, 1)]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        compiler = os.environ.get("CXX", "g++")

        def built(name, text):
            (folder / name).mkdir()
            (folder / name / "snippet.hpp").write_text(text)
            (folder / name / "main.cpp").write_text(CHECKS)
            return subprocess.run([compiler, "-std=c++20", "-w", "-include", HERE / "mutants.hpp", folder / name / "main.cpp",
                                   HERE / "mutants.cpp", "-o", folder / name / "test"], capture_output=True, text=True)
        together = built("together", planted(SNIPPET, [m for m in mutants if not m["constant"]]))
        expect(f"does not compile: {together.stderr}", together.returncode == 0)
        if not failures:
            test = Case(str(folder / "together/test"), "")
            reached = folder / "reached"
            expect("fails with no mutant on", attempt(test, 0, 10, reached)[0] == "survived")
            seen = {i for i, b in enumerate(reached.read_bytes()) if b}
            verdicts = {}
            for m in mutants:
                if not m["constant"]:
                    verdicts[m["id"]] = attempt(test, m["id"], 10)[0]
            for m in mutants:
                text = (m["operator"], m["original"], m["text"])
                if text in {("dropped_check", "a < 0", "false"), ("sign", "-x", "x"), ("comparison", "a < 0", "a <= 0"),
                            ("swapped_arguments", "apart(a, b)", "apart(b, a)"), ("dropped_statement", "x += a;", "")}:
                    expect(f"not killed: {text}", verdicts[m["id"]] == "killed")
                if text == ("sign", "a + 0", "a - 0"):
                    expect("said to be seen, and is never come by", m["id"] not in seen and verdicts[m["id"]] == "survived")
            for m in mutants[:: max(1, len(mutants) // 3)]:  # compiled alone, the same verdict
                if m["constant"]:
                    continue
                by_itself = built(f"alone{m['id']}", alone(SNIPPET, m))
                expect(f"alone, does not compile: {m}", by_itself.returncode == 0)
                if by_itself.returncode == 0:
                    verdict = attempt(Case(str(folder / f"alone{m['id']}/test"), ""), 0, 10)[0]
                    expect(f"alone {verdict}, together {verdicts[m['id']]}: {m}", verdict == verdicts[m["id"]])
            constant = next(m for m in mutants if m["constant"] and m["operator"] == "off_by_one")
            built("constant", alone(SNIPPET, constant))
            expect("a constant's mutant is not seen", attempt(Case(str(folder / "constant/test"), ""), 0, 10)[0] == "killed")
            (folder / "slow.cpp").write_text("int main() { for (volatile int i = 0;; i = i + 1) {} }")
            subprocess.run([compiler, folder / "slow.cpp", "-o", folder / "slow"], check=True)
            expect("an endless loop ends", attempt(Case(str(folder / "slow"), ""), 0, 0.5)[0] == "timeout")
    results = [{"area": "a", "operator": "sign", "verdict": v} for v in ["killed", "timeout", "survived", "does not compile"]]
    expect("counted wrongly", "2 of    3" in share(results))
    for failure in failures:
        print("FAILED", failure)
    print("self-test:", "failed" if failures else "passed")
    return 1 if failures else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("draw")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--scale", type=float, default=1.0, help="that many times the mutants of tests.json")
    command.add_argument("--list", default="mutants.json")
    command = commands.add_parser("run")
    command.add_argument("--list", default="mutants.json")
    command.add_argument("--tree", default=ROOT, help="a checkout of what the list was drawn from, where that has changed")
    command.add_argument("--work", default="build/mutate")
    command.add_argument("--jobs", type=int, default=os.cpu_count())
    command.add_argument("--files", default="", help="a pattern: those in other files are built and not tried")
    command.add_argument("--together", action="store_true", help="nothing that takes a build of its own")
    command.add_argument("--until", help="HH:MM: no build of one mutant alone is begun after that")
    command = commands.add_parser("report")
    command.add_argument("results")
    command.add_argument("--survivors", action="store_true")
    commands.add_parser("self-test")
    options = parser.parse_args()
    if "tree" in options:
        globals()["ROOT"] = pathlib.Path(options.tree).resolve()
    if options.command == "draw":
        mutants = draw(options.seed, options.scale)
        pathlib.Path(options.list).write_text(json.dumps(mutants, indent=1) + "\n")
        print(f"{len(mutants)} mutants: {options.list}")
    elif options.command == "run":
        Run(options).main()
    elif options.command == "report":
        print(report(json.loads(pathlib.Path(options.results).read_text()), options.survivors))
    else:
        return self_test()
    return 0


if __name__ == "__main__":
    sys.exit(main())
