#!/usr/bin/env python3
"""The same bytes whatever the threads, the chunk and the instruction set; and rows of a prefix are the rows of
the whole. Files are compared whole, byte for byte."""
import itertools

import numpy as np

import models, saes, tool, truth
from tool import BUILD, TOY, capture, convert, same_bits

CHUNKS = ["1", "3", "16", "64", "all"]
# matrices over more than one group of 256 in both directions, and an odd everything
HOST = models.Spec("same_host", 300, 1000, 2, 5, 1, 66, vocab=1003, tied=False, seed=1902)
SAES = [saes.Spec("s_jump", "jumprelu", "resid_post", 1, 999, sub=True, seed=41), saes.Spec("s_topk", "topk", "mlp_out", 0, 999, k=25, seed=42),
        saes.Spec("s_gated", "gated", "resid_mid", 1, 500, norm="layer_norm", seed=43), saes.Spec("s_z", "jumprelu", "attn_z", 1, 300, seed=44)]


def one(checks, qsae, name, file, ids, sae_files, quick):
    isas = tool.machine_isas()
    first = capture(qsae, file, BUILD / "same_a.safetensors", ids, more=("--threads", 1, "--chunk", 64, "--isa", isas[0]))
    want = (BUILD / "same_a.safetensors").read_bytes()
    encoded = {f: tool.run(qsae, "features", file, f, "--tokens", ",".join(map(str, ids)), "--json", "--isa", isas[0]) for f in sae_files}
    grid = list(itertools.product(isas, [1, 2], CHUNKS)) + list(itertools.product(isas[::-1][:1], [3, 8], CHUNKS)) + [(i, 3, "7") for i in isas]
    if quick:
        grid = grid[::7]
    for isa, threads, chunk in grid:
        more = ("--threads", threads, "--chunk", chunk, "--isa", isa)
        got = checks.attempt(f"{name} {more}", capture, qsae, file, BUILD / "same_b.safetensors", ids, more=more)
        if got is not None and not checks.add((BUILD / "same_b.safetensors").read_bytes() == want, f"{name} {more}: other bytes"):
            print([k for k in first if not same_bits(first[k], got[k])][:5])
        for f in sae_files if (threads, chunk) in ((1, "all"), (2, "1"), (3, "7"), (8, "64")) else ():
            text = checks.attempt(f"{name} features {more}", tool.run, qsae, "features", file, f, "--tokens", ",".join(map(str, ids)), "--json", *more)
            checks.add(text == encoded[f], f"{name} features of {f.name} {more}: other output")
    for n in (1, 2, 17, len(ids) - 1):
        part = capture(qsae, file, BUILD / "same_b.safetensors", ids[:n])
        checks.add(all(same_bits(np.ascontiguousarray(first[k][:n]), part[k]) for k in first), f"{name}: the first {n} tokens alone give other bits")
    print(f"{name}: {len(grid)} ways, {', '.join(isas)}", flush=True)


def main():
    args = tool.options()
    checks = tool.Checks()
    for isa in ("avx1024", "", "AVX2", "neon" if "neon" not in tool.machine_isas() else "avx2"):
        folder = models.make(models.Spec("tiny", 16, 16, 1, 2, 1, 8, vocab=16, dtype="F32"), BUILD / "tiny")
        try:
            capture(args.qsae, convert(args.qsae, folder, BUILD / "tiny.qsae"), BUILD / "tiny.safetensors", [1, 2], more=("--isa", isa))
            checks.add(False, f"--isa {isa!r} was accepted")
        except tool.Refused as e:
            checks.add(e.code > 0 and bool(e.text.strip()), f"--isa {isa!r}: {e}")
    if not args.only or args.only in HOST.name:
        folder, ids = models.make(HOST, BUILD / HOST.name), models.tokens(HOST, 100)
        hf = truth.hf_sites(folder, models.tokens(HOST, 300))
        file = checks.attempt("convert", convert, args.qsae, folder, BUILD / "same_host.qsae")
        files = [checks.attempt(s.name, convert, args.qsae, saes.make(s, hf[f"layers.{s.layer}.{s.site}"], BUILD / s.name), BUILD / f"{s.name}.qsae") for s in SAES]
        if file:
            one(checks, args.qsae, HOST.name, file, ids, [f for f in files if f], args.quick)
    if TOY.exists() and (not args.only or args.only in "toy"):
        file = checks.attempt("convert", convert, args.qsae, TOY, BUILD / "toy.qsae")
        toy_sae = TOY.parent / "sae"
        sae = [checks.attempt("toy sae", convert, args.qsae, toy_sae, BUILD / "toy_sae.qsae")] if toy_sae.exists() else []
        if file:
            one(checks, args.qsae, "toy", file, tool.toy_tokens(100), [f for f in sae if f], args.quick)
    checks.done()


if __name__ == "__main__":
    main()
