#!/usr/bin/env python3
"""Writes a model of LLaMA-7B's shape with random weights, to see what memory and time large layers take.

usage: large_model.py DIRECTORY [LAYERS]

LAYERS of the 32 decoder layers, 2 if it is not given: 1.3 GB in bfloat16. Texts for it are token ids (.i32), of which
it writes calibration.i32: 65536 random ones.
"""
import json
import pathlib
import random
import struct
import sys

HIDDEN, INNER, HEADS, VOCABULARY = 4096, 11008, 32, 32000
SIGNS = bytes(0x3C if i < 128 else 0xBC for i in range(256))  # magnitudes from 1/128 to 1/32


def weights(count):
    data = bytearray(2 * count)
    data[0::2] = random.randbytes(count)
    data[1::2] = random.randbytes(count).translate(SIGNS)
    return data


def main(directory, layers=2):
    random.seed(7)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
    norms = ["model.norm.weight"]
    for i in range(layers):
        layer = f"model.layers.{i}."
        norms += [layer + "input_layernorm.weight", layer + "post_attention_layernorm.weight"]
        for name in "qkvo":
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[layer + "mlp.gate_proj.weight"] = shapes[layer + "mlp.up_proj.weight"] = (INNER, HIDDEN)
        shapes[layer + "mlp.down_proj.weight"] = (HIDDEN, INNER)
    header, end = {}, 0
    for name, shape in list(shapes.items()) + [(name, (HIDDEN,)) for name in norms]:
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    path = pathlib.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    with open(path / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            for _ in range(shape[0]):
                out.write(weights(shape[1]))
        for _ in norms:
            out.write(b"\x80\x3f" * HIDDEN)
    (path / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "tie_word_embeddings": False}))
    tokens = [random.randrange(VOCABULARY) for _ in range(65536)]
    (path / "calibration.i32").write_bytes(struct.pack(f"<{len(tokens)}i", *tokens))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(sys.argv[1], *map(int, sys.argv[2:]))
