#!/usr/bin/env python3
"""Edited generation: `qsae generate --sae --edit` against Hugging Face with hooks that apply
h' = h + decode(g) - decode(f) with SAELens' encode and decode, at every position of prompt and continuation.

Greedy continuations must be equal byte for byte. Each case is also required to differ from the unedited
continuation, and to keep the reference's best logit clear of its second at every step, so that it can fail
and cannot fail by rounding.
"""
import json
from dataclasses import dataclass

import numpy as np, torch

import models, saes, tool, truth
from tool import BUILD, TOY, convert

HOST = models.Spec("edit_host", 96, 200, 3, 4, 2, 40, vocab=1040, tied=False, dtype="F32", seed=1901)
OPS = {"add": lambda a, v: a + v, "set": lambda a, v: torch.full_like(a, v), "scale": lambda a, v: a * v,
       "min": lambda a, v: a.clamp(min=v), "max": lambda a, v: a.clamp(max=v)}


@dataclass
class Edit:
    site: str
    layer: int
    op: str                 # one of OPS (a feature), or add_vector project_out replace sae_replace
    sae: object = None
    feature: int = 0
    value: float = 0.0
    strength: float = 1.0
    begin: int = 0
    end: int = 0            # 0: no end
    vector: object = None
    gate: tuple = ()        # (sae of the same site, feature, threshold) or (probe vector, None, threshold)


class Edited:
    """While open, the model runs with the edits, in order. A feature's value and a gate are those of the row
    before any edit of its site; edits of one feature pass the changed value on."""

    def __init__(self, model, edits):
        self.model, self.handles = model, []
        places = {}
        for e in edits:
            places.setdefault((e.site, e.layer), []).append(e)
        for (site, layer), group in places.items():
            self.hook(model.model.layers[layer], site, group)

    def change(self, x, group):
        """The sum of the edits' changes of the rows x [1, n, d]; float64 inside."""
        before = x[0].double()
        h, total, known = before.clone(), 0, {}

        def features(sae):
            if id(sae) not in known:
                d = saes.double(sae)
                known[id(sae)] = [d, d.encode(saes.shaped(d, before)).to_dense()]
            return known[id(sae)]

        first = {id(e.gate[0]): features(e.gate[0])[1] for e in group if e.gate and e.gate[1] is not None}
        pos = torch.arange(len(before))[:, None]
        for e in group:
            on = (pos >= e.begin) & ((pos < e.end) if e.end else True)
            if e.gate:
                probe, feature, threshold = e.gate
                value = first[id(probe)][:, feature] if feature is not None else before @ torch.as_tensor(probe).double()
                on = on & (value > threshold)[:, None]
            if e.op in OPS:
                sae, f = features(e.sae)
                g = f.clone()
                g[:, e.feature] = OPS[e.op](f[:, e.feature], e.value)
                g = torch.where(on, f + e.strength * (g - f), f)
                step = self.decode(sae, before, g) - self.decode(sae, before, f)
                known[id(e.sae)][1] = g
            else:
                v = None if e.vector is None else torch.as_tensor(e.vector).double()
                if e.op == "sae_replace":
                    sae = saes.double(e.sae)
                    v = self.decode(sae, h, sae.encode(saes.shaped(sae, h)).to_dense())
                step = {"add_vector": lambda: v.expand_as(h), "project_out": lambda: -(h @ v)[:, None] / (v @ v) * v,
                        "replace": lambda: v - h, "sae_replace": lambda: v - h}[e.op]()
                step = torch.where(on, e.strength * step, torch.zeros_like(h))
            total = total + step
            if step.shape == h.shape:
                h = h + step
        return total.float()[None]

    @staticmethod
    def decode(sae, x, f):
        sae.process_sae_in(saes.shaped(sae, x))  # sets the scale of each row, which decode undoes and forgets
        y = sae.decode(f)
        return y.reshape(len(y), -1)

    def hook(self, block, site, group):
        transcoder = group[0].sae is not None and hasattr(group[0].sae.cfg, "d_out")

        def output(module, args, out):
            h = out[0] if isinstance(out, tuple) else out
            h = h + self.change(h, group)
            return (h, *out[1:]) if isinstance(out, tuple) else h

        def first(module, args, kwargs):
            if args:
                return (args[0] + self.change(args[0], group), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + self.change(kwargs["hidden_states"], group)}

        def pre(module, call):
            self.handles.append(module.register_forward_pre_hook(call, with_kwargs=True))

        def post(module, call):
            self.handles.append(module.register_forward_hook(call))

        if transcoder:     # reads the input of the MLP, writes its output
            kept = []
            post(block.post_attention_layernorm, lambda m, a, out: kept.append(out))
            post(block.mlp, lambda m, a, out: out + self.change(kept.pop(), group))
        elif site == "resid_pre":
            pre(block, first)
        elif site == "attn_z":
            pre(block.self_attn.o_proj, first)
        elif site == "resid_mid":  # resid_pre + attn_out: its change is a change of attn_out
            kept = []
            pre(block, lambda m, a, k: kept.append(a[0] if a else k["hidden_states"]))
            post(block.self_attn, lambda m, a, out: (out[0] + self.change(kept.pop() + out[0], group), *out[1:]))
        else:
            post({"attn_out": block.self_attn, "mlp_input": block.post_attention_layernorm, "mlp_out": block.mlp, "resid_post": block}[site], output)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for h in self.handles:
            h.remove()


