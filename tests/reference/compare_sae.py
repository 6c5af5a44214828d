#!/usr/bin/env python3
"""`qsae features` against SAELens: the same active set, values within 1e-5.

Each SAE is judged twice. "own": SAELens encodes the activations that qsae captured, so that only the encoder is
judged. "HF": SAELens encodes Hugging Face's activations, so that the whole way is judged.

own: the set must be equal. A pair (token, feature) may differ only if its pre-activation is within float32
noise of its threshold, |z - theta| <= 1e-6 (sum |x_j w_ij| + |b|), about 16 units in the last place of
what was summed; such pairs are counted and shown. Values: within 1e-5 of SAELens in float32 or of SAELens in
float64, relative to the value; the few that are small differences of large terms may instead be within 3
times the largest absolute error that SAELens' own float32 makes in this SAE, and are counted.
HF: as own, with 1e-4 for 1e-6 in the set and for 1e-5 in the values, since activations differ in the sixth digit.
"""
import json

import numpy as np, torch

import models, saes, tool, truth
from tool import BUILD, TOY, capture, convert

HOST = models.Spec("sae_host", 100, 240, 3, 4, 2, 32, dtype="F32", tokens=320, seed=1900)


def features(qsae, model, sae, ids, more=()):
    """Rows of {index: value} from `qsae features --json`, and the checks of its form."""
    text = tool.run(qsae, "features", model, sae, "--tokens", ",".join(map(str, ids)), "--json", *more)
    rows, form = [], []
    for pos, line in enumerate(text.splitlines()):
        o = json.loads(line)
        index = [i for i, _ in o["features"]]
        form.append(o["pos"] == pos and o["token"] == ids[pos] and isinstance(o["text"], (str, type(None))) and index == sorted(set(index))
                    and all(v > 0 for _, v in o["features"]))
        rows.append({i: np.float32(v) for i, v in o["features"]})
    return rows, form and all(form) and len(rows) == len(ids)


@torch.no_grad()
def margin(sae, x):
    """|z - theta| of every pair over the size of what was summed, float64."""
    d = saes.double(sae)
    a = d.process_sae_in(saes.shaped(sae, x).double())
    z, size = a @ d.W_enc, a.abs() @ d.W_enc.abs()
    if hasattr(d, "b_gate"):
        m = z * d.r_mag.exp() + d.b_mag
        far = ((z + d.b_gate).abs() / (size + d.b_gate.abs())).minimum(m.abs() / (size * d.r_mag.exp() + d.b_mag.abs()))
        return far.numpy()
    z, size = z + d.b_enc, size + d.b_enc.abs()
    if type(sae).__name__ == "TopKSAE":
        if sae.cfg.rescale_acts_by_decoder_norm:
            z, size = z * d.W_dec.norm(dim=-1), size * d.W_dec.norm(dim=-1)
        order = z.sort(dim=-1, descending=True).values
        k = sae.cfg.k
        # to enter or leave, a feature must pass its opposite number; or zero
        edge = torch.where(z >= order[:, k - 1:k], z - order[:, k:k + 1], order[:, k - 1:k] - z)
        return (edge.minimum(z.abs()) / size).numpy()
    theta = d.threshold.clamp(min=0) if hasattr(d, "threshold") else torch.zeros_like(z[0])
    return ((z - theta).abs() / size).numpy()


def judge(checks, name, rows, sae, x, edge, near):
    f32, f64 = saes.encode(sae, x), saes.encode(saes.double(sae), np.asarray(x, dtype=np.float64))
    far = margin(sae, x)
    got = np.zeros_like(f32)
    for t, row in enumerate(rows):
        got[t, list(row)] = list(row.values())
    differ = (got > 0) != (f32 > 0)
    excused = differ & (far <= edge)
    checks.add(not (differ & ~excused).any(), f"{name}: the active set differs in {(differ & ~excused).sum()} pairs, first {np.argwhere(differ & ~excused)[:3].tolist()}")
    on = (got > 0) & (f32 > 0)
    rel = np.minimum(np.abs(got - f32)[on] / f32[on], np.abs(got - f64)[on] / f64[on]) if on.any() else np.zeros(1)
    floor = 3 * np.abs(f32 - f64)[on].max() if on.any() else 0.0
    small = rel > near
    bad = small & ~(np.abs(got - f64)[on] <= floor) if on.any() else small
    checks.add(on.any() and not bad.any(), f"{name}: {bad.sum()} of {on.sum()} values differ, worst {rel.max():.1e}")
    own = np.abs(f32 - f64)[on] / f64[on] if on.any() else np.zeros(1)
    print(f"{name:26} L0 {np.mean([len(r) for r in rows]):6.1f}  active {on.sum():6}  set differs {differ.sum():2} (excused {excused.sum()})"
          f"  worst value {rel.max():.1e} (SAELens f32 itself {own.max():.1e})  beyond {near:g}: {small.sum()}  nearest threshold {far.min():.0e}", flush=True)


