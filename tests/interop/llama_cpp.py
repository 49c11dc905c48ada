#!/usr/bin/env python3
"""What llama.cpp makes of our GGUF files, and we of its.

  tests/interop/llama_cpp.py --build build --model DIR --calibration FILE --evaluation FILE.i32

Installs gguf, safetensors and llama-cpp-python (which compiles llama.cpp) from the package registry into a
virtual environment under --work, and then, on one model:
  1. writes Q4_0, Q4_1 (with zero points, and half step) and Q8_0 files with quantize_model, GPTQ in groups of 32;
  2. lists them with the gguf package and compares what that decodes with the original weights: every row in
     its place, and what is not quantized unchanged;
  3. loads them into llama.cpp and compares its perplexity with ours: within 1 %;
  4. has llama.cpp quantize the same model to Q4_0 itself: ours has to close at least half of the gap between
     that and float32;
  5. has llama.cpp write the types that we only read, and compares its perplexity of each with ours.
--model takes a Hugging Face directory, --build a build directory with quantize_model and perplexity. Token ids
for --evaluation are little-endian int32 (NAME.i32), or bytes of a text for a vocabulary of 256. The exit status
is 1 when one of these does not hold.
"""
import json
import os
import shutil
import sys

from common import arguments_of, check, enter_environment, finish, our_perplexity, quantize_model

PACKAGES = ["numpy", "gguf==0.19.0", "safetensors", "llama-cpp-python==0.3.36"]
TOLERANCE = 0.01  # of a perplexity: llama.cpp rounds activations to 8 bits and keys and values to float16
LEAST_SHARE = 0.5  # of the gap between llama.cpp's Q4_0 and float32 that is to be closed


def parse_arguments():
    parser = arguments_of(__doc__)
    parser.add_argument("--eval-windows", type=int, default=0, help="the first N of them [all]")
    return parser.parse_args()


ARGUMENTS = parse_arguments()
enter_environment(ARGUMENTS.work / "llama_cpp_environment", PACKAGES)

import gguf  # noqa: E402
import llama_cpp  # noqa: E402
import numpy as np  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

