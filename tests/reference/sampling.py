#!/usr/bin/env python3
"""Sampling against Hugging Face's logits processors on the same logits: which ids can come at all, and how likely
each is, at the edges of every parameter and for random settings. build/libqsae.so is called through ctypes.

Frequencies: chi-square over all draws of a setting, pooled; the seeds are fixed, so a run repeats.
"""
import math, sys

import numpy as np
import torch
from transformers.generation.logits_process import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import lib, tool

L = lib.Library()
INF = float("inf")


def reference(x, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, history=(), presence_penalty=0.0, n_prompt=0, seed=0):
    """Probabilities in double after the processors, in the order of generate()'s _get_logits_processor."""
    ids = torch.tensor([list(history)], dtype=torch.long)
    s = torch.tensor(x)[None]
    if repetition_penalty != 1.0 and len(history):
        s = RepetitionPenaltyLogitsProcessor(float(repetition_penalty))(ids, s)
    for i in set(list(history)[n_prompt:]):
        s[0, i] -= presence_penalty # vLLM's definition; transformers has none
    if temperature != 1.0:
        s = TemperatureLogitsWarper(float(temperature))(ids, s)
    if top_k:
        s = TopKLogitsWarper(top_k)(ids, s)
    if top_p < 1.0:
        s = TopPLogitsWarper(top_p)(ids, s)
    if min_p:
        s = MinPLogitsWarper(min_p)(ids, s)
    return torch.softmax(s[0].double(), -1).numpy()


def compare(checks, what, x, draws=4000, **o):
    """The support is exact; the frequencies fit."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    want = reference(x, **o)
    draw = L.sampler(x, **o)
    seen = np.bincount([draw(i) for i in range(draws)], minlength=len(x))
    alien = np.flatnonzero((seen > 0) & (want == 0))
    absent = np.flatnonzero((seen == 0) & (want * draws > 30))
    checks.add(len(alien) == 0 and len(absent) == 0, f"{what} {o}: drawn {alien[:5]} that cannot come, never drawn {absent[:5]}")
    big = want * draws >= 10
    expected = np.append(want[big] * draws, (want[~big] * draws).sum())
    got = np.append(seen[big], seen[~big].sum())
    keep = expected > 1e-9
    chi, df = (((got - expected)[keep] ** 2) / expected[keep]).sum(), keep.sum() - 1
    checks.add(df < 1 or chi < df + 5 * math.sqrt(2 * df) + 10, f"{what} {o}: chi-square {chi:.1f} of {df}")


def same_support(checks, what, x, **o):
    """Ties at the edge of top-p: torch's sort leaves open which stay, so how many of which logit are compared."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    want = np.flatnonzero(reference(x, **o) > 0.005) # below: neither sure to come nor sure not to
    draw = L.sampler(x, **o)
    got = sorted({draw(i) for i in range(6000)})
    checks.add(sorted(x[want]) == sorted(x[got]), f"{what} {o}: {got} instead of {want}")


def edges(checks):
    x = np.full(32, -30.0)
    x[[3, 17, 21, 30]] = 0
    for k in (1, 2, 3, 4):
        compare(checks, "ties with the k-th", x, top_k=k)
    for k in (1, 31, 32, 33, 1000):
        compare(checks, "k at the ends", np.linspace(-3, 3, 32), top_k=k)
    for p in (1.0, 0.75, 0.5, 0.25, 0.2499, 0.2501, 0.51, 0.76, 1e-6):
        same_support(checks, "quarters", x, top_p=p)
        same_support(checks, "quarters", x, top_p=p, top_k=2)
    for p in (0.0, 0.5, 1.0):
        compare(checks, "min-p of ties", x, min_p=p)
    y = np.log(np.array([8, 4, 2, 1, 1]) / 16)
    for p in (0.5, 0.4999, 0.5001, 0.75, 0.875, 0.99):
        same_support(checks, "powers of two", y, top_p=p)
    for p in (0.4, 0.6, 0.2, 0.3, 0.1, 0.13, 1.0):
        compare(checks, "powers of two", y, min_p=p)
    compare(checks, "top-p is a share of the top-k", np.log([0.4, 0.3, 0.2, 0.1]), top_k=2, top_p=0.56)
    compare(checks, "top-p is a share of the top-k", np.log([0.4, 0.3, 0.2, 0.1]), top_k=2, top_p=0.58)
    compare(checks, "one logit", np.zeros(1))
    compare(checks, "-inf", np.where(np.arange(16) % 3, 0.5, -INF), top_k=14)
    compare(checks, "temperature before top-p", np.log([0.4, 0.3, 0.2, 0.1]), temperature=2.0, top_p=0.4)
    z = np.arange(16) / 4 - 2
    compare(checks, "repetition of both signs and of zero", z, repetition_penalty=1.5, history=[0, 3, 8, 8, 15, 3])
    compare(checks, "repetition below 1", z, repetition_penalty=0.5, history=[0, 3, 8, 15])
    compare(checks, "presence of what was generated", z, presence_penalty=1.5, history=[0, 14, 15, 15, 3], n_prompt=2)
    compare(checks, "both", z, repetition_penalty=1.2, presence_penalty=0.5, history=[15, 14, 15, 3, 8], n_prompt=1, temperature=0.7, top_k=9, top_p=0.95)
    for seed in range(50): # temperature 0: the argmax, the first of equals
        g = np.random.default_rng(seed).integers(-3, 4, 200).astype(np.float32)
        draw = L.sampler(g, temperature=0.0, top_k=5, top_p=0.5)
        checks.add(draw(seed) == int(torch.argmax(torch.tensor(g))), f"greedy {seed}")


def random_settings(checks, n):
    rng = np.random.default_rng(11)
    for i in range(n):
        size = int(rng.integers(2, 60))
        x = (rng.normal(size=size) * rng.choice([0.5, 2, 6])).astype(np.float32)
        if rng.random() < 0.3:
            x = np.round(x) # ties
        o = dict(temperature=float(rng.choice([1.0, 0.6, 0.7, 1.7])), seed=i)
        if rng.random() < 0.6:
            o["top_k"] = int(rng.integers(1, size + 3))
        if rng.random() < 0.5 and len(set(x)) == size:
            o["top_p"] = float(rng.uniform(0.05, 0.999))
        if rng.random() < 0.4:
            o["min_p"] = float(rng.uniform(0, 0.9))
        if rng.random() < 0.4:
            o |= dict(history=[int(v) for v in rng.integers(0, size, 9)], n_prompt=4, repetition_penalty=float(rng.uniform(0.6, 1.6)), presence_penalty=float(rng.uniform(-1, 2)))
            o.pop("top_p", None) # the penalties may make ties
        compare(checks, f"random {i}", x, draws=1500, **o)
    x = (rng.normal(size=151936) * 2).astype(np.float32)
    for o in (dict(temperature=0.6, top_k=20, top_p=0.95), dict(temperature=0.7, top_k=20, top_p=0.8), dict(temperature=1.0, top_p=0.01)):
        compare(checks, "as many as Qwen3 has", x, draws=300, **o)


def main():
    args = tool.options()
    checks = tool.Checks()
    edges(checks)
    random_settings(checks, 60 if args.quick else 400)
    checks.done()


if __name__ == "__main__":
    main()
