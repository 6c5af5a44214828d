#!/usr/bin/env python3
"""Every number of `qsae eval` on the toy against an implementation of its own: Hugging Face's model with hooks, SAELens'
autoencoders, numpy in double. SAEs of several kinds at all three sites, a transcoder, and four whose numbers are known
beforehand: a perfect one, one that gives nothing, one that gives the mean, one that is off by a constant."""
import csv, json, math

import numpy as np, torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen3ForCausalLM

import saes, tool
from tool import BUILD, TOY, convert

WORK, CONTEXT, LIMIT, SEED, NEAR = BUILD / "eval", 48, 600, 5, 1e-5
SPECS = [saes.Spec("eval_jump", "jumprelu", "resid_post", 1, d_sae=300), saes.Spec("eval_topk", "topk", "mlp_out", 2, d_sae=200, k=9, sub=True),
         saes.Spec("eval_gated", "gated", "attn_out", 0, d_sae=260), saes.Spec("eval_norm", "standard", "resid_post", 0, d_sae=200, norm="layer_norm"),
         saes.Spec("eval_trans", "transcoder", "mlp_input", 1, d_sae=220), saes.Spec("eval_skip", "skip_transcoder", "mlp_input", 3, d_sae=150)]
KNOWN = ["perfect", "nothing", "mean", "shifted"]  # at resid_post 2
GROUPS = ["text", "system", "user", "assistant", "template"]


# ---- text

def spans(tok, messages):
    """The rendered chat and the class of every token, from the places of the contents in the text."""
    text = tok.apply_chat_template(messages, tokenize=False)
    classes, at = ["template"] * len(text), 0
    for m in messages:
        at = text.index(m["content"], text.index(f"<|im_start|>{m['role']}\n", at) + len(m["role"]) + 13)
        classes[at:at + len(m["content"])] = [m["role"]] * len(m["content"])
    enc = tok(text, add_special_tokens=False, return_offsets_mapping=True)
    return enc.input_ids, [classes[b - 1] for _, b in enc.offset_mapping]


def corpus(tok):
    """Two files, and the sequences that they should give."""
    lines = [json.loads(s)["messages"] for s in (TOY.parent / "corpus" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:12]]
    lines[1] = [{"role": "system", "content": "Be brief."}] + lines[1]
    lines[2] = lines[2] + lines[3]
    plain = "The cat sat by the door. How do I bake bread? To bake bread, knead the dough. " * 4
    chats, text = WORK / "chat.jsonl", WORK / "plain.txt"
    chats.write_text("".join(json.dumps({"messages": m, "kind": 1}) + "\n" for m in lines), encoding="utf-8")
    text.write_text(plain)
    a, b = [spans(tok, m) for m in lines], [(tok(plain, add_special_tokens=False).input_ids, None)]
    cut = lambda docs: [(d[0][i:i + CONTEXT], (d[1] or ["text"] * len(d[0]))[i:i + CONTEXT]) for d in docs
                        for i in range(0, len(d[0]), CONTEXT) if len(d[0]) - i >= 2]
    queues, given, weight, out = [cut(a), cut(b)], [0, 0], [3.0, 1.0], []
    while queues[0] or queues[1]:
        i = min((k for k in (0, 1) if queues[k]), key=lambda k: (given[k] / weight[k], k))
        ids, classes = queues[i].pop(0)
        given[i] += len(ids)
        out.append((ids, classes))
    short, left = [], LIMIT
    for ids, classes in out:
        if left < 2:
            break
        short.append((ids[:left], classes[:left]))
        left -= len(short[-1][0])
    return [f"{chats}:3", f"{text}:1"], short


# ---- the model

class Model:
    def __init__(self):
        self.m = Qwen3ForCausalLM.from_pretrained(TOY, dtype=torch.float32, attn_implementation="eager").eval()

    def module(self, site, layer):
        block = self.m.model.layers[layer]
        return {"resid_post": block, "mlp_out": block.mlp, "attn_out": block.self_attn, "mlp_input": block.post_attention_layernorm}[site]

    @torch.no_grad()
    def run(self, ids, at, labels=False):
        """Logits, with at[(site, layer)](rows) called for the rows of a site: None, or what replaces them."""
        def hook(call):
            def inner(_, __, out):
                first = out[0] if isinstance(out, tuple) else out
                new = call(first[0])
                if new is None:
                    return None
                return (new[None], *out[1:]) if isinstance(out, tuple) else new[None]
            return inner
        handles = [self.module(*spot).register_forward_hook(hook(call)) for spot, call in at.items()]
        t = torch.tensor([ids])
        out = self.m(t, labels=t if labels else None)
        for h in handles:
            h.remove()
        return (out.logits[0].double(), float(out.loss)) if labels else out.logits[0].double()


