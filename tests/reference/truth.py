"""What a Qwen3 checkpoint computes, by Hugging Face in float32 and by ourselves in float64.

A result is a dict of float arrays: "layers.<L>.<site>" [tokens, width] and "logits" [tokens, vocab].

The float64 truth evaluates the equations in float64 with two float32 steps kept, because they are part of
the model's definition and not rounding of the evaluation: the inverse frequencies are rounded to float32, and
so is the angle position * inverse frequency. Everything else (sums, exp, sin, cos, rsqrt) is float64.
"""
import json, pathlib

import numpy as np, torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SITES = ["resid_pre", "attn_z", "attn_out", "resid_mid", "mlp_input", "mlp_out", "resid_post"]


def read_checkpoint(folder):
    """config dict, and every tensor as float32 (exact from F32, BF16 and F16)."""
    folder, w = pathlib.Path(folder), {}
    for f in sorted(folder.glob("*.safetensors")):
        w.update({k: v.float() for k, v in load_file(f).items()})
    return json.loads((folder / "config.json").read_text()), w


def hf_model(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


class Hooks:
    """Records every site of a Hugging Face model's next forward pass."""

    def __init__(self, model):
        self.out, self.handles = {}, []

        def keep(name, pick):
            def hook(module, args, kwargs, result=None):
                x = pick(args, kwargs, result)
                self.out[name] = (x[0] if isinstance(x, tuple) else x)[0].detach().clone()
            return hook

        def first(args, kwargs, result):
            return args[0] if args else kwargs["hidden_states"]

        def output(args, kwargs, result):
            return result

        for l, layer in enumerate(model.model.layers):
            p = f"layers.{l}."
            for module, site, pick in ((layer, "resid_pre", first), (layer.self_attn.o_proj, "attn_z", first),
                                       (layer.post_attention_layernorm, "resid_mid", first)):
                self.handles.append(module.register_forward_pre_hook(keep(p + site, pick), with_kwargs=True))
            for module, site in ((layer.self_attn, "attn_out"), (layer.post_attention_layernorm, "mlp_input"),
                                 (layer.mlp, "mlp_out"), (layer, "resid_post")):
                self.handles.append(module.register_forward_hook(keep(p + site, output), with_kwargs=True))

    def remove(self):
        for h in self.handles:
            h.remove()


@torch.no_grad()
def hf_sites(folder, ids, model=None):
    """Hugging Face, float32, eager attention."""
    model = model or hf_model(folder)
    hooks = Hooks(model)
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    hooks.remove()
    return {**{k: v.numpy() for k, v in hooks.out.items()}, "logits": logits.numpy()}


class Exact:
    """float64."""
    dtype = torch.float64

    def mm(self, a, b):
        """a [..., m, k] times b [..., k, n]"""
        return a @ b

    def linear(self, x, w):
        return self.mm(x, w.to(self.dtype).T)

    def mean(self, x):
        return x.mean(-1, keepdim=True)


class Integer(Exact):
    """float64, but what goes into a matrix are integers of 16 bits with a scale for 256 of them, as the
    library takes it with q8 and q4 weights."""

    def linear(self, x, w):
        pad = -x.shape[-1] % 256
        g = torch.nn.functional.pad(x, (0, pad)).reshape(len(x), -1, 256)
        most = g.abs().amax(-1, keepdim=True)
        step = torch.where(most > 0, most / 32639, torch.ones_like(most))
        x = (torch.round(g / step) * step).reshape(len(x), -1)[:, :x.shape[-1]]
        return super().linear(x, w)


class Permuted(Exact):
    """float32, every sum over a random order."""
    dtype = torch.float32

    def order(self, n):
        return torch.randperm(n, generator=torch.Generator().manual_seed(n))

    def mm(self, a, b):
        p = self.order(a.shape[-1])
        return a[..., p] @ b[..., p, :]

    def mean(self, x):
        return x[..., self.order(x.shape[-1])].mean(-1, keepdim=True)


class Split(Exact):
    """float32, every product in four parts added in order."""
    dtype = torch.float32

    def mm(self, a, b):
        k = a.shape[-1]
        cut = [k * i // 4 for i in range(5)]
        parts = [a[..., i:j] @ b[..., i:j, :] for i, j in zip(cut, cut[1:]) if j > i]
        total = parts[0]
        for p in parts[1:]:
            total = total + p
        return total


class Numpy(Exact):
    """float32, numpy's products (another BLAS) and sums."""
    dtype = torch.float32

    def mm(self, a, b):
        return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))

    def mean(self, x):
        return torch.from_numpy(x.numpy().mean(-1, keepdims=True))


