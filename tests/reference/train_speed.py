#!/usr/bin/env python3
"""By hand, on an otherwise idle machine: qsae_trainer_step beside SAELens's SAETrainer.step, float32, two threads, same
batches, in one process.

    tests/reference/train_speed.py [--sizes S,M,L] [--rules ...] [--states start,trained] [--rounds N] [--warm N] [--threads N]

S is 128 x 2048 with 1024 rows, M 1024 x 16384 with 2048, L 2048 x 32768 with 4096 (11 GB). A round is one step of
SAELens, one of ours with every pair computed (dense) and one of ours screened, on the same batch; the ratios are taken within a round and their medians
printed: wall time, and processor time of the whole process, which neighbours disturb less. Before a round a float32 product by torch tells what the machine
gives just then (a quiet one gives the same number in every round). On a busy machine OMP_WAIT_POLICY=passive keeps waiting threads from spinning.

states: `start` is the first steps from SAELens's own initial weights (JumpReLU: theta 0.01, nearly half of all pairs fire). `trained` comes after --warm
steps of BatchTopK with L0 64 by our trainer, loaded into both; JumpReLU's thresholds are then the cut-off that gives L0 64, and lr is small enough to stay there.
Parts are qsae_train_stats.seconds. Memory, each in a process of its own: how far the resident set grew from before the trainer (and its batch) to after two
steps, by parameter, beside qsae_trainer_size.
"""
import json, subprocess, sys, time

import numpy as np, torch

import tool
import training
from training import Dictionary, Trainer, feature_major, fill, saelens_trainer, sae_of

SIZES = {"S": (128, 2048, 1024), "M": (1024, 16384, 2048), "L": (2048, 32768, 4096)}
RULES = ["JUMPRELU", "TOPK", "BATCHTOPK"]
PARTS = ["prepare", "screen", "encode", "select", "decode", "backward", "update", "aux"]
L0 = 64


def options(arch, lr):
    return dict(arch=arch, lr=lr, clip=1.0, l0_coefficient=0.01) if arch == "JUMPRELU" else dict(arch=arch, lr=lr, clip=1.0, k=L0, aux_coefficient=1.0)


def theirs_of(arch, d, m):
    return sae_of(arch, d, m, **(dict(l0_coefficient=0.01) if arch == "JUMPRELU" else dict(k=L0)))


def resident(peak=False):
    """Bytes of the resident set, now or at most since highest_from_here()."""
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:" if peak else "VmRSS:"):
            return 1024 * int(line.split()[1])


def highest_from_here():
    open("/proc/self/clear_refs", "w").write("5")


def timed(call, *args):
    """Wall and processor seconds, and the result. Before it, threads that spin go to sleep."""
    time.sleep(0.1)
    w, p = time.perf_counter(), time.process_time()
    r = call(*args)
    return time.perf_counter() - w, time.process_time() - p, r


def probe(a=torch.randn(1024, 1024)):
    t = time.perf_counter()
    for _ in range(4):
        a @ a
    return 4 * 2 * 1024**3 / (time.perf_counter() - t) / 1e9


class Batches:
    """Batches made beforehand, so that making them takes no part; reused in turn."""

    def __init__(self, d, n, count):
        data = Dictionary(d, active=40, seed=1)
        self.all = [data.rows(n, i) for i in range(count)]

    def __getitem__(self, i):
        return self.all[i % len(self.all)]


def trained(d, m, n, batches, steps, threads):
    """Weights after some steps of our BatchTopK, and the cut-off of L0 on z times the norm."""
    t = Trainer(d_in=d, d_sae=m, max_rows=n, n_threads=threads, lr_warmup=10, **options("BATCHTOPK", 1e-3))
    torch.manual_seed(1)
    w = feature_major(theirs_of("BATCHTOPK", d, m))
    t.set_weights(w)
    for i in range(steps):
        stats = t.step(batches[i])
    w = t.weights()
    t.close()
    x = torch.from_numpy(batches[0][:256])
    norm = torch.from_numpy(w["W_dec"]).norm(dim=1)
    z = (x - torch.from_numpy(w["b_dec"])) @ torch.from_numpy(w["W_enc"]).T + torch.from_numpy(w["b_enc"])
    cut = (z * norm).flatten().topk(L0 * len(x)).values.min()
    w["threshold"] = (cut / norm).numpy()
    return w, stats["ev"]


