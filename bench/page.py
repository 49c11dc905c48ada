"""One HTML page with plots of what benchmarks wrote: bench/report.py page OUT.html FILE.json...

Files are told apart by what is in them: Google Benchmark's (bench_gemv, bench_gemm, bench_quantize), bench/peers/compare.py's
and bench_accuracy's --json, and the --log of quantize_model (.jsonl). Plots are matplotlib's, as SVG inside the page, which needs
nothing else.
"""
import html
import io
import json
import re
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = ["#2d7f6b", "#c2504a", "#3b6fb6", "#c98a1b", "#7a5aa6", "#5b6b7a", "#a8577e", "#4c9a2a"]
plt.rcParams |= {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e3e7ec",
                 "axes.axisbelow": True, "svg.fonttype": "none", "font.family": "sans-serif", "legend.frameon": False,
                 "axes.prop_cycle": plt.cycler(color=COLOURS), "svg.hashsalt": "gptq"}


def read(path):
    text = Path(path).read_text()
    if Path(path).suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return json.loads(text)


def svg(figure):
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg"):]


def key(name):
    """gemm/fixed_zero/4/128/int8/avx2/hot/out:4096/in:4096/tokens:8/threads:1 as a dictionary."""
    first = name.split("/")
    if len(first) < 7 or first[0] not in ("gemv", "gemm") or not first[2].isdigit():
        return None
    named = dict(zip(("kind", "scheme", "bits", "group", "precision", "isa", "memory"), first))
    named |= {k: int(v) for k, _, v in (part.partition(":") for part in first[7:]) if v.isdigit()}
    return named if "out" in named and "in" in named else None


def rates(data, value):
    """The best repetition of a counter and the worst, by the parts of a benchmark's name. What else runs on a machine can only make it
    slower, so the best says most of the program, and the distance to the worst how far to trust it."""
    samples = {}
    for b in data["benchmarks"]:
        if b.get("run_type", "iteration") == "iteration" and value in b and (k := key(b["name"])):
            samples.setdefault(tuple(sorted(k.items())), []).append(b[value])
    return [(dict(k), max(v), min(v)) for k, v in samples.items()]


def intensity(k):
    """Operations (a multiplication and an addition are two) for each byte of codes that is read."""
    return 2 * k.get("tokens", 1) * 8 / int(k["bits"])


def roofline(data):
    """A plot for each number of threads: rate of operations over operations a byte, under what memory and the best product allow."""
    points = [(k, 2 * best / 1e9) for k, best, _ in rates(data, "weights_per_second") if k["kind"] == "gemv"]
    points += [(k, best) for k, best, _ in rates(data, "gflops") if k["kind"] == "gemm"]
    reading = {}  # bytes a second, of the same repetition as its share
    for b in data["benchmarks"]:
        if b.get("run_type", "iteration") == "iteration" and b.get("read_share", 0) > 0 and (k := key(b["name"])):
            place = (k["memory"], k.get("threads", 1))
            reading[place] = max(reading.get(place, 0), b["bytes_per_second"] / b["read_share"] / 1e9)
    for threads in sorted({k.get("threads", 1) for k, _ in points}):
        here = [(k, v) for k, v in points if k.get("threads", 1) == threads]
        figure, axes = plt.subplots(figsize=(7.2, 4.2))
        top = max(v for _, v in here)
        span = [min(intensity(k) for k, _ in here) / 1.5, max(intensity(k) for k, _ in here) * 1.5]
        for memory, style in (("cold", "-"), ("hot", "--")):
            if roof := reading.get((memory, threads)):
                corner = [span[0], min(max(top / roof, span[0]), span[1]), span[1]]
                axes.plot(corner, [min(roof * i, top) for i in corner], style, color="#20304a", linewidth=1,
                          label=f"{'memory' if memory == 'cold' else 'caches'}: {roof:.0f} GB/s read; the best product")
        for n, series in enumerate(sorted({(k["isa"], k["bits"], k["precision"], k["memory"]) for k, _ in here})):
            chosen = [(intensity(k), v) for k, v in here if (k["isa"], k["bits"], k["precision"], k["memory"]) == series]
            axes.plot(*zip(*sorted(chosen)), "o" if len(chosen) < 2 else "o-", markersize=4, linewidth=1, color=COLOURS[n % len(COLOURS)],
                      label=f"{series[0]}, {series[1]} bits, {series[2]}, {series[3]}")
        axes.set(xscale="log", yscale="log", xlabel="operations for each byte of codes", ylabel="10⁹ operations a second")
        axes.legend(fontsize=8, loc="lower right")
        yield (f"Roofline, {threads} thread{'s' if threads > 1 else ''}",
               "A product of one token stands at the left, under what can be read in the same time; many tokens reuse what was read, "
               "and move to the right until arithmetic is the limit.", svg(figure))


