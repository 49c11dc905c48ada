#!/usr/bin/env python3
"""What we make of the checkpoints of AutoAWQ and compressed-tensors, and numpy of our export of grids.

  tests/interop/checkpoints.py --build build --model DIR --calibration FILE

Installs autoawq and compressed-tensors (and torch, unless it is there) from the package registry into a virtual
environment under --work, and then, on one model:
  1. quantizes its linear layers to nearest and has AutoAWQ's own layer pack them ("gemm");
  2. has compressed-tensors' own compressor pack them: 4 and 8 bits, groups and channels, symmetric and not, scales in
     float16, bfloat16 and float32;
  3. reads each of these directories with the LLaMA example, and compares every weight, bit for bit: ours in float32
     with code and scale multiplied in float32, and, rounded to the scales' type, with what the package itself decodes;
  4. quantizes the model with quantize_model --quant-directory, reads the export with tomllib and numpy, and looks
     whether the decoded weights are numbers of these grids;
  5. writes such an export as GPTQ-for-LLaMa does, with toml and numpy, and compares the weights that the example
     rounds to it, bit for bit, with those that numpy rounds.
--model takes a Hugging Face directory whose layers have multiples of 32 inputs; --build a build directory with
quantize_model and decode_model. The exit status is 1 when one of these does not hold.
"""
import importlib.util
import json
import pathlib
import shutil
import sys
import types

from common import arguments_of, check, enter_environment, finish, quantize_model, run

PACKAGES = ["numpy", "torch", "safetensors==0.8.0", "transformers==5.24.0", "accelerate==1.15.0", "toml==0.10.2",
            "compressed-tensors==0.20.0"]
AWQ = ["--no-deps", "--no-build-isolation", "autoawq==0.2.9"]  # what else it asks for, its packing does not use
GROUP = 32

ARGUMENTS = arguments_of(__doc__, evaluation=False).parse_args()
enter_environment(ARGUMENTS.work / "checkpoints_environment", PACKAGES, AWQ, system_site_packages=True)

import numpy as np  # noqa: E402
import toml  # noqa: E402
import tomllib  # noqa: E402
import torch  # noqa: E402
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def import_awq():
    """AutoAWQ's layer and configuration, without the __init__ of packages that want models of another transformers."""
    folder = pathlib.Path(importlib.util.find_spec("awq").origin).parent
    for name, path in {"awq": folder, "awq.models": folder / "models"}.items():
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    from awq.models._config import AwqConfig
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm
    return AwqConfig, WQLinear_GEMM, dequantize_gemm


def decode(directory, *grids):
    file = ARGUMENTS.work / "decoded.safetensors"
    run(ARGUMENTS.build / "tests/decode_model", directory, file, *grids)
    return load_file(file)


