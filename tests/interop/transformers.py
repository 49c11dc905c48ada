#!/usr/bin/env python3
"""What safetensors, AutoGPTQ, GPTQModel and Transformers make of our GPTQ checkpoints.

  tests/interop/transformers.py --build build --model DIR --calibration FILE --evaluation FILE.i32

Installs them (and torch, unless it is there) from the package registry into a virtual environment under --work, and
then, for checkpoints of several widths, group sizes and both versions:
  1. reads every file with the safetensors package, and everything but the linear layers has to be unchanged;
  2. decodes every linear layer with the published formula, written here in numpy, and with AutoGPTQ's own layer
     (version 1, the only one it has), and compares both with the packed model that quantize_model makes of the same
     run: the same float16 values, bit for bit;
  3. has AutoGPTQ pack these weights itself: the same qweight and qzeros, bit for bit, so that ours reads its files;
  4. compares the perplexity of Transformers, with these weights and with the checkpoint loaded through GPTQModel, with
     ours: within 0.5 %.
--model takes a Hugging Face directory, --build a build directory with quantize_model and perplexity that have all
formats (-D GPTQ_MODELS_FEW_FORMATS=OFF). Token ids for --evaluation are little-endian int32 (NAME.i32), or bytes of a
text for a vocabulary of 256. The exit status is 1 when one of these does not hold.
"""
import importlib.util
import json
import pathlib
import re
import shutil

from common import arguments_of, check, enter_environment, finish, our_perplexity, quantize_model

PACKAGES = ["numpy", "torch", "safetensors==0.8.0", "transformers==5.24.0", "setuptools>=77", "wheel",
            "packaging", "ninja"]
# Built by what is installed already; AutoGPTQ's dependencies, which its layer does not use, are years old.
BACK_ENDS = [["gptqmodel==7.7.0", "optimum"], ["--no-deps", "auto-gptq==0.7.1"]]
TOLERANCE = 0.005  # of a perplexity: AutoGPTQ and GPTQModel compute in float16

CASES = {  # name: scheme, bits, group size, --format, more options
    "4 bits, 32, v1": ("asymmetric", 4, 32, "gptq"),
    "4 bits, 32, act-order, v1": ("asymmetric", 4, 32, "gptq", "--quality", "plain", "--act-order"),
    "4 bits, 128, v1": ("asymmetric", 4, 128, "gptq"),
    "4 bits, 32, sym, v2": ("fixed_zero", 4, 32, "gptq_v2"),
    "3 bits, 64, static, v1": ("asymmetric", 3, 64, "gptq", "--quality", "plain", "--act-order", "--static-groups"),
    "2 bits, 32, v2": ("asymmetric", 2, 32, "gptq_v2"),
    "8 bits, rows, sym, v1": ("symmetric", 8, -1, "gptq"),
}


def parse_arguments():
    parser = arguments_of(__doc__)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--eval-windows", type=int, default=32, help="the first N of them [32]")
    return parser.parse_args()


ARGUMENTS = parse_arguments()
enter_environment(ARGUMENTS.work / "transformers_environment", PACKAGES,
                  *(["--no-build-isolation", *packages] for packages in BACK_ENDS), system_site_packages=True)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

LINEAR = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj")


def load_directory(directory):
    """All tensors, by the safetensors package, with the index if there is one."""
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors.update(load_file(file))
    index = directory / "model.safetensors.index.json"
    if index.exists():
        listed = json.loads(index.read_text())
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        check(set(listed["weight_map"]) == set(tensors), f"{index}: does not list what is there")
        check(listed["metadata"]["total_size"] == size, f"{index}: its size is not {size}")
    return tensors


def bits_of(words, bits, axis):
    """Codes along an axis of a tensor of int32: an LSB-first stream of bits."""
    words = np.moveaxis(words.view(np.uint32), axis, -1)
    stream = np.unpackbits(words[..., None].view(np.uint8), axis=-1, bitorder="little")
    stream = stream.reshape(*words.shape[:-1], -1, bits)
    codes = (stream.astype(np.int32) << np.arange(bits)).sum(axis=-1)
    return np.moveaxis(codes, -1, axis)


def by_formula(layer, bits, version):
    """weight[out, in], codes[in, out], zeros[groups, out] of a layer's tensors, as the published decoders have it."""
    codes = bits_of(layer["qweight"].numpy(), bits, 0)
    zeros = bits_of(layer["qzeros"].numpy(), bits, 1) + (1 if version == "gptq" else 0)
    group = layer["g_idx"].numpy()
    scales = layer["scales"].numpy()
    weight = scales[group].astype(np.float32) * (codes - zeros[group])
    return weight.T.astype(np.float16), codes, zeros


