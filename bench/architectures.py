#!/usr/bin/env python3
"""What quantizing a model of each architecture costs, with the programs of examples/models.

  bench/architectures.py small --build build/release    a small model of each, made at random, and --model MODEL beside
                                                        them: perplexity before and after, speed, memory
  bench/architectures.py wide --build build/release     as wide as a real one of about 8 billion parameters, with 2 and with 4
                                                        decoder layers: memory, which must not grow with them

Both print a table for examples/models/README.md. A small model is the real one with less of everything and 256 tokens, so that
it reads any text as bytes. A wide one has the real widths, vocabulary and settings; its weights are random, and few tokens
are calibrated on: what windows of text take besides is samples * window * hidden size floats. Its layers are quantized by
--rtn unless --gptq is given, which takes minutes for each, and shows what the solver needs besides.

Needs transformers, torch, numpy. `wide` writes up to 6 GB at a time to --work.
"""

import argparse
import json
import pathlib
import re
import shutil
import struct
import subprocess

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = ROOT / "examples/data/kjv-bytes"


def rope(theta, kind="default", **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def widths(hidden, intermediate, heads, key_value_heads, vocabulary, layers, head_dim=128, **more):
    return {"hidden_size": hidden, "intermediate_size": intermediate, "num_attention_heads": heads, "head_dim": head_dim,
            "num_key_value_heads": key_value_heads, "vocab_size": vocabulary, "num_hidden_layers": layers,
            "max_position_embeddings": 8192, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **more}


# Each model architecture: a model of it, what transformers calls its class, and its config.json.
REAL = {
    "llama": ("Llama 3.1 8B", "Llama", widths(4096, 14336, 32, 8, 128256, 32, max_position_embeddings=131072, **rope(
        5e5, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192))),
    "mistral": ("Mistral 7B", "Mistral", widths(4096, 14336, 32, 8, 32768, 32, sliding_window=4096, **rope(1e4))),
    "mixtral": ("Mixtral 8x7B", "Mixtral", widths(4096, 14336, 32, 8, 32000, 32, num_local_experts=8,
                                                  num_experts_per_tok=2, sliding_window=None, **rope(1e6))),
    "qwen2": ("Qwen 2.5 7B", "Qwen2", widths(3584, 18944, 28, 4, 152064, 28, head_dim=None, **rope(1e6))),
    "qwen3": ("Qwen 3 8B", "Qwen3", widths(4096, 12288, 32, 8, 151936, 36, **rope(1e6))),
    "qwen3_moe": ("Qwen 3 30B-A3B", "Qwen3Moe", widths(2048, 6144, 32, 4, 151936, 48, num_experts=128,
                                                       num_experts_per_tok=8, moe_intermediate_size=768,
                                                       norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
                                                       **rope(1e6))),
    "gemma2": ("Gemma 2 9B", "Gemma2", widths(3584, 14336, 16, 8, 256000, 42, head_dim=256, query_pre_attn_scalar=256,
                                              sliding_window=4096, tie_word_embeddings=True, **rope(1e4))),
    "gemma3_text": ("Gemma 3 12B", "Gemma3", widths(3840, 15360, 16, 8, 262208, 48, head_dim=256,
                                                    query_pre_attn_scalar=256, sliding_window=1024,
                                                    tie_word_embeddings=True)),
    "phi3": ("Phi 4 (14B)", "Phi3", widths(5120, 17920, 40, 10, 100352, 40, sliding_window=None,
                                           **rope(2.5e5, partial_rotary_factor=1.0))),
    "smollm3": ("SmolLM 3 3B", "SmolLM3", widths(2048, 11008, 16, 4, 128256, 36, no_rope_layer_interval=4,
                                                 tie_word_embeddings=True, **rope(5e6))),
    "granite": ("Granite 3.3 8B", "Granite", widths(4096, 12800, 32, 8, 49152, 40, embedding_multiplier=12.0,
                                                    attention_multiplier=0.0078125, residual_multiplier=0.22,
                                                    logits_scaling=16.0, tie_word_embeddings=True, **rope(1e7))),
}

# What a small model has less of.
SMALL = dict(hidden_size=256, intermediate_size=512, num_attention_heads=8, num_key_value_heads=4, head_dim=32,
             vocab_size=256, num_hidden_layers=4, max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
             pad_token_id=None)
SMALL_OF = {
    "mistral": dict(sliding_window=64),
    "mixtral": dict(num_local_experts=4),
    "qwen3_moe": dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=256),
    "gemma2": dict(query_pre_attn_scalar=32, sliding_window=64),
    "gemma3_text": dict(query_pre_attn_scalar=32, sliding_window=64, num_hidden_layers=6),
}


def config_for(architecture, **changes):
    _, family, settings = REAL[architecture]
    values = {key: value for key, value in {**settings, **changes}.items() if key != "head_dim" or settings[key]}
    return getattr(transformers, family + ("TextConfig" if family == "Gemma3" else "Config"))(**values)


def model_class(architecture):
    return getattr(transformers, REAL[architecture][1] + "ForCausalLM")


