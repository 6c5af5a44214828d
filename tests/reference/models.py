"""Random Qwen3 checkpoints of awkward shapes, as Hugging Face saves them or as it used to.

A model is a Spec; make(spec, folder) writes the checkpoint and nothing outside folder. Same spec, same bytes.
"""
import json, math, pathlib
from dataclasses import dataclass, field

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass
class Spec:
    name: str
    hidden: int
    d_ff: int
    layers: int
    heads: int
    kv: int
    head_dim: int
    vocab: int = 503
    theta: float = 1e6
    tied: bool = True
    dtype: str = "BF16"
    style: str = "new"          # config keys of transformers 5 ("new"), of 4 ("old"), or only the needed ones ("bare")
    writer: str = "own"         # "own": safetensors and config by hand; "hf": save_pretrained
    shards: int = 1
    f32_norms: bool = False     # norm weights F32 whatever dtype is
    stored_head: bool = False   # tied, and lm_head.weight stored all the same
    massive: str = ""           # "embed": 5e3 in the first token's embedding; "mlp": written by one layer, undone by another
                                # "rows": tokens whose embeddings are zero, tiny, huge; "sharp": saturated softmax and silu
    tokens: int = 320
    quick: bool = False         # part of a --quick run
    seed: int = field(default=0)


SPECS = [
    Spec("tied_f32_hf",      64,  160, 3, 4, 2, 16, dtype="F32", writer="hf", quick=True),
    Spec("untied_bf16_old", 100, 1000, 2, 5, 1, 10, vocab=1003, theta=5e6, tied=False, style="old", quick=True),
    Spec("kv8_f16_shards",   96,  200, 2, 8, 8, 64, dtype="F16", writer="hf", shards=4),
    Spec("hd6_f32_shards",   24,   60, 3, 4, 2, 6, tied=False, dtype="F32", theta=5e6, style="old", shards=5, quick=True),
    Spec("f32_norms_hd128", 256,  300, 2, 2, 1, 128, f32_norms=True, tied=False),
    Spec("bare_config",     100,  170, 2, 3, 3, 128, vocab=1003, dtype="F32", style="bare", tied=False),
    Spec("double_head",      72,  190, 2, 6, 2, 20, stored_head=True, shards=3, f32_norms=True, style="old"),
    Spec("untied_hf_f16",   100,  333, 2, 4, 1, 24, dtype="F16", writer="hf", tied=False, theta=5e6),
    Spec("kv16_gqa2",        80,  128, 2, 16, 8, 10, dtype="F32", style="old"),
    Spec("massive_embed",   128,  384, 4, 4, 2, 40, dtype="F32", massive="embed"),
    Spec("massive_bf16",    100,  500, 4, 4, 1, 32, massive="mlp", tied=False),
    Spec("massive_undone",  100,  500, 4, 4, 2, 32, dtype="F32", massive="mlp", quick=True),
    Spec("odd_rows",         90,  270, 2, 3, 1, 34, dtype="F32", massive="rows", tied=False),
    Spec("sharp",            90,  270, 2, 3, 1, 34, massive="sharp", tied=False),
    Spec("deep28",           48,  100, 28, 4, 2, 16),
    Spec("wide",           2048, 6144, 1, 16, 8, 128, vocab=1003),
    Spec("wide_massive",   2048, 6144, 2, 16, 8, 128, vocab=503, massive="mlp"),
    Spec("long_hd128",       64,  100, 2, 2, 1, 128, theta=1e6, dtype="F32", tokens=2500),
    Spec("long_hd96",        96,  100, 2, 1, 1, 96, theta=5e6, dtype="F32", tokens=2500),
]
for i, s in enumerate(SPECS):
    s.seed = 1000 + i