# ---- SAEs

class Unit:
    """made(x [n, d_in]) -> (reconstruction [n, d_out], active features [n, d_sae] or their number)"""

    def __init__(self, name, into, out, made, kind="sae"):
        self.name, self.into, self.out, self.made, self.kind = name, into, out, made, kind


def lens(sae):
    @torch.no_grad()
    def made(x):
        return sae(saes.shaped(sae, x)).reshape(len(x), -1), (sae.encode(saes.shaped(sae, x)) > 0).numpy()
    return made


def known(name, d, mean):
    eye, zero = torch.eye(d), torch.zeros(2 * d, d)
    enc, dec, b = torch.cat([eye, -eye]).T.contiguous(), torch.cat([eye, -eye]), torch.zeros(d)
    if name in ("nothing", "mean"):
        dec = zero
    if name == "mean":
        b = mean
    if name == "shifted":
        b = torch.full((d,), 0.25)
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"W_enc": enc, "W_dec": dec, "b_enc": torch.zeros(2 * d), "b_dec": b}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"architecture": "standard", "d_in": d, "d_sae": 2 * d, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "metadata": {"hook_name": "blocks.2.hook_resid_post", "model_name": "toy"}}))

    def made(x):
        f = torch.relu(x @ enc)
        return f @ dec + b, (f > 0).numpy()
    return folder, made


# ---- the formulas

def activation_metrics(x, z, l0, m):
    x, z = x.astype(np.float64), z.astype(np.float64)
    e, n = z - x, len(x)
    e2, x2, z2 = (e ** 2).sum(1), (x ** 2).sum(1), (z ** 2).sum(1)
    fvu = e2.sum() / ((x - x.mean(0)) ** 2).sum()
    return {"tokens": n, "L0": l0.mean(), "MSE": e2.mean(), "MSE_coord": (e ** 2).mean(), "FVU_mean": fvu, "EV_mean": 1 - fvu,
            "FVE_var": 1 - e.var(0).sum() / x.var(0).sum(), "FVU_zero": e2.sum() / x2.sum(), "nMSE": (e2 / x2).mean(),
            "EV_legacy": 1 - (e2 / ((x - m) ** 2).sum(1)).mean(),
            "cosine": np.where((x2 > 0) & (z2 > 0), (x * z).sum(1) / np.maximum(np.sqrt(x2 * z2), 1e-300), 0).mean(),
            "L2_ratio": (np.sqrt(z2) / np.sqrt(x2)).mean(), "norm_ratio": np.sqrt(z2).sum() / np.sqrt(x2).sum(),
            "bias": z2.sum() / (x * z).sum() if (x * z).sum() else None}


def ratio(a, b, c):
    return (a - b) / (a - c) if a != c else None


def prediction_metrics(p):
    """p: columns orig, spliced, zero, mean, kl, kl zero, kl mean, top1, over labels."""
    o, s, z, m, kl, klz, klm, top = p.mean(0)
    return {"labels": len(p), "CE_orig": o, "CE_spliced": s, "CE_zero": z, "CE_mean": m, "delta_loss": s - o, "delta_loss_percent": 100 * (s - o) / o,
            "recovered_zero": ratio(z, s, o), "recovered_mean": ratio(m, s, o), "KL": kl, "KL_zero": klz, "KL_mean": klm,
            "KL_score_zero": ratio(klz, kl, 0), "KL_score_mean": ratio(klm, kl, 0), "top1": top}


def mix(s):
    with np.errstate(over="ignore"):
        z = (s ^ s >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return z ^ z >> np.uint64(31)


GOLD = np.uint64(0x9E3779B97F4A7C15)


def draws(state, n):
    with np.errstate(over="ignore"):
        return mix(np.asarray(state, np.uint64)[..., None] + GOLD * np.arange(1, n + 1, dtype=np.uint64))


def random_dictionary(d, n):
    start = draws(np.uint64(SEED) + np.arange(n, dtype=np.uint64), 1)[:, 0]
    u = (draws(start, 12 * d) >> np.uint64(11)).astype(np.float64) / 2.0 ** 53
    v = u.reshape(n, d, 12).sum(2) - 6
    return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)


