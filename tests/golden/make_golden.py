#!/usr/bin/env python3
"""Makes the goldens beside this file: small checkpoints and SAEs, and what Hugging Face and SAELens say of
them. README.md tells what is in each file. `make_golden.py --toy` makes only the toy's."""
import json, pathlib, platform, sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reference"))

import numpy as np, sae_lens, safetensors, tokenizers, torch, transformers
from safetensors.numpy import save_file

import models, saes, tool, truth
from edits import Edit, Edited

SEED = 20
VERSIONS = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__,
            "safetensors": safetensors.__version__, "tokenizers": tokenizers.__version__, "sae_lens": sae_lens.__version__}
MADE_BY = {**VERSIONS, "seed": str(SEED), "made_by": "tests/golden/make_golden.py"}

# a: F32, untied, kv groups of 3, heads * head_dim = 36 != 24; b: BF16, tied, old config, norms F32,
# rows longer than the groups of 256 that sums are taken in, and more positions than 256
A = models.Spec("model_a", 24, 40, 2, 6, 2, 6, vocab=97, theta=5e6, tied=False, dtype="F32", tokens=48, seed=SEED)
B = models.Spec("model_b", 32, 290, 2, 3, 1, 10, vocab=131, style="old", f32_norms=True, tokens=300, seed=SEED + 1)

SAES = [
    saes.Spec("standard", "standard", "resid_post", 0, 70, sub=True),
    saes.Spec("jumprelu", "jumprelu", "resid_mid", 1, 70, sub=True, negative=True),
    saes.Spec("jumprelu_const", "jumprelu", "resid_pre", 1, 70, norm="constant_norm_rescale"),
    saes.Spec("jumprelu_bf16", "jumprelu_trained", "resid_post", 0, 70, dtype="bfloat16"),
    saes.Spec("topk", "topk", "mlp_out", 0, 70, k=6, sub=True),
    saes.Spec("topk_rescale", "topk", "resid_post", 0, 70, k=5, rescale=True),
    saes.Spec("gated", "gated", "attn_out", 1, 70, sub=True),
    saes.Spec("gated_ln", "gated", "resid_pre", 1, 70, norm="layer_norm", sub=True),
    saes.Spec("batchtopk", "batchtopk_trained", "resid_mid", 0, 70, rescale=True),
    saes.Spec("hook_z", "jumprelu", "attn_z", 0, 70),
    saes.Spec("transcoder", "transcoder", "mlp_input", 0, 70),
    saes.Spec("skip_transcoder", "jumprelu_skip_transcoder", "mlp_input", 1, 70),
]
for i, s in enumerate(SAES):
    s.l0, s.seed = 7, SEED + 100 + i


def save(name, tensors, **meta):
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, HERE / name, metadata={**MADE_BY, **meta})


def model(s, rows=None):
    """Checkpoint folder, and its sites and logits: all rows or the given ones."""
    folder, ids = models.make(s, HERE / s.name), models.tokens(s)
    t = truth.Truth(folder, ids)
    worst = max(t.float_error(k) for k in t.exact)
    print(f"{s.name}: float32 evaluations are within {worst:.1e} of the float64 truth")
    rows = np.arange(len(ids)) if rows is None else np.array(rows)
    save(f"{s.name}.safetensors", {**{k: v[rows] for k, v in t.hf.items()}, "tokens": np.array(ids, np.int32), "rows": rows.astype(np.int32)},
         source="transformers Qwen3ForCausalLM, float32, eager attention")
    return ids, t.hf


@torch.no_grad()
def sae(s, x):
    """SAE folder, and what SAELens makes of the rows x: sparse features (start, index, value) and y."""
    a = saes.load(saes.make(s, x, HERE / "saes" / s.name, A.hidden))
    far, f = saes_margin(a, x), saes.encode(a, x)
    y = a(saes.shaped(a, x)).reshape(len(x), -1).numpy()
    start = np.concatenate([[0], np.cumsum((f > 0).sum(1))]).astype(np.int32)
    print(f"{s.name}: L0 {start[-1] / len(x):.1f}, nearest threshold {far:.0e}")
    assert far > 2e-6, "another seed: a feature is within rounding of its threshold"
    save(f"saes/{s.name}.safetensors", {"x": x, "y": y, "start": start, "index": np.nonzero(f)[1].astype(np.int32), "value": f[f > 0], "exact": exact(a, x)[f > 0]},
         source="SAELens, float32; exact: SAELens, float64", site=f"{s.site}.{s.layer}")
    return a