def config(s):
    """config.json of the checkpoint, in the style asked for."""
    c = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": s.hidden,
         "intermediate_size": s.d_ff, "num_hidden_layers": s.layers, "num_attention_heads": s.heads,
         "num_key_value_heads": s.kv, "vocab_size": s.vocab, "tie_word_embeddings": s.tied}
    name = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[s.dtype]
    if s.style == "bare":  # everything with a default left out, head_dim (128) too
        return {**c, "rope_parameters": {"rope_type": "default", "rope_theta": s.theta}}
    c.update({"head_dim": s.head_dim, "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
              "attention_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True,
              "bos_token_id": 1, "eos_token_id": 2, "use_sliding_window": False, "max_window_layers": s.layers})
    if s.style == "old":
        # a window that is not used, and integers where floats are meant, as old config files have
        return {**c, "rope_theta": int(s.theta), "rope_scaling": None, "sliding_window": 64, "torch_dtype": name,
                "transformers_version": "4.51.0"}
    return {**c, "rope_parameters": {"rope_theta": s.theta, "rope_type": "default"}, "sliding_window": None,
            "layer_types": ["full_attention"] * s.layers, "dtype": name, "transformers_version": "5.23.0"}


def weights(s):
    """Random float32 weights whose activations look like a trained model's: peaked attention, norms of
    order one, a residual stream that grows slowly."""
    g = torch.Generator().manual_seed(s.seed)

    def normal(*shape, scale=1.0):
        return torch.randn(*shape, generator=g) * scale

    def norm(n, scale=1.0):
        return scale * (1 + 0.3 * normal(n))

    q, kv, w = s.heads * s.head_dim, s.kv * s.head_dim, {}
    w["model.embed_tokens.weight"] = normal(s.vocab, s.hidden, scale=0.7)
    for l in range(s.layers):
        p = f"model.layers.{l}."
        w[p + "input_layernorm.weight"] = norm(s.hidden)
        w[p + "self_attn.q_proj.weight"] = normal(q, s.hidden, scale=s.hidden ** -0.5)
        w[p + "self_attn.k_proj.weight"] = normal(kv, s.hidden, scale=s.hidden ** -0.5)
        w[p + "self_attn.v_proj.weight"] = normal(kv, s.hidden, scale=s.hidden ** -0.5)
        w[p + "self_attn.q_norm.weight"] = norm(s.head_dim, 1.6)
        w[p + "self_attn.k_norm.weight"] = norm(s.head_dim, 1.6)
        w[p + "self_attn.o_proj.weight"] = normal(s.hidden, q, scale=0.7 * q ** -0.5)
        w[p + "post_attention_layernorm.weight"] = norm(s.hidden)
        w[p + "mlp.gate_proj.weight"] = normal(s.d_ff, s.hidden, scale=1.4 * s.hidden ** -0.5)
        w[p + "mlp.up_proj.weight"] = normal(s.d_ff, s.hidden, scale=1.4 * s.hidden ** -0.5)
        w[p + "mlp.down_proj.weight"] = normal(s.hidden, s.d_ff, scale=0.8 * s.d_ff ** -0.5)
    w["model.norm.weight"] = norm(s.hidden, 2.0)
    w["lm_head.weight"] = w["model.embed_tokens.weight"] if s.tied else normal(s.vocab, s.hidden, scale=s.hidden ** -0.5)
    return w


FIRST = 7      # the id that stands first in every run, and nowhere else in a massive model
CHANNEL = 3    # where its massive activation lives


def tokens(s, n=None):
    """The ids a model is judged on: FIRST, then random ones without FIRST."""
    g = torch.Generator().manual_seed(s.seed + 77)
    ids = torch.randint(0, s.vocab - 1, (n or s.tokens,), generator=g)
    ids[ids >= FIRST] += 1
    ids[0] = FIRST
    if s.massive == "rows":
        ids[30:35] = torch.tensor([20, 21, 22, 23, 24])
    return ids.tolist()


