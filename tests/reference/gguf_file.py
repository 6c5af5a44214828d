#!/usr/bin/env python3
"""GGUF files of random Qwen3 models, written by the PyPI package `gguf` (0.19) as llama.cpp's converter does, against the
checkpoint folders that they were made of: the same tensors, logits and ids, bit for bit. Q8_0, Q6_K and Q4_0 against
the package's own dequantize. (Not called gguf.py: that would hide the package.)

--fixture FOLDER writes tests/fixtures/qwen3.gguf there and prints the sums that tests/test_gguf.c compares.
"""
import json, os, pathlib, random, struct, sys

import gguf, numpy as np, torch, xxhash
from safetensors import safe_open
from safetensors.torch import save_file

import format, lib, models, tool
from tokenizer import SPECIAL, TEXTS, random_texts
from tool import BUILD, ROOT, TOY, Refused, convert

T = gguf.GGMLQuantizationType
PARTS = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
REAL = pathlib.Path(os.environ.get("QWEN3_TOKENIZER", ROOT.parent / "shared" / "qwen3-tokenizer"))


def rename(name):
    """A tensor's name in a GGUF file, as gguf.tensor_mapping has it."""
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{PARTS[part.removesuffix('.weight')]}.weight"


def tensors(folder):
    out = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            out.update({k: f.get_tensor(k) for k in f.keys()})
    return out


def metadata(w, c, more={}):
    """What conversion/qwen.py writes."""
    theta = c.get("rope_theta") or c["rope_parameters"]["rope_theta"]
    w.add_type("model")
    w.add_name("random")
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_rope_freq_base(theta)
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_key_length(c["head_dim"])
    w.add_value_length(c["head_dim"])
    w.add_file_type(0)
    w.add_quantization_version(2)
    for key, (add, value) in more.items():
        getattr(w, add)(key, value)


def pack(x, kind):
    """The bytes of a tensor as the package stores them."""
    if kind == T.F32:
        return x.float().numpy()
    if kind == T.F16:
        return x.half().numpy()
    return gguf.quants.quantize(np.ascontiguousarray(x.float().numpy()), kind)


def write(path, c, tensors, text=None, more={}, arch="qwen3"):
    """tensors: {GGUF name: (array, type)}; text(writer) adds the tokenizer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    w = gguf.GGUFWriter(path, arch)
    metadata(w, c, more)
    if text:
        text(w)
    for name, (data, kind) in tensors.items():
        w.add_tensor(name, data, raw_dtype=None if kind in (T.F32, T.F16) else kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def as_gguf(folder, path, kind, text=None, more={}):
    """The folder's model with its matrices in this type, norms in F32; also {HF name: float array} of what it then says."""
    c = json.loads((folder / "config.json").read_text())
    out, said = {}, {}
    for name, x in tensors(folder).items():
        t = kind if x.dim() == 2 else T.F32
        data = pack(x, t)
        out[rename(name)] = (data, t)
        said[name] = data if t == T.F32 else gguf.quants.dequantize(data, t) if t != T.F16 else data.astype(np.float32)
    return write(path, c, out, text, more), said


def same_file(checks, what, a, b):
    """Equal records but for name, flags and end tokens, and every tensor of the same bits but META and TOKENIZER."""
    ka, ra, ta = format.read(a)
    kb, rb, tb = format.read(b)
    fa, fb = struct.unpack_from("<64s8Idf", ra[0]), struct.unpack_from("<64s8Idf", rb[0])
    checks.add(ka == kb and fa[1:] == fb[1:], f"{what}: records {fa[1:]} and {fb[1:]}")
    checks.add(set(ta) - {(0, 5), (0, 6)} == set(tb) - {(0, 5), (0, 6)}, f"{what}: other tensors")
    for k in ta:
        if k in tb and k not in ((0, 5), (0, 6)):
            checks.add(tool.same_bits(np.ascontiguousarray(ta[k]), np.ascontiguousarray(tb[k])), f"{what}: tensor {k}")


def same_logits(checks, qsae, what, a, b, ids):
    x = tool.capture(qsae, a, BUILD / "gguf_a.safetensors", ids, sites=["resid_post"])
    y = tool.capture(qsae, b, BUILD / "gguf_b.safetensors", ids, sites=["resid_post"])
    checks.add(set(x) == set(y) and all(tool.same_bits(x[k], y[k]) for k in x), f"{what}: logits")
    checks.add(np.isfinite(x["logits"]).all() and x["logits"].std() > 0, f"{what}: logits are numbers")