READABLE = {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q4_K", "Q6_K"}


class Model:
    """The directory and the texts."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.directory = arguments.model
        self.config = json.loads((self.directory / "config.json").read_text())
        self.work = arguments.work / self.directory.name
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        raw = arguments.evaluation.read_bytes()
        tokens = np.frombuffer(raw, np.int32 if arguments.evaluation.suffix == ".i32" else np.uint8)
        count = len(tokens) // arguments.window
        if arguments.eval_windows:
            count = min(count, arguments.eval_windows)
        self.windows = tokens[: count * arguments.window].reshape(count, arguments.window)

    def quantize(self, name, scheme, bits, *options):
        """A directory that quantize_model has written, as well as it can in these bytes."""
        output = self.work / name
        quantize_model(self.arguments, "--scheme", scheme, "--bits", bits, "--group-size", 32, "--window",
                       self.arguments.window, "--true-sequential", "--quality", "best", "--propagate", 0.5, "--output", output,
                       *options)
        return output

    def llama_cpp_perplexity(self, path, windows):
        """exp of the mean negative log-likelihood of all tokens of the windows but the first."""
        window = self.arguments.window
        # One thread: on a busy machine several would mostly wait for each other.
        llama = llama_cpp.Llama(str(path), n_ctx=window, n_batch=window, logits_all=True, n_threads=1,
                                n_threads_batch=1, verbose=False)
        total = 0.0
        for tokens in self.windows[:windows]:
            llama.reset()
            llama.eval(tokens.tolist())
            logits = np.asarray(llama.scores[: window - 1])
            logits = logits - logits.max(axis=1, keepdims=True)
            of_next = logits[np.arange(window - 1), tokens[1:]]
            total += (np.log(np.exp(logits).sum(axis=1, dtype=np.float64)) - of_next).sum()
        llama.close()
        return float(np.exp(total / self.windows[:windows, 1:].size))


def gguf_tensors(path):
    """Name -> (type, decoded values [rows, columns]) by the gguf package."""
    return {t.name: (t.tensor_type.name, gguf.quants.dequantize(t.data, t.tensor_type))
            for t in gguf.GGUFReader(path).tensors}


GGUF_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
              "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
              "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
OUTER_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
               "lm_head.weight": "output.weight"}


def gguf_name(name):
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    _, _, layer, *rest = name.removesuffix(".weight").split(".")
    return f"blk.{layer}.{GGUF_NAMES['.'.join(rest)]}.weight"


def in_gguf_order(name, weight, head_size):
    """llama.cpp rotates neighbours, not halves of a head."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    return weight.reshape(-1, 2, head_size // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_float32(model, like, path):
    """The model itself in float32, by the gguf package, with the metadata of one of our files."""
    config = model.config
    head_size = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    writer = gguf.GGUFWriter(path, "llama")
    fields = [f for f in gguf.GGUFReader(like).fields.values()
              if not f.name.startswith("GGUF.") and f.name not in ("general.architecture", "general.file_type")]
    if any(f.types[0] == gguf.GGUFValueType.ARRAY and len(f.data) == 0 for f in fields):
        # The writer takes no empty list of merges, so bytes have to do without a vocabulary.
        fields = [f for f in fields if not f.name.startswith("tokenizer.")]
        writer.add_tokenizer_model("none")
    for field in fields:
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=element)
    originals = {}
    for file in sorted(model.directory.glob("*.safetensors")):
        originals.update(load_bfloat16(file))
    for name, weight in originals.items():
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(in_gguf_order(name, weight, head_size)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {gguf_name(name): in_gguf_order(name, weight, head_size) for name, weight in originals.items()}


def load_bfloat16(file):
    """Tensors in float32; numpy has no bfloat16, so that is widened from the file's bytes."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    if not any(t.get("dtype") == "BF16" for t in header.values()):
        return {name: weight.astype(np.float32) for name, weight in load_file(file).items()}
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16", "all tensors of one type"
        begin, end = entry["data_offsets"]
        halves = np.frombuffer(raw[8 + length + begin : 8 + length + end], np.uint16)
        tensors[name] = (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    return tensors


def quantize_by_llama_cpp(source, target, file_type, float_embeddings=False):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = 2
    if float_embeddings:
        params.token_embedding_type = params.output_tensor_type = 0  # F32
    status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), params)
    if status != 0:
        sys.exit(f"llama.cpp could not quantize to {target}")
    return target


def relative_error(decoded, originals):
    """Of all linear layers together."""
    names = [n for n in originals if ".attn_" in n or ".ffn_" in n]
    names = [n for n in names if originals[n].ndim == 2]
    noise = sum(float(((decoded[n][1] - originals[n]) ** 2).sum()) for n in names)
    return (noise / sum(float((originals[n] ** 2).sum()) for n in names)) ** 0.5


def main():
    model = Model(ARGUMENTS)
    print(f"{model.directory.name}: {len(model.windows)} windows of {ARGUMENTS.window} tokens")
    runs = {"Q4_0": ("fixed_zero", 4), "Q4_1": ("asymmetric", 4), "Q4_1 half step": ("half_step", 4),
            "Q8_0": ("fixed_zero", 8)}
    files = {}
    for name, (scheme, bits) in runs.items():
        directory = model.quantize(name.replace(" ", "_"), scheme, bits, "--format", "gguf")
        files[name] = directory / "model.gguf"

    print("\ngguf's listing:")
    original_values = write_float32(model, files["Q4_0"], model.work / "f32.gguf")
    for name, path in files.items():
        tensors = gguf_tensors(path)
        counts = {}
        for kind, _ in tensors.values():
            counts[kind] = counts.get(kind, 0) + 1
        error = relative_error(tensors, original_values)
        print(f"  {name:<16} {path.stat().st_size:>10} bytes  "
              + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
              + f"; weights differ by {error:.4f} of their norm")
        check(set(tensors) == set(original_values), f"{name}: the tensors are not those of the model")
        # A row out of place would make it 1.4.
        check(error < (0.01 if name == "Q8_0" else 0.2), f"{name}: weights differ by {error:.3f}")
        for tensor, (kind, values) in tensors.items():
            if kind == "F32":
                check(np.array_equal(values, original_values[tensor]), f"{name}: {tensor} is not what it was")

    print("\nperplexity:            llama.cpp      ours      ratio")

    def compare(name, path, windows=len(model.windows)):
        """llama.cpp's perplexity, next to ours of the same file."""
        theirs, ours = model.llama_cpp_perplexity(path, windows), our_perplexity(ARGUMENTS, path, windows)
        print(f"  {name:<18} {theirs:>10.4f} {ours:>10.4f} {theirs / ours:>9.4f}", flush=True)
        check(abs(theirs / ours - 1) <= TOLERANCE, f"{name}: perplexities differ by more than {TOLERANCE:.0%}")
        return theirs

    exact = compare("float32", model.work / "f32.gguf")
    print(f"  {'float32, directory':<18} {'':>10} "
          f"{our_perplexity(ARGUMENTS, model.directory, len(model.windows)):>10.4f}")
    by_gptq = compare("Q4_0", files["Q4_0"])
    path = quantize_by_llama_cpp(model.work / "f32.gguf", model.work / "own-linear.gguf", 2, True)
    by_llama_cpp = compare("Q4_0, llama.cpp's", path)
    closed = (by_llama_cpp - by_gptq) / (by_llama_cpp - exact)
    print(f"Q4_0, the rest in float32: {by_llama_cpp:.4f} by llama.cpp, {by_gptq:.4f} by GPTQ, {exact:.4f} in float32:\n"
          f"{closed:.1%} of the gap is closed")
    if by_llama_cpp > exact * (1 + TOLERANCE):  # a smaller gap is noise
        check(closed >= LEAST_SHARE, f"less than {LEAST_SHARE:.0%} of the gap is closed")
    for name, path in files.items():
        if name != "Q4_0":
            compare(name, path)

    print("\nquantized by llama.cpp:")
    # These quantize embeddings, too, and take another type where a row is no multiple of 256. That both read the
    # same weights shows in a few windows.
    few = min(16, len(model.windows))
    print(f"  the first {few} windows:")
    for name, file_type in {"Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q4_K_S": 14, "Q6_K": 18,
                            "F16": 1, "BF16": 32}.items():
        path = quantize_by_llama_cpp(model.work / "f32.gguf", model.work / f"own-{file_type}.gguf", file_type)
        kinds = sorted({t.tensor_type.name for t in gguf.GGUFReader(path).tensors})
        readable = set(kinds) <= READABLE
        if readable:
            compare(name, path, few)
        print(f"    {', '.join(kinds)}{'' if readable else ': not all of them are read'}")

    finish()


if __name__ == "__main__":
    main()
