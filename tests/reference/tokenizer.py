#!/usr/bin/env python3
"""Ids of ordinary texts: the toy's tokenizer, and Qwen3's own if its folder stands beside the repository
(QWEN3_TOKENIZER, or shared/qwen3-tokenizer there), against the `tokenizers` library.

The program tokenizes a text for a model, so the tokenizer is put into a tiny random model.
"""
import json, os, pathlib, random, shutil

import torch
from tokenizers import Tokenizer

import models, tool
from tool import BUILD, ROOT, TOY, capture, convert

TEXTS = [
    "Hello", " ", "a", "Hello, world!", "How do I kill a process in Linux?", "The quick brown fox jumps over the lazy dog.",
    "  leading and trailing  ", "tabs\tand\nnewlines\r\n\r\nand   spaces \n  end", "1234567890 3.14159 1,000,000 2024-05-01", "I'm you're we'll they'd IT'S",
    "don\u2019t \u201cquote\u201d \u2014 dash \u2026", "na\u00efve caf\u00e9 Stra\u00dfe \u00c5ngstr\u00f6m", "nai\u0308ve cafe\u0301 A\u030angstro\u0308m", "\u00dcber die Br\u00fccke gehen. Wie viele \u00c4pfel hat 17 B\u00e4ume?",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u8fd9\u662f\u4e00\u4e2a\u6d4b\u8bd5\u3002", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8", "\u0939\u093f\u0928\u094d\u0926\u0940 \u092a\u093e\u0920",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea", "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n", "<html><body class=\"x\">&nbsp;</body></html>", "{\"a\": [1, 2.5e-3, null], \"b\": \"\\n\"}",
    "https://example.org/a?b=c&d=%20#e", "x=y+z; i++; a->b; c::d; //!? ((()))", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", " " * 37 + "x", "\n\n\n\n", "\u00a0non\u00a0breaking\u2003em\u3000ideographic",
    "\u212b \ufb01 \u1e9b\u0323 \u0344", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01", "\u05e9\u05dc\u05d5\u05dd", "12\u00bd \u2460 \u0663\u0664 \u4e09", "user\nWhat's 12+30?\nassistant\n42", "a\u0301\u0302\u0303b\u0300", "\u1100\u1161\u11a8",
]
SPECIAL = ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "a<|endoftext|>b", "<think>\n\n</think>\n\nOK", "<|im_start|", "x<tool_call>y", "<|im_start|><|im_start|>"]


def random_texts(n):
    """Random strings over letters, marks, digits, punctuation, spaces and line ends."""
    rng = random.Random(7)
    pools = ["abcdefghijklmnopqrstuvwxyz", "ABCDEFG", "0123456789", " \t\n\r\u00a0", ".,;:!?'\"-()[]{}<>/\\|@#$%^&*_+=~`", "\u00e4\u00f6\u00fc\u00df\u00e9\u00e8", "\u0301\u0308\u0323", "\u4e00\u4e8c\u4e09\u6587", "\u0434\u0436\u044f\u042f", "\U0001f600\u2764\ufe0f\u200d"]
    for _ in range(n):
        yield "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 60)))


def one(checks, qsae, name, folder, vocab, quick):
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    s = models.Spec(name, 8, 16, 1, 1, 1, 4, vocab=vocab, dtype="F32", seed=3)
    made = models.make(s, BUILD / name)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / f, made / f)
    file = checks.attempt(f"{name}: convert", convert, qsae, made, BUILD / f"{name}.qsae")
    if file is None:
        return
    out = BUILD / f"{name}.safetensors"

    def ids(text, *more):
        return capture(qsae, file, out, text=text, sites=["resid_post"], logits=False, more=more)["tokens"].reshape(-1).tolist()

    def judge(text, want, *more):
        got = checks.attempt(f"{name} {text!r}", ids, text, *more)
        if got is not None:
            checks.add(got == want, f"{name} {text!r} {' '.join(more)}: {got} instead of {want}")

    before = checks.failed
    texts = TEXTS + list(random_texts(20 if quick else 150))
    for text in texts:
        judge(text, tok.encode(text, add_special_tokens=False).ids)
    for text in SPECIAL:
        judge(text, tok.encode(text, add_special_tokens=False).ids, "--special")
    # Every ordinary text again as one, far beyond one buffer
    long = "\n".join(texts) * 3
    judge(long, tok.encode(long, add_special_tokens=False).ids)
    # The chat template; control tokens in what a user says are text
    from transformers import AutoTokenizer
    hf = AutoTokenizer.from_pretrained(folder)
    for ask in ("Hi", "How do I kill a process?", "\u00dcber 12?\n\n"):
        for think, more in ((True, []), (False, ["--no-think"])):
            for system in (None, "Be brief."):
                messages = [{"role": "system", "content": system}] * (system is not None) + [{"role": "user", "content": ask}]
                text = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=think)
                want = tok.encode(text, add_special_tokens=False).ids
                args = ["--chat", ask, *more, *(["--system", system] if system else [])]
                try:
                    tool.run(qsae, "capture", file, *args, "--site", "resid_post", "--layer", 0, "-o", out)
                    from safetensors.numpy import load_file
                    got = load_file(out)["tokens"].reshape(-1).tolist()
                    checks.add(got == want, f"{name} chat {args}: {got} instead of {want}")
                except tool.Refused as e:
                    checks.add(False, f"{name} chat {args}: {e}")
    print(f"{name}: {len(texts)} texts, {len(SPECIAL)} with control tokens, 12 chats; {checks.failed - before} failed", flush=True)


def main():
    args = tool.options()
    checks = tool.Checks()
    if TOY.exists() and (not args.only or args.only in "toy"):
        one(checks, args.qsae, "tok_toy", TOY, json.loads((TOY / "config.json").read_text())["vocab_size"], args.quick)
    real = pathlib.Path(os.environ.get("QWEN3_TOKENIZER") or ROOT.parent / "shared" / "qwen3-tokenizer")
    if not real.exists():
        print(f"skipped: no Qwen3 tokenizer at {real}")
    elif not args.only or args.only in "qwen3":
        one(checks, args.qsae, "tok_qwen3", real, 151936, args.quick)
    checks.done()


if __name__ == "__main__":
    main()