SPECS = [
    models.Spec("gguf_f32", 64, 160, 3, 4, 2, 16, dtype="F32", writer="hf", seed=5001),
    models.Spec("gguf_untied", 96, 224, 2, 3, 1, 32, dtype="BF16", tied=False, theta=5e6, style="old", seed=5002),
    models.Spec("gguf_bf16", 128, 192, 4, 4, 4, 64, dtype="BF16", vocab=1003, seed=5003),
    models.Spec("gguf_f16", 32, 64, 2, 2, 2, 16, dtype="F16", tied=False, shards=3, seed=5004),
]


def same_types(checks, qsae, s):
    """Stored in one type on both sides."""
    folder = models.make(s, BUILD / s.name)
    path, _ = as_gguf(folder, BUILD / f"{s.name}.gguf", {"F32": T.F32, "BF16": T.BF16, "F16": T.F16}[s.dtype])
    a = convert(qsae, folder, BUILD / f"{s.name}_a.qsae")
    b = convert(qsae, path, BUILD / f"{s.name}_b.qsae")
    same_file(checks, s.name, a, b)
    same_logits(checks, qsae, s.name, a, b, models.tokens(s, 70))


def quantised(checks, qsae, s, kind, options=()):
    """A folder of what the package's dequantize gives, in F32."""
    folder, plain = models.make(s, BUILD / s.name), BUILD / f"{s.name}_{kind.name}"
    path, said = as_gguf(folder, BUILD / f"{s.name}_{kind.name}.gguf", kind)
    plain.mkdir(parents=True, exist_ok=True)
    for f in ("config.json", "generation_config.json"):
        (plain / f).write_bytes((folder / f).read_bytes())
    save_file({k: torch.from_numpy(v.copy()) for k, v in said.items()}, plain / "model.safetensors")
    what = f"{s.name} {kind.name} {' '.join(options)}"
    a = convert(qsae, plain, BUILD / f"{s.name}_a.qsae", *options)
    b = convert(qsae, path, BUILD / f"{s.name}_b.qsae", *options)
    same_file(checks, what, a, b)
    same_logits(checks, qsae, what, a, b, models.tokens(s, 40))


