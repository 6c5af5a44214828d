#!/usr/bin/env python3
"""By hand, some ten minutes on two quiet cores (`--threads 1` on a busy machine): which features of a known dictionary are found.

Rows of `training.Dictionary` (3 times overcomplete, power-law frequencies). SAELens's SAETrainer and qsae_trainer, each with its own initial weights,
train the same rule on the same batches, to the same L0; several seeds (of dictionary, rows and weights). Printed: a table in Markdown of L0 and EV over the
last 50 batches (no row comes twice), the mean over atoms of the largest cosine with a decoder row, and the share of atoms above 0.9.
The check: over the seeds, ours no worse than theirs by more than the spread of theirs, at an L0 within 2 % (5 % for JumpReLU, whose L0 is not given).
"""
import time

import numpy as np, torch

import tool
from training import Dictionary, Trainer, feature_major, saelens_trainer, sae_of

RULES = ["JumpReLU", "TopK", "BatchTopK", "Matryoshka"]


def rule(name, m, k, coefficient):
    """The architecture, our options, SAELens's."""
    if name == "JumpReLU":  # the quadratic rule has a target, so both come near one L0; the larger the coefficient, the nearer
        return "JUMPRELU", dict(sparsity="QUADRATIC", l0_coefficient=coefficient, l0_target=k, l0_warmup=500, threshold_init=0.1), \
            dict(jumprelu_sparsity_loss_mode="quadratic", l0_coefficient=coefficient, target_l0=float(k), l0_warm_up_steps=500, jumprelu_init_threshold=0.1)
    if name == "Matryoshka":
        ends = [m // 8, m // 2, m]
        return "MATRYOSHKA", dict(k=k, aux_coefficient=1.0, prefixes=ends), dict(k=float(k), matryoshka_widths=list(ends))
    return name.upper(), dict(k=k, aux_coefficient=1.0), dict(k=k if name == "TopK" else float(k))


def main():
    args = tool.options(("--seeds", dict(type=int, default=3)), ("--steps", dict(type=int, default=1500)), ("--batch", dict(type=int, default=512)),
                        ("--size", dict(type=int, nargs=2, default=(64, 256), metavar=("D_IN", "D_SAE"))), ("--l0", dict(type=int, default=4)),
                        ("--lr", dict(type=float, default=3e-3)), ("--l0-coefficient", dict(type=float, default=3.0, help="of JumpReLU")),
                        ("--threads", dict(type=int, default=2)), ("--same-init", dict(action="store_true", help="SAELens's initial weights for both")), ("--rules", dict(default=",".join(RULES))))
    checks = tool.Checks()
    torch.set_num_threads(args.threads)
    (d, m), k = args.size, args.l0
    print(f"{3 * d} atoms in {d} dimensions, {k} active in the mean, {m} latents, {args.steps} steps of {args.batch} rows\n")
    print("| rule | seed | L0 | EV | mean max cosine | above 0.9 | seconds |\n|---|---|---|---|---|---|---|")
    for name in args.rules.split(","):
        found = {"theirs": [], "ours": []}
        for seed in range(args.seeds):
            data = Dictionary(d, active=k, seed=100 + seed)
            arch, own, other = rule(name, m, k, args.l0_coefficient)
            torch.manual_seed(seed)
            sae = sae_of(arch, d, m, **other)
            theirs = saelens_trainer(sae, args.batch, args.steps, args.lr, 200, args.steps // 5)
            ours = Trainer(arch=arch, d_in=d, d_sae=m, max_rows=args.batch, lr=args.lr, clip=1.0, steps=args.steps, lr_warmup=200, lr_decay=args.steps // 5,
                           seed=seed, n_threads=args.threads, **own)
            if args.same_init:
                ours.set_weights(feature_major(sae))
            spent = {"theirs": 0.0, "ours": 0.0}
            last = {"theirs": [], "ours": []}
            for step in range(args.steps):
                x = data.rows(args.batch, step)
                t0 = time.perf_counter()
                out = theirs.step(torch.from_numpy(x))
                theirs.n_training_steps += 1
                t1 = time.perf_counter()
                stats = ours.step(x)
                spent["theirs"] += t1 - t0
                spent["ours"] += time.perf_counter() - t1
                if step >= args.steps - 50:  # as both report it
                    log = theirs.build_train_step_log_dict(out, step)
                    last["theirs"].append((log["metrics/l0"], log["metrics/explained_variance"]))
                    last["ours"].append((stats["l0"], stats["ev"]))
            for who, w_dec in (("theirs", sae.W_dec.detach().numpy()), ("ours", ours.get("DEC"))):
                l0, ev = np.mean(last[who], axis=0)
                cos, share = data.recovered(w_dec)
                found[who].append((l0, ev, cos, share))
                print(f"| {name}, {'SAELens' if who == 'theirs' else 'qsae'} | {seed} | {l0:.2f} | {ev:.4f} | {cos:.4f} | {share:.1%} | {spent[who]:.0f} |", flush=True)
            ours.close()
        a, b = np.array(found["ours"]), np.array(found["theirs"])
        apart, spread = (a - b).mean(0), np.maximum(b.std(0), [0, 0, 0.005, 0.01])
        print(f"| **{name}, qsae - SAELens** | mean | {apart[0]:+.2f} | {apart[1]:+.4f} | {apart[2]:+.4f} | {100 * apart[3]:+.1f} points | |", flush=True)
        checks.add(abs(a[:, 0].mean() / b[:, 0].mean() - 1) < (0.05 if name == "JumpReLU" else 0.02), f"{name}: L0 {a[:, 0].mean():.3f} beside {b[:, 0].mean():.3f}")
        for i, what in ((2, "mean max cosine"), (3, "share above 0.9")):
            checks.add(apart[i] >= -spread[i], f"{name}: {what} {a[:, i].mean():.4f}, SAELens {b[:, i].mean():.4f}")
    print()
    checks.done()


if __name__ == "__main__":
    main()
