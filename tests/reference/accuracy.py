#!/usr/bin/env python3
"""What q8 and q4 cost beside ggml's Q8_0 and Q4_0 applied to the same weights: the table of the README.

Models: the toy, and random ones of d_model 512 (--wide: 1024) with weights from a normal distribution, from Student's t with 3 degrees of
freedom, and normal with every 64th input column 8 times as large. The reference is Hugging Face in float32 on the weights
as they are. Ours is what the program captures from the converted file. Q8_0 and Q4_0 are written here from their
description: 32 weights of a row share a float16 scale, absmax / 127 or the value of largest magnitude / -8. They are
evaluated in Hugging Face, once with these weights alone and once as ggml multiplies with them: what goes into a matrix is
rounded to Q8_0 as well. Columns:
    weights   rms error of the matrices / their rms
    KL        sum of p (log p - log q) over the vocabulary, mean over tokens; p is the reference's
    top-1     share of tokens whose most likely next token stays
    features  active features in both / in either, mean over tokens: the toy's SAE; a random JumpReLU SAE of 4096 features
              with 48 active on the mean, at the output of the last layer but one
--options adds other schemes of 8 bits that were weighed against q8: smaller groups, a scale that clips, shifts, columns.
It fails where q8 or q4 has more KL or fewer features in common than what ggml computes, on the toy and the normal weights,
and where it has more than LIMITS times the KL on the others. --quick: the toy alone.
"""
import json

import numpy as np, torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

import format, models, tool
from tool import BUILD, capture, convert

KINDS = ("gaussian", "student t3", "columns x 8")
LIMITS = {"toy": (1, 1), "gaussian": (1, 1), "student t3": (4, 1.1), "columns x 8": (5, 1.2)}  # of KL: q8's, q4's by ggml's


def rounded(x):
    """To the nearest integer, halves away from zero."""
    return torch.trunc(x + torch.copysign(torch.full_like(x, 0.5), x))


def q8_0(w):
    b = w.reshape(*w.shape[:-1], -1, 32)
    d = b.abs().amax(-1, keepdim=True) / 127
    q = rounded(b * torch.where(d > 0, 1 / d, d))
    return (q * d.half().float()).reshape(w.shape)


def q4_0(w):
    b = w.reshape(*w.shape[:-1], -1, 32)
    d = b.gather(-1, b.abs().argmax(-1, keepdim=True)) / -8
    q = torch.clamp(torch.floor(b * torch.where(d != 0, 1 / d, d) + 8.5), max=15) - 8
    return (q * d.half().float()).reshape(w.shape)


def int8(w, group, clip=1.0):
    """q8's arithmetic with another group; clip < 1: the largest values become +-127."""
    pad = -w.shape[-1] % group
    b = torch.nn.functional.pad(w, (0, pad)).reshape(len(w), -1, group)
    a = clip * b.abs().amax(-1, keepdim=True) / 127
    q = torch.clamp(torch.round(b * torch.where(a > 0, 1 / a, a)), -127, 127)
    return (q * a).reshape(len(w), -1)[:, :w.shape[-1]]


def clipped(w, group=256):
    """For each group the best of eight scales."""
    pad = -w.shape[-1] % group
    x = torch.nn.functional.pad(w, (0, pad)).reshape(-1, group)
    best, least = int8(x, group), None
    for i in range(8):
        y = int8(x, group, 1 - 0.05 * i)
        e = ((y - x) ** 2).sum(-1, keepdim=True)
        best = y if least is None else torch.where(e < least, y, best)
        least = e if least is None else torch.minimum(e, least)
    return best.reshape(len(w), -1)[:, :w.shape[-1]]


def shifted(w, most=16):
    """One step for 256 of a row, times 2^s for 32 of them, the sum of the eight 2^s at most `most`: what 32 bits hold."""
    pad = -w.shape[-1] % 256
    b = torch.nn.functional.pad(w, (0, pad)).reshape(-1, 8, 32)
    top = b.abs().amax(-1) / 127
    best, least = None, None
    for i in range(14):  # the step that no 32 clips with s = 0, and smaller ones
        a = top.amax(-1, keepdim=True) * 2 ** (-i / 4)
        s = torch.ceil(torch.log2(torch.clamp(top / a.clamp(min=1e-30), min=1e-30)) - 1e-6).clamp(min=0)
        step = (a * 2 ** s)[..., None]
        y = torch.clamp(torch.round(b * torch.where(step > 0, 1 / step, step)), -127, 127) * step
        e = (y - b).pow(2).sum((1, 2), keepdim=True)
        e[(2 ** s).sum(-1) > most] = np.inf
        best = y if i == 0 else torch.where(e < least, y, best)
        least = e if i == 0 else torch.minimum(e, least)
    return best.reshape(len(w), -1)[:, :w.shape[-1]]