def bootstrap(rows, pred):
    """rows: per sequence n, error, about, l0, cosine; pred: n and the 8 sums."""
    n, state = len(rows), np.uint64(SEED)
    at = (draws(state, 1000 * n) % np.uint64(n)).astype(int).reshape(1000, n)
    r, p = rows[at].sum(1), pred[at].sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ce = p[:, 1:] / p[:, :1]
        v = {"L0": r[:, 3] / r[:, 0], "MSE": r[:, 1] / r[:, 0], "EV_mean": 1 - r[:, 1] / r[:, 2], "cosine": r[:, 4] / r[:, 0], "CE_spliced": ce[:, 1],
             "delta_loss": ce[:, 1] - ce[:, 0], "recovered_zero": (ce[:, 2] - ce[:, 1]) / (ce[:, 2] - ce[:, 0]),
             "recovered_mean": (ce[:, 3] - ce[:, 1]) / (ce[:, 3] - ce[:, 0]), "KL": ce[:, 4], "top1": ce[:, 7]}
    return {k: [np.sort(x)[25], np.sort(x)[974]] if np.isfinite(x).all() else None for k, x in v.items()}


# ---- the evaluation

class Reference:
    def __init__(self, model, seqs):
        self.model, self.seqs = model, seqs
        self.labels = [np.array(ids[1:]) for ids, _ in seqs]
        self.rows, self.logits, self.loss = {}, [], []
        for ids, _ in seqs:
            logits, loss = model.run(ids, {}, labels=True)
            self.logits.append(torch.log_softmax(logits, -1).numpy())
            self.loss.append(loss)
        self.ablated = {}

    def spot(self, spot):
        if spot not in self.rows:
            self.rows[spot] = out = []
            for ids, _ in self.seqs:
                self.model.run(ids, {spot: lambda r: out.append(r.clone().numpy())})
        return self.rows[spot]

    def excluded(self, into, out):
        masks = []
        for spot in {into, out}:
            norms = [np.linalg.norm(r.astype(np.float64), axis=1) for r in self.spot(spot)]
            median = np.sort(np.concatenate(norms))[(sum(map(len, norms)) - 1) // 2]
            assert not any((abs(n / median - 10) < 0.3).any() for n in norms), "a norm is too near the limit to tell"
            masks.append([n > 10 * median for n in norms])
        return [np.logical_or.reduce(m) | (np.arange(len(m[0])) == 0) for m in zip(*masks)]

    def mean(self, unit, masks):
        return np.concatenate([r[~m] for r, m in zip(self.spot(unit.out), masks)]).astype(np.float64).mean(0)

    def columns(self, changed):
        """-log p(next), KL from the original, same top, of logits per sequence."""
        out = []
        for new, old, y in zip(changed, self.logits, self.labels):
            q, p, t = torch.log_softmax(new, -1).numpy()[:-1], old[:-1], np.arange(len(y))
            out.append(np.stack([-q[t, y], (np.exp(p) * (p - q)).sum(1), q.argmax(1) == p.argmax(1)], 1))
        return out

    def splice(self, units, masks, how):
        """how(unit, rows read) -> new rows; the excluded stay."""
        out = []
        for i, (ids, _) in enumerate(self.seqs):
            at, kept = {}, {}
            for u in units:
                mask = torch.from_numpy(masks[u.name][i])[:, None]
                def write(rows, u=u, mask=mask):
                    new = how(u, kept[u.name] if u.into != u.out else rows)
                    return torch.where(mask, rows, new.to(rows.dtype))
                if u.into != u.out:
                    at[u.into] = lambda rows, u=u: kept.__setitem__(u.name, rows.clone())
                at[u.out] = write
            out.append(self.model.run(ids, at))
        return self.columns(out)

    def predictions(self, units, masks, made):
        means = {u.name: torch.from_numpy(self.mean(u, masks[u.name])) for u in units}
        key = tuple((u.into, u.out) for u in units)
        if key not in self.ablated:
            self.ablated[key] = (self.splice(units, masks, lambda u, r: torch.zeros(len(r), len(means[u.name]))),
                                 self.splice(units, masks, lambda u, r: means[u.name].repeat(len(r), 1)))
        zero, mean = self.ablated[key]
        new = self.splice(units, masks, made)
        orig = [-p[:-1][np.arange(len(y)), y] for p, y in zip(self.logits, self.labels)]
        return [np.column_stack([o, n[:, 0], z[:, 0], m[:, 0], n[:, 1], z[:, 1], m[:, 1], n[:, 2]]) for o, n, z, m in zip(orig, new, zero, mean)]


def slack(k, want):
    """A share of a loss that hardly changes is known as exactly as the change is: its numerator is held to NEAR."""
    below = {"recovered_zero": "CE_zero", "recovered_mean": "CE_mean"}.get(k)
    if below:
        return max(1, 1 / max(abs(want[below] - want["CE_orig"]), 1e-9))
    return 100 / want["CE_orig"] if k == "delta_loss_percent" else 1


def compare(checks, what, got, want):
    for k, w in want.items():
        g, near = got.get(k, "absent"), NEAR * slack(k, want)
        ok = g == w if w is None or g is None else isinstance(g, (int, float)) and math.isfinite(g) and abs(g - w) <= near * (1 + abs(w))
        checks.add(ok, f"{what}: {k} is {g}, not {w}")


def check_unit(checks, ref, got, units, masks, made, rows):
    """rows: per sequence (x, z, l0) or None for a joint splice."""
    what = f"{got['kind']} {got['name']}"
    mask = [np.logical_or.reduce([masks[u.name][i] for u in units]) for i in range(len(ref.seqs))]
    pred, classes = ref.predictions(units, masks, made), [np.array(c) for _, c in ref.seqs]
    everything = {"kept": lambda i: (~mask[i], ~mask[i][:-1]), "all": lambda i: (mask[i] >= 0, mask[i][:-1] >= 0)}
    for g in GROUPS:
        everything[g] = lambda i, g=g: (~mask[i] & (classes[i] == g), ~mask[i][:-1] & (classes[i][1:] == g))
    m = ref.mean(units[0], mask) if rows else None
    for group, choose in everything.items():
        picks = [choose(i) for i in range(len(ref.seqs))]
        p = np.concatenate([a[s[1]] for a, s in zip(pred, picks)])
        if not len(p):
            checks.add(group not in got["groups"], f"{what}: group {group} has no tokens")
            continue
        want = prediction_metrics(p)
        if rows:
            x, z, l0 = (np.concatenate([r[k][s[0]] for r, s in zip(rows, picks)]) for k in range(3))
            want.update(activation_metrics(x, z, l0, m))
        compare(checks, f"{what}, {group}", got["groups"].get(group, {}), want)
    seq = np.column_stack([[(~k[:-1]).sum() for k in mask], np.stack([p[~k[:-1]].sum(0) for p, k in zip(pred, mask)])])
    act = np.ones((len(seq), 5))
    if rows:
        act = []
        for (x, z, l0), k in zip(rows, mask):
            x, z = x[~k].astype(np.float64), z[~k].astype(np.float64)
            nx, nz = np.linalg.norm(x, axis=1), np.linalg.norm(z, axis=1)
            act.append([len(x), ((z - x) ** 2).sum(), ((x - m) ** 2).sum(), l0[~k].sum(), ((x * z).sum(1) / np.maximum(nx * nz, 1e-300)).sum()])
    total = prediction_metrics(seq[:, 1:] / seq[:, :1].mean())
    for k, w in bootstrap(np.array(act, np.float64), seq).items():
        if slack(k, total) > 2:
            continue  # a resample may have next to nothing to recover
        if k not in got["ci95"]:
            checks.add(not rows, f"{what}: no interval of {k}")
            continue
        g = got["ci95"][k]
        ok = g is None and w is None or g and w and all(abs(a - b) <= NEAR * (1 + abs(b)) for a, b in zip(g, w))
        checks.add(ok, f"{what}: interval of {k} is {g}, not {w}")


def check_features(checks, got, active, mask):
    n = np.concatenate([a[~m] for a, m in zip(active, mask)]).sum(0)
    density = n / sum((~m).sum() for m in mask)
    f, live = got["features"], density[density > 0]
    compare(checks, f"features of {got['name']}", f, {"n": len(n), "dead": (n == 0).mean(), "high_density_0.1": (density > 0.1).mean(),
            "high_density_0.01": (density > 0.01).mean()})
    want = np.histogram(np.clip(np.log10(live), -7, 0), bins=np.arange(-7, 0.01, 0.25))[0]
    checks.add(f["histogram"] == want.tolist(), f"histogram of {got['name']}: {f['histogram']} instead of {want.tolist()}")


def controls(ref, unit, masks, l0):
    """The random dictionary and the principal components, as functions of rows and the SAE's L0 there."""
    x = np.concatenate([r[~m] for r, m in zip(ref.spot(unit.out), masks)]).astype(np.float64)
    mean32 = x.mean(0).astype(np.float32).astype(np.float64)
    rank = max(1, int(np.floor(np.concatenate([a[~m] for a, m in zip(l0, masks)]).mean() + 0.5)))
    w, v = np.linalg.eigh(np.cov(x.T, bias=True))
    v = v[:, ::-1][:, :rank]

    def pca(rows):
        c = rows.astype(np.float64) - mean32
        return (mean32 + c @ v @ v.T).astype(np.float32), np.full(len(rows), float(rank))

    def random(rows, k, dictionary):
        out, used = [], []
        d = dictionary.astype(np.float64)
        for c, n in zip(rows.astype(np.float64) - mean32, k):
            z = d @ c
            top = np.argsort(-z, kind="stable")[:int(n)]
            top = top[z[top] > 0]
            s = z[top] @ d[top]
            out.append(mean32 + (c @ s / (s @ s) if len(top) else 0) * s)
            used.append(len(top))
        return np.array(out, np.float32), np.array(used, float)
    return pca, random


def check_known(checks, by):
    """What must come out whatever the text."""
    kept = {n: by["sae", n]["groups"]["kept"] for n in KNOWN}
    p, z, m, s = (kept[n] for n in KNOWN)
    for k, v in {"EV_mean": 1, "FVE_var": 1, "MSE": 0, "FVU_zero": 0, "delta_loss": 0, "KL": 0, "top1": 1, "recovered_zero": 1, "recovered_mean": 1,
                 "KL_score_zero": 1, "EV_legacy": 1, "bias": 1, "L2_ratio": 1}.items():
        checks.add(p[k] == v, f"perfect: {k} is {p[k]}")
    checks.add(abs(p["cosine"] - 1) < 1e-12, f"perfect: cosine is {p['cosine']}")
    checks.add(z["CE_spliced"] == z["CE_zero"] and z["recovered_zero"] == 0 and z["KL"] == z["KL_zero"] and z["FVU_zero"] == 1 and z["L0"] > 0, f"nothing: {z}")
    checks.add(abs(m["CE_spliced"] - m["CE_mean"]) < 1e-6 and abs(m["recovered_mean"]) < 1e-6 and abs(m["EV_mean"]) < 1e-6, f"mean: {m}")
    # variance about zero instead of the mean, the mistake of others, would call the mean a good reconstruction
    checks.add(1 - m["FVU_zero"] > 0.1 and m["EV_mean"] < 1e-6, f"mean: 1 - FVU_zero is {1 - m['FVU_zero']}")
    checks.add(abs(s["FVE_var"] - 1) < 1e-6 and s["EV_mean"] < 0.99, f"shifted: {s}")


def main():
    args = tool.options()
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    checks, qsae, tok = tool.Checks(), args.qsae, AutoTokenizer.from_pretrained(TOY)
    data, seqs = corpus(tok)
    ref = Reference(Model(), seqs)
    mlp = {l: ("mlp_out", l) for l in range(4)}
    units, folders = [], []
    for i, s in enumerate(SPECS):
        s.seed, folder, spot = 8000 + i, WORK / s.name, (s.site, s.layer)
        saes.make(s, torch.from_numpy(np.concatenate(ref.spot(spot))), folder, 128)
        units.append(Unit(s.name, spot, mlp[s.layer] if "transcoder" in s.arch else spot, lens(saes.load(folder))))
        folders.append(folder)
    top = Unit("", ("resid_post", 2), ("resid_post", 2), None)
    mean = torch.from_numpy(ref.mean(top, ref.excluded(top.into, top.out))).float()
    for name in KNOWN:
        folder, made = known(name, 128, mean)
        units.append(Unit(name, top.into, top.out, made))
        folders.append(folder)
    model = convert(qsae, TOY, WORK / "model.qsae")
    suite = WORK / "suite.qsae"
    suite.unlink(missing_ok=True)
    tool.run(qsae, "convert", *folders, "-o", suite)
    pair = WORK / "pair.qsae"
    pair.unlink(missing_ok=True)
    tool.run(qsae, "convert", *folders[:3], folders[4], "-o", pair)
    out = WORK / "out"

    def evaluate(file, *more):
        for f in out.glob("*"):
            f.unlink()
        tool.run(qsae, "eval", model, file, "--data", data[0], "--data", data[1], "--context", CONTEXT, "--tokens", LIMIT, "--seed", SEED, "-o", out, *more)
        return json.loads((out / "eval.json").read_text())

    got = evaluate(suite, "--controls", "random,pca")
    by = {(u["kind"].replace("transcoder", "sae"), u["name"]): u for u in got["units"]}
    checks.add(len(by) == len(units) + 2 * (len(units) - 2), f"units: {sorted(by)}")
    checks.add(got["data"]["sequences"] == len(seqs) and got["data"]["tokens"] == sum(len(s[0]) for s in seqs), f"data: {got['data']}")
    counts = {g: sum(c.count(g) for _, c in seqs) for g in GROUPS}
    checks.add(got["data"]["by_class"] == counts and min(counts.values()) > 0, f"classes: {got['data']['by_class']} instead of {counts}")
    n = [len(s[0]) - 1 for s in seqs]
    loss = np.dot(ref.loss, n) / sum(n)
    checks.add(abs(got["original"]["all"]["CE"] - loss) <= 1e-6, f"the loss is {got['original']['all']['CE']}, Hugging Face's {loss}")
    masks = {u.name: ref.excluded(u.into, u.out) for u in units}
    for u in units:
        g = by["sae", u.name]
        made = [u.made(torch.from_numpy(r)) for r in ref.spot(u.into)]
        l0 = [f.sum(1).astype(float) for _, f in made]
        rows = [(x, z.numpy(), c) for x, (z, _), c in zip(ref.spot(u.out), made, l0)]
        check_unit(checks, ref, g, [u], masks, lambda _, r, u=u: u.made(r)[0], rows)
        check_features(checks, g, [f for _, f in made], masks[u.name])
        checks.add(abs(g["self_test_delta_loss"]) <= 1e-6, f"{u.name}: splicing x again changes the loss by {g['self_test_delta_loss']}")
        if u.into != u.out:
            continue
        pca, random = controls(ref, u, masks[u.name], l0)
        rows = [(x, *pca(x)) for x in ref.spot(u.out)]
        check_unit(checks, ref, by["pca", u.name], [u], masks, lambda _, r: torch.from_numpy(pca(r.numpy())[0]), rows)
        if u.name not in ("eval_jump", "eval_gated", "perfect"):
            continue
        dictionary = random_dictionary(128, made[0][1].shape[1])
        rows = [(x, *random(x, k, dictionary)) for x, k in zip(ref.spot(u.out), l0)]
        again = iter([z for _, z, _ in rows])
        check_unit(checks, ref, by["random", u.name], [u], masks, lambda _, r: torch.from_numpy(next(again)), rows)
    check_known(checks, by)

    cells = list(csv.DictReader((out / "eval.csv").open()))
    for c in cells:
        u = by[c["kind"].replace("transcoder", "sae"), c["name"]]["groups"][c["group"]]
        checks.add(all(float(c[k]) == u[k] for k in u if u[k] is not None) and all(c[k] == "" for k in u if u[k] is None), f"eval.csv: {c}")
    checks.add(len(cells) == sum(len(u["groups"]) for u in got["units"]), f"eval.csv: {len(cells)} rows")

    joint = evaluate(pair, "--joint", "site,all")
    four = units[:3] + [units[4]]
    (g,) = [u for u in joint["units"] if u["kind"] == "joint"]
    checks.add(g["name"] == "joint.all", g["name"])
    members = [next(u for u in four if u.name == name) for name in g["members"]]
    checks.add(len(members) == 4, f"joint: {g['members']}")
    check_unit(checks, ref, g, members, masks, lambda u, r: u.made(r)[0], None)
    checks.add("joint.resid_post" in joint["skipped"], f"skipped: {joint['skipped']}")
    checks.done()


if __name__ == "__main__":
    main()