def write_directory(name, tensors, quantization):
    directory = ARGUMENTS.work / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    save_file({key: t.contiguous() for key, t in tensors.items()}, directory / "model.safetensors")
    config = json.loads((ARGUMENTS.model / "config.json").read_text())
    if quantization is not None:
        config["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def grids_of(weight, bits, group, asymmetric):
    """Scales and, in codes 0..2^b-1, zero points [out, groups] to nearest."""
    w = weight.reshape(weight.shape[0], -1, group)
    top = 2**bits - 1
    if asymmetric:
        low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
        scale = (high - low).clamp(min=1e-5) / top
        return scale, torch.round(-low / scale).clamp(0, top)
    scale = w.abs().amax(-1).clamp(min=1e-5) / (top / 2)
    return scale, torch.full_like(scale, 2.0**(bits - 1))


def compare(what, ours, expected, theirs):
    """expected: in float32 from codes; theirs: what the package decodes, in the scales' type."""
    weights = 0
    for name, weight in expected.items():
        got = ours[name + ".weight"]
        weights += weight.numel()
        check(torch.equal(got, weight), f"{what}: {name} differs in float32")
        check(torch.equal(got.to(theirs[name].dtype), theirs[name]), f"{what}: {name} differs from the package's")
    print(f"{what}: {len(expected)} layers, {weights} weights compared")


def check_awq(linears, others):
    config_type, layer_type, dequantize = import_awq()
    tensors, expected, theirs = dict(others), {}, {}
    for name, weight in linears.items():
        scale, zero = grids_of(weight, 4, GROUP, True)
        scale = scale.half().float()
        codes = torch.round(weight / scale.repeat_interleave(GROUP, 1)) + zero.repeat_interleave(GROUP, 1)
        codes = codes.clamp(0, 15)
        expected[name] = (codes - zero.repeat_interleave(GROUP, 1)) * scale.repeat_interleave(GROUP, 1)
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = expected[name]
        packed = layer_type.from_linear(linear, 4, GROUP, scales=scale.t().contiguous(), zeros=zero.t().contiguous())
        for key in ("qweight", "qzeros", "scales"):
            tensors[f"{name}.{key}"] = getattr(packed, key)
        theirs[name] = dequantize(packed.qweight, packed.qzeros, packed.scales, 4, GROUP).t()
    configuration = config_type(q_group_size=GROUP).to_transformers_dict()
    compare("AutoAWQ gemm", decode(write_directory("awq", tensors, configuration)), expected, theirs)


def check_compressed(linears, others, bits, strategy, asymmetric, dtype):
    group_size = GROUP if strategy == "group" else None
    weights = QuantizationArgs(num_bits=bits, symmetric=not asymmetric, strategy=strategy, group_size=group_size)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    configuration = QuantizationConfig(config_groups={"group_0": scheme}, format="pack-quantized", ignore=["lm_head"],
                                       quantization_status="compressed")
    tensors, expected, theirs = dict(others), {}, {}
    for name, weight in linears.items():
        group = group_size or weight.shape[1]
        scale, zero = grids_of(weight, bits, group, asymmetric)
        scale = scale.to(dtype)
        wide_scale, wide_zero = (t.float().repeat_interleave(group, 1) for t in (scale, zero))
        codes = (torch.round(weight / wide_scale) + wide_zero).clamp(0, 2**bits - 1)
        expected[name] = (codes - wide_zero) * wide_scale
        state = {"weight": expected[name], "weight_scale": scale}
        if asymmetric:
            state["weight_zero_point"] = (zero - 2**(bits - 1)).to(torch.int8)
        packed = PackedQuantizationCompressor.compress(state, scheme)
        for key, tensor in packed.items():
            tensors[f"{name}.{key}"] = tensor
        theirs[name] = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    directory = write_directory("compressed", tensors, configuration.model_dump(mode="json"))
    what = f"compressed-tensors {bits} bits, {strategy}, {'a' if asymmetric else ''}symmetric, {dtype}"
    compare(what, decode(directory), expected, theirs)


def check_our_export(scheme, group_size):
    packed, grids = ARGUMENTS.work / "packed", ARGUMENTS.work / "grids"
    for directory in (packed, grids):
        shutil.rmtree(directory, ignore_errors=True)
    quantize_model(ARGUMENTS, "--samples", 4, "--window", 64, "--scheme", scheme, "--group-size", group_size,
                   "--quality", "plain", "--act-order", "--output", packed, "--quant-directory", grids)
    index = tomllib.loads((grids / "quant.toml").read_text())
    worst = 0.0
    for name, weight in decode(packed).items():
        entry = index[name.removesuffix(".weight")]
        scale = np.load(grids / entry["scale"])
        zero = np.full_like(scale, 2.0**(entry["wbits"] - 1)) if entry["sym"] else np.load(grids / entry["zero"])
        group = np.zeros(weight.shape[1], int) if entry["groupsize"] < 0 else np.load(grids / entry["group_ids"])
        codes = weight.numpy() / scale[:, group] + zero[:, group]
        worst = max(worst, np.abs(codes - np.round(codes)).max())
        check(codes.min() > -0.01 and codes.max() < 2**entry["wbits"] - 0.99, f"{name}: codes out of range")
    check(worst < 1e-4, f"export of {scheme}: codes are {worst} from whole numbers")
    print(f"export of {scheme}, groups of {group_size}: {len(index)} layers, codes within {worst:.1e} of whole numbers")


def check_their_export(linears, asymmetric):
    directory = ARGUMENTS.work / "their_grids"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    table, expected = {}, {}
    generator = np.random.default_rng(1)
    for name, weight in linears.items():
        group_ids = generator.permutation(np.arange(weight.shape[1]) // GROUP).astype(np.int32)  # act-order
        ordered = weight[:, np.argsort(group_ids, kind="stable")]
        scale, zero = (t.numpy() for t in grids_of(ordered, 3, GROUP, asymmetric))
        entry = {"scale": f"{name}.scale.npy", "wbits": 3, "groupsize": GROUP, "group_ids": f"{name}.group_ids.npy",
                 "sym": not asymmetric, "perchannel": True}
        np.save(directory / f"{name}.scale", scale)
        np.save(directory / f"{name}.group_ids", group_ids)
        if asymmetric:
            np.save(directory / f"{name}.zero", zero)
            entry["zero"] = f"{name}.zero.npy"
        table[name] = entry
        codes = np.clip(np.round(weight.numpy() / scale[:, group_ids]) + zero[:, group_ids], 0, 7)
        expected[name] = torch.from_numpy((codes - zero[:, group_ids]) * scale[:, group_ids])
    with open(directory / "quant.toml", "w") as file:
        toml.dump(table, file)
    compare(f"rounded to an export, {'a' if asymmetric else ''}symmetric", decode(ARGUMENTS.model, directory), expected,
            expected)


def main():
    model = {key: t.float() for key, t in load_file(ARGUMENTS.model / "model.safetensors").items()}
    linears = {key.removesuffix(".weight"): t for key, t in model.items() if key.endswith("_proj.weight")}
    others = {key: t for key, t in model.items() if not key.endswith("_proj.weight")}
    check_awq(linears, others)
    for bits, strategy, asymmetric, dtype in [(4, "group", False, torch.float16), (4, "group", True, torch.bfloat16),
                                              (4, "channel", False, torch.float32), (8, "group", True, torch.float32),
                                              (8, "channel", True, torch.float16),
                                              (8, "channel", False, torch.bfloat16)]:
        check_compressed(linears, others, bits, strategy, asymmetric, dtype)
    for scheme, group_size in [("asymmetric", 32), ("fixed_zero", -1), ("half_step", 32)]:
        check_our_export(scheme, group_size)
    for asymmetric in (True, False):
        check_their_export(linears, asymmetric)
    finish()


if __name__ == "__main__":
    main()
