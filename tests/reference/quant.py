#!/usr/bin/env python3
"""Models converted with --type q8 and q4, every site and the logits, against the model that has just those weights.

The weights are read back from the .qsae file by format.py, which knows FORMAT.md alone, and become a float32 checkpoint:
what it computes in Hugging Face and in float64 is right for these weights. The library rounds more: what goes into a matrix
becomes 16-bit integers with a scale for 256 of them. A float64 evaluation that does this too (truth.Integer) says how much that
changes; the library may change as much:
    the rms of a tensor's error at most 1.2 times (2 with massive activations), its largest error at most 3 times what Integer's is (or a float32 evaluation's,
    if that is more), both against the float64 truth;
    in the first layer of models without massive activations also at most BOUND of the rms from Hugging Face.
Two things are exact: the embedding is the rows of the file, and attn_out follows from the attn_z that was captured with it.
"""
import time

import numpy as np, torch

import format, models, tool, truth
from tool import BUILD, SITES, capture, convert

BOUND = 2e-3


def checkpoint(file, source, folder):
    """The weights of a .qsae file as a checkpoint with source's configuration."""
    parts = {}
    _, _, t = format.read(file, parts)
    w = {"model.embed_tokens.weight": t[0, 1], "model.norm.weight": t[0, 2][0]}
    if (0, 3) in t:
        w["lm_head.weight"] = t[0, 3]
    for (group, role), a in t.items():
        if group:
            w[f"model.layers.{group - 1}.{format.NAMES[role]}.weight"] = a if a.shape[0] > 1 else a[0]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    models.write_weights(folder, {k: torch.from_numpy(v.copy()) for k, v in w.items()})
    return t, parts


def attn_out(x, w):
    """w [n, k] = (integers, multipliers, scales) times float32 rows x [t, k], by the contract: float32 for the integers of x
    and the scales, exact sums of products. In float64 after that, where the library adds in float32."""
    q, m, scale = w
    q = (q * np.repeat(m, 32, 1)).astype(np.float64)
    x = np.pad(x, ((0, 0), (0, q.shape[1] - x.shape[1]))).reshape(len(x), -1, 256)
    most = np.abs(x).max(2, keepdims=True)
    by = np.where(most > 0, np.float32(32639) / np.where(most > 0, most, np.float32(1)), np.float32(0))
    integers = np.clip(np.rint(x * by), -32639, 32639).astype(np.float64)  # float32 until here
    step = (most / np.float32(32639)).astype(np.float32)
    y = 0
    for g in range(x.shape[1]):
        s = integers[:, g] @ q[:, 256 * g:256 * g + 256].T
        y = y + s * (scale[:, g][None] * step[:, g]).astype(np.float64)
    return y


def rms(x):
    return np.sqrt((x.astype(np.float64) ** 2).mean())


def one(checks, qsae, name, source, ids, kind, massive):
    start, label = time.time(), f"{name} {kind}"
    file = checks.attempt(f"{label}: convert", convert, qsae, source, BUILD / f"{name}.{kind}.qsae", "--type", kind)
    got = file and checks.attempt(f"{label}: capture", capture, qsae, file, BUILD / f"{name}.{kind}.safetensors", ids)
    if got is None:
        return
    folder = BUILD / f"{name}.{kind}"
    t, parts = checkpoint(file, source, folder)
    checks.add(tool.same_bits(got["layers.0.resid_pre"], t[0, 1][ids]), f"{label}: the embedding is not the rows of the file")
    cfg, w = truth.read_checkpoint(folder)
    hf, exact = truth.hf_sites(folder, ids), truth.evaluate(w, cfg, ids)
    same, f32 = truth.evaluate(w, cfg, ids, truth.Integer()), truth.evaluate(w, cfg, ids, truth.Permuted())
    farthest = 0
    for l in range(cfg["num_hidden_layers"]):
        p = f"layers.{l}."
        y = attn_out(got[p + "attn_z"], parts[1 + l, 22])[:, :cfg["hidden_size"]]
        e = truth.error(got[p + "attn_out"], y)
        farthest = max(farthest, e)
        checks.add(e <= 2e-6, f"{label}: {p}attn_out: {e:.2e} from attn_z times o_proj")
    worst = {}
    for key, x in exact.items():
        a = got[key]
        e_hf, e = truth.error(a, hf[key]), truth.error(a, x)
        most = max(truth.error(v[key], x) for v in (same, f32, hf))
        own = max(rms(v[key] - x) for v in (same, f32, hf))
        ratio = rms(a - x) / own if own else float(a.tobytes() != x.astype(np.float32).tobytes()) * 9
        checks.add(a.dtype == np.float32 and e <= 3 * most, f"{label}: {key}: {e:.2e} from the truth, Integer {most:.2e}")
        checks.add(ratio <= (2 if massive else 1.2), f"{label}: {key}: {ratio:.2f} times the rms error of Integer")
        first = key.startswith("layers.0.")  # later layers multiply what the ones before them did
        checks.add(massive or not first or e_hf <= BOUND, f"{label}: {key}: {e_hf:.2e} from Hugging Face")
        site = key.split(".")[-1]
        if site not in worst or not ratio <= worst[site][0]:
            worst[site] = (ratio, e_hf, most, truth.error(f32[key], x))
    for site in [*SITES, "logits"]:
        if site in worst:
            r, *rest = worst[site]
            print(f"{label:22} {site:10}" + "".join(f" {e:9.1e}" for e in rest) + f" {r:7.2f}")
    print(f"{label:22} attn_out from attn_z: {farthest:.1e}; {time.time() - start:.1f} s", flush=True)
    for path in folder.iterdir():
        path.unlink()


def main():
    args = tool.options()
    torch.set_num_threads(2)
    checks = format.CHECKS
    print(f"{'model':22} {'site':10} {'vs HF':>9} {'Integer':>9} {'float32':>9} {'ratio':>7}   (max abs error / rms, rms error by Integer's; worst layer)")
    for s in models.SPECS:
        if (args.only and args.only not in s.name) or (args.quick and not s.quick):
            continue
        source = models.make(s, BUILD / f"{s.name}.source")
        for kind in ("q8", "q4"):
            one(checks, args.qsae, s.name, source, models.tokens(s), kind, s.massive)
        for path in source.glob("*.safetensors"):
            path.unlink()
    checks.done()


if __name__ == "__main__":
    main()
