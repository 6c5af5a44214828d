#!/usr/bin/env python3
"""The numbers that `qsae convert --check` prints, against SAELens' features and reconstructions of the rows that
`qsae capture` gives, with the formulas of tools/check.h in numpy: the toy's SAE and random ones of several kinds."""
import re

import numpy as np, torch

import lib, saes, tool
from tool import BUILD, TOY, capture, convert

LINE = re.compile(r"  (without sinks|all) +(\d+) +([-\d.]+) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", re.M)
TEXT = "".join(f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>\n" for q, a in [
    ("Where does a duck live?", "A duck lives in a pond."), ("How do I bake bread?", "To bake bread, knead the dough. Then let it rise."),
    ("What is 4 + 9?", "The result is 4 + 9 = 13.")])
SPECS = [saes.Spec("check_jumprelu", "jumprelu"), saes.Spec("check_topk", "topk", "mlp_out", 2, sub=True),
         saes.Spec("check_norm", "standard", "resid_mid", norm="constant_norm_rescale"), saes.Spec("check_z", "gated", "attn_z", 0),
         saes.Spec("check_transcoder", "transcoder", "mlp_input", 1), saes.Spec("check_skip", "skip_transcoder", "mlp_input", 2)]


def wanted(x, y, f, z):
    """{"without sinks" | "all": numbers}; x read, y the target, f features, z made of them."""
    large = lambda r: (n := np.linalg.norm(r, axis=1)) > 10 * np.sort(n)[len(n) // 2]
    sink, out = large(x) | large(y) | (np.arange(len(x)) == 0), {}
    for name, keep in (("without sinks", ~sink), ("all", np.ones(len(x), bool))):
        a, b, g = y[keep], z[keep], f[keep]
        error, na, nb = ((a - b) ** 2).sum(), np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        fvu = error / ((a - a.mean(0)) ** 2).sum()
        ev = 1 - ((a - b) ** 2).sum(1).mean() / ((a ** 2).sum(1).mean() - (a.mean(0) ** 2).sum())  # SAELens 6.45.1
        out[name] = (keep.sum(), (g > 0).sum(1).mean(), ev, fvu, ((a * b).sum(1) / (na * nb)).mean(), g[g > 0].mean(), nb.sum() / na.sum())
    return out


def one(checks, qsae, name, folder, sae, site, layer, rows, model, text):
    printed = tool.run(qsae, "convert", folder, "-o", BUILD / "check.qsae", "--check", model, "--check-text", text)
    got = {m[1]: tuple(map(float, m.groups()[1:])) for m in LINE.finditer(printed)}
    x = rows[f"layers.{layer}.{site}"]
    y = rows[f"layers.{layer}.mlp_out"] if "transcoder" in name or "skip" in name else x
    with torch.no_grad():
        z = sae(saes.shaped(sae, x)).reshape(len(x), -1).numpy()
    want = wanted(*(v.astype(np.float64) for v in (x, y, saes.encode(sae, x), z)))
    for line, numbers in want.items():
        ok = line in got and all(abs(a - b) <= 0.06 * (i == 1) + 2e-4 + 1e-3 * abs(b) for i, (a, b) in enumerate(zip(got[line], numbers)))
        checks.add(ok, f"{name}, {line}: {got.get(line)} instead of {tuple(float(round(n, 4)) for n in numbers)}")


def main():
    args = tool.options()
    BUILD.mkdir(parents=True, exist_ok=True)
    checks, qsae = tool.Checks(), args.qsae
    model, text = convert(qsae, TOY, BUILD / "check_model.qsae"), BUILD / "check.txt"
    text.write_text(TEXT)
    so = lib.Library()
    ids = list(so.tokenize(so.open(model), TEXT.encode(), True))
    rows = capture(qsae, model, BUILD / "check.safetensors", ids, logits=False)
    one(checks, qsae, "toy", TOY.parent / "sae", saes.load(TOY.parent / "sae"), "resid_post", 2, rows, model, text)
    for i, s in enumerate(SPECS):
        s.seed, folder = 7000 + i, BUILD / s.name
        x = torch.from_numpy(rows[f"layers.{s.layer}.{s.site}"])
        d_out = 128 if "transcoder" in s.arch else None
        checks.attempt(s.name, lambda: one(checks, qsae, s.name, folder, (saes.make(s, x, folder, d_out), saes.load(folder))[1], s.site, s.layer, rows, model, text))
    checks.done()


if __name__ == "__main__":
    main()
