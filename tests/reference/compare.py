#!/usr/bin/env python3
"""Every site of every layer and the logits, against Hugging Face in float32 and a float64 truth.

A tensor passes if its largest absolute error over its rms is
    within 2e-5 of Hugging Face, or within 2e-5 of the float64 truth,
    or, from the truth, within 3 times the largest error of several float32 evaluations (truth.py).
In models with a massive first token the rows after it are judged a second time by themselves, because that
one row's rms or error would hide what happens in the others.
"""
import time

import numpy as np, torch

import models, tool, truth
from tool import BUILD, SITES, Refused, capture, convert

BOUND, TIMES = 2e-5, 3
MUST, NULL = "must", "null"


def judge(checks, name, got, t, rows=slice(None), label=""):
    """One check per tensor; returns per site the worst (error/limit, vs hf, vs truth, float32's own)."""
    worst = {}
    for key, exact in t.exact.items():
        if key not in got:
            checks.add(False, f"{name}: no tensor {key}")
            continue
        a, exact = got[key], exact[rows]
        if not checks.add(a.dtype == np.float32 and a.shape == t.hf[key].shape,
                          f"{name}: {key} is {a.dtype} {a.shape}, wanted float32 {t.hf[key].shape}"):
            continue
        a = a[rows]
        hf, ex = truth.error(a, t.hf[key][rows]), truth.error(a, exact)
        own = max(truth.error(v[key][rows], exact) for v in t.float32.values())
        ok = hf <= BOUND or ex <= BOUND or ex <= TIMES * own  # a NaN fails all three
        checks.add(ok, f"{name}: {key}{label}: {hf:.2e} from Hugging Face, {ex:.2e} from the truth, float32 itself {own:.2e}")
        ratio = min(hf / BOUND, ex / max(BOUND, TIMES * own))
        site = key.split(".")[-1]
        if site not in worst or not ratio <= worst[site][0]:
            worst[site] = (ratio, hf, ex, own)
    return worst


def table(name, worst, seconds):
    for site in [*SITES, "logits"]:
        if site in worst:
            r, hf, ex, own = worst[site]
            print(f"{name:18} {site:10} {hf:9.1e} {ex:9.1e} {own:9.1e} {r:7.2f}{'' if r <= 1 else '  FAILED'}")
    print(f"{name:18} {seconds:.1f} s", flush=True)


def one_model(checks, qsae, name, folder, ids, massive="", more=(), round_to=None):
    start = time.time()
    file = checks.attempt(f"{name}: convert", convert, qsae, folder, BUILD / f"{name}.qsae", *more)
    got = file and checks.attempt(f"{name}: capture", capture, qsae, file, BUILD / f"{name}.safetensors", ids)
    if got is None:
        return
    t = truth.Truth(folder, ids, round_to)
    checks.add("tokens" in got and got["tokens"].dtype == np.int32 and got["tokens"].reshape(-1).tolist() == list(ids),
               f"{name}: tensor tokens")
    checks.add(set(got) - {"tokens"} == set(t.exact), f"{name}: tensors that were not asked for: {set(got) - set(t.exact) - {'tokens'}}")
    table(name, judge(checks, name, got, t), time.time() - start)
    if massive == "rows":
        for r in range(30, 35):
            table(f"{name} row {r}", judge(checks, name, got, t, slice(r, r + 1), f" row {r}"), time.time() - start)
    elif massive in ("embed", "mlp"):
        table(name + " rows 1..", judge(checks, name, got, t, slice(1, None), " rows 1.."), time.time() - start)
    return got, t


