#!/usr/bin/env python3
"""`qsae convert` of every SAE family, against the programs that the files come from.

Every file is written by its producer's own code, with random weights at awkward sizes, and converted; features and
reconstructions of the library are compared with the producer's own encode and decode in float32. The active sets are
equal, but for at most one TopK row where float32 cannot tell two values apart (counted as a tie). A value is within
1e-5 of the producer's, in float32 or in float64, relative to itself, or within 3 times the largest error that the
producer's own float32 makes; a reconstruction within 1e-5 of the largest number of its row.

QSAE_PRODUCERS names the folder that producers.sh installed into. --fixtures DIR writes the small files that
tests/test_families.c reads, made with seed 5 and the versions in producers.sh, sae-lens 6.54.12, torch 2.13.
"""
import copy, ctypes as C, json, math, os, pathlib, shutil, sys, warnings

import numpy as np, torch

PRODUCERS = os.environ.get("QSAE_PRODUCERS")
if not PRODUCERS:
    print("QSAE_PRODUCERS is not set: the producers are installed by tests/reference/producers.sh")
    print("0 passed, 1 failed")
    sys.exit(1)
sys.path.append(PRODUCERS)
warnings.filterwarnings("ignore")

from safetensors.torch import save_file

import tool
from lib import Library
from tool import BUILD, convert

WORK = BUILD / "families"
TOKENS = 200
SIZES = [(37, 203), (64, 48), (5, 7), (67, 130), (3, 1000)]


class Rows(C.Structure):
    _fields_ = [("n_rows", C.c_size_t), ("start", C.POINTER(C.c_size_t)), ("index", C.POINTER(C.c_uint32)), ("value", C.POINTER(C.c_float)), ("cap", C.c_size_t),
                ("n_exact", C.c_uint64)]


class Info(C.Structure):
    _fields_ = [("name", C.c_char_p), ("unit", C.c_char_p), ("site_in", C.c_int), ("site_out", C.c_int), ("layer_in", C.c_int32), ("layer_out", C.c_int32),
                ("d_in", C.c_int32), ("d_out", C.c_int32), ("d_sae", C.c_int32), ("k", C.c_int32)] + [(n, C.c_int32) for n in ("activation", "norm", "skip", "transcoder", "screen")] + \
               [("weight_type", C.c_char_p), ("index", C.c_int32), ("n_members", C.c_int32), ("isa", C.c_int), ("file_size", C.c_uint64)]


class Options(C.Structure):  # qsae_sae_options
    _fields_ = [("alloc", C.c_void_p * 3), ("isa", C.c_int), ("no_mmap", C.c_int), ("verify", C.c_int), ("select", C.c_int), ("index", C.c_int32),
                ("site", C.c_int), ("layer", C.c_int32), ("name", C.c_char_p), ("no_screen", C.c_int32)]


class Sae:
    """One SAE of a .qsae file, through the library."""
    lib = None

    def __init__(self, path, index=None):
        Sae.lib = Sae.lib or Library()
        so = self.so = Sae.lib.so
        so.qsae_sae_scratch_size.restype = C.c_size_t
        self.s, o = C.c_void_p(), Options(select=1, index=index or 0)
        Sae.lib.check(so.qsae_sae_open(os.fsencode(path), C.byref(o) if index is not None else None, C.byref(self.s), C.byref(Sae.lib.err)))
        self.info = Info()
        so.qsae_sae_get_info(self.s, C.byref(self.info))

    def run(self, x):
        """Features [n, F] and reconstructions [n, d_out]."""
        x = np.ascontiguousarray(x, dtype=np.float32)
        n, F, i = len(x), self.info.d_sae, self.info
        start, index, value = (C.c_size_t * (n + 1))(), (C.c_uint32 * (n * F))(), (C.c_float * (n * F))()
        rows, size = Rows(n, start, index, value, n * F), self.so.qsae_sae_scratch_size(self.s, C.c_size_t(n))
        scratch, y = C.create_string_buffer(size), np.zeros((n, i.d_out), np.float32)
        ptr = x.ctypes.data_as(C.POINTER(C.c_float))
        Sae.lib.check(self.so.qsae_sae_encode(self.s, ptr, C.c_size_t(n), C.c_size_t(0), C.byref(rows), scratch, C.c_size_t(size), 1, C.byref(Sae.lib.err)))
        Sae.lib.check(self.so.qsae_sae_decode(self.s, C.byref(rows), ptr, C.c_size_t(0), y.ctypes.data_as(C.POINTER(C.c_float)), scratch, C.c_size_t(size), 1,
                                              C.byref(Sae.lib.err)))
        f = np.zeros((n, F), np.float32)
        for r in range(n):
            a, b = start[r], start[r + 1]
            f[r, np.frombuffer(index, np.uint32)[a:b]] = np.frombuffer(value, np.float32)[a:b]
        return f, y

    def close(self):
        self.so.qsae_sae_close(self.s)