def write_small(architecture, directory):
    """A model that transformers makes, with weights that are large enough for text to matter."""
    torch.manual_seed(1)
    model = model_class(architecture)._from_config(config_for(architecture, **{**SMALL, **SMALL_OF.get(architecture, {})}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith("norm.weight"):
                weight.normal_(0.0, 0.06)
    model.bfloat16().save_pretrained(directory)


def write_wide(architecture, layers, directory):
    """Random weights, tensor by tensor: such a model would not fit into memory as transformers makes it."""
    config = config_for(architecture, num_hidden_layers=layers)
    with torch.device("meta"):
        model = model_class(architecture)._from_config(config)
    tied = set(model._tied_weights_keys or []) if config.tie_word_embeddings else set()
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied}
    config.architectures = [model_class(architecture).__name__]
    config.dtype = "bfloat16"
    directory.mkdir(parents=True)
    config.save_pretrained(directory)
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(1)
    block = (random.normal(0.0, 0.02, 1 << 22).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    one = np.full(1, 1.0, np.float32).view(np.uint32)[0] >> 16
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            left = int(np.prod(shape))
            if name.endswith("norm.weight"):
                file.write(np.full(left, 0 if architecture.startswith("gemma") else one, np.uint16).tobytes())
                continue
            while left > 0:
                first = int(random.integers(0, 1 << 12))
                part = block[first:first + left]
                file.write(part.tobytes())
                left -= part.size
    return sum(int(np.prod(shape)) for shape in shapes.values())


def run(arguments, program, *options):
    command = [arguments.build / "examples/models" / program, *options, "--threads", arguments.threads]
    # By a shell, which is small: a program's peak counts what it was forked from.
    done = subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", *map(str, command)], capture_output=True, text=True,
                          errors="replace")
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def quantize(arguments, model, *options):
    """The summary of a run that does nothing but calibrate, quantize and write."""
    out, log = arguments.work / "packed", arguments.work / "log.jsonl"
    shutil.rmtree(out, ignore_errors=True)
    run(arguments, "quantize_model", model, "--output", out, "--log", log, *options)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return out, next(line for line in lines if line["event"] == "summary")


def perplexity(arguments, model, *options):
    printed = run(arguments, "perplexity", model, *options, "--arithmetic", "float32")
    return float(re.search(r"^float32\s+(\S+)", printed, re.M)[1])


def small_row(arguments, name, model, window):
    text = (arguments.calibration, arguments.evaluation)
    options = ["--window", window]
    out, summary = quantize(arguments, model, "--calibration", text[0], *options, "--samples", arguments.samples,
                            "--scheme", "asymmetric", "--bits", 4, "--group-size", 32)
    before, after = (perplexity(arguments, m, text[1], *options, "--eval-windows", arguments.samples) for m in (model, out))
    printed = run(arguments, "generate", out, "In the beginning", "--tokens", 64)
    speed = re.search(r"at ([0-9.]+) a second", printed)
    tokens = arguments.samples * window
    print(f"| {name} | {before:.2f} | {after:.2f} | {tokens / summary['seconds']:.0f} | {speed[1] if speed else '-'} | "
          f"{summary['seconds']:.1f} | {summary['peak_memory_bytes'] * 1e-6:.0f} |", flush=True)


def small(arguments):
    print("| model | float32 | 4 bits | calibration, tokens/s | generate, tokens/s | seconds | MB |\n|---|---|---|---|---|---|---|")
    for architecture in arguments.only or REAL:
        directory = arguments.work / architecture
        shutil.rmtree(directory, ignore_errors=True)
        write_small(architecture, directory)
        small_row(arguments, architecture, directory, 256)
        shutil.rmtree(directory)
    for model in arguments.model:
        small_row(arguments, model.name, model, 256)


def wide(arguments):
    how = "GPTQ" if arguments.gptq else "rounded"
    print(f"| as wide as | decoder layers | parameters, 10^6 | MB at most, {how} | seconds |\n|---|---|---|---|---|")
    for architecture in arguments.only or REAL:
        for layers in arguments.layers:
            directory = arguments.work / f"{architecture}-wide"
            shutil.rmtree(directory, ignore_errors=True)
            parameters = write_wide(architecture, layers, directory)
            ids = np.random.default_rng(2).integers(3, 32000, arguments.samples * 64).astype(np.int32)
            ids.tofile(arguments.work / "ids.i32")
            _, summary = quantize(arguments, directory, "--calibration", arguments.work / "ids.i32", "--window", 64,
                                  "--samples", arguments.samples, "--scheme", "fixed_zero", "--bits", 4,
                                  "--group-size", 32, *([] if arguments.gptq else ["--rtn"]), "--quality", "plain",
                                  "--no-float-baseline")
            print(f"| {REAL[architecture][0]} | {layers} | {parameters * 1e-6:.0f} | "
                  f"{summary['peak_memory_bytes'] * 1e-6:.0f} | {summary['seconds']:.0f} |", flush=True)
            shutil.rmtree(directory)
            shutil.rmtree(arguments.work / "packed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["small", "wide"])
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/release"))
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("build/architectures"))
    parser.add_argument("--only", nargs="*", help="names of model architectures, in place of all")
    parser.add_argument("--model", nargs="*", type=pathlib.Path, default=[], help="real models for `small`, as well")
    parser.add_argument("--calibration", type=pathlib.Path, default=DATA / "calibration.txt")
    parser.add_argument("--evaluation", type=pathlib.Path, default=DATA / "evaluation.txt")
    parser.add_argument("--samples", type=int, default=8, help="windows: of 256 tokens for `small`, of 64 for `wide`")
    parser.add_argument("--layers", type=int, nargs="*", default=[2, 4], help="decoder layers of `wide`")
    parser.add_argument("--gptq", action="store_true", help="in `wide`, GPTQ in place of rounding")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    (small if arguments.action == "small" else wide)(arguments)


main()