def layer_of_autogptq():
    """The class, without the package around it, which needs older versions of everything."""
    package = pathlib.Path(importlib.util.find_spec("auto_gptq").origin).parent
    spec = importlib.util.spec_from_file_location("qlinear", package / "nn_modules" / "qlinear" / "qlinear_cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.QuantLinear


def by_autogptq(layer, bits, group_size, quant_linear):
    """weight[out, in] as AutoGPTQ's layer shows it when its input is the identity."""
    inputs, outputs = len(layer["g_idx"]), layer["scales"].shape[1]
    theirs = quant_linear(bits, group_size, inputs, outputs, bias=False)
    theirs.load_state_dict(layer)
    with torch.no_grad():
        return theirs(torch.eye(inputs, dtype=torch.float16)).T.numpy()


def packed_by_autogptq(layer, bits, group_size, zeros, weight, quant_linear):
    """qweight and qzeros as AutoGPTQ's layer makes them of weight[out, in]."""
    outputs, inputs = weight.shape
    linear = torch.nn.Linear(inputs, outputs, bias=False)
    linear.weight.data = torch.from_numpy(weight.astype(np.float32))
    theirs = quant_linear(bits, group_size, inputs, outputs, bias=False)
    theirs.pack(linear, layer["scales"].float().T, torch.from_numpy(zeros.astype(np.float32)).T, layer["g_idx"])
    return theirs.qweight, theirs.qzeros


def unit_codes(unit, bits):
    """Codes [32 rows, columns] of one unit of the packed layout (gptq/packed.hpp)."""
    parts = unit.reshape(2, -1, 16, 4).transpose(1, 0, 2, 3).reshape(-1, 32, 4)  # [part, row, byte]
    if bits == 3:
        a, b, c = parts.astype(np.int32)
        quarters = [a & 7, a >> 3 & 7, b & 7, b >> 3 & 7, c & 7, c >> 4 & 7,
                    a >> 6 | (c >> 3 & 1) << 2, b >> 6 | c >> 7 << 2]
    else:
        quarters = [parts[0] >> bits * t & (1 << bits) - 1 for t in range(8 // bits)]
    return np.concatenate(quarters, axis=1)


def by_packed_model(tensors, name, shape, bits, group_size, scheme):
    """weight[out, in] of a layer of a packed model."""
    outputs, inputs = shape
    group_size = inputs if group_size == -1 else group_size
    groups, blocks = -(-inputs // group_size), -(-outputs // 32)
    columns, unit_bytes = (32, 384) if bits == 3 else (32 // bits, 128)
    codes = tensors[name + ".codes"].numpy()
    scales = tensors[name + ".scales"].numpy().reshape(blocks, groups, 32).astype(np.float32)
    if name + ".zeros" in tensors:
        words = tensors[name + ".zeros"].numpy().view(np.int32).reshape(-1, bits)
        zeros = bits_of(words, bits, 1).reshape(blocks, groups, 32)
    else:
        zeros = np.full(scales.shape, 1 << bits - 1)
    stored = np.empty((blocks * 32, inputs), np.float32)
    at = 0
    for block in range(blocks):
        for group in range(groups):
            first, last = group * group_size, min((group + 1) * group_size, inputs)
            units = -(-(last - first) // columns)
            these = np.concatenate([unit_codes(u, bits) for u in
                                    codes[at : at + units * unit_bytes].reshape(units, unit_bytes)], axis=1)
            at += units * unit_bytes
            stored[block * 32 : block * 32 + 32, first:last] = (
                scales[block, group][:, None] * (these[:, : last - first] - zeros[block, group][:, None]))
    check(at == len(codes), f"{name}: the packed layout has another size")
    weight = np.empty((outputs, inputs), np.float32)
    order = tensors[name + ".order"].numpy() if name + ".order" in tensors else np.arange(inputs)
    weight[:, order] = stored[:outputs]
    return weight.astype(np.float16)


def quantize(directory, case, *options):
    scheme, bits, group_size, _, *more = case
    shutil.rmtree(directory, ignore_errors=True)
    quantize_model(ARGUMENTS, "--scheme", scheme, "--bits", bits, "--group-size", group_size, "--window",
                   ARGUMENTS.window, "--samples", ARGUMENTS.samples, *more, "--output", directory, *options)


def check_layers(name, case, ours, packed, quant_linear):
    """Steps 2 and 3; the weights, in float16, by the names of the unquantized model."""
    scheme, bits, group_size, version, *_ = case
    weights = {}
    for prefix in sorted({n.rsplit(".", 1)[0] for n in ours if LINEAR.match(n)}):
        layer = {s: ours[f"{prefix}.{s}"] for s in ("qweight", "qzeros", "scales", "g_idx")}
        weight, codes, zeros = by_formula(layer, bits, version)
        expected = by_packed_model(packed, prefix, weight.shape, bits, group_size, scheme)
        check(np.array_equal(weight, expected), f"{name}: {prefix} is not what the packed model has")
        if version == "gptq":
            check(np.array_equal(weight, by_autogptq(layer, bits, group_size, quant_linear)),
                  f"{name}: {prefix}: AutoGPTQ decodes something else")
            exact = layer["scales"].numpy()[layer["g_idx"]].astype(np.float32) * (codes - zeros[layer["g_idx"]])
            qweight, qzeros = packed_by_autogptq(layer, bits, group_size, zeros, exact.T, quant_linear)
            # A scale of 0 leaves AutoGPTQ's codes undefined.
            check(torch.equal(qweight, layer["qweight"]) or not layer["scales"].all(),
                  f"{name}: {prefix}: AutoGPTQ packs other codes")
            check(torch.equal(qzeros, layer["qzeros"]), f"{name}: {prefix}: AutoGPTQ packs other zero points")
        weights[prefix + ".weight"] = torch.from_numpy(weight)
    return weights


def perplexity(model, windows):
    """exp of the mean negative log-likelihood of all tokens of the windows but the first."""
    total = 0.0
    with torch.no_grad():
        for tokens in torch.from_numpy(windows.astype(np.int64)):
            logits = model(tokens[None]).logits[0, :-1].double()
            total += torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum").item()
    return float(np.exp(total / windows[:, 1:].size))


def main():
    source = ARGUMENTS.model
    work = ARGUMENTS.work / (source.name + "_gptq")
    work.mkdir(parents=True, exist_ok=True)
    kind = np.int32 if ARGUMENTS.evaluation.suffix == ".i32" else np.uint8
    tokens = np.frombuffer(ARGUMENTS.evaluation.read_bytes(), kind)
    count = min(len(tokens) // ARGUMENTS.window, ARGUMENTS.eval_windows)
    windows = tokens[: count * ARGUMENTS.window].reshape(count, ARGUMENTS.window)
    originals = load_directory(source)
    quant_linear = layer_of_autogptq()
    model = transformers.LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    print(f"{source.name}: {count} windows of {ARGUMENTS.window} tokens\n"
          f"perplexity:                       ours  Transformers     ratio  through GPTQModel     ratio\n"
          f"  {'float32':<26} {our_perplexity(ARGUMENTS, source, count):>9.4f} {perplexity(model, windows):>13.4f}",
          flush=True)

    for number, (name, case) in enumerate(CASES.items()):
        packed_directory, directory = work / f"packed-{number}", work / f"gptq-{number}"
        quantize(packed_directory, case)
        # Every other one in several files.
        quantize(directory, case, "--format", case[3], *(["--shard-size", "20M"] if number % 2 else []))
        check((directory / "model.safetensors.index.json").exists() == bool(number % 2), f"{name}: shards")
        ours, packed = load_directory(directory), load_directory(packed_directory)
        others = {n for n in originals if not LINEAR.match(n)}
        check(others == {n for n in ours if not LINEAR.match(n)}, f"{name}: tensors are missing or too many")
        for other in others:
            check(torch.equal(ours[other], originals[other]), f"{name}: {other} is not what it was")
        for file in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            if (source / file).exists():
                check((directory / file).read_bytes() == (source / file).read_bytes(), f"{name}: {file} was changed")

        weights = check_layers(name, case, ours, packed, quant_linear)
        missing = model.load_state_dict({n: w.float() for n, w in weights.items()}, strict=False)
        check(not missing.unexpected_keys, f"{name}: Transformers knows no {missing.unexpected_keys}")
        expected, theirs = our_perplexity(ARGUMENTS, directory, count), perplexity(model, windows)
        check(our_perplexity(ARGUMENTS, packed_directory, count) == expected,
              f"{name}: the packed model has another perplexity")
        check(abs(theirs / expected - 1) <= TOLERANCE, f"{name}: perplexities differ by more than {TOLERANCE:.1%}")
        through = f"{'no last group of fewer':>28}"  # of which GPTQModel refuses any
        if all(w.shape[1] % max(case[2], 1) == 0 for w in weights.values()):
            loaded = transformers.AutoModelForCausalLM.from_pretrained(directory, device_map="cpu", dtype=torch.float16)
            value = perplexity(loaded, windows)
            through = f"{value:>18.4f} {value / expected:>9.5f}"
            check(abs(value / expected - 1) <= TOLERANCE, f"{name}: through GPTQModel: more than {TOLERANCE:.1%} apart")
        print(f"  {name:<26} {expected:>9.4f} {theirs:>13.4f} {theirs / expected:>9.5f} {through}", flush=True)

    finish()


if __name__ == "__main__":
    main()