class Case:
    """One file: where it is, how it is converted, and the producer's module that loaded it again.

    encode(module, x) and decode(module, f, x) are the producer's; unit [F] or a number: our features are theirs times that.
    """

    def __init__(self, path, module, encode, decode, options=(), unit=1.0, site="resid_post", layer=0, out=None, scale=2.0):
        self.path, self.module, self.encode, self.decode, self.options = path, module, encode, decode, list(options)
        self.unit, self.site, self.layer, self.out, self.scale = unit, site, layer, out, scale


CASES = []


def case(*names):
    def add(f):
        CASES.extend((f.__name__.replace("_", "-") + ("-" + n if n else ""), f, n) for n in (names or ("",)))
        return f
    return add


def randn(*shape):
    return torch.randn(tuple(shape))


@torch.no_grad()
def fill(module, scale=1.0, norms=True):
    """Random weights in every parameter: rows of the decoder with norms from 0.5 to 1.5, biases, positive thresholds."""
    for name, p in module.named_parameters():
        last = name.split(".")[-1]
        if p.ndim == 2:
            p.copy_(randn(*p.shape) / math.sqrt(p.shape[0] if p.shape[0] < p.shape[1] else p.shape[1]) * scale)
        elif "log" in last:
            p.copy_(randn(*p.shape) * 0.3 - 1)
        elif "threshold" in last:
            p.copy_(randn(*p.shape).abs() * 0.4 + 0.1)
        else:
            p.copy_(randn(*p.shape) * 0.3)
    return module


@torch.no_grad()
def uneven(w, dim):
    """Norms along dim from 0.5 to 1.5."""
    n = w.norm(dim=dim, keepdim=True)
    w.copy_(w / n * (0.5 + torch.rand(n.shape)))


# ---- SAELens ----

SAELENS = ["standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk", "transcoder", "skip_transcoder", "jumprelu_transcoder",
           "jumprelu_skip_transcoder", "topk-rescale", "standard-layer_norm", "jumprelu-constant_norm_rescale", "transcoder-layer_norm",
           "jumprelu_skip_transcoder-constant_norm_rescale", "legacy", "legacy-scaling", "jumprelu-log", "standard-bf16", "jumprelu-f64", "topk-f16"]