def raw_blocks(checks, qsae):
    """Blocks no quantiser makes: every f16 scale that is finite, subnormal and negative ones too, any numbers."""
    s = models.Spec("gguf_raw", 256, 512, 1, 8, 1, 32, vocab=1024, dtype="F32", tied=False, seed=5005)
    folder, rng = models.make(s, BUILD / s.name), np.random.default_rng(5)
    c = json.loads((folder / "config.json").read_text())
    for kind, block, size, at in ((T.Q8_0, 32, 34, 0), (T.Q4_0, 32, 18, 0), (T.Q6_K, 256, 210, 208)):
        out, said = {}, {}
        for name, x in tensors(folder).items():
            if x.dim() == 1:
                out[rename(name)], said[name] = (x.numpy(), T.F32), x
                continue
            data = rng.integers(0, 256, (x.shape[0], x.shape[1] // block, size), dtype=np.uint8)
            scale = np.resize(np.arange(1 << 16, dtype=np.uint16)[rng.permutation(1 << 16)], data.shape[:2])
            scale[(scale & 0x7C00) == 0x7C00] ^= 0x4000
            data[:, :, at:at + 2] = scale[..., None].view(np.uint8)
            data = data.reshape(x.shape[0], -1)
            out[rename(name)], said[name] = (data, kind), torch.from_numpy(gguf.quants.dequantize(data, kind).copy())
        path = write(BUILD / f"{s.name}.gguf", c, out)
        plain = BUILD / f"{s.name}_plain"
        plain.mkdir(parents=True, exist_ok=True)
        (plain / "config.json").write_bytes((folder / "config.json").read_bytes())
        save_file(said, plain / "model.safetensors")
        same_file(checks, f"{s.name} {kind.name}", convert(qsae, plain, BUILD / f"{s.name}_a.qsae"), convert(qsae, path, BUILD / f"{s.name}_b.qsae"))


# ------------------------------------------------------------------------------------------------ tokenizer

def looks_special(text):
    """base.py, does_token_look_special."""
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or text.startswith("<|") and text.endswith("|>")


def vocabulary(folder, rows):
    """tokens and types as base.py's get_vocab_base makes them."""
    from transformers import AutoTokenizer
    tok = AutoTokenizer.from_pretrained(folder)
    by_id = {i: t for t, i in tok.get_vocab().items()}
    added, tokens, types = tok.added_tokens_decoder, [], []
    for i in range(rows):
        if i not in by_id:
            tokens.append(f"[PAD{i}]")
            types.append(gguf.TokenType.UNUSED)
        elif i in added:
            tokens.append(added[i].content)
            types.append(gguf.TokenType.CONTROL if added[i].special or looks_special(tokens[-1]) else gguf.TokenType.USER_DEFINED)
        else:
            tokens.append(by_id[i])
            types.append(gguf.TokenType.NORMAL)
    return tokens, types


def text_of(folder, rows):
    def add(w):
        tokens, types = vocabulary(folder, rows)
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("qwen2")
        w.add_token_list(tokens)
        w.add_token_types(types)
        gguf.SpecialVocab(folder, load_merges=True, n_vocab=rows).add_to_gguf(w, quiet=True)
    return add


def blob_parts(blob):
    """The tables of a tokenizer blob; of the added tokens only the ids (GGUF does not say which are special)."""
    h = struct.unpack_from("<16I", blob)
    added = np.frombuffer(blob, "<u4", 2 * h[5], h[13]).reshape(-1, 2)
    return blob[:h[13]], added[:, 0].tolist(), added[:, 1].tolist()


def tokenizer(checks, qsae, name, source, vocab, quick):
    s = models.Spec(name, 32, 32, 1, 1, 1, 32, vocab=vocab, dtype="F32", seed=5010)
    folder = models.make(s, BUILD / name)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        (folder / f).write_bytes((source / f).read_bytes())
    path, _ = as_gguf(folder, BUILD / f"{name}.gguf", T.F32, text_of(source, vocab))
    a = convert(qsae, folder, BUILD / f"{name}_a.qsae")
    b = convert(qsae, path, BUILD / f"{name}_b.qsae")
    same_file(checks, name, a, b)
    (ra, ta), (rb, tb) = format.read(a)[1:], format.read(b)[1:]
    pa, pb = blob_parts(ta[0, 5]), blob_parts(tb[0, 5])
    checks.add(pa[0] == pb[0], f"{name}: the tables of the tokenizer")
    checks.add(pa[1] == pb[1], f"{name}: added tokens")
    missing = [i for i, x, y in zip(pa[1], pa[2], pb[2]) if x and not y]
    checks.add(not missing, f"{name}: special tokens {missing} are not special")
    flags = [struct.unpack_from("<64s8IdfI", r[0])[-1] & 12 for r in (ra, rb)]
    checks.add(flags[0] == flags[1], f"{name}: chat templates {flags}")
    from tokenizers import Tokenizer
    want, so = Tokenizer.from_file(str(source / "tokenizer.json")), lib.Library()
    m, n = so.open(b), 0
    for text in TEXTS + SPECIAL + list(random_texts(100 if quick else 1000)):
        for special in (False, True):
            got = so.tokenize(m, text.encode(), special)
            n += 1
            if special or not any(t in text for t in ("<|", "<think", "<tool", "</")):
                checks.add(list(got) == want.encode(text, add_special_tokens=False).ids, f"{name} {text!r}: {got}")
    print(f"{name}: {len(pa[1])} added tokens, flags of {sum(x != y for x, y in zip(pa[2], pb[2]))} differ, {n} texts", flush=True)


# ------------------------------------------------------------------------------------------------- refusals

def refused(checks, qsae):
    """What the writer can be made to say and qsae must not follow."""
    s = SPECS[3]
    folder = models.make(s, BUILD / s.name)
    c = json.loads((folder / "config.json").read_text())
    good = {rename(k): (pack(x, T.F32), T.F32) for k, x in tensors(folder).items()}
    path = BUILD / "gguf_no.gguf"

    def no(pattern, *options, tensors=good, arch="qwen3", change={}, text=None, **more):
        write(path, {**c, **change}, tensors, text, more, arch)
        try:
            convert(qsae, path, BUILD / "gguf_no.qsae", *options)
            checks.add(False, f"converted: {pattern}")
        except Refused as e:
            checks.add(pattern in e.text and not (BUILD / "gguf_no.qsae").exists(), f"{e.text!r} instead of {pattern}")

    for arch in ("qwen3moe", "qwen2", "qwen3vl", "llama"):
        no(f"general.architecture is {arch}", arch=arch)
    q4k = np.zeros((64, 144), np.uint8)
    no("tensor token_embd.weight is Q4_K", tensors={**good, "token_embd.weight": (q4k, T.Q4_K)})
    no("tensor blk.0.attn_q.bias is not known: Qwen3 with biases", tensors={**good, "blk.0.attn_q.bias": (np.zeros(32, np.float32), T.F32)})
    no("rope_freqs.weight is not known: only plain RoPE", tensors={**good, "rope_freqs.weight": (np.ones(8, np.float32), T.F32)})
    no("blk.1.ffn_up.weight is missing", tensors={k: v for k, v in good.items() if k != "blk.1.ffn_up.weight"})
    no("qwen3.embedding_length", change={"hidden_size": 48})
    no("rope.scaling.type is yarn", **{"qwen3.rope.scaling.type": ("add_string", "yarn")})
    no("rope.scaling.factor is 2", **{"qwen3.rope.scaling.factor": ("add_float32", 2.0)})
    no("dimension_count is 8", **{"qwen3.rope.dimension_count": ("add_uint32", 8)})
    no("qwen3.attention.scale (0.5) is not known", **{"qwen3.attention.scale": ("add_float32", 0.5)})
    no("one of 3", **{"split.count": ("add_uint16", 3)})
    no("--head stored", "--head", "stored", tensors={k: v for k, v in good.items() if k != "output.weight"})
    for key, value in (("add_tokenizer_model", "llama"), ("add_tokenizer_pre", "qwen35")):
        def text(w):
            text_of(TOY, s.vocab)(w)
            w.kv_data[0].pop("tokenizer.ggml." + key.split("_")[-1], None)
            getattr(w, key)(value)
        no(f"is {value}; only", text=text, change={})


def fixture(folder):
    """A model of 1 layer in all five types, with a tokenizer of the 256 bytes, 3 merges and 4 added tokens."""
    rng, d, rows = np.random.default_rng(20260612), 32, 264
    c = {"num_hidden_layers": 1, "max_position_embeddings": 512, "hidden_size": d, "intermediate_size": 32, "num_attention_heads": 2,
         "num_key_value_heads": 1, "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "head_dim": 16}
    types = {"token_embd": T.Q4_0, "attn_q": T.Q8_0, "attn_k": T.BF16, "attn_v": T.F16, "attn_output": T.F32, "ffn_gate": T.Q4_0, "ffn_up": T.Q8_0, "ffn_down": T.BF16}
    shapes = {"token_embd": (rows, d), "attn_q": (32, d), "attn_k": (16, d), "attn_v": (16, d), "attn_output": (d, 32), "ffn_gate": (32, d), "ffn_up": (32, d), "ffn_down": (d, 32)}
    out = {}
    for name, kind in types.items():
        x = torch.from_numpy(rng.standard_normal(shapes[name], dtype=np.float32) * np.float32(0.3))
        out[("" if name == "token_embd" else "blk.0.") + name + ".weight"] = (pack(x, kind), kind)
    for name, n in (("output_norm", d), ("blk.0.attn_norm", d), ("blk.0.ffn_norm", d), ("blk.0.attn_q_norm", 16), ("blk.0.attn_k_norm", 16)):
        out[name + ".weight"] = (1 + rng.standard_normal(n, dtype=np.float32) / 8, T.F32)

    def text(w):
        alphabet = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 255 and b != 173]
        rest = [b for b in range(256) if b not in alphabet]
        symbol = {**{b: chr(b) for b in alphabet}, **{b: chr(256 + i) for i, b in enumerate(rest)}}
        tokens = [symbol[b] for b in range(256)] + ["he", "ll", "hell"] + ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "[PAD263]"]
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("qwen2")
        w.add_token_list(tokens)
        w.add_token_types([1] * 259 + [3, 3, 3, 4, 5])
        w.add_token_merges(["h e", "l l", "he ll"])
        w.add_eos_token_id(261)
        w.add_bos_token_id(259)
        w.add_add_bos_token(False)

    write(folder / "qwen3.gguf", c, out, text)
    for name, (data, kind) in out.items():
        x = data.astype(np.float32) if kind in (T.F32, T.F16) else gguf.quants.dequantize(data, kind)
        print(f'    {{"{name}", 0x{xxhash.xxh64(np.ascontiguousarray(x).tobytes()).hexdigest()}}},')


def main():
    args = tool.options(("--fixture", {"type": pathlib.Path}))
    BUILD.mkdir(parents=True, exist_ok=True)
    if args.fixture:
        return fixture(args.fixture)
    checks, qsae = tool.Checks(), args.qsae

    def part(name, call, *more):
        if not args.only or args.only in name:
            checks.attempt(name, call, checks, qsae, *more)

    for s in SPECS:
        part(s.name, same_types, s)
    for s in SPECS[:1] if args.quick else SPECS:
        for kind in (T.Q8_0, T.Q4_0):
            part(f"{s.name} {kind.name}", quantised, s, kind)
    part("as bf16", quantised, SPECS[1], T.Q8_0, ("--type", "bf16"))
    part("raw blocks", raw_blocks)
    part("gguf_toy_text", lambda *a: tokenizer(*a, "gguf_toy_text", TOY, 1040, args.quick))
    if (REAL / "tokenizer.json").exists():
        part("gguf_real_text", lambda *a: tokenizer(*a, "gguf_real_text", REAL, 151936, args.quick))
    else:
        print("no tokenizer of Qwen3 at", REAL)
    part("refused", refused)
    checks.passed += format.CHECKS.passed
    checks.failed += format.CHECKS.failed
    checks.done()


if __name__ == "__main__":
    main()
