"""bench_page.py <report.py>   what bench/report.py page draws of small files, one of each benchmark."""
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def benchmark(name, **counters):
    return {"name": name, "run_type": "iteration", "real_time": 2.0, "time_unit": "s", **counters}


gemv = "gemv/fixed_zero/4/128/int8/avx2/cold/out:64/in:64/threads:1"
gemm = "gemm/fixed_zero/4/128/int8/avx2/hot/out:64/in:64/tokens:{}/threads:1"
context = {"commit": "abc1234", "machine": "2 cores, one of these"}
files = {
    "gemv.json": {"context": context, "benchmarks": [benchmark(gemv, weights_per_second=2e9, bytes_per_second=1e9, read_share=0.5)]},
    "gemm.json": {"context": context, "benchmarks": [benchmark(gemm.format(t), gflops=10.0 * t) for t in (2, 8)]},
    "quantize.json": {"context": context, "benchmarks": [benchmark("quantize/plain/4096")]},
    "peers.json": {"machine": {"cpu": "one of these", "cores": 2}, "isa": "avx2", "names": {"gptq": "gptq", "other": "The other"},
                   "results": [{"out": 64, "in": 64, "tokens": t, "threads": 1, "memory": "hot",
                                "microseconds": {"gptq": [t], "other": [3 * t]}} for t in (1, 4)]},
    "accuracy.json": {"subject": "a model", "rows": [{"format": f"fixed_zero:{b}:128", "method": "fast", "sum": {"mean": 1 / b}}
                                                     for b in (2, 4)]},
    "run.jsonl": [{"event": "settings", "model": "a model"}, {"event": "layer", "name": "model.layers.0.mlp.up_proj", "seconds": 1.5},
                  {"event": "layer", "name": "model.layers.1.mlp.up_proj", "seconds": 2.75}],
}
with tempfile.TemporaryDirectory() as folder:
    for name, data in files.items():
        text = "\n".join(map(json.dumps, data)) if name.endswith("l") else json.dumps(data)
        (Path(folder) / name).write_text(text)
    out = Path(folder) / "page.html"
    report = [sys.executable, sys.argv[1], "page", out]
    subprocess.run([*report, "--note", "1 < 2", *(Path(folder) / name for name in files)], check=True)
    page = out.read_text()
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == ["Roofline, 1 thread", "Speed over tokens, 64 × 64, 1 thread", "Quantizing a layer", "Beside others, 64 × 64, 1 thread",
                      "Error over bits, a model", "A whole model: where quantizing takes its time"], titles
    assert page.count("<svg") == len(titles)
    for text in ("1 &lt; 2", "memory: 2 GB/s read", "The other", "fixed_zero, fast", "4.25", "abc1234", "model: a model"):
        assert text in page, text
    unknown = Path(folder) / "unknown.json"
    unknown.write_text('{"a": 1}')
    said = subprocess.run([*report, unknown], capture_output=True, text=True)
    assert said.returncode != 0 and "unknown.json is of no benchmark" in said.stderr, said
