#!/usr/bin/env python3
"""Every model architecture beside transformers and llama.cpp, on small random models.

  tests/interop/architectures.py make DIR                 writes the models of tests/models/data
  tests/interop/architectures.py check DIR --build build  quantizes each of them and compares perplexities

`make` has transformers itself initialize and save a model of two layers for each architecture and for each way of
stretching rope, with the logits that it computes in float32 for 64 tokens: DIR/NAME/config.json, model.safetensors and
expected.safetensors. The tests hold the example programs against these.

`check` needs a build with quantize_model and perplexity. It writes a GPTQ checkpoint of each model, loads what its
tensors stand for into transformers, and asks for the same perplexity to 1e-3; and a GGUF file where llama.cpp knows the
architecture, and asks for llama.cpp's perplexity to 1 %.

Needs torch, transformers, safetensors, and for check gguf and llama-cpp-python. The exit status is 1 when something
does not hold.
"""

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.pop(0)  # transformers.py beside this file is a program of its own

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

LENGTH = 64
VOCABULARY = 48
COMMON = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
              head_dim=16, vocab_size=VOCABULARY, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1,
              eos_token_id=2, pad_token_id=0, tie_word_embeddings=False)
EXPERTS = dict(num_experts_per_tok=2, intermediate_size=64)


def rope(kind, **rest):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **rest}}


FACTORS = [1.0, 1.5, 2.0, 4.0]
MODELS = {
    "llama": ("Llama", dict(attention_bias=True, mlp_bias=True)),
    "llama-tied": ("Llama", dict(tie_word_embeddings=True, num_key_value_heads=2)),
    "llama-linear": ("Llama", rope("linear", factor=4.0)),
    "llama-dynamic": ("Llama", dict(max_position_embeddings=32, **rope("dynamic", factor=2.0))),
    "llama-llama3": ("Llama", rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                   original_max_position_embeddings=32)),
    "llama-yarn": ("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "mistral": ("Mistral", dict(sliding_window=13)),
    "mixtral": ("Mixtral", dict(num_local_experts=4, sliding_window=None, **EXPERTS)),
    "qwen2": ("Qwen2", dict(use_sliding_window=True, sliding_window=9, max_window_layers=1, head_dim=None)),
    "qwen3": ("Qwen3", dict(tie_word_embeddings=True)),
    "qwen3_moe": ("Qwen3Moe", dict(num_experts=4, moe_intermediate_size=32, norm_topk_prob=True, decoder_sparse_step=1,
                                   mlp_only_layers=[], **EXPERTS)),
    "qwen3_moe-dense": ("Qwen3Moe", dict(num_experts=4, moe_intermediate_size=32, norm_topk_prob=False,
                                         mlp_only_layers=[0], **EXPERTS)),
    "gemma2": ("Gemma2", dict(query_pre_attn_scalar=16, sliding_window=7, attn_logit_softcapping=2.0,
                              final_logit_softcapping=3.0, tie_word_embeddings=True)),
    "gemma3_text": ("Gemma3", dict(query_pre_attn_scalar=16, sliding_window=7, num_hidden_layers=6,
                                   tie_word_embeddings=True, intermediate_size=32)),
    "phi3": ("Phi3", dict(sliding_window=None, **rope("default", partial_rotary_factor=1.0))),
    "phi3-long": ("Phi3", dict(sliding_window=33, original_max_position_embeddings=32,
                               **rope("longrope", partial_rotary_factor=0.5, short_factor=FACTORS,
                                      long_factor=[2 * f for f in FACTORS], original_max_position_embeddings=32))),
    "smollm3": ("SmolLM3", dict(num_hidden_layers=4, no_rope_layer_interval=4, tie_word_embeddings=True)),
    "granite": ("Granite", dict(embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.5,
                                logits_scaling=2.0)),
}


