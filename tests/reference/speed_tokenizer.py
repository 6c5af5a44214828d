#!/usr/bin/env python3
"""Speed of the tokenizer against `tokenizers` (encode_batch_fast) in one run: one thread, processor time, the best of some
rounds that take turns. For a quiet machine; the load is printed. And the time to open a file that holds the tokenizer.

    TOKENIZERS_PARALLELISM=false speed_tokenizer.py [--mb 2] [--rounds 5] [name=FILE ...]

Without files: the texts of build/campaign/deb (campaign_fetch.sh), English, Chinese, and code.
"""
import argparse, ctypes as C, os, pathlib, subprocess, time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
from tokenizers import Tokenizer

import lib
from campaign_tokenizer import OUT, REAL
from tool import ROOT

SOURCES = {"English": "*/usr/share/doc/**/*", "Chinese": "fortunes-zh/usr/share/games/**/*", "code": "golang-1.19-src/**/*.go"}


def gather(name, limit):
    """English: the documentation that packages bring."""
    out = b""
    for path in sorted((OUT / "deb").glob(SOURCES[name])):
        if len(out) >= limit:
            break
        if path.is_file() and path.suffix in ("", ".txt", ".go", ".md") and not path.name.endswith(".dat"):
            data = path.read_bytes()
            if b"\0" not in data:
                out += data
    return out[:limit].decode("utf-8", "ignore").encode()


def best(rounds, *calls):
    times = [[] for _ in calls]
    for _ in range(rounds):
        for t, call in zip(times, calls):
            start = time.process_time()
            call()
            t.append(time.process_time() - start)
    return [min(t) for t in times]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("files", nargs="*")
    a.add_argument("--mb", type=float, default=2)
    a.add_argument("--rounds", type=int, default=5)
    args = a.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    model = OUT / "speed.qsae"
    subprocess.run([ROOT / "build" / "qsae", "convert", str(REAL), "-o", str(model)], check=True, stdout=subprocess.DEVNULL)
    library, reference = lib.Library(), Tokenizer.from_file(str(REAL / "tokenizer.json"))
    opened = []

    def open_it():
        opened.append(library.open(model))
    ms = best(7, open_it)[0] * 1e3
    texts = dict(f.split("=", 1) for f in args.files)
    texts = {k: pathlib.Path(v).read_bytes() for k, v in texts.items()} or {k: gather(k, int(args.mb * 1e6)) for k in SOURCES}
    print(f"load {os.getloadavg()[0]:.1f}; the tokenizer opens in {ms:.2f} ms")
    m = opened[0]
    for name, data in texts.items():
        cap, n = len(data) + 16, C.c_size_t()
        ids, text = (C.c_int32 * cap)(), data.decode()
        pieces = [text[i:i + 20000] for i in range(0, len(text), 20000)]

        def ours():
            library.check(library.so.qsae_tokenize(m, data, C.c_size_t(len(data)), C.c_uint(1), ids, C.c_size_t(cap), C.byref(n), C.byref(library.err)))
        whole, batch = best(args.rounds, ours, lambda: reference.encode_batch_fast(pieces, add_special_tokens=False))
        same = ids[:n.value] == reference.encode(text, add_special_tokens=False).ids
        print(f"{name}: {len(data) / 1e6:.2f} MB, {n.value} tokens, ids {'equal' if same else 'DIFFER'}: qsae {len(data) / whole / 1e6:.1f} MB/s, tokenizers {len(data) / batch / 1e6:.2f} MB/s, {batch / whole:.1f} times")


if __name__ == "__main__":
    main()