def exact(a, x):
    """Features by SAELens in float64, rounded once."""
    return saes.encode(saes.double(a), np.asarray(x, np.float64)).astype(np.float32)


def saes_margin(a, x):
    from compare_sae import margin
    return float(margin(a, x).min())


@torch.no_grad()
def edits(ids, hf, made):
    """Logits of model_a under edits. edits.txt names them for the C test, one edit a line:
    case kind sae feature site layer value strength begin end gate_sae gate_feature gate_threshold vector
    (op names are the CLI's; "-" where there is none)"""
    g = torch.Generator().manual_seed(SEED + 7)
    rows = np.array([0, 4, 5, 12, 19, 20, 21, 22, 27, 28, 29, 30, 31, 40, 46, 47])  # both sides of every range below
    m, lines, out = truth.hf_model(HERE / A.name), [], {"tokens": np.array(ids, np.int32), "rows": rows.astype(np.int32)}
    spec = {s.name: s for s in SAES}

    def often(name, rank=0):
        s = spec[name]
        f = saes.encode(made[name], hf[f"layers.{s.layer}.{s.site}"])
        i = int(np.argsort(-(f > 0).mean(0), kind="stable")[rank])
        return i, float(f[:, i].max())

    def feature(name, op, times, rank=0, **kw):
        i, top = often(name, rank)
        s = spec[name]
        return name, Edit(s.site, s.layer, op, made[name], i, times if op == "scale" else float(np.float32(times * top)), **kw)

    def vector(op, site, layer, **kw):
        width = A.heads * A.head_dim if site == "attn_z" else A.hidden
        return "-", Edit(site, layer, op, vector=torch.randn(width, generator=g).numpy(), **kw)

    cases = []
    for name in ("standard", "jumprelu", "jumprelu_const", "topk_rescale", "gated", "gated_ln", "batchtopk", "hook_z", "transcoder", "skip_transcoder"):
        cases.append([feature(name, "set", 1.2)])
    cases += [[feature("jumprelu", op, v)] for op, v in (("add", 0.8), ("scale", 3.0), ("scale", 0.0), ("min", 0.7), ("max", 0.4))]
    cases.append([feature("jumprelu", "set", 1.2, strength=0.5)])
    cases.append([feature("jumprelu", "set", 1.2, begin=5, end=30)])
    cases.append([feature("jumprelu", "set", 0.0, begin=28)])
    cases.append([feature("jumprelu", "add", 0.3), feature("jumprelu", "scale", 2.0), feature("jumprelu", "max", 0.9), feature("jumprelu", "min", 0.5, 1)])
    cases.append([feature("standard", "set", 1.0), feature("topk_rescale", "add", 0.5), feature("hook_z", "scale", 4.0), feature("transcoder", "min", 1.0)])
    gate_feature, gate_top = often("standard", 1)
    cases.append([feature("standard", "set", 1.5, gate=(made["standard"], gate_feature, float(np.float32(0.3 * gate_top))))])
    for site in truth.SITES:
        cases.append([vector("add_vector", site, 1, strength=0.75)])
    cases.append([vector("project_out", "resid_post", 0)])
    cases.append([vector("project_out", "resid_mid", 1, strength=0.5)])
    cases.append([vector("replace", "mlp_out", 1, strength=0.25)])
    cases.append([vector("replace", "resid_mid", 0, begin=20, end=21)])
    for name in ("jumprelu", "topk", "gated_ln", "jumprelu_const"):
        s = spec[name]
        cases.append([(name, Edit(s.site, s.layer, "sae_replace", made[name]))])
    for i, case in enumerate(cases):
        with Edited(m, [e for _, e in case]):
            out[f"logits.{i}"] = m(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()[rows]
        assert truth.error(out[f"logits.{i}"], hf["logits"][rows]) > 1e-2, f"case {i} changes nothing"
        for j, (name, e) in enumerate(case):
            gate = (next(n for n, a in made.items() if a is e.gate[0]), *e.gate[1:]) if e.gate else ("-", 0, 0.0)
            v = "-"
            if e.vector is not None:
                v = f"vector.{i}.{j}"
                out[v] = e.vector
            lines.append(f"{i} {e.op} {name} {e.feature} {e.site} {e.layer} {e.value:.9g} {e.strength:.9g} {e.begin} {e.end} {gate[0]} {gate[1]} {gate[2]:.9g} {v}")
    save("edits.safetensors", out, source="transformers with hooks, SAELens encode and decode in float64")
    (HERE / "edits.txt").write_text("\n".join(lines) + "\n")
    print(f"edits: {len(cases)} cases")


@torch.no_grad()
def toy():
    """The toy on three chats: logits of the last 6 tokens and one site per layer; and its SAE's features."""
    from transformers import AutoTokenizer
    tok, m = AutoTokenizer.from_pretrained(tool.TOY), truth.hf_model(tool.TOY)
    layers, out = m.config.num_hidden_layers, {}
    folder = tool.TOY.parent / "sae"
    a = saes.load(folder) if folder.exists() else None
    for i, name in enumerate(("test_harmful", "test_harmless", "test_near")):
        ask = (tool.TOY.parent / "prompts" / f"{name}.txt").read_text(encoding="utf-8").splitlines()[0]
        text = tok.apply_chat_template([{"role": "user", "content": ask}], tokenize=False, add_generation_prompt=True, enable_thinking=True)
        ids = tok(text, add_special_tokens=False).input_ids
        hf = truth.hf_sites(tool.TOY, ids, m)
        rows = np.arange(len(ids))[-6:]
        keep = [f"layers.{l}.{truth.SITES[(2 * l + i) % 7]}" for l in range(layers)] + ["logits"]
        out.update({f"{i}.{k}": hf[k][rows] for k in keep})
        out[f"{i}.tokens"], out[f"{i}.rows"] = np.array(ids, np.int32), rows.astype(np.int32)
        out[f"{i}.ask"] = np.frombuffer(ask.encode(), np.uint8)
        if a is not None:
            layer, hook = a.cfg.metadata.hook_name.split(".", 2)[1:]
            x = hf[f"layers.{layer}.{next(k for k, v in saes.HOOKS.items() if v == hook)}"][rows]
            f = saes.encode(a, x)
            out[f"{i}.sae_x"], out[f"{i}.sae_start"] = x, np.concatenate([[0], np.cumsum((f > 0).sum(1))]).astype(np.int32)
            out[f"{i}.sae_index"], out[f"{i}.sae_value"] = np.nonzero(f)[1].astype(np.int32), f[f > 0]
            out[f"{i}.sae_exact"] = exact(a, x)[f > 0]
            out[f"{i}.sae_y"] = a(torch.from_numpy(x)).numpy()
            print(f"toy {i}: {len(ids)} tokens, L0 {(f > 0).sum(1).mean():.1f}, nearest threshold {saes_margin(a, x):.0e}")
    save("toy.safetensors", out, source="transformers Qwen3ForCausalLM, float32, eager attention; SAELens, float32")


def main():
    torch.set_num_threads(1)
    if "--toy" not in sys.argv:
        ids, hf = model(A)
        model(B, [*range(0, 12), *range(250, 262), *range(290, 300)])
        made = {s.name: sae(s, hf[f"layers.{s.layer}.{s.site}"]) for s in SAES}
        edits(ids, hf, made)
    if tool.TOY.exists():
        toy()
    files = [f for f in HERE.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    print(f"{sum(f.stat().st_size for f in files)} bytes in {len(files)} files; {VERSIONS}")


if __name__ == "__main__":
    main()