def add_massive(s, w):
    """Puts about 5e3 in one channel of the first token. Real Qwen3 lets an early MLP write it, keeps it
    for the middle of the network, and takes most of it back near the end; so does "mlp" here."""
    if s.massive == "rows":
        e = w["model.embed_tokens.weight"]
        e[20], e[21], e[22], e[23, CHANNEL], e[24] = 0, e[21] * 1e-20, e[22] * 1e-42, 1e4, e[24] * 1e4
        return
    if s.massive == "sharp":
        for k, v in w.items():
            v *= 8 if "q_norm" in k or "k_norm" in k else 20 if "gate_proj" in k else 1
        return
    if s.massive == "embed":
        w["model.embed_tokens.weight"][FIRST, CHANNEL] = 5e3
        return
    from truth import evaluate  # here: truth.py reads specs of this module
    # Both channels are written by nothing else, so that no other token opens the two neurons.
    w["model.embed_tokens.weight"][:, [0, CHANNEL]] *= 0.05
    w["model.embed_tokens.weight"][FIRST, 0] = s.hidden ** 0.5
    for k, v in w.items():
        if "o_proj" in k or "down_proj" in k:
            v[[0, CHANNEL]] = 0
    make_layer, undo_layer = (0, s.layers - 1) if s.layers < 3 else (1, s.layers - 2)
    for layer, channel, target in ((make_layer, 0, 5e3), (undo_layer, CHANNEL, None)):
        p = f"model.layers.{layer}.mlp."
        for part in ("gate_proj", "up_proj"):
            w[p + part + ".weight"][0] = 0
            w[p + part + ".weight"][0, channel] = 2.0
        sites = evaluate({k: v.to(DTYPES[s.dtype]).float() for k, v in w.items()}, config(s), tokens(s, 4))
        x = 2.0 * sites[f"layers.{layer}.mlp_input"][0, channel]
        if target is None:
            target = -sites[f"layers.{layer}.resid_mid"][0, CHANNEL]
        w[p + "down_proj.weight"][:, 0] = 0
        w[p + "down_proj.weight"][CHANNEL, 0] = target * (1 + math.exp(-x)) / (x * x)


def stored(s):
    """The tensors as they are stored."""
    w = weights(s)
    if s.massive:
        add_massive(s, w)
    out = {}
    for k, v in w.items():
        keep = s.f32_norms and "norm" in k
        out[k] = v.to(torch.float32 if keep else DTYPES[s.dtype]).contiguous()
    if s.tied and not s.stored_head:
        del out["lm_head.weight"]
    elif s.tied:
        out["lm_head.weight"] = out["model.embed_tokens.weight"].clone()  # equal, stored twice
    return out


def write_config(folder, c):
    (folder / "config.json").write_text(json.dumps(c, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2, 3]}) + "\n")


def write_weights(folder, out, shards=1):
    """model.safetensors, or that many shards with an index; tensors dealt round, not layer by layer."""
    if shards == 1:
        save_file(out, folder / "model.safetensors", metadata={"format": "pt"})
        return
    index = {}
    for i in range(shards):
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {k: v for j, (k, v) in enumerate(out.items()) if j % shards == i}
        save_file(part, folder / name, metadata={"format": "pt"})
        index.update({k: name for k in part})
    total = sum(v.numel() * v.element_size() for v in out.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2) + "\n")


def make(s, folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    out = stored(s)
    if s.writer == "own":
        write_config(folder, config(s))
        write_weights(folder, out, s.shards)
        return folder
    c = config(s)
    model = Qwen3ForCausalLM(Qwen3Config(**{k: v for k, v in c.items() if k not in ("architectures", "dtype", "transformers_version")}))
    model = model.to(DTYPES[s.dtype])
    missing, extra = model.load_state_dict(out, strict=False)
    assert not extra and all(k == "lm_head.weight" for k in missing), (missing, extra)
    model.tie_weights()
    size = sum(v.numel() * v.element_size() for v in out.values())
    model.save_pretrained(folder, max_shard_size=size if s.shards == 1 else size // s.shards)
    return folder