def random_model(name):
    family, settings = MODELS[name]
    values = {**COMMON, **settings}
    if values["head_dim"] is None:
        del values["head_dim"]
    kind = family + ("TextConfig" if family == "Gemma3" else "Config")
    config = getattr(transformers, kind)(**values)
    torch.manual_seed(sum(map(ord, name)))
    model = getattr(transformers, family + "ForCausalLM")._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.normal_(0.0, 0.2)
            if key.endswith("norm.weight") and not family.startswith("Gemma"):
                weight.add_(1.0)
            weight.copy_(weight.bfloat16().float())
    return model.eval()


def tokens_of(name, windows=1):
    random = np.random.default_rng(sum(map(ord, name)))
    return random.integers(3, VOCABULARY, (windows, LENGTH)).astype(np.int32)


def make(arguments):
    for name in arguments.only or MODELS:
        model = random_model(name)
        directory = arguments.directory / name
        shutil.rmtree(directory, ignore_errors=True)
        with torch.no_grad():
            logits = model(torch.tensor(tokens_of(name), dtype=torch.long)).logits[0]
        model.bfloat16().save_pretrained(directory)
        (directory / "generation_config.json").unlink(missing_ok=True)
        save_file({"tokens": torch.tensor(tokens_of(name)[0]), "logits": logits.float().contiguous()},
                  directory / "expected.safetensors")
        print(f"{name}: logits within {logits.abs().max():.2f},",
              sum(file.stat().st_size for file in directory.iterdir()) // 1024, "KiB")


def perplexity(logits, tokens):
    """Of logits [windows, length, vocabulary]."""
    likelihood = torch.log_softmax(logits[:, :-1].double(), -1)
    of_next = likelihood.gather(-1, torch.tensor(tokens[:, 1:], dtype=torch.long)[..., None])
    return math.exp(-of_next.mean().item())


def unpack(words, bits, axis):
    """Codes of `bits` bits from 32-bit words along an axis."""
    words = np.moveaxis(words.astype(np.uint32), axis, -1)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (words[..., None] >> shifts) & ((1 << bits) - 1)
    return np.moveaxis(codes.reshape(*words.shape[:-1], -1), -1, axis).astype(np.int32)


def decoded_state(directory):
    """What the tensors of a GPTQ checkpoint of 4 bits, version 1, stand for."""
    state = {}
    with safe_open(directory / "model.safetensors", "pt") as file:
        for key in file.keys():
            state[key] = file.get_tensor(key)
    for key in [key for key in state if key.endswith(".qweight")]:
        name = key.removesuffix(".qweight")
        codes = unpack(state.pop(key).numpy(), 4, 0)
        zeros = unpack(state.pop(name + ".qzeros").numpy(), 4, 1) + 1
        scales = state.pop(name + ".scales").float().numpy()
        groups = state.pop(name + ".g_idx").numpy()
        state[name + ".weight"] = torch.tensor((scales[groups] * (codes - zeros[groups])).T.copy()).float()
    return state


def load_decoded(directory):
    """The model that transformers makes of the decoded tensors, saved as it saves its own."""
    plain = directory.parent / (directory.name + "-decoded")
    shutil.rmtree(plain, ignore_errors=True)
    plain.mkdir()
    config = json.loads((directory / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert quantization["bits"] == 4 and quantization["quant_method"] == "gptq"
    (plain / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    state = {key: value.float().contiguous() for key, value in decoded_state(directory).items()}
    save_file(state, plain / "model.safetensors", metadata={"format": "pt"})
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    missing = [key for key in info["missing_keys"] if key != "lm_head.weight" or not config.get("tie_word_embeddings", True)]
    if missing or info["unexpected_keys"] or info["mismatched_keys"]:
        raise SystemExit(f"{directory}: transformers misses {missing}, does not know {info['unexpected_keys']}")
    return model.eval()


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or done.stdout.strip())
    return done.stdout


def our_perplexity(arguments, model, tokens, length=LENGTH):
    out = run([arguments.build / "examples/models/perplexity", model, tokens, "--window", length])
    return float(re.search(r"float32\s+([0-9.]+)", out)[1])


def llama_cpp_perplexity(path, tokens):
    import llama_cpp

    # Without kernels that arrange weights for this CPU: those for AMX fail on matrices as small as these.
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def plain_buffers():
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    llama_cpp.llama_cpp.llama_model_default_params = plain_buffers
    length = tokens.shape[1]
    llama = llama_cpp.Llama(str(path), n_ctx=LENGTH, n_batch=LENGTH, logits_all=True, n_threads=1, verbose=False)
    logits = []
    for window in tokens:
        llama.reset()
        llama.eval(window.tolist())
        logits.append(np.array(llama.scores[:length]))
    llama.close()
    llama_cpp.llama_cpp.llama_model_default_params = defaults
    return perplexity(torch.tensor(np.stack(logits)), tokens)


def check(arguments):
    failed = []
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    print(f"{'model':<18}{'transformers':>13}{'ours':>10}{'GPTQ: transformers':>20}{'ours':>10}{'GGUF: llama.cpp':>17}{'ours':>10}")
    for name in arguments.only or MODELS:
        source = arguments.directory / name
        calibration = work / "calibration.i32"
        tokens_of(name + "calibration", 32).tofile(calibration)
        tokens = tokens_of(name + "evaluation", 8)
        evaluation = work / "evaluation.i32"
        tokens.tofile(evaluation)
        ids = torch.tensor(tokens, dtype=torch.long)
        row = f"{name:<18}"

        def compare(what, theirs, ours, tolerance):
            nonlocal row
            row += f"{theirs:>{'13' if what == 'float32' else '20' if what == 'GPTQ' else '17'}.4f}{ours:>10.4f}"
            if not abs(theirs / ours - 1.0) < tolerance:
                failed.append(f"{name}: {what}: {theirs} is not {ours}")

        def quantize(kind, *options):
            out = work / f"{name}-{kind}"
            shutil.rmtree(out, ignore_errors=True)
            run([arguments.build / "examples/models/quantize_model", source, "--calibration", calibration, "--window",
                 LENGTH, "--bits", 4, "--group-size", 32, "--format", kind, "--output", out, *options])
            return out

        with torch.no_grad():
            model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32,
                                                                      attn_implementation="eager")
            compare("float32", perplexity(model(ids).logits, tokens), our_perplexity(arguments, source, evaluation), 1e-4)
            try:
                out = quantize("gptq", "--scheme", "symmetric")
                compare("GPTQ", perplexity(load_decoded(out)(ids).logits, tokens),
                        our_perplexity(arguments, out, evaluation), 1e-3)
            except RuntimeError as error:
                failed.append(f"{name}: GPTQ: {error}")
        try:
            out = quantize("gguf", "--scheme", "fixed_zero") / "model.gguf"
            # Where llama.cpp sees no windows, a text is no longer than they are.
            seen = LENGTH if name.startswith("gemma") else MODELS[name][1].get("sliding_window") or LENGTH
            tokens[:, :seen].tofile(evaluation)
            compare("GGUF", llama_cpp_perplexity(out, tokens[:, :seen]),
                    our_perplexity(arguments, out, evaluation, seen), 1e-2)
        except RuntimeError as error:
            row += f"  {error}"
            if "llama.cpp does not compute" not in str(error):
                failed.append(f"{name}: GGUF: {error}")
        except ValueError as error:
            failed.append(f"{name}: llama.cpp: {error}")
        print(row, flush=True)
    print("\n".join(failed) or "all of it holds")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["make", "check"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument("--work", type=Path, default=Path("build/interop-architectures"))
    parser.add_argument("--only", nargs="*", help="names of models, in place of all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.exit(make(arguments) if arguments.action == "make" else check(arguments))


main()