@case(*SAELENS)
def saelens(folder, d, F, kind):
    from sae_lens.saes.sae import SAE, SAEMetadata
    from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
    import saes
    arch, _, more = kind.partition("-")
    arch = "standard" if arch == "legacy" else arch
    training = "batchtopk" in arch
    classes = dict(saes.CLASSES, batchtopk=saes.CLASSES["batchtopk_trained"], matryoshka_batchtopk=(MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig))
    cls, config = classes[arch]
    trans, dtype = "transcoder" in arch, {"bf16": "bfloat16", "f64": "float64", "f16": "float16"}.get(more, "float32")
    meta = SAEMetadata(model_name="random", hook_name="blocks.3.mlp.hook_in" if trans else "blocks.3.hook_resid_post", prepend_bos=False)
    kw = dict(d_in=d, d_sae=F, dtype=dtype, metadata=meta, apply_b_dec_to_input=not trans, normalize_activations=more if "norm" in more else "none")
    if trans:
        meta.hook_name_out, kw["d_out"] = "blocks.3.hook_mlp_out", d + 3
    if "topk" in arch:
        kw.update(k=max(3, F // 9), rescale_acts_by_decoder_norm=more == "rescale")
    if arch == "matryoshka_batchtopk":
        kw["matryoshka_widths"] = [F // 2, F]
    sae = fill(cls(config(**kw)))
    uneven(sae.W_dec, 1)
    if training:
        sae.topk_threshold = torch.tensor(0.8, dtype=torch.double)
    sae.save_model(folder)
    cfg = json.loads((folder / "cfg.json").read_text())
    scale = None
    if more == "log":
        from safetensors.torch import load_file
        w = load_file(folder / "sae_weights.safetensors")
        w["log_threshold"] = w["threshold"].log()
        sae.threshold.data = w.pop("threshold").log().exp()
        save_file(w, folder / "sae_weights.safetensors")
    if kind.startswith("legacy"):
        cfg = dict(d_in=d, d_sae=F, dtype="torch.float32", device="cpu", hook_name="blocks.3.hook_resid_post", hook_layer=3, model_name="m", l1_coefficient=1.0,
                   normalize_activations="none", apply_b_dec_to_input=True, activation_fn_str="relu", finetuning_scaling_factor=more == "scaling")
        (folder / "cfg.json").write_text(json.dumps(cfg))
        if more == "scaling":
            from safetensors.torch import load_file
            w = load_file(folder / "sae_weights.safetensors")
            scale = w["scaling_factor"] = 0.5 + torch.rand(F)
            save_file(w, folder / "sae_weights.safetensors")
    if training:  # at inference it is the JumpReLU that SAELens saves for inference
        infer = folder.parent / (folder.name + "-inference")
        sae.save_inference_model(infer)
        sae = SAE.load_from_disk(infer)
    sae = sae.to(dtype=torch.float32)

    def decode(m, f, x):
        y = m.decode(f if scale is None else f * scale.to(f))
        return y + x @ m.W_skip.T if hasattr(m, "W_skip") else y

    unit = 1.0
    if more == "rescale":
        unit = 1.0  # SAELens' features are those after the scaling
    return Case(folder, sae, lambda m, x: m.encode(x), decode, unit=unit, site="mlp_input" if trans else "resid_post", layer=3, out="mlp_out" if trans else None)


# ---- Qwen-Scope ----


@case("", "safetensors", "bf16")
def qwen_scope(folder, d, F, kind):
    k = max(3, F // 8)
    w = {"W_enc": randn(F, d) / math.sqrt(d), "W_dec": randn(d, F) / math.sqrt(d), "b_enc": randn(F) * 0.3, "b_dec": randn(d) * 0.3}
    if kind == "bf16":
        w = {n: t.bfloat16() for n, t in w.items()}
    options = ["--k", k]
    if kind == "safetensors":
        path = folder / "layer11.sae.safetensors"
        save_file(w, path)
        options += ["--family", "qwen-scope", "--layer", 11]
    else:
        path = folder / "layer11.sae.pt"
        torch.save(w, path)
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig  # what SAELens' qwen_scope loader makes of it
    sae = TopKSAE(TopKSAEConfig(d_in=d, d_sae=F, k=k, apply_b_dec_to_input=False, dtype="float32"))
    sae.load_state_dict({"W_enc": w["W_enc"].T.float(), "W_dec": w["W_dec"].T.float(), "b_enc": w["b_enc"].float(), "b_dec": w["b_dec"].float()})
    return Case(path, sae, lambda m, x: m.encode(x), lambda m, f, x: m.decode(f), options, layer=11)


# ---- dictionary_learning ----

DL = ["AutoEncoder", "AutoEncoder-unit", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
      "BatchTopKSAE-unset", "BatchTopKSAE-nested", "AutoEncoderTopK-nested", "GatedAutoEncoder-nested", "JumpReluAutoEncoder-nested", "MatryoshkaBatchTopKSAE-nested",
      "BatchTopKSAE-bare", "BatchTopKSAE-bf16"]


@case(*DL)
def dictionary_learning(folder, d, F, kind):
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK
    name, _, more = kind.partition("-")
    cls, k, options = locals()[name], max(3, F // 9), []
    args = {"k": k} if "TopK" in name else {}
    if "Matryoshka" in name:
        args["group_sizes"] = [F // 3, F - F // 3]
    ae = cls(d, F, **args)
    with torch.no_grad():
        for n, p in ae.named_parameters():
            if p.ndim == 2:  # in place: the strides are the producer's
                p += 0.1 * randn(*p.shape)
                p *= 0.5 + torch.rand(1)
            else:
                p.copy_(randn(*p.shape).abs() * 0.4 + 0.05 if n == "threshold" else randn(*p.shape) * 0.3)
        if name == "AutoEncoder":
            uneven(ae.decoder.weight, 0)
            if more == "unit":
                ae.decoder.weight /= ae.decoder.weight.norm(dim=0)
    if "TopK" in name and more != "unset":
        ae.threshold.fill_(0.7)
    if more == "bf16":
        ae = ae.bfloat16()
    config = {"trainer": {"trainer_class": "Trainer", "dict_class": name, "activation_dim": d, "dict_size": F, "layer": 9, "lm_name": "random", "submodule_name": "resid_post_layer_9",
                          "lr": 1e-4, "steps": 10}, "buffer": {"d_submodule": d, "io": "out", "ctx_len": 128}}
    if args:
        config["trainer"]["k"] = k
    factor = 7.25 if more == "nested" else 1.0
    if more == "nested":  # as training.py saves an interrupted run; on disk nothing is scaled
        optimizer = torch.optim.Adam(ae.parameters(), lr=1e-3)
        sum((p ** 2).sum() for p in ae.parameters()).backward()
        state = {n: t.clone() for n, t in ae.state_dict().items()}
        optimizer.step()
        ae.load_state_dict(state)
        torch.save({"step": 5, "ae": ae.state_dict(), "optimizer": optimizer.state_dict(), "config": config["trainer"], "norm_factor": factor}, folder / "ae.pt")
        if name != "GatedAutoEncoder":  # where the config beside it is missing, that in the file says the same
            (folder / "config.json").write_text(json.dumps(config, indent=4))
        ae.requires_grad_(False)
        ae.scale_biases(factor)
    else:
        torch.save({n: t.cpu() for n, t in ae.state_dict().items()}, folder / "ae.pt")
        if more != "bare":
            (folder / "config.json").write_text(json.dumps(config, indent=4))
        if name == "AutoEncoder":
            ae = AutoEncoder.from_pretrained(folder / "ae.pt")
    path = folder
    if more == "bare":
        path, options = folder / "ae.pt", ["--class", name, "--site", "resid_post", "--layer", 9]
    encode = lambda m, x: m.encode(x)
    if more == "unset":  # our TopK is the batch of one token
        options, encode = ["--k", k], lambda m, x: torch.cat([m.encode(r[None], use_threshold=False) for r in x])
    return Case(path, ae.float(), encode, lambda m, f, x: m.decode(f), options, layer=9, scale=2 * factor)


# ---- sparsify ----


@case("topk", "groupmax", "transcode", "skip", "latents", "bf16", "multi", "seed")
def sparsify(folder, d, F, kind):
    from sparsify import SparseCoder, SparseCoderConfig
    k = max(3, F // 9)
    if kind == "groupmax":  # k divides F
        k = max(n for n in range(1, F // 3 + 1) if F % n == 0)
    trans = kind in ("transcode", "skip")
    cfg = SparseCoderConfig(activation="groupmax" if kind == "groupmax" else "topk", num_latents=F, k=k, transcode=trans, skip_connection=kind == "skip", multi_topk=kind == "multi")
    if kind == "latents":
        cfg.num_latents, cfg.expansion_factor = 0, 3
    m = fill(SparseCoder(d, cfg, dtype=torch.bfloat16 if kind == "bf16" else torch.float32))
    path = folder / ("layers.6.mlp" if trans else "layers.6")
    path = path / "seed1" if kind == "seed" else path
    m.save_to_disk(path)

    def encode(s, x):
        top, index, _ = s.encode(x)
        return torch.zeros(len(x), s.num_latents, dtype=x.dtype).scatter(1, index, top)

    def decode(s, f, x):
        y = f @ s.W_dec + s.b_dec
        return y + x @ s.W_skip.mT if s.W_skip is not None else y

    return Case(path, m.float(), encode, decode, site="mlp_input" if trans else "resid_post", layer=6, out="mlp_out" if trans else None)


# ---- Llama-Scope ----


@case("jumprelu", "unit", "topk", "subtract", "none", "topk-jumprelu")
def llama_scope(folder, d, F, kind):
    """The files as lm_saes of 2024-12 saved them; the truth is its own order of folds, in torch, and for `unit`, what SAELens'
    llama_scope loader makes of the files."""
    enc, dec = torch.nn.Linear(d, F), torch.nn.Linear(F, d)
    with torch.no_grad():
        enc.weight.copy_(randn(F, d) / math.sqrt(d))
        enc.bias.copy_(randn(F) * 0.5), dec.bias.copy_(randn(d) * 0.5), dec.weight.copy_(randn(d, F))
        uneven(dec.weight, 0)
        if kind == "unit":
            dec.weight /= dec.weight.norm(dim=0)
    k, theta, norms = max(3, F // 9), 0.9, {"in": 5.5, "out": 5.5 if kind == "unit" else 3.25}
    hyper = dict(d_model=d, d_sae=F, act_fn="topk" if "topk" in kind else "jumprelu", jump_relu_threshold=0.0 if kind == "topk" else theta, top_k=k,
                 norm_activation="none" if kind == "none" else "dataset-wise", dataset_average_activation_norm=norms, use_decoder_bias=True, apply_decoder_bias_to_pre_encoder=kind == "subtract",
                 sparsity_include_decoder_norm=kind != "none", use_glu_encoder=False, hook_point_in="blocks.4.hook_resid_post", hook_point_out="blocks.4.hook_resid_post", dtype="torch.float32",
                 expansion_factor=8, lp=1, l1_coefficient=8e-5, device="cuda", seed=42, use_ghost_grads=False, tp_size=1, ddp_size=1)
    (folder / "checkpoints").mkdir()
    (folder / "hyperparams.json").write_text(json.dumps(hyper))
    save_file({"encoder.weight": enc.weight.data, "encoder.bias": enc.bias.data, "decoder.weight": dec.weight.data.contiguous(), "decoder.bias": dec.bias.data}, folder / "checkpoints" / "final.safetensors", {"version": "0.1"})
    if kind == "unit":
        from sae_lens.loading import pretrained_sae_loaders as loaders
        from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
        loaders.hf_hub_download = lambda repo_id, filename, subfolder=None, **kw: str(folder / filename.split("/", 1)[1]) if subfolder is None else str(folder / "checkpoints" / filename)
        cfg, state, _ = loaders.llama_scope_sae_huggingface_loader("x/y", "sae", cfg_overrides={"dtype": "float32"})
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d, d_sae=F, apply_b_dec_to_input=False, dtype="float32", normalize_activations="expected_average_only_in"))
        sae.load_state_dict({n: t.float() for n, t in state.items()})
        s = math.sqrt(d) / norms["in"]
        sae.fold_activation_norm_scaling_factor(s)
        return Case(folder, sae, lambda m, x: m.encode(x), lambda m, f, x: m.decode(f), unit=1 / s, layer=4)
    root = math.sqrt(d)
    m = torch.nn.Module()
    with torch.no_grad():  # from_config: standardize_parameters_of_dataset_activation_scaling, then transform_to_unit_decoder_norm
        m.E, m.b, m.D, m.c = (torch.nn.Parameter(t.double()) for t in (enc.weight, enc.bias, dec.weight, dec.bias))
        if kind != "none":
            s_in, s_out = root / norms["in"], root / norms["out"]
            m.b /= s_in
            m.c /= s_out
            m.D *= s_in / s_out
            n = m.D.norm(dim=0)
            m.D /= n
            m.E *= n[:, None]
            m.b *= n
    m = m.float()

    def encode(m, x):
        z = (x - m.c if kind == "subtract" else x) @ m.E.T + m.b
        if kind != "topk":
            return z.where(z > theta, torch.zeros_like(z))
        z = z.clamp(min=0)
        top = z.topk(k, dim=-1)
        return torch.zeros_like(z).scatter(-1, top.indices, top.values)

    return Case(folder, m, encode, lambda m, f, x: f @ m.D.T + m.c, layer=4)


# ---- llamascopium ----


@case("relu", "jumprelu", "topk", "jumprelu-nonorm", "jumprelu-dataset", "topk-dataset", "relu-dataset", "jumprelu-token", "topk-token", "transcoder", "nobias", "pt", "bf16", "batchtopk")
def llamascopium(folder, d, F, kind):
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder
    act, _, more = kind.partition("-")
    act = act if act in ("relu", "topk", "batchtopk") else "jumprelu"
    trans, k = kind == "transcoder", max(3, F // 9)
    hooks = ("blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out") if trans else ("blocks.2.hook_resid_post",) * 2
    norm = {"dataset": "dataset-wise", "token": "token-wise"}.get(more, "dataset-wise" if trans else "inference")
    cfg = SAEConfig(hook_point_in=hooks[0], hook_point_out=hooks[1], d_model=d, expansion_factor=(F + 0.5) / d, act_fn=act, top_k=k, norm_activation=norm,
                    sparsity_include_decoder_norm=more != "nonorm", use_decoder_bias=kind != "nobias", dtype=torch.bfloat16 if kind == "bf16" else torch.float32)
    sae = fill(SparseAutoEncoder(cfg))
    assert cfg.d_sae == F
    uneven(sae.W_D.data, 1)
    norms = {h: n for h, n in zip(hooks, (9.5, 4.75))}
    if norm == "dataset-wise":
        sae.set_dataset_average_activation_norm(norms)
    cfg.save_hyperparameters(folder)
    if kind == "pt":
        sae.save_checkpoint(folder / "sae_weights.pt")
    else:
        sae.save_pretrained(folder)
    options, unit = [], 1.0
    s_in = math.sqrt(d) / norms[hooks[0]] if norm == "dataset-wise" else 1.0
    unit = 1 / s_in
    if act == "batchtopk":
        options = ["--k", k]

    def factors(m, x):
        a = m.compute_norm_factor(x, hooks[0])
        return a, (a if norm == "token-wise" else m.compute_norm_factor(x, hooks[1]))

    def encode(m, x):
        if act == "batchtopk":  # ours is the batch of one token
            return torch.cat([m.encode(r[None]) for r in x])
        return m.encode(x * factors(m, x)[0])

    sae = sae.float()
    if hasattr(sae.activation_function, "dtype"):
        sae.activation_function.dtype = torch.float32
    return Case(folder, sae, encode, lambda m, f, x: m.decode(f) / factors(m, x)[1], options, unit, site="mlp_input" if trans else "resid_post", layer=2, out="mlp_out" if trans else None)


@case("older")
def llama_scope_r1(folder, d, F, kind):
    """lm_saes of early 2025; the truth is SAELens' llama_scope_r1_distill loader."""
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    F, norm = 3 * d, 5.5
    dec = randn(d, F)
    w = {"encoder.weight": randn(F, d) / math.sqrt(d), "encoder.bias": randn(F) * 0.5, "decoder.weight": dec / dec.norm(dim=0), "decoder.bias": randn(d) * 0.5,
         "log_jumprelu_threshold": randn(F) * 0.3 - 1, "dataset_average_activation_norm.blocks.4.hook_resid_post": torch.tensor(norm)}
    save_file(w, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(sae_type="sae", d_model=d, expansion_factor=3, act_fn="jumprelu", norm_activation="dataset-wise", use_decoder_bias=True, use_glu_encoder=False,
        apply_decoder_bias_to_pre_encoder=False, sparsity_include_decoder_norm=True, force_unit_decoder_norm=False, top_k=50, jump_relu_threshold=0.0, jumprelu_threshold_window=2.0,
        hook_point_in="blocks.4.hook_resid_post", hook_point_out="blocks.4.hook_resid_post", use_triton_kernel=False, sparsity_threshold_for_triton_spmm_kernel=0.99)))
    loaders.hf_hub_download = lambda repo_id, filename, subfolder=None, **kw: str(folder / filename.split("/")[-1])
    cfg, state, _ = loaders.llama_scope_r1_distill_sae_huggingface_loader("x/y", "sae")
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d, d_sae=F, apply_b_dec_to_input=False, dtype="float32", normalize_activations="expected_average_only_in"))
    sae.load_state_dict({n: t.float() for n, t in state.items()})
    s = math.sqrt(d) / norm
    sae.fold_activation_norm_scaling_factor(s)
    return Case(folder, sae, lambda m, x: m.encode(x), lambda m, f, x: m.decode(f), unit=1 / s, layer=4)


# ---- circuit-tracer ----


@case("relu", "jumprelu", "skip", "old", "topk", "bf16", "scalar")
def circuit_tracer(folder, d, F, kind):
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
    from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
    k = max(3, F // 9)
    act = {"jumprelu": JumpReLU(torch.rand(F) * 0.5 + 0.1, 0.1), "scalar": JumpReLU(torch.tensor(0.4), 0.1), "topk": TopK(k)}.get(kind, torch.nn.functional.relu)
    m = SingleLayerTranscoder(d, F, act, 0, skip_connection=kind == "skip", device=torch.device("cpu"), dtype=torch.bfloat16 if kind == "bf16" else torch.float32)
    keep = [p.detach().clone() for n, p in m.named_parameters() if "threshold" in n]
    fill(m)
    with torch.no_grad():
        for n, p in m.named_parameters():
            if "threshold" in n:
                p.copy_(keep[0])
        if kind == "topk":
            m.b_enc += 3  # no negative survivors
    config = "model_name: random\nmodel_kind: transcoder_set\nfeature_input_hook: \"mlp.hook_in\"\nfeature_output_hook: mlp.hook_out # the MLP's\nscan: s\n"
    config += f"activation: topk\nk: {k}\n" if kind == "topk" else ""
    (folder / "config.yaml").write_text(config)
    m.to_safetensors(str(folder / "layer_0.safetensors"))
    if kind == "old":  # until 2025-06 the decoder was stored turned
        from safetensors.torch import load_file
        w = load_file(folder / "layer_0.safetensors")
        w["W_dec"] = w["W_dec"].T.contiguous()
        save_file(w, folder / "layer_0.safetensors")
    return Case(folder, m.float(), lambda s, x: s.encode(x), lambda s, f, x: s.decode(f, x), site="mlp_input", layer=0, out="mlp_out")


# ---- Gemma-Scope ----


@case("npz", "two", "skip", "f16")
def gemma_scope(folder, d, F, kind):
    from circuit_tracer.transcoder import single_layer_transcoder as slt
    two = kind in ("two", "skip")
    w = {"w_enc" if two else "W_enc": randn(d, F) / math.sqrt(d), "w_dec" if two else "W_dec": randn(F, d) / math.sqrt(d), "b_enc": randn(F) * 0.3, "b_dec": randn(d) * 0.3,
         "threshold": torch.rand(F) * 0.5 + 0.05}
    path = folder / "layer_12" / "width_x" / "average_l0_9"
    path.mkdir(parents=True)
    options = ["--site", "resid_post"]
    if two:
        if kind == "skip":
            w["affine_skip_connection"] = randn(d, d) / math.sqrt(d)
            options = ["--site", "mlp_input", "--site-out", "mlp_out"]
        (path / "config.json").write_text(json.dumps({"architecture": "jump_relu", "model_name": "random", "l0": 9, "width": F, "affine_connection": kind == "skip"}))
        save_file(w, path / "params.safetensors")
        m = slt.load_gemma_scope_2_transcoder(str(path / "params.safetensors"), 12, device=torch.device("cpu"))
    else:
        arrays = {n: t.half().numpy() if kind == "f16" else t.numpy() for n, t in w.items()}
        np.savez(path / "params.npz", **arrays)
        m = slt.load_gemma_scope_transcoder(str(path / "params.npz"), 12, device=torch.device("cpu"))
    return Case(folder, m, lambda s, x: s.encode(x), lambda s, f, x: s.decode(f, x), options, site="mlp_input" if kind == "skip" else "resid_post", layer=12, out="mlp_out" if kind == "skip" else None)


# ---- judging ----


@torch.no_grad()
def producer(c, x):
    """The producer's features and reconstructions in float32 and float64."""
    out = []
    for module, dtype in ((c.module, torch.float32), (copy.deepcopy(c.module).to(dtype=torch.float64), torch.float64)):
        for a in module.modules():  # what holds a dtype of its own
            for name in ("cfg", "activation_function"):
                if isinstance(getattr(getattr(a, name, None), "dtype", None), torch.dtype):
                    setattr(getattr(a, name), "dtype", dtype)
        t = torch.as_tensor(x).to(dtype)
        f = c.encode(module, t)
        f = f.to_dense() if f.is_sparse else f
        out.append((f.numpy(), c.decode(module, f, t).numpy()))
    return out


def tie(ours, theirs):
    """Do the two keep different ones of values that are equal in float32? Then the row says nothing."""
    a, b = np.sort(ours[(ours > 0) & (theirs <= 0)]), np.sort(theirs[(theirs > 0) & (ours <= 0)])
    return len(a) > 0 and len(a) == len(b) and (np.abs(a - b) <= 3e-7 * b).all()


def judge(checks, name, c, file, x):
    s = Sae(file)
    f, y = s.run(x)
    sites = (tool.SITES[s.info.site_in], tool.SITES[s.info.site_out])
    checks.add(sites == (c.site, c.out or c.site) and s.info.layer_in == c.layer, f"{name}: it reads {sites[0]} of layer {s.info.layer_in}, writes {sites[1]}")
    s.close()
    (f32, y32), (f64, y64) = producer(c, x)
    unit = np.broadcast_to(np.asarray(c.unit, np.float64), f32.shape)
    tied = np.array([tie(f[r], (f32 * unit)[r]) for r in range(len(x))])
    f, y, f32, f64, y32, y64, unit = (a[~tied] for a in (f, y, f32, f64, y32, y64, unit))
    differ = (f > 0) != (f32 > 0)
    checks.add(not differ.any() and not (f32 < 0).any(), f"{name}: the active set differs in {differ.sum()} pairs, first {np.argwhere(differ)[:3].tolist()}")
    on = (f > 0) & (f32 > 0)
    a, b = (f32 * unit)[on], (f64 * unit)[on]
    error = np.minimum(np.abs(f[on] - a) / np.abs(a), np.abs(f[on] - b) / np.abs(b)) if on.any() else np.zeros(1)
    floor = 3 * np.abs(a - b).max() if on.any() else 0.0
    small = error > 1e-5
    bad = small & ~(np.abs(f[on] - b) <= floor) if on.any() else small
    checks.add(tied.sum() <= 1 and on.sum() > 2 * len(x) // 5 and not bad.any(), f"{name}: {bad.sum()} of {on.sum()} values differ, worst {error.max():.1e}")
    size = np.maximum(np.abs(y64).max(axis=1, keepdims=True), 1e-30)
    wrong = np.minimum(np.abs(y - y32), np.abs(y - y64)) / size
    checks.add(np.isfinite(y).all() and wrong.max() <= 1e-5, f"{name}: reconstructions differ by {wrong.max():.1e}")
    print(f"{name:46} L0 {on.sum() / len(x):6.1f}  worst value {error.max():.1e}  beyond 1e-5: {small.sum()}  ties {tied.sum()}  reconstruction {wrong.max():.1e}", flush=True)


def make(f, kind, folder, d, F, seed):
    torch.manual_seed(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    c = f(folder, d, F, kind)
    c.module.requires_grad_(False)
    return c


# These would add nothing to the fixtures.
ALIKE = ["saelens-legacy", "qwen-scope-safetensors", "sparsify-multi", "sparsify-latents", "sparsify-seed", "llamascopium-relu", "AutoEncoderTopK-nested", "JumpReluAutoEncoder-nested", "saelens-topk-f16"]


class Foreign:
    """A pickle that would run something."""
    def __reduce__(self):
        return os.getcwd, ()


def fixtures(out):
    """One small file of every family and class (llamascopium's hold a few numbers that it did not initialise), with inputs and what the producer makes of them; and in bad/ files that are
    refused, of kinds that tests/test_families.c cannot write itself."""
    for name, f, kind in CASES:
        if any(name.endswith(a) for a in ALIKE):
            continue
        d, F = 6, 12 if name == "sparsify-groupmax" else 11
        folder = out / name
        c = make(f, kind, folder, d, F, 5)
        torch.manual_seed(77)
        x = (torch.randn(12, d) * c.scale).numpy()
        (f32, y32), _ = producer(c, x)
        unit = np.broadcast_to(np.asarray(c.unit, np.float64), f32.shape)
        expected = {"x": torch.as_tensor(x), "f": torch.as_tensor((f32 * unit).astype(np.float32)), "y": torch.as_tensor(np.ascontiguousarray(y32, dtype=np.float32))}
        save_file(expected, folder / "expected")
        (folder / "convert").write_text(" ".join([str(c.path.relative_to(folder)), *map(str, c.options)]) + "\n")
        shutil.rmtree(out / (name + "-inference"), ignore_errors=True)
        for extra in folder.rglob("runner_cfg.json"):
            extra.unlink()
    bad = out / "bad"
    shutil.rmtree(bad, ignore_errors=True)
    bad.mkdir()
    torch.manual_seed(5)
    w = {"W_enc": randn(11, 6), "W_dec": randn(6, 11), "b_enc": randn(11), "b_dec": randn(6)}
    np.savez_compressed(bad / "deflated.npz", **{n: t.numpy() for n, t in w.items()})
    np.savez(bad / "object.npz", W_enc=np.array([{}], dtype=object))
    torch.save(dict(w, note=Foreign()), bad / "global.pt")
    torch.save(w, bad / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(6, 11), bad / "module.pt")
    torch.save([w["W_enc"]], bad / "list.pt")
    torch.save(dict(w, W_dec=w["W_dec"].to(torch.int8)), bad / "int8.pt")
    torch.save(dict(w, W_dec=w["W_dec"].T.contiguous()), bad / "turned.pt")
    torch.save({n: t if t.ndim == 1 else randn(11, 11) for n, t in dict(w, b_dec=randn(11)).items()}, bad / "square.pt")
    torch.save(dict(w, b_enc=w["b_enc"].where(torch.arange(11) != 7, torch.tensor(float("nan")))), bad / "nan.pt")
    beside(bad, w)


def beside(bad, w):
    """Numbers, texts and dicts beside the tensors; k.pt is taken with its own k."""
    for name, more in {"k": {"k": 3, "step": 100, "activation": "topk"}, "scale": {"scale": 2.0}, "config": {"cfg": {"d_in": 6, "activation": "relu"}},
                       "gelu": {"k": 3, "activation": "gelu"}, "text": {"k": "three"}}.items():
        torch.save(dict(w, **more), bad / f"beside-{name}.pt")


def main():
    args = tool.options(("--fixtures", {}), ("--seed", {"type": int, "default": 100}))
    torch.set_num_threads(2)
    if args.fixtures:
        return fixtures(pathlib.Path(args.fixtures))
    checks = tool.Checks()
    for name, f, kind in CASES:
        if args.only and args.only not in name:
            continue
        for i, (d, F) in enumerate(SIZES[:1] if args.quick else SIZES):
            if name == "sparsify-latents":
                F = 3 * d
            label = f"{name} {d}x{F}"
            c = make(f, kind, WORK / "in" / name, d, F, args.seed + i)
            file = checks.attempt(f"{label}: convert", convert, args.qsae, c.path, WORK / "out.qsae", *map(str, c.options))
            if file:
                torch.manual_seed(7)
                judge(checks, label, c, file, (torch.randn(TOKENS, d) * c.scale).numpy())
    checks.done()


if __name__ == "__main__":
    main()