def speed_over_tokens(data):
    measured = [r for r in rates(data, "gflops") if r[0]["kind"] == "gemm" and "tokens" in r[0]]
    for shape in sorted({(k["out"], k["in"], k.get("threads", 1)) for k, *_ in measured}):
        here = [r for r in measured if (r[0]["out"], r[0]["in"], r[0].get("threads", 1)) == shape]
        if len({k["tokens"] for k, *_ in here}) < 2:
            continue
        figure, axes = plt.subplots(figsize=(7.2, 3.8))
        for series in sorted({(k["isa"], k["scheme"], k["bits"], k["precision"], k["memory"]) for k, *_ in here}):
            line = sorted((k["tokens"], best, worst) for k, best, worst in here
                          if (k["isa"], k["scheme"], k["bits"], k["precision"], k["memory"]) == series)
            x, y, low = zip(*line)
            axes.plot(x, y, "o-", markersize=4, label=f"{series[0]}, {series[1]}, {series[2]} bits, {series[3]}")
            axes.fill_between(x, low, y, alpha=0.2, linewidth=0)
        axes.set(xscale="log", xlabel="tokens", ylabel="10⁹ operations a second", ylim=(0, None))
        axes.set_xticks(sorted({k["tokens"] for k, *_ in here}), [str(t) for t in sorted({k["tokens"] for k, *_ in here})])
        axes.minorticks_off()
        axes.legend(fontsize=8)
        yield (f"Speed over tokens, {shape[0]} × {shape[1]}, {shape[2]} thread{'s' if shape[2] > 1 else ''}",
               "The fastest repetition; the shade reaches down to the slowest.", svg(figure))


def peers(data):
    for threads in sorted({r["threads"] for r in data["results"]}):
        here = [r for r in data["results"] if r["threads"] == threads and r["memory"] == "hot" and "gptq" in r["microseconds"]]
        shapes = sorted({(r["out"], r["in"]) for r in here})
        for out, columns in shapes:
            rows = sorted((r for r in here if (r["out"], r["in"]) == (out, columns)), key=lambda r: r["tokens"])
            figure, axes = plt.subplots(figsize=(7.2, 3.8))
            for peer, name in data["names"].items():
                line = [(r["tokens"], statistics.median(r["microseconds"][peer])) for r in rows if r["microseconds"].get(peer)]
                if line:
                    axes.plot([t for t, _ in line], [2e-3 * out * columns * t / us for t, us in line], "o-", markersize=4, label=name)
            axes.set(xscale="log", xlabel="tokens", ylabel="10⁹ operations a second", ylim=(0, None))
            axes.set_xticks([r["tokens"] for r in rows], [str(r["tokens"]) for r in rows])
            axes.minorticks_off()
            axes.legend(fontsize=8)
            yield (f"Beside others, {out} × {columns}, {threads} thread{'s' if threads > 1 else ''}",
                   f"Everyone compiled for {data['isa']}, in turns on the same cores: {data['machine']['cpu']}.", svg(figure))


def error_over_bits(data):
    """bench_accuracy's: a line a method, a format's bits against the summed error of all layers."""
    lines = {}
    for row in data["rows"]:
        scheme, bits, group = row["format"].split(":")[:3]
        total = row.get("sum", {}).get("mean")
        if total is not None:
            per_weight = int(bits) + ((16 + (int(bits) if scheme == "asymmetric" else 0)) / int(group) if int(group) > 0 else 0)
            lines.setdefault((scheme, row["method"]), []).append((per_weight, total))
    if not lines:
        return
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    for (scheme, method), line in lines.items():
        axes.plot(*zip(*sorted(line)), "o-", markersize=4, label=f"{scheme}, {method}")
    axes.set(yscale="log", xlabel="bits a weight, scales and zero points included", ylabel="error of the outputs, summed over layers")
    axes.legend(fontsize=8)
    yield (f"Error over bits, {data.get('subject', '')}", "Relative squared error of every layer's outputs on tokens that no method has seen.",
           svg(figure))


