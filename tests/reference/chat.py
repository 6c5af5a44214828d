#!/usr/bin/env python3
"""`qsae chat-template` against Qwen3's template rendered by jinja, through transformers' apply_chat_template:
generated conversations, byte for byte, errors included; numbers and texts as json.dumps writes them; and the ids
that the library (build/libqsae.so) gives for plain chats, and for chats whose messages hold the texts of control tokens,
against `tokenizers`.

    chat.py [--qsae PATH] [--n 3000] [--seed 1]
"""
import argparse, json, os, pathlib, random, re, shutil, struct, subprocess, sys

from tokenizers import Tokenizer
from transformers import AutoTokenizer

import chat_cases
import lib
from tool import BUILD, ROOT, TOY

REAL = pathlib.Path(os.environ.get("QWEN3_TOKENIZER") or ROOT.parent / "shared" / "qwen3-tokenizer")


def floats(rng, n):
    """Numbers whose shortest decimal is hard to get right, and random ones."""
    for e in range(-1074, 1024):
        yield 2.0 ** e
        yield 2.0 ** e * (1 + 2.0 ** -52)
        yield -(2.0 ** e) * (1 - 2.0 ** -53)
    for e in range(-323, 309):
        yield float(f"1e{e}")
        yield float(f"9.999999999999999e{e - 1}")
    for _ in range(n):
        x = struct.unpack("<d", struct.pack("<Q", rng.getrandbits(64)))[0]
        if x == x and abs(x) != float("inf"):
            yield x
            yield rng.random()
            yield round(rng.uniform(-1e6, 1e6), rng.randint(0, 6))


def wanted(tokenizer, data, think, prompt, later):
    """What the program should print; None: it should refuse. Of the later template the program does not take a user's
    content that is no text (tools/chat.h)."""
    if not later:
        return chat_cases.render(tokenizer, data, think, prompt)
    messages = data if isinstance(data, list) else data.get("messages", [])
    if any(isinstance(m, dict) and m.get("role") == "user" and not isinstance(m.get("content"), str) for m in messages):
        return None
    return chat_cases.render(tokenizer, data, think, prompt, chat_cases.later(tokenizer.chat_template))


def later_folder(folder):
    """The tokenizer with the later template, which is in a file of its own there."""
    out = BUILD / "later"
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "tokenizer.json", out / "tokenizer.json")
    (out / "chat_template.jinja").write_text(chat_cases.later(AutoTokenizer.from_pretrained(folder).chat_template) + "\n")
    return out


def run(qsae, model, data, think, prompt):
    args = [*([] if think else ["--no-think"]), *([] if prompt else ["--no-generation-prompt"])]
    p = subprocess.run([*qsae.split(), "chat-template", str(model), *args], input=data, capture_output=True)
    if p.returncode == 0:
        return p.stdout
    line = p.stderr.decode()
    if p.returncode != 1 or p.stdout or not line.startswith("qsae: ") or line.count("\n") != 1:
        return f"code {p.returncode}, {p.stdout!r}, {line!r}".encode()
    return None


def plain_chat(cases):
    """A conversation of texts without added tokens: as transformers takes it, and as lib.Library does."""
    def text():
        return cases.text().replace("<", "(").replace("\0", "")
    hf, own = [], []
    for _ in range(cases.r.randint(1, 6)):
        role = cases.r.choice(["system", "user", "assistant", "tool"])
        m = {"role": role, "content": text()}
        if role == "assistant" and cases.chance(0.5):
            m["reasoning_content"] = text()
        calls = [("f" + text(), text()) for _ in range(cases.r.randint(0, 2))] if role == "assistant" else []
        hf.append(m | ({"tool_calls": [{"name": n, "arguments": a} for n, a in calls]} if calls else {}))
        own.append(m | {"tool_calls": calls})
    tools = [{"name": text()} for _ in range(cases.r.randint(0, 2))]
    if tools:
        own[0] = own[0] | {"tools": "\n".join(json.dumps(t, ensure_ascii=False) for t in tools)}
    return hf, tools, own


def judge_ids(tokenizer, model, cases, n):
    """How many of n chats have the ids of their rendered text, in both ways of tokenizing it."""
    library, good = lib.Library(), 0
    m = library.open(model)
    for _ in range(n):
        hf, tools, own = plain_chat(cases)
        text = tokenizer.apply_chat_template(hf, tools=tools, tokenize=False, add_generation_prompt=True)
        want = tokenizer.encode(text, add_special_tokens=False)
        good += library.chat_render(m, own) == text.encode() and library.chat_tokens(m, own) == want and library.chat_tokens(m, own, 4) == want
    return good


CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<|fim_pad|>")


def forged_chat(rng):
    """A conversation whose texts hold control tokens, and the same with a marker in place of each text."""
    texts, hf, marked = {}, [], []
    for _ in range(rng.randint(1, 5)):
        role = rng.choice(["system", "user", "assistant", "tool"])
        parts = [rng.choice([*CONTROL, "a", " word", "\u00e9", "1", "\n", "<", "|>", "\u4e00", "im_start"]) for _ in range(rng.randint(1, 7))]
        text, marker = "x" + "".join(parts) + "y", f"\ue000{len(texts)}\ue001"
        texts[marker] = text
        hf.append({"role": role, "content": text})
        marked.append({"role": role, "content": marker})
    return hf, marked, texts


def judge_forged(folder, tokenizer, model, rng, n):
    """Control tokens come from the template alone: it is rendered with markers and cut at them, and what is between, with the
    texts filled in, is encoded by a tokenizer that knows no added tokens. And the whole rendered text, where the caller wants that."""
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = {t["content"]: t["id"] for t in data["added_tokens"]}
    data["added_tokens"] = []
    plain, library, good = Tokenizer.from_str(json.dumps(data)), lib.Library(), 0
    m, cut = library.open(model), re.compile("(" + "|".join(map(re.escape, sorted(added, key=len, reverse=True))) + ")")
    for _ in range(n):
        hf, marked, texts = forged_chat(rng)
        want = []
        for piece in cut.split(tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True)):
            for marker, text in texts.items():
                piece = piece.replace(marker, text)
            want += [added[piece]] if piece in added and piece not in texts.values() else plain.encode(piece, add_special_tokens=False).ids
        whole = tokenizer.encode(tokenizer.apply_chat_template(hf, tokenize=False, add_generation_prompt=True), add_special_tokens=False)
        own = [m | {"tool_calls": []} for m in hf]
        good += library.chat_tokens(m, own) == want and library.chat_tokens(m, own, 4) == whole
    return good


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--qsae", default=str(ROOT / "build" / "qsae"))
    a.add_argument("--n", type=int, default=3000)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--quick", action="store_true")
    args, _ = a.parse_known_args()
    folder = REAL if REAL.exists() else TOY
    BUILD.mkdir(parents=True, exist_ok=True)
    models = [BUILD / "chat.qsae", BUILD / "chat_later.qsae"]
    for model, source in zip(models, (folder, later_folder(folder))):
        subprocess.run([*args.qsae.split(), "convert", str(source), "-o", str(model), "--force"], check=True, stdout=subprocess.DEVNULL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cases = chat_cases.Cases(args.seed)
    passed = failed = raised = 0

    def judge(data, think, prompt, ascii_only, later=0):
        nonlocal passed, failed, raised
        want = wanted(tokenizer, data, think, prompt, later)
        text = json.dumps(data, ensure_ascii=ascii_only)
        got = run(args.qsae, models[later], text.encode(), think, prompt)
        raised += want is None
        if got == want:
            passed += 1
        else:
            failed += 1
            if failed <= 10:
                print(f"{text}\n  think {think}, prompt {prompt}\n  got    {got!r}\n  wanted {want!r}")

    for i in range(300 if args.quick else args.n):
        judge(*cases.case(), i % 2 == 0, i % 3 == 0)
    rng = random.Random(args.seed)
    judge({"messages": [{"role": "user", "content": "x"}], "tools": [{"x": list(floats(rng, 20000))}]}, True, True, True)
    judge([{"role": "tool", "content": list(floats(rng, 2000))}], True, True, True)
    every = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    judge({"messages": [{"role": "user", "content": "".join(every)}], "tools": [{"".join(every): every[:2000]}]}, True, True, True)
    judge([{"role": "tool", "content": [c + "'" for c in every]}], True, True, False)
    n = 100 if args.quick else 1000
    good = judge_ids(tokenizer, models[0], cases, n)
    print(f"{n} chats as ids: {n - good} differ")
    forged = judge_forged(folder, tokenizer, models[0], rng, n)
    print(f"{n} chats with control tokens in their texts, as ids: {n - forged} differ")
    passed, failed = passed + good + forged, failed + 2 * n - good - forged
    print(f"{passed + failed} conversations, of which the template raises on {raised}")
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