FLOAT32 = {"permuted": Permuted, "split": Split, "numpy": Numpy}


@torch.no_grad()
def evaluate(w, cfg, ids, how=None):
    """The equations of modeling_qwen3.py, straightforwardly, in how's arithmetic. w: float32 tensors by
    their names in the checkpoint; cfg: config.json."""
    how = how or Exact()
    t, out = how.dtype, {}
    heads, kv = cfg["num_attention_heads"], cfg["num_key_value_heads"]
    dim, eps = cfg.get("head_dim", 128), cfg.get("rms_norm_eps", 1e-6)
    rope = cfg.get("rope_parameters") or cfg
    n = len(ids)

    def linear(x, name):
        return how.linear(x, w[name + ".weight"])

    def rms(x, name):
        return x / torch.sqrt(how.mean(x * x) + eps) * w[name + ".weight"].to(t)

    inv_freq = 1.0 / (float(rope["rope_theta"]) ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
    angle = (torch.arange(n).float()[:, None] * inv_freq[None]).to(t)     # float32 product
    cos, sin = angle.cos(), angle.sin()

    def rotate(x):                                                          # [heads, n, dim]
        a, b = x[..., :dim // 2], x[..., dim // 2:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    hidden = torch.full((n, n), float("-inf"), dtype=t).triu(1)
    h = w["model.embed_tokens.weight"][torch.tensor(ids)].to(t)
    for l in range(cfg["num_hidden_layers"]):
        p, put = f"model.layers.{l}.", f"layers.{l}."
        out[put + "resid_pre"] = h
        x = rms(h, p + "input_layernorm")
        q = linear(x, p + "self_attn.q_proj").view(n, heads, dim)
        k = linear(x, p + "self_attn.k_proj").view(n, kv, dim)
        v = linear(x, p + "self_attn.v_proj").view(n, kv, dim).transpose(0, 1)
        q = rotate(rms(q, p + "self_attn.q_norm").transpose(0, 1))
        k = rotate(rms(k, p + "self_attn.k_norm").transpose(0, 1))
        z = torch.empty(n, heads, dim, dtype=t)
        for i in range(heads):
            j = i // (heads // kv)
            s = how.mm(q[i], k[j].T) * dim ** -0.5 + hidden
            s = torch.exp(s - s.amax(-1, keepdim=True))
            z[:, i] = how.mm(s / s.sum(-1, keepdim=True), v[j])
        z = z.reshape(n, heads * dim)
        out[put + "attn_z"] = z
        a = linear(z, p + "self_attn.o_proj")
        out[put + "attn_out"] = a
        h = h + a
        out[put + "resid_mid"] = h
        x = rms(h, p + "post_attention_layernorm")
        out[put + "mlp_input"] = x
        g = linear(x, p + "mlp.gate_proj")
        m = linear(g / (1 + torch.exp(-g)) * linear(x, p + "mlp.up_proj"), p + "mlp.down_proj")
        out[put + "mlp_out"] = m
        h = h + m
        out[put + "resid_post"] = h
    head = "model.embed_tokens" if cfg.get("tie_word_embeddings", False) else "lm_head"
    out["logits"] = linear(rms(h, "model.norm"), head)
    return {k: v.numpy() for k, v in out.items()}


def error(a, b):
    """Largest absolute error over the rms of the reference b."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.abs(a - b).max() / max(np.sqrt((b * b).mean()), 1e-300))


class Truth:
    """A checkpoint by Hugging Face (hf), in float64 (exact), and in several float32 arithmetics (float32)."""

    def __init__(self, folder, ids, round_to=None):
        cfg, w = read_checkpoint(folder)
        if round_to is not None:  # a lossy conversion: every matrix rounded, norms kept
            w = {k: v if v.dim() == 1 else v.to(round_to).float() for k, v in w.items()}
            model = hf_model(folder)
            model.load_state_dict({k: v for k, v in w.items() if k in model.state_dict()}, strict=False)
            model.tie_weights()
        else:
            model = hf_model(folder)
        self.hf = hf_sites(folder, ids, model)
        self.exact = evaluate(w, cfg, ids)
        self.float32 = {"hf": self.hf, **{name: evaluate(w, cfg, ids, how()) for name, how in FLOAT32.items()}}

    def float_error(self, key):
        return max(error(v[key], self.exact[key]) for v in self.float32.values())