def variants(checks, qsae, only):
    """--type: bf16 stored as f32 is the same model; f32 stored as bf16 is the rounded one."""
    s = next(s for s in models.SPECS if s.name == "untied_bf16_old")
    if not only or only in "as_f32":
        folder, ids = models.make(s, BUILD / s.name), models.tokens(s, 64)
        a = checks.attempt("as_f32", lambda: capture(qsae, convert(qsae, folder, BUILD / "a.qsae"), BUILD / "a.safetensors", ids))
        b = checks.attempt("as_f32", lambda: capture(qsae, convert(qsae, folder, BUILD / "b.qsae", "--type", "f32"), BUILD / "b.safetensors", ids))
        if a and b:
            checks.add(all(tool.same_bits(a[k], b[k]) for k in a), "as_f32: a BF16 checkpoint converted to f32 gives other bits")
    s = next(s for s in models.SPECS if s.name == "tied_f32_hf")
    if not only or only in "as_bf16":
        one_model(checks, qsae, "as_bf16", models.make(s, BUILD / s.name), models.tokens(s), more=("--type", "bf16"), round_to=torch.bfloat16)


def conversions(checks, qsae):
    """Stored values come out exactly. The first layer's input is the embedding, so it shows every bit: all finite
    values of F16 and BF16, and F32 values on, just below and just above the middle between two BF16 values."""
    half = np.arange(65536, dtype=np.uint16)
    f16 = half.view(np.float16).astype(np.float32)
    bf16 = (half.astype(np.uint32) << 16).view(np.float32)
    middle = ((half.astype(np.uint32) << 16) | 0x8000)
    near = np.concatenate([(middle + np.uint32(d)).view(np.float32) for d in (0xFFFFFFFF, 0, 1)])
    for name, values, dtype, more in (("all_f16", f16, "F16", ()), ("all_bf16", bf16, "BF16", ()), ("f32_kept", near, "F32", ()),
                                      ("f32_to_bf16", near, "F32", ("--type", "bf16")), ("f16_to_bf16", f16, "F16", ("--type", "bf16"))):
        wanted = torch.from_numpy(values).to(torch.bfloat16).float().numpy() if more else values
        values = values[np.isfinite(values) & np.isfinite(wanted)]
        s = models.Spec("values", 64, 16, 1, 2, 1, 8, vocab=-(-len(values) // 64), dtype=dtype, tied=False, seed=9)
        w = models.stored(s)
        e = torch.from_numpy(np.resize(values, (s.vocab, 64)))
        w["model.embed_tokens.weight"] = e.to(models.DTYPES[dtype])
        folder = models.make(s, BUILD / "values")
        models.write_weights(folder, w)
        got = checks.attempt(name, lambda: capture(qsae, convert(qsae, folder, BUILD / "values.qsae", *more), BUILD / "values.safetensors",
                                                   range(s.vocab), sites=["resid_pre"], logits=False))
        if got:
            e = (e.to(torch.bfloat16).float() if more else e).numpy()
            bad = got["layers.0.resid_pre"].view(np.uint32) != e.view(np.uint32)
            checks.add(not bad.any(), f"{name}: {bad.sum()} of {bad.size} values differ, first {e[bad][:3]} became {got['layers.0.resid_pre'][bad][:3]}")
            print(f"{name:18} {len(values)} values")
    w = models.stored(s)
    w["model.embed_tokens.weight"] = torch.full_like(w["model.embed_tokens.weight"], 3.4e38, dtype=torch.float32)
    models.write_weights(folder, w)
    try:
        convert(qsae, folder, BUILD / "values.qsae", "--type", "bf16")
        checks.add(False, "f32_to_bf16: 3.4e38, which no BF16 holds, was converted")
    except Refused as e:
        checks.add(e.code > 0, f"f32_to_bf16: {e}")


def beyond(base, base_w):
    """Checkpoints that ask for more than plain Qwen3, or are broken: name, config changes (None: key absent; NULL:
    null), tensor changes, and whether it may be computed if it is computed right (MUST: it has to be)."""
    k, q = base["num_key_value_heads"] * base["head_dim"], base["num_attention_heads"] * base["head_dim"]
    g = torch.Generator().manual_seed(5)
    biases = {f"model.layers.{l}.self_attn.{p}_proj.bias": torch.randn(n, generator=g) for l in range(base["num_hidden_layers"])
              for p, n in (("q", q), ("k", k), ("v", k), ("o", base["hidden_size"]))}
    rope = {"rope_theta": 1e6}
    old = {"rope_parameters": None, "layer_types": None}
    yield "old_default_rope", {**old, "rope_theta": 1e6, "rope_scaling": {"type": "default"}}, {}, MUST
    yield "old_default_rope2", {**old, "rope_theta": 5000000.0, "rope_scaling": {"rope_type": "default", "rope_theta": 5e6}}, {}, MUST
    yield "both_thetas", {"rope_theta": 1e6}, {}, True
    yield "no_rope_type", {"rope_parameters": rope}, {}, MUST
    yield "no_rope_theta", {"rope_parameters": None}, {}, True
    yield "nulls", {"quantization_config": NULL, "rope_scaling": NULL, "pad_token_id": NULL, "sliding_window": NULL}, {}, MUST
    yield "window_beyond", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2, "layer_types": None}, {}, MUST
    yield "window_null", {"use_sliding_window": True, "sliding_window": NULL, "max_window_layers": 0, "layer_types": None}, {}, MUST
    yield "untied_by_default", {"tie_word_embeddings": None}, {}, MUST
    yield "no_eps", {"rms_norm_eps": None, "max_position_embeddings": None, "attention_bias": None, "hidden_act": None}, {}, MUST
    yield "dropout", {"attention_dropout": 0.1, "use_cache": False}, {}, MUST
    yield "dtype_lies", {"dtype": "bfloat16"}, {}, MUST
    yield "mixed_types", {}, {k: base_w[k].to(t) for k, t in (("model.layers.0.mlp.up_proj.weight", torch.bfloat16), ("model.norm.weight", torch.float16),
                                                             ("model.layers.1.self_attn.q_proj.weight", torch.float16), ("lm_head.weight", torch.bfloat16))}, MUST
    yield "short_context", {"max_position_embeddings": 32}, {}, MUST
    yield "f64", {}, {"model.layers.0.mlp.up_proj.weight": base_w["model.layers.0.mlp.up_proj.weight"].double()}, True
    yield "yarn_new", {"rope_parameters": {**rope, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, {}, True
    yield "yarn_old", {"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, {}, True
    yield "linear_rope", {"rope_parameters": {**rope, "rope_type": "linear", "factor": 4.0}}, {}, True
    yield "dynamic_rope", {"rope_parameters": {**rope, "rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 64}, {}, True
    yield "llama3_rope", {"rope_parameters": {**rope, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                              "original_max_position_embeddings": 64}}, {}, True
    yield "partial_rotary", {"rope_parameters": {**rope, "rope_type": "default", "partial_rotary_factor": 0.5}}, {}, True
    yield "attention_bias", {"attention_bias": True}, biases, True
    yield "sliding_window", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "layer_types": None}, {}, True
    yield "sliding_layers", {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]}, {}, True
    yield "gelu", {"hidden_act": "gelu"}, {}, True
    yield "eps_1e-3", {"rms_norm_eps": 1e-3}, {}, True
    yield "quantized", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, {}, False
    yield "other_family", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, {}, False
    yield "moe", {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2}, {}, False
    w = base_w["model.layers.1.mlp.up_proj.weight"]
    for label, x in (("nan", float("nan")), ("inf", float("inf")), ("-inf", float("-inf"))):
        bad = w.clone()
        bad[5, 7] = x
        yield "weight_" + label, {}, {"model.layers.1.mlp.up_proj.weight": bad}, False
    bad = base_w["model.layers.0.self_attn.q_norm.weight"].clone()
    bad[-1] = float("nan")
    yield "norm_nan", {}, {"model.layers.0.self_attn.q_norm.weight": bad}, False
    yield "missing_tensor", {}, {"model.layers.1.self_attn.k_norm.weight": None}, False
    yield "missing_head", {"tie_word_embeddings": False}, {"lm_head.weight": None}, False
    yield "wrong_shape", {}, {"model.layers.0.mlp.down_proj.weight": base_w["model.layers.0.mlp.down_proj.weight"].T.contiguous()}, False
    yield "odd_tensor", {}, {"model.layers.0.self_attn.q_proj.lora_A": torch.zeros(4, 4)}, False
    yield "other_head", {"tie_word_embeddings": True}, {"lm_head.weight": base_w["lm_head.weight"]}, True
    yield "int_weights", {}, {"model.layers.0.mlp.up_proj.weight": torch.ones(60, 24, dtype=torch.int8)}, False


def refusals(checks, qsae, only):
    """What is not plain Qwen3 is computed right or refused with a reason, and never leaves a file."""
    s = models.Spec("beyond", 24, 60, 2, 4, 2, 6, tied=False, dtype="F32", seed=1003)
    base, base_w, ids = models.config(s), models.stored(s), models.tokens(s, 100)
    counted = {"refused": 0, "computed": 0}
    for name, change, tensors, may_compute in beyond(base, base_w):
        if only and only not in name:
            continue
        folder, out = BUILD / "beyond", BUILD / "beyond.qsae"
        folder.mkdir(parents=True, exist_ok=True)
        c = {k: None if v == NULL else v for k, v in {**base, **change}.items() if v is not None}
        w = {k: v for k, v in {**base_w, **tensors}.items() if v is not None}
        models.write_config(folder, c)
        models.write_weights(folder, w)
        try:
            convert(qsae, folder, out)
        except Refused as e:
            counted["refused"] += 1
            checks.add(may_compute != MUST, f"{name}: refused, though it is plain Qwen3: {e}")
            checks.add(e.code > 0 and e.text.strip() and not out.exists(), f"{name}: refused, but exit {e.code}, text {e.text!r}, file left: {out.exists()}")
            checks.add(not list(BUILD.glob("beyond.qsae*")), f"{name}: something left: {list(BUILD.glob('beyond.qsae*'))}")
            if name.startswith("weight_") or name == "norm_nan":
                tensor = next(iter(tensors))
                index = "125" if name.startswith("weight_") else "5"   # row 5, column 7 of 24; last of 6
                named = tensor in e.text and (index in e.text or ("5" in e.text and "7" in e.text))
                checks.add(named, f"{name}: tensor and index are not named: {e.text.strip()}")
            print(f"{name:18} refused: {e.text.strip()[:110]}")
            continue
        if not checks.add(may_compute, f"{name}: converted, though it must be refused"):
            continue
        counted["computed"] += 1
        got = checks.attempt(name, capture, qsae, out, BUILD / "beyond.safetensors", ids)
        if got is None:
            continue
        hf = truth.hf_sites(folder, ids)
        bad = {k: truth.error(got[k], hf[k]) for k in hf if not truth.error(got[k], hf[k]) <= 5e-5}
        checks.add(not bad, f"{name}: converted and ignored: {bad}")
        print(f"{name:18} computed, worst {max(truth.error(got[k], hf[k]) for k in hf):.1e} from Hugging Face")
    print(counted)


def main():
    args = tool.options(("--no-refusals", {"action": "store_true"}))
    torch.set_num_threads(2)
    checks = tool.Checks()
    print(f"{'model':18} {'site':10} {'vs HF':>9} {'vs truth':>9} {'float32':>9} {'of limit':>7}   (max abs error / rms, worst layer)")
    if (not args.only or args.only in "toy") and tool.TOY.exists():
        one_model(checks, args.qsae, "toy", tool.TOY, tool.toy_tokens(320))
    for s in models.SPECS:
        if (args.only and args.only not in s.name) or (args.quick and not s.quick):
            continue
        one_model(checks, args.qsae, s.name, models.make(s, BUILD / s.name), models.tokens(s), massive=s.massive)
        for big in (BUILD / s.name).glob("*.safetensors"):  # the checkpoints are made again when needed
            big.unlink()
        (BUILD / f"{s.name}.safetensors").unlink(missing_ok=True)
    if not args.quick:
        variants(checks, args.qsae, args.only)
        if not args.only or args.only in "conversions":
            conversions(checks, args.qsae)
    if not args.no_refusals:
        refusals(checks, args.qsae, args.only)
    checks.done()


if __name__ == "__main__":
    main()
