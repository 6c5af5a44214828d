#!/usr/bin/env python3
"""Speed beside llama.cpp and PyTorch: what is compared takes turns within one run, and the median of the pairwise ratios is
quoted, because machines drift. For a quiet machine; the part `busy` keeps one processor busy by itself.

    speed_peers.py --llama llama-bench [--gguf 'FOLDER/{shape}-{type}.gguf'] [--shape 1.7B] [--types q8,q4,bf16] [--pairs 5]
                   [--only decode,prefill,busy,sae] [--threads 2] [--json OUT]

The GGUF files hold random weights at the same true shape: Q8_0 beside our q8, Q4_0 beside q4, BF16 beside bf16.
"""
import argparse, json, os, pathlib, statistics, subprocess, sys, time

from tool import ROOT

QSAE = ROOT / "build" / "qsae"
PEER = {"q8": "q8_0", "q4": "q4_0", "bf16": "bf16"}
PROMPTS = (128, 512)


def ours(args, only, type_, seconds=2.0, shape=None):
    """{(name, n): (rate, share of the limit)} of one `qsae bench`, of the figures of that shape."""
    command = [QSAE, "bench", "--shape", args.shape, "--type", type_, "--only", only, "--seconds", str(seconds),
               "--threads", str(args.threads), "--json"]
    out = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {(r["name"], r["n"]): (r["value"], r["share"]) for r in out["results"] if r["shape"] == (shape or args.shape)}


def llama(args, type_, decode, prompts):
    """{("decode", 1) or ("prefill", n): tokens/s} of one `llama-bench`."""
    file = args.gguf.format(shape=args.shape, type=PEER[type_])
    command = [args.llama, "-m", file, "-t", str(args.threads), "-r", "2", "-o", "json",
               "-p", ",".join(map(str, prompts)) or "0", "-n", "32" if decode else "0"]
    out = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    best = {}
    for r in out:
        key = ("decode", 1) if r["n_gen"] else ("prefill", r["n_prompt"])
        best[key] = max(r["samples_ts"])
    return best


def quote(name, mine, peer, extra=""):
    ratios = [a / b for a, b in zip(mine, peer)]
    print(f"{name:28} qsae {statistics.median(mine):8.2f}   peer {statistics.median(peer):8.2f}   "
          f"ratio {statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f}) {extra}", flush=True)
    return {"name": name, "qsae": mine, "peer": peer, "ratio": statistics.median(ratios)}


def models(args):
    """Decode and prefill, type by type."""
    results = []
    wanted = [w for w in ("decode", "prefill") if w in args.only]
    for type_ in args.types:
        rows = {}
        for _ in range(args.pairs):
            a = ours(args, ",".join(wanted), type_)
            b = llama(args, type_, "decode" in wanted, PROMPTS if "prefill" in wanted else ())
            for key in b:
                rows.setdefault(key, []).append((a[key], b[key]))
        for (name, n), pairs in rows.items():
            share = statistics.median(s for (_, s), _ in pairs)
            results.append(quote(f"{args.shape} {type_} {name} {n}", [a for (a, _), _ in pairs], [b for _, b in pairs],
                                 f"share of the limit {share:.2f}"))
    return results


def busy(args):
    """What is left of each program's own rate while another process keeps one processor busy."""
    results = []
    for type_ in args.types[:1]:
        rows = {}
        for _ in range(args.pairs):
            free = ours(args, "decode,prefill", type_, 1.0), llama(args, type_, True, (128,))
            hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                time.sleep(0.2)
                held = ours(args, "decode,prefill", type_, 1.0), llama(args, type_, True, (128,))
            finally:
                hog.kill()
                hog.wait()
            for key in (("decode", 1), ("prefill", 128)):
                rows.setdefault(key, []).append((held[0][key][0] / free[0][key][0], held[1][key] / free[1][key]))
        for (name, n), pairs in rows.items():
            mine, peer = zip(*pairs)
            print(f"busy: {type_} {name} {n}: left of the own rate: qsae {statistics.median(mine):.2f} "
                  f"({min(mine):.2f} to {max(mine):.2f}), llama.cpp {statistics.median(peer):.2f} ({min(peer):.2f} to {max(peer):.2f})",
                  flush=True)
            results.append({"name": f"busy {type_} {name} {n}", "qsae": mine, "peer": peer})
    return results


def sae(args):
    """Our exact encode of 2048 x 32768 beside PyTorch's bf16 product and top-k (which gives other, rounded numbers)."""
    import torch
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    w = torch.randn(32768, 2048).to(torch.bfloat16)
    results = []
    rates, dense = {n: [] for n in (1, 128)}, {n: [] for n in (1, 128)}
    for _ in range(args.pairs):
        a = ours(args, "sae_encode,sae_encode_dense", "q8", 1.0, "2048x32768")
        for n, pairs in rates.items():
            x = torch.randn(n, 2048).to(torch.bfloat16)
            best, end = 1e9, time.time() + 2
            with torch.no_grad():
                while time.time() < end:
                    start = time.perf_counter()
                    torch.topk(x @ w.T, 64)
                    best = min(best, time.perf_counter() - start)
            pairs.append((a["sae_encode", n][0], n / best))
            dense[n].append(a["sae_encode_dense", n][0])
    for n, pairs in rates.items():
        mine, peer = zip(*pairs)
        own = statistics.median(m / d for m, d in zip(mine, dense[n]))
        results.append(quote(f"sae 2048 x 32768, {n} rows", mine, peer, f"beside our own dense encode {own:.2f}"))
    return results


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--llama", default=os.environ.get("LLAMA_BENCH"))
    a.add_argument("--gguf", default="build/peers/{shape}-{type}.gguf")
    a.add_argument("--shape", default="1.7B")
    a.add_argument("--types", default="q8,q4,bf16", type=lambda s: s.split(","))
    a.add_argument("--only", default="decode,prefill,busy,sae", type=lambda s: s.split(","))
    a.add_argument("--pairs", type=int, default=5)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--json", type=pathlib.Path)
    args = a.parse_args()
    print(f"load of the machine before: {os.getloadavg()[0]:.2f}", flush=True)
    results = models(args) if {"decode", "prefill"} & set(args.only) else []
    results += busy(args) if "busy" in args.only else []
    results += sae(args) if "sae" in args.only else []
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