def one(checks, qsae, name, folder, site, model, ids, hf):
    sae = saes.load(folder)
    file = checks.attempt(f"{name}: convert", convert, qsae, folder, BUILD / "sae.qsae", *saes.options(name))
    got = file and checks.attempt(f"{name}: features", features, qsae, model, file, ids)
    if not got:
        return
    rows, form = got
    checks.add(form, f"{name}: JSON lines: positions, tokens, ascending indices, positive values")
    own = capture(qsae, model, BUILD / "sae.safetensors", ids, sites=[site.split(".")[2]], logits=False)[site]
    judge(checks, name + " own", rows, sae, own, 1e-6, 1e-5)
    judge(checks, name + " HF", rows, sae, hf[site], 1e-4, 1e-4)


def refusals(checks, qsae, model, ids, hf, only):
    """What is beyond a plain SAE is computed as SAELens does, or refused with a reason; no file is left."""
    from safetensors.torch import load_file, save_file
    base, out = saes.Spec("refuse", "jumprelu", "resid_post", 1, 150, sub=True, seed=51), BUILD / "refuse.qsae"
    trans = saes.Spec("refuse", "transcoder", "mlp_input", 1, 150, seed=52)

    def broken(name, spec=base, cfg=None, meta=None, tensors=None, may=False):
        if only and only not in name:
            return
        folder = saes.make(spec, hf[f"layers.{spec.layer}.{spec.site}"], BUILD / "refuse", HOST.hidden)
        c, w = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
        c.update(cfg or {})
        c["metadata"].update(meta or {})
        if tensors:
            w.update(tensors(w))
        (folder / "cfg.json").write_text(json.dumps(c))
        save_file({k: v for k, v in w.items() if v is not None}, folder / "sae_weights.safetensors")
        try:
            convert(qsae, folder, out)
        except tool.Refused as e:
            left = list(BUILD.glob("refuse.qsae*"))
            checks.add(e.code > 0 and e.text.strip() and not left, f"{name}: exit {e.code}, text {e.text!r}, left {left}")
            print(f"{name:26} refused: {e.text.strip()[:120]}")
            return
        if checks.add(may, f"{name}: converted, though it must be refused"):
            got = checks.attempt(f"{name}: features", features, qsae, model, out, ids)
            if got:
                judge(checks, name + " HF", got[0], saes.load(folder), hf[f"layers.{spec.layer}.{spec.site}"], 1e-4, 1e-4)

    def spoil(key, value):
        def change(w):
            x = w[key].clone()
            x.view(-1)[3] = value
            return {key: x}
        return change

    for key in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        broken("nan " + key, tensors=spoil(key, float("nan")))
    broken("inf W_dec", tensors=spoil("W_dec", float("inf")))
    broken("missing W_dec", tensors=lambda w: {"W_dec": None})
    broken("missing threshold", tensors=lambda w: {"threshold": None})
    broken("odd tensor", tensors=lambda w: {"W_enc_extra": torch.zeros(3)})
    broken("scaling factor", tensors=lambda w: {"scaling_factor": torch.full((150,), 2.0)})
    broken("transposed", tensors=lambda w: {"W_enc": w["W_enc"].T.contiguous()})
    broken("wrong d_in", cfg={"d_in": HOST.hidden + 1})
    broken("unknown architecture", cfg={"architecture": "matching_pursuit"})
    broken("temporal", cfg={"architecture": "temporal"})
    broken("whitening", cfg={"normalize_activations": "covariance_whitening"})
    broken("unknown norm", cfg={"normalize_activations": "expected_average"})
    broken("expected_average", cfg={"normalize_activations": "expected_average_only_in"}, may=True)
    broken("unknown site", meta={"hook_name": "blocks.1.attn.hook_q"})
    broken("before the norm", meta={"hook_name": "blocks.1.hook_mlp_in"})
    broken("without weight", meta={"hook_name": "blocks.1.ln2.hook_normalized"})
    broken("no site", meta={"hook_name": None})
    broken("one head", meta={"hook_head_index": 1})
    broken("transcoder normed", trans, cfg={"normalize_activations": "layer_norm"}, may=True)
    broken("plain", may=True)


def main():
    args = tool.options()
    torch.set_num_threads(2)
    checks = tool.Checks()
    folder, ids = models.make(HOST, BUILD / HOST.name), models.tokens(HOST)
    model = checks.attempt("convert", convert, args.qsae, folder, BUILD / "sae_host.qsae")
    if model is None:
        checks.done()
    hf = truth.hf_sites(folder, ids)
    for s in saes.SPECS:
        if (args.only and args.only not in s.name) or (args.quick and not s.quick):
            continue
        site = f"layers.{s.layer}.{s.site}"
        one(checks, args.qsae, s.name, saes.make(s, hf[site], BUILD / "sae", HOST.hidden), site, model, ids, hf)
    if not args.quick:
        refusals(checks, args.qsae, model, ids, hf, args.only)
    toy_sae = TOY.parent / "sae"
    if toy_sae.exists() and (not args.only or args.only in "toy"):
        ids = tool.toy_tokens(320)
        model = checks.attempt("toy: convert", convert, args.qsae, TOY, BUILD / "toy.qsae")
        hook = saes.load(toy_sae).cfg.metadata.hook_name
        layer, name = hook.split(".", 2)[1:]
        site = f"layers.{layer}.{next(k for k, v in saes.HOOKS.items() if v == name)}"
        if model:
            one(checks, args.qsae, "toy", toy_sae, site, model, ids, truth.hf_sites(TOY, ids))
    checks.done()


if __name__ == "__main__":
    main()