def columns(w):
    """q8 after each column is divided by the power of two nearest to its rms over that of all."""
    c = w.pow(2).mean(0).sqrt()
    e = torch.exp2(torch.round(torch.log2(torch.where(c > 0, c / c.pow(2).mean().sqrt(), 1))))
    return int8(w / e, 256) * e


def matrices(model):
    return {k: p for k, p in model.named_parameters() if p.dim() == 2}


def random_weights(s, kind):
    """The model of the spec with other matrices of the same rms."""
    w, rng = models.weights(s), np.random.default_rng(5)
    for k, v in w.items():
        if v.dim() == 2:
            scale = v.pow(2).mean().sqrt()
            x = rng.standard_t(3, v.shape) if kind == "student t3" else rng.standard_normal(v.shape)
            if kind == "columns x 8":
                x[:, 5::64] *= 8
            w[k] = torch.from_numpy((x / np.sqrt((x ** 2).mean())).astype(np.float32)) * scale
    return w


@torch.no_grad()
def evaluate(model, ids, layer, inputs=None):
    """Logits and the output of a layer; inputs: what is done to what goes into each matrix."""
    hooks = []
    if inputs:
        hooks = [m.register_forward_pre_hook(lambda _, x: (inputs(x[0]),)) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    rows = []
    hooks.append(model.model.layers[layer].register_forward_hook(
        lambda _, __, y: rows.append((y[0] if isinstance(y, tuple) else y)[0].clone())))
    logits = model(torch.tensor([ids])).logits[0]
    for h in hooks:
        h.remove()
    return logits.numpy(), rows[0].reshape(len(ids), -1).numpy()


class Sae:
    """Active features of rows: z = x enc + bias above the threshold."""

    def __init__(self, enc, bias, threshold):
        self.enc, self.bias, self.threshold = enc.astype(np.float32), bias, threshold

    @staticmethod
    def toy():
        w = load_file(tool.TOY.parent / "sae" / "sae_weights.safetensors")
        cfg = json.loads((tool.TOY.parent / "sae" / "cfg.json").read_text())
        bias = w["b_enc"] - (w["b_dec"] @ w["W_enc"] if cfg.get("apply_b_dec_to_input") else 0)
        return Sae(w["W_enc"], bias, w["threshold"])

    @staticmethod
    def random(x, n=4096, active=48):
        enc = np.random.default_rng(6).standard_normal((x.shape[1], n)).astype(np.float32)
        z = x @ enc
        return Sae(enc, 0, np.quantile(z, 1 - active / n))

    def active(self, x):
        return x @ self.enc + self.bias > self.threshold


def log_softmax(x):
    x = x.astype(np.float64) - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def measures(want, got, sae):
    p, q = log_softmax(want[0]), log_softmax(got[0])
    kl = (np.exp(p) * (p - q)).sum(1).mean()
    top1 = (want[0].argmax(1) == got[0].argmax(1)).mean()
    f, g = sae.active(want[1]), sae.active(got[1])
    either = (f | g).sum(1)
    same = np.where(either > 0, (f & g).sum(1) / np.maximum(either, 1), 1).mean()
    return kl, top1, same


class Table:
    def __init__(self, name):
        self.name, self.rows = name, {}

    def add(self, label, bits, weights, m):
        self.rows[label] = m
        print(f"| {self.name} | {label} | {bits} | {weights:.5f} | {m[0]:.2e} | {100 * m[1]:.1f} % | {100 * m[2]:.2f} % |", flush=True)


@torch.no_grad()
def weight_error(exact, got):
    """Over all matrices, each relative to its own rms."""
    return float(np.mean([((got[k] - w).pow(2).mean() / w.pow(2).mean()).sqrt().item() for k, w in exact.items()]))


@torch.no_grad()
def foreign(table, model, exact, label, bits, scheme, ids, layer, want, sae, inputs=None):
    params, got = matrices(model), {}
    for k, w in exact.items():
        got[k] = scheme(w)
        params[k].copy_(got[k])
    e = weight_error(exact, got)
    table.add(label, bits, e, measures(want, evaluate(model, ids, layer), sae))
    if inputs:
        table.add(label + " x Q8_0", bits, e, measures(want, evaluate(model, ids, layer, inputs), sae))
    for k, w in exact.items():
        params[k].copy_(w)


def stored_error(file, exact):
    _, _, t = format.read(file)
    got = {}
    for (group, role), a in t.items():
        name = {(0, 1): "model.embed_tokens.weight", (0, 3): "lm_head.weight"}.get((group, role))
        if group:
            name = f"model.layers.{group - 1}.{format.NAMES[role]}.weight"
        if name in exact:
            got[name] = torch.from_numpy(a.copy())
    assert got.keys() == exact.keys()
    return weight_error(exact, got)


def one(qsae, name, folder, ids, layer, options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    exact = {k: p.detach().clone() for k, p in matrices(model).items()}
    want, table = evaluate(model, ids, layer), Table(name)
    sae = Sae.toy() if folder == tool.TOY else Sae.random(want[1])
    for kind, bits in (("q8", "8.125"), ("q4", "4.25")):
        file = convert(qsae, folder, BUILD / f"accuracy.{kind}.qsae", "--type", kind)
        t = capture(qsae, file, BUILD / "accuracy.safetensors", ids, sites=("resid_post",))
        table.add(kind, bits, stored_error(file, exact), measures(want, (t["logits"], t[f"layers.{layer}.resid_post"]), sae))
        file.unlink()
        scheme, label, width = {"q8": (q8_0, "Q8_0", "8.5"), "q4": (q4_0, "Q4_0", "4.5")}[kind]
        foreign(table, model, exact, label, width, scheme, ids, layer, want, sae, q8_0)
    if options:
        for label, bits, scheme in (("int8 per 128", "8.25", lambda w: int8(w, 128)), ("int8 per 64", "8.5", lambda w: int8(w, 64)),
                                    ("int8 per 256, clipped", "8.125", clipped), ("int8 per 256, shifts", "8.25", shifted),
                                    ("int8 per 256, columns", "8.125", columns)):
            foreign(table, model, exact, label, bits, scheme, ids, layer, want, sae)
    return table.rows


def judge(checks, name, rows):
    """q8 and q4 against what ggml computes."""
    for ours, theirs, limit in (("q8", "Q8_0 x Q8_0", LIMITS[name][0]), ("q4", "Q4_0 x Q8_0", LIMITS[name][1])):
        a, b = rows[ours], rows[theirs]
        checks.add(a[0] <= limit * b[0], f"{name}: KL of {ours} {a[0]:.2e}, of {theirs} {b[0]:.2e}, allowed {limit} times as much")
        checks.add(limit > 1 or a[2] >= b[2], f"{name}: features of {ours} {a[2]:.4f}, of {theirs} {b[2]:.4f}")


def main():
    args = tool.options(("--options", {"action": "store_true"}), ("--wide", {"action": "store_true"}))
    torch.set_num_threads(2)
    checks = tool.Checks()
    print("| model | weights as | bits | weights | KL | top-1 | features |\n|---|---|---|---|---|---|---|")
    if not args.only or args.only in "toy":
        judge(checks, "toy", one(args.qsae, "toy", tool.TOY, tool.toy_tokens(1024), 2, args.options))
    for kind in KINDS:
        if args.quick or (args.only and args.only not in kind):
            continue
        size = (1024, 2048, 128) if args.wide else (512, 1024, 64)
        s = models.Spec("accuracy", size[0], size[1], 4, 8, 4, size[2], vocab=2048, dtype="F32", tied=False, seed=11)
        folder = BUILD / "accuracy.source"
        folder.mkdir(parents=True, exist_ok=True)
        models.write_config(folder, models.config(s))
        models.write_weights(folder, random_weights(s, kind))
        judge(checks, kind, one(args.qsae, kind, folder, models.tokens(s, 256), 2, args.options))
        for path in folder.iterdir():
            path.unlink()
    checks.done()


if __name__ == "__main__":
    main()