@torch.no_grad()
def greedy(model, ids, n, stop=()):
    """Ids, and the smallest lead of a chosen logit over the next one relative to the logits' rms."""
    ids, lead, start = list(ids), np.inf, len(ids)
    for _ in range(n):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        best = logits.topk(2)
        lead = min(lead, ((best.values[0] - best.values[1]) / logits.pow(2).mean().sqrt()).item())
        if best.indices[0].item() in stop:
            break
        ids.append(best.indices[0].item())
    return ids[start:], lead


def byte_table():
    """The bytes of the toy's tokens, by id (GPT-2's printable alphabet undone)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    to_byte = {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}
    vocab = json.loads((TOY / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return {i: bytes(to_byte[c] for c in t) for t, i in vocab.items()}


def make_host(folder):
    """A random model that speaks the toy's tokens: no special token and no end token is ever its choice."""
    w = models.stored(HOST)
    w["lm_head.weight"][1000:] = 0
    w["lm_head.weight"][2:4] = 0
    folder.mkdir(parents=True, exist_ok=True)
    models.write_config(folder, models.config(HOST))
    models.write_weights(folder, w)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TOY / name).read_bytes())
    return folder


EDIT_SAES = [
    saes.Spec("e_jump", "jumprelu", "resid_post", 1, 300, sub=True, seed=31),
    saes.Spec("e_topk", "topk", "mlp_out", 0, 300, k=20, rescale=True, seed=32),
    saes.Spec("e_gated", "gated", "resid_pre", 1, 300, norm="layer_norm", seed=33),
    saes.Spec("e_const", "standard", "attn_out", 1, 300, norm="constant_norm_rescale", sub=True, seed=34),
    saes.Spec("e_mid", "batchtopk_trained", "resid_mid", 2, 300, seed=35),
    saes.Spec("e_z", "jumprelu", "attn_z", 1, 300, seed=36),
    saes.Spec("e_trans", "skip_transcoder", "mlp_input", 1, 300, seed=37),
]