def bars(rows, unit):
    figure, axes = plt.subplots(figsize=(7.2, 0.6 + 0.42 * len(rows)))
    labels, values = zip(*rows[::-1])
    axes.barh(labels, values, color=COLOURS[0], height=0.6)
    for i, value in enumerate(values):
        axes.annotate(f"{value:.3g}", (value, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set(xlabel=unit)
    axes.grid(axis="y", visible=False)
    return svg(figure)


def whole_job(lines):
    """quantize_model's log: seconds by the kind of linear layer, and perplexities."""
    seconds, perplexities = {}, []
    for line in lines:
        if "seconds" in line and "name" in line and line["seconds"] is not None:
            kind = line["name"].removesuffix(".weight").split(".")[-1]
            seconds[kind] = seconds.get(kind, 0) + line["seconds"]
        for k, v in line.items():
            if "perplexity" in k:
                perplexities += [(k, v)] if isinstance(v, (int, float)) else [(f"{k}, {n}", x) for n, x in (v or {}).items() if x]
    if seconds:
        yield ("A whole model: where quantizing takes its time", "Seconds of quantizing and measuring, summed over the layers of a kind.",
               bars(sorted(seconds.items(), key=lambda s: -s[1]), "seconds"))
    if perplexities:
        yield ("A whole model: perplexity", "Lower is better.", bars(perplexities, "perplexity"))


def quantizing(data):
    rows = {}
    for b in data["benchmarks"]:
        if b.get("run_type", "iteration") == "iteration" and b["name"].startswith("quantize/"):
            rows.setdefault(b["name"].removeprefix("quantize/"), []).append(b["real_time"] * {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1}[b["time_unit"]])
    if rows:
        yield ("Quantizing a layer", "Medians.", bars([(n, statistics.median(v)) for n, v in rows.items()], "seconds"))


def merged(files):
    """Names and contents of files; those of bench_gemv and bench_gemm on one machine are one, for rooflines have both."""
    contents = []
    for path in files:
        data, name = read(path), Path(path).name
        products = isinstance(data, dict) and any(key(b["name"]) for b in data.get("benchmarks", []))
        machine = data["context"].get("machine") if products else None
        same = next((c for c in contents if products and c[2] == machine), None)
        if same:
            same[0] += f", {name}"
            same[1]["benchmarks"] += data["benchmarks"]
        else:
            contents.append([name, data, machine])
    return contents


def sections(path, data):
    if isinstance(data, list):
        settings = next((line for line in data if line.get("event") == "settings"), {})
        return settings, list(whole_job(data))
    if "benchmarks" in data:
        plots = []
        if any(key(b["name"]) for b in data["benchmarks"]):
            plots += [*roofline(data), *speed_over_tokens(data)]
        return data.get("context", {}), plots + list(quantizing(data))
    if "results" in data and "names" in data:
        return data["machine"], list(peers(data))
    if "rows" in data:
        return {k: v for k, v in data.items() if k != "rows"}, list(error_over_bits(data))
    raise SystemExit(f"report.py: {path} is of no benchmark that is known here")


STYLE = """body { font: 16px/1.5 system-ui, sans-serif; color: #20304a; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin: 2.2rem 0 0.2rem; font-size: 1.2rem } p { margin: 0.2rem 0 } .where { color: #5b6b7a; font-size: 0.85rem }
svg { max-width: 100%; height: auto }"""


def page(out, files, note=""):
    text = ["<!DOCTYPE html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
            f"<title>Measurements</title><style>{STYLE}</style><h1>Measurements</h1>"]
    if note:
        text.append(f"<p>{html.escape(note)}</p>")
    for name, data, _ in merged(files):
        context, plots = sections(name, data)
        if not plots:
            raise SystemExit(f"report.py: {name} has nothing to draw")
        where = "; ".join(f"{k}: {context[k]}" for k in ("commit", "machine", "cpu", "cores", "compiler", "flags", "date", "subject", "model", "scheme", "bits",
                                                                   "group_size", "quality") if k in context)
        for title, words, plot in plots:
            text.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(words)}</p>{plot}"
                        f"<p class='where'>{html.escape(name)}. {html.escape(where)}</p>")
    Path(out).write_text("\n".join(text) + "\n")