def one(name, arch, state, args, batches, weights):
    d, m, n = SIZES[name]
    lr = 1e-3 if state == "start" else 1e-6
    torch.manual_seed(1)
    sae = theirs_of(arch, d, m)
    if weights:
        fill(sae, weights)
    other = saelens_trainer(sae, n, 10**6, lr)
    own = {s: Trainer(timed=True, d_in=d, d_sae=m, max_rows=n, n_threads=args.threads, no_screen=int(s == "dense"), **options(arch, lr)) for s in ("dense", "screened")}
    for t in own.values():
        t.set_weights(feature_major(sae))
    rows = {"theirs": [], "dense": [], "screened": []}
    parts = {s: [] for s in own}
    probes, l0, share, far = [], [], [], 0.0
    for r in range(args.rounds + 1):
        x = batches[r]
        probes.append(probe())
        w, p, out = timed(other.step, torch.from_numpy(x))
        other.n_training_steps += 1
        times = {"theirs": (w, p)}
        loss = float(out.loss.detach())
        del out
        for s, t in own.items():
            w, p, stats = timed(t.step, x)
            times[s] = (w, p)
            far = max(far, abs(stats["loss"] / loss - 1))
            if r or args.rounds == 1:
                parts[s].append(stats["seconds"])
        l0.append(stats["l0"])
        share.append(stats["screened"])
        if r:  # the first round touches the memory for the first time
            for s in rows:
                rows[s].append(times[s])
    for t in own.values():
        t.close()
    a = {s: np.array(v) for s, v in rows.items()}
    ms = {s: 1000 * np.median(v, axis=0) for s, v in a.items()}
    ratio = {s: np.median(a["theirs"] / a[s], axis=0) for s in own}
    low = {s: (a["theirs"] / a[s])[:, 0].min() for s in own}
    print(f"| {name} {arch} {state} | {l0[0]:.0f} .. {l0[-1]:.0f} | {ms['theirs'][0]:.0f} | {ms['dense'][0]:.0f} | {ms['screened'][0]:.0f} | "
          f"{ratio['dense'][0]:.1f} ({ratio['dense'][1]:.1f}) | {ratio['screened'][0]:.1f} ({ratio['screened'][1]:.1f}) | {low['dense']:.1f}, {low['screened']:.1f} | "
          f"{100 * np.median(share):.1f} % | {far:.0e} | {min(probes):.0f} .. {max(probes):.0f} |", flush=True)
    return {s: 1000 * np.median(np.array(v), axis=0) for s, v in parts.items()}


def memory(name, who, arch, args):
    """In a process of its own: bytes per parameter."""
    d, m, n = SIZES[name]
    x = Dictionary(d, active=40, seed=1).rows(n, 0)
    if who == "theirs":
        theirs_of("TOPK", 8, 16)  # what the import itself takes
    else:
        training.api()
    highest_from_here()
    before = resident()
    if who == "theirs":
        t = saelens_trainer(theirs_of(arch, d, m), n, 10**6, 1e-3)
        for _ in range(2):
            t.step(torch.from_numpy(x))
        size = 0
    else:
        t = Trainer(d_in=d, d_sae=m, max_rows=n, n_threads=args.threads, no_screen=int(who == "dense"), **options(arch, 1e-3))
        for _ in range(2):
            t.step(x)
        size = t.size
    peak = resident(peak=True)
    params = 2 * d * m + 2 * m + d
    print(json.dumps({"grown": (peak - before) / params, "size": size / params}))


def main():
    args = tool.options(("--sizes", dict(default="S")), ("--rules", dict(default=",".join(RULES))), ("--states", dict(default="start,trained")),
                        ("--rounds", dict(type=int, default=5)), ("--warm", dict(type=int, default=100)), ("--threads", dict(type=int, default=2)),
                        ("--memory-of", dict(help="SIZE,WHO,RULE: for the processes that this starts")), ("--no-memory", dict(action="store_true")))
    torch.set_num_threads(args.threads)
    if args.memory_of:
        return memory(*args.memory_of.split(","), args)
    for name in args.sizes.split(","):
        d, m, n = SIZES[name]
        batches = Batches(d, n, min(args.rounds + 1, 8))
        weights, ev = trained(d, m, n, batches, args.warm, args.threads) if "trained" in args.states else (None, 0)
        if weights:
            print(f"\n{name}: {d} x {m}, {n} rows; trained: EV {ev:.3f}")
        print("\n| size, rule, state | L0 | SAELens ms | dense ms | screened ms | dense, times: wall (cpu) | screened, times: wall (cpu) | least | computed | losses apart | probe GF/s |"
              "\n|---|---|---|---|---|---|---|---|---|---|---|")
        shown = []
        for state in args.states.split(","):
            for arch in args.rules.split(","):
                shown.append((f"{name} {arch} {state}", one(name, arch, state, args, batches, weights if state == "trained" else None)))
        print("\nours by part, ms of wall time\n\n| |" + "".join(f" {p} |" for p in PARTS) + " sum |\n|---" + "|---" * (len(PARTS) + 1) + "|")
        for title, parts in shown:
            for s, v in parts.items():
                print(f"| {title}, {s} |" + "".join(f" {x:.1f} |" for x in v) + f" {v.sum():.1f} |")
        if not args.no_memory:
            print("\nbytes per parameter (2 d m + 2 m + d of them)\n\n| | resident set grew by | qsae_trainer_size |\n|---|---|---|")
            for who in ("theirs", "dense", "screened"):
                for arch in args.rules.split(","):
                    r = subprocess.run([sys.executable, __file__, "--threads", str(args.threads), "--memory-of", f"{name},{who},{arch}"], capture_output=True, text=True)
                    if r.returncode:
                        print(f"| {name} {arch}, {who} | failed: {r.stderr.strip().splitlines()[-1] if r.stderr.strip() else r.returncode} | |")
                        continue
                    o = json.loads(r.stdout.splitlines()[-1])
                    print(f"| {name} {arch}, {'SAELens' if who == 'theirs' else 'qsae ' + who} | {o['grown']:.1f} | {format(o['size'], '.2f') if o['size'] else ''} |", flush=True)


if __name__ == "__main__":
    main()