def cases(made, hf):
    """Edit lists: every op at every SAE's site, then several together. A feature that fires often, and one
    that fires seldom."""
    single = []
    for s in EDIT_SAES:
        f = saes.encode(made[s.name], hf[f"layers.{s.layer}.{s.site}"])
        rate, top = (f > 0).mean(0), float(f.max())
        order = np.argsort(-rate)
        often, seldom = int(order[0]), int(order[np.count_nonzero(rate) // 2])
        for op, feature, value in (("add", often, 1.5 * top), ("set", often, 2 * top), ("scale", often, 5.0), ("min", often, 0.6 * top),
                                   ("min", seldom, 2 * top), ("max", often, 0.0)):
            single.append((s.name, [(s, feature, op, float(np.float32(value)))]))
        single.append((s.name + " four", [(s, often, "add", top), (s, often, "scale", 2.0), (s, seldom, "set", top), (s, often, "max", 1.2 * top)]))
    yield from single
    rng = np.random.default_rng(5)
    for i in range(12):
        chosen = rng.choice(len(single), 3, replace=False)
        yield f"three {sorted(map(int, chosen))}", [single[j][1][0] for j in chosen]


def run_case(checks, qsae, file, sae_files, name, edits, hf_model, made, ids, n, table, plain, tally):
    ref = [Edit(s.site, s.layer, op, made[s.name], feature, value) for s, feature, op, value in edits]
    with Edited(hf_model, ref):
        want, lead = greedy(hf_model, ids, n)
    args = ["generate", file, "--tokens", ",".join(map(str, ids)), "-n", n]
    for s in {s.name: s for s, *_ in edits}.values():
        args += ["--sae", sae_files[s.name]]
    for s, feature, op, value in edits:
        args += ["--edit", f"{s.site}.{s.layer}:{feature}={op}:{value!r}"]
    got = checks.attempt(name, tool.run, qsae, *args, text=False)
    if got is None:
        return
    tally["changed"] += want != plain
    if lead < 1e-4:
        tally["too close to call"] += 1
        return
    text = b"".join(table[i] for i in want) + b"\n"
    checks.add(got == text, f"{name} {edits[0][2]}:{edits[0][3]:g}: {got[:60]!r} instead of {text[:60]!r} (lead {lead:.1e})")


def toy_chat(checks, qsae):
    """The toy's own answers: prompt text, chat template and continuation."""
    from transformers import AutoTokenizer
    model, tok = truth.hf_model(TOY), AutoTokenizer.from_pretrained(TOY)
    file = checks.attempt("toy: convert", convert, qsae, TOY, BUILD / "toy.qsae")
    if file is None:
        return
    for name in ("test_harmful", "test_harmless", "test_near"):
        for ask in (TOY.parent / "prompts" / f"{name}.txt").read_text(encoding="utf-8").splitlines()[:2]:
            for think in (True, False):
                text = tok.apply_chat_template([{"role": "user", "content": ask}], tokenize=False, add_generation_prompt=True, enable_thinking=think)
                want, lead = greedy(model, tok(text, add_special_tokens=False).input_ids, 48, stop=(1000, 1002))
                got = checks.attempt(f"chat {ask!r}", tool.run, qsae, "generate", file, "--chat", ask, "-n", 48, *([] if think else ["--no-think"]), text=False)
                if got is not None and lead >= 1e-4:
                    checks.add(got == tok.decode(want).encode() + b"\n", f"chat {ask!r} think={think}: {got!r} instead of {tok.decode(want)!r} (lead {lead:.1e})")


def main():
    args = tool.options()
    torch.set_num_threads(2)
    checks = tool.Checks()
    folder = make_host(BUILD / HOST.name)
    file = checks.attempt("convert", convert, args.qsae, folder, BUILD / "edit_host.qsae")
    if file is None:
        checks.done()
    ids = models.tokens(HOST, 24)
    ids = [i % 1000 for i in ids]
    hf_model = truth.hf_model(folder)
    hf = truth.hf_sites(folder, [i % 1000 for i in models.tokens(HOST, 300)], hf_model)
    made, files = {}, {}
    for s in EDIT_SAES:
        made[s.name] = saes.load(saes.make(s, hf[f"layers.{s.layer}.{s.site}"], BUILD / s.name, HOST.hidden))
        files[s.name] = checks.attempt(f"{s.name}: convert", convert, args.qsae, BUILD / s.name, BUILD / f"{s.name}.qsae")
    n, table, tally = 8, byte_table(), {"changed": 0, "too close to call": 0, "cases": 0}
    plain, lead = greedy(hf_model, ids, n)
    got = checks.attempt("no edit", tool.run, args.qsae, "generate", file, "--tokens", ",".join(map(str, ids)), "-n", n, text=False)
    checks.add(got == b"".join(table[i] for i in plain) + b"\n" and lead >= 1e-4, f"no edit: {got!r} (lead {lead:.1e})")
    for name, edits in cases(made, hf):
        if args.only and args.only not in name or args.quick and tally["cases"] >= 12:
            continue
        tally["cases"] += 1
        if all(files[s.name] for s, *_ in edits):
            run_case(checks, args.qsae, file, files, name, edits, hf_model, made, ids, n, table, plain, tally)
    print(tally)
    checks.add(2 * tally["changed"] >= tally["cases"], f"too few edits change the continuation: {tally}")
    bad = [["--edit", "resid_post.1:0=set:1"], ["--sae", files["e_jump"], "--edit", "resid_post.2:0=set:1"],
           ["--sae", files["e_jump"], "--edit", "resid_post.1:300=set:1"], ["--sae", files["e_jump"], "--edit", "resid_post.1:0=put:1"],
           ["--sae", files["e_jump"], "--edit", "resid_post.1:0=set:nan"], ["--sae", files["e_jump"], "--edit", "resid_post.1:0=set:"],
           ["--sae", files["e_jump"], "--edit", "nowhere.1:0=set:1"], ["--sae", files["e_jump"], "--edit", "resid_post.1:0=set:1x"]]
    for b in bad:
        try:
            tool.run(args.qsae, "generate", file, "--tokens", "5,6", "-n", 1, *b)
            checks.add(False, f"accepted: {' '.join(map(str, b))}")
        except tool.Refused as e:
            checks.add(e.code > 0 and bool(e.text.strip()), f"{b}: {e}")
    if TOY.exists() and not args.quick:
        toy_chat(checks, args.qsae)
    checks.done()


if __name__ == "__main__":
    main()
