#!/usr/bin/env python3
"""qsae_trainer beside SAELens's own SAETrainer: the same initial weights, the same batches, no exchange after that.

The rate of learning is the same at every step. The first 20 steps: every loss, the coefficient, the dead and each tensor's distance,
|ours - theirs| / |theirs|, within 1e-5 (BatchTopK's moving threshold too). Two float32 programs drift apart after that, by
rounding and by near ties that fall the other way; at the last step EV is within 0.002 and L0 within 0.5 %.
--full: 128 x 2048 with 1024 rows; else 32 x 256 with 256.

The same 20 steps beside dictionary_learning's trainers (QSAE_PRODUCERS, see producers.sh), which have what SAELens has not:
unit decoder rows (projection, clip, Adam, renormalisation in this order) and beta1 = 0.

At the end, `exports`: what qsae_trainer_export gives is the SAE that SAELens makes of the same weights by its own folding functions:
features and reconstructions of raw rows.
"""
import os, sys

import numpy as np, torch

import tool
from training import Dictionary, Trainer, attempt, feature_major, fill, saelens_trainer, sae_of

FIRST, NEAR = 20, 1e-5
PRODUCERS = os.environ.get("QSAE_PRODUCERS")


def off(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def trace(checks, name, arch, size, steps, lr, theirs, window=1000, warm_up=0, decay=0, show=(), seed=7, **options):
    d, m, batch = size
    data = Dictionary(d, active=12 if m > 1000 else 8, seed=seed)
    torch.manual_seed(5)
    sae = sae_of(arch, d, m, **theirs)
    other = saelens_trainer(sae, batch, steps, lr, warm_up, decay, window=window)
    own = Trainer(arch=arch, d_in=d, d_sae=m, max_rows=batch, lr=lr, clip=1.0, steps=steps, lr_warmup=warm_up, lr_decay=decay, dead_steps=window, n_threads=2, **options)
    own.set_weights(feature_major(sae))
    worst, rates = {"loss": 0.0, "weights": 0.0}, 0.0
    for step in range(steps):
        x = data.rows(batch, step)
        coefficient, rate, dead = other.get_coefficients().get("l0"), other.optimizer.param_groups[0]["lr"], int(other.dead_neurons.sum())
        out = other.step(torch.from_numpy(x))
        other.n_training_steps += 1
        stats = own.step(x)
        log = other.build_train_step_log_dict(out, step) if step < FIRST or step + 1 == steps or step in show else None
        last = step + 1 == steps
        rates = max(rates, abs(stats["lr"] - rate) / rate)
        if step < FIRST:
            losses = {k: float(v.detach()) for k, v in out.losses.items()}
            sparsity = sum(v for k, v in losses.items() if k in ("l0_loss", "pre_act_loss"))
            pairs = {"loss": float(out.loss.detach()), "mse": losses["mse_loss"], "sparsity": sparsity, "aux": losses.get("auxiliary_reconstruction_loss", 0.0),
                     "l0": log["metrics/l0"], "l0_coefficient": coefficient or 0.0, "n_dead": dead}
            if arch == "JUMPRELU" or step > 0:  # EV is near 0 at the start: to be judged as a difference
                checks.add(abs(stats["ev"] - log["metrics/explained_variance"]) <= NEAR, f"{name}: step {step}: EV {stats['ev']!r}, not {log['metrics/explained_variance']!r}")
            for what, want in pairs.items():
                e = abs(stats[what] - want) / max(abs(want), 1e-12) if want else abs(stats[what])
                worst["loss"] = max(worst["loss"], e if what in ("loss", "mse") else 0)
                checks.add(e <= NEAR, f"{name}: step {step}: {what} {stats[what]!r}, not {want!r}")
            a, b = own.weights(), feature_major(sae)
            for n in b:
                e = off(a[n], b[n])
                worst["weights"] = max(worst["weights"], e)
                checks.add(e <= NEAR, f"{name}: after step {step}: {n} differs by {e:.1e}")
            if own.one_theta:
                e = off(own.get("THETA"), float(sae.topk_threshold))
                checks.add(e <= NEAR, f"{name}: after step {step}: the threshold differs by {e:.1e}")
        if log and (step in show or last):
            ev, l0 = log["metrics/explained_variance"], log["metrics/l0"]
            print(f"{name:22} step {step:4}  MSE {float(out.losses['mse_loss'].detach()):9.4f} / {stats['mse']:9.4f}  EV {ev:8.5f} / {stats['ev']:8.5f}  "
                  f"L0 {l0:9.3f} / {stats['l0']:9.3f}  dead {dead:4} / {stats['n_dead']:4}  weights {max(off(own.weights()[n], b) for n, b in feature_major(sae).items()):.0e}",
                  flush=True)
        if last and steps > FIRST:
            checks.add(abs(stats["ev"] - ev) <= 0.002, f"{name}: step {step}: EV {stats['ev']:.5f}, SAELens {ev:.5f}")
            checks.add(abs(stats["l0"] - l0) <= 0.005 * l0, f"{name}: step {step}: L0 {stats['l0']:.3f}, SAELens {l0:.3f}")
            checks.add(ev > 0.3 or steps < 500, f"{name}: little was learned, EV {ev:.3f}")
    checks.add(rates <= 1e-6, f"{name}: the rate of learning is off by {rates:.1e} somewhere")
    print(f"{name:22} first {FIRST} steps: loss within {worst['loss']:.0e}, weights within {worst['weights']:.0e}", flush=True)
    own.close()


def unit_decoder(checks, name, batch=256):
    """20 steps of dictionary_learning's update()."""
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer
    d, m = 64, 512
    data = Dictionary(d, active=8, seed=9)
    common = dict(steps=1000, activation_dim=d, dict_size=m, layer=0, lm_name="none", device="cpu", lr=1e-3, warmup_steps=0)
    torch.manual_seed(6)
    if name == "TopK":
        other, own = TopKTrainer(k=10, **common), dict(arch="TOPK", k=10)
        names = {"W_enc": ("encoder.weight", False), "W_dec": ("decoder.weight", True), "b_enc": ("encoder.bias", False), "b_dec": ("b_dec", False)}
    else:  # without a sparsity term, whose window is wrong there (train_gradients.py)
        other = JumpReluTrainer(sparsity_penalty=0.0, sparsity_warmup_steps=None, bandwidth=0.1, **common)
        own = dict(arch="JUMPRELU", no_b_dec_input=1, bandwidth=0.1, has_betas=1, beta1=0.0, beta2=0.999)
        names = {n: (n, n == "W_enc") for n in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
        other.ae.threshold.data[:] = 0.4
    tensors = dict(other.ae.named_parameters())
    theirs = lambda: {n: (tensors[t].detach().T if turn else tensors[t].detach()).numpy() for n, (t, turn) in names.items()}
    t = Trainer(d_in=d, d_sae=m, max_rows=batch, lr=1e-3, clip=1.0, unit_decoder=1, **own)
    t.set_weights(theirs())
    worst = 0.0
    for step in range(FIRST):
        x = data.rows(batch, step)
        loss = other.update(step + 1, torch.from_numpy(x))
        stats = t.step(x)
        checks.add(abs(stats["loss"] - loss) <= NEAR * loss, f"dictionary_learning {name}: step {step}: loss {stats['loss']!r}, not {loss!r}")
        b = theirs()
        for n, a in t.weights().items():
            worst = max(worst, off(a, b[n]))
            checks.add(off(a, b[n]) <= NEAR, f"dictionary_learning {name}: after step {step}: {n} differs by {off(a, b[n]):.1e}")
    print(f"{'dictionary_learning ' + name:30} first {FIRST} steps: weights within {worst:.0e}", flush=True)
    t.close()


@torch.no_grad()
def exports(checks, name, arch, theirs, **options):
    """Exported parts beside SAELens's folding, rows of another scale than those of training."""
    d, m, s, cut = 48, 300, 0.3125, 0.6
    g = np.random.default_rng(4)
    w = {"W_enc": 0.3 * g.standard_normal((m, d)), "W_dec": g.standard_normal((m, d)) * (0.05 + 0.2 * g.random((m, 1))), "b_enc": 0.2 * g.standard_normal(m),
         "b_dec": 0.5 * g.standard_normal(d), "threshold": 0.2 + g.random(m)}
    w = {n: a.astype(np.float32) for n, a in w.items()}
    t = Trainer(arch=arch, d_in=d, d_sae=m, max_rows=8, scale_in=s, **options)
    t.set_weights(w)
    sae = fill(sae_of(arch, d, m, "float64", **theirs), w, torch.float64)
    if t.one_theta:
        t.set("THETA", cut)
        sae.topk_threshold.fill_(float(np.float32(cut)))
    x = g.standard_normal((200, d)) / s
    sae.fold_activation_norm_scaling_factor(s)
    if arch == "JUMPRELU" or theirs.get("rescale_acts_by_decoder_norm", True):
        if t.one_theta:  # a threshold on z |d|; the folded SAE's z is that
            sae.cfg.rescale_acts_by_decoder_norm = True
        sae.fold_W_dec_norm()
        if not t.one_theta and arch == "TOPK":
            sae.cfg.rescale_acts_by_decoder_norm = False
    p = {n: (a.T if n == "W_enc" else a).numpy() for n, a in sae.state_dict().items() if a.ndim}
    theta = p["threshold"] if arch == "JUMPRELU" else float(sae.topk_threshold) if t.one_theta else None
    k = options.get("k")

    def run(enc, dec, b_enc, b_dec, theta, bias):
        z = (x - bias) @ enc.T + b_enc
        on = z > theta if theta is not None else z >= np.sort(z, axis=1)[:, [-int(k)]]
        f = np.maximum(z, 0) * on if arch != "JUMPRELU" else z * on
        return f, f @ dec + b_dec

    e = {n: t.export(n).astype(np.float64) for n in ("ENC", "DEC", "B_ENC", "B_DEC")}
    own_theta = None if arch == "TOPK" else t.export_theta().astype(np.float64)
    f, y = run(e["ENC"], e["DEC"], e["B_ENC"], e["B_DEC"], own_theta, 0.0)
    want_f, want_y = run(p["W_enc"], p["W_dec"], p["b_enc"], p["b_dec"], theta, p["b_dec"])
    checks.add(np.array_equal(f != 0, want_f != 0) and f.any(), f"export {name}: {((f != 0) != (want_f != 0)).sum()} of {(want_f != 0).sum()} features differ")
    f, want_f = f * np.linalg.norm(e["DEC"], axis=1), want_f * np.linalg.norm(p["W_dec"], axis=1)  # the units of a feature are free
    checks.add(off(f, want_f) <= NEAR, f"export {name}: features differ by {off(f, want_f):.1e}")
    checks.add(off(y, want_y) <= NEAR, f"export {name}: reconstructions differ by {off(y, want_y):.1e}")
    print(f"{'export ' + name:30} L0 {(f != 0).sum(1).mean():6.2f}  features within {off(f, want_f):.0e}, reconstructions within {off(y, want_y):.0e}", flush=True)
    t.close()


def main():
    args = tool.options(("--full", dict(action="store_true")), ("--steps", dict(type=int)))
    checks = tool.Checks()
    torch.set_num_threads(2 if args.full else 1)
    size = (128, 2048, 1024) if args.full else (32, 256, 256)
    steps = args.steps or (100 if args.quick else 500)
    m, k = size[1], 16 if args.full else 5
    third = [m // 8, m // 2, m]
    topk = dict(lr=1e-3, warm_up=20, aux_coefficient=1.0)
    cases = {
        "JumpReLU step": dict(arch="JUMPRELU", lr=5e-4, warm_up=10, decay=steps // 5, l0_coefficient=0.5, l0_warmup=15, threshold_init=0.25,
                              theirs=dict(jumprelu_init_threshold=0.25, l0_coefficient=0.5, l0_warm_up_steps=15)),
        "JumpReLU quadratic": dict(arch="JUMPRELU", sparsity="QUADRATIC", lr=5e-4, l0_coefficient=0.1, l0_target=30, threshold_init=0.25,
                                   theirs=dict(jumprelu_init_threshold=0.25, l0_coefficient=0.1, jumprelu_sparsity_loss_mode="quadratic", target_l0=30.0)),
        "TopK": dict(arch="TOPK", k=k, theirs=dict(k=k), **topk),
        "BatchTopK": dict(arch="BATCHTOPK", decay=steps // 5, k=k + 0.5, theirs=dict(k=k + 0.5), **topk),
        "Matryoshka": dict(arch="MATRYOSHKA", k=k, prefixes=third, theirs=dict(k=float(k), matryoshka_widths=list(third)), **topk),
        # many latents die in the first steps, so that AuxK works from then on; with seed 7 two dead latents tie to 1e-9 in step 11
        "TopK, AuxK": dict(arch="TOPK", seed=8, window=8, k=k, theirs=dict(k=k), **topk),
        "BatchTopK, AuxK": dict(arch="BATCHTOPK", window=8, k=k, theirs=dict(k=float(k)), **topk),
    }
    for name, c in cases.items():
        if not args.only or args.only in name:
            attempt(checks, name, trace, checks, name, size=size, steps=FIRST if "AuxK" in name and not args.full else steps, show=show if args.full else (50, 200), **c)
    for name in ("TopK", "JumpReLU"):
        if not args.only or args.only in "dictionary_learning":
            if PRODUCERS:
                attempt(checks, name, unit_decoder, checks, name)
            else:
                checks.add(False, "QSAE_PRODUCERS is not set: dictionary_learning is installed by tests/reference/producers.sh")
    for name, arch, theirs, own in (("JumpReLU", "JUMPRELU", {}, {}), ("TopK", "TOPK", dict(k=9), dict(k=9)),
                                    ("TopK, no rescale", "TOPK", dict(k=9, rescale_acts_by_decoder_norm=False), dict(k=9, no_rescale=1)),
                                    ("BatchTopK", "BATCHTOPK", dict(k=9.5), dict(k=9.5)),
                                    ("BatchTopK, no rescale", "BATCHTOPK", dict(k=9.5, rescale_acts_by_decoder_norm=False), dict(k=9.5, no_rescale=1)),
                                    ("Matryoshka", "MATRYOSHKA", dict(k=9.5, matryoshka_widths=[30, 300]), dict(k=9.5, prefixes=[30, 300]))):
        if not args.only or args.only in "exports":
            attempt(checks, name, exports, checks, name, arch, theirs, **own)
    checks.done()


if PRODUCERS:
    sys.path.append(PRODUCERS)
if __name__ == "__main__":
    main()
