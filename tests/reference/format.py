"""A reader of .qsae files written from tools/FORMAT.md alone: every checksum, and every weight of the toy and of its
SAE against the files that they were converted from; of the toy as q8 and q4, the rules of these types, and that each
weight is the nearest one its scale allows. Ends with "N passed, N failed"."""
import json
import struct

import numpy as np
import xxhash
from safetensors import safe_open

import tool

NAMES = {16: "input_layernorm", 17: "self_attn.q_proj", 18: "self_attn.k_proj", 19: "self_attn.v_proj",
         20: "self_attn.q_norm", 21: "self_attn.k_norm", 22: "self_attn.o_proj", 23: "post_attention_layernorm",
         24: "mlp.gate_proj", 25: "mlp.up_proj", 26: "mlp.down_proj"}
CHECKS = tool.Checks()
check = CHECKS.add


def superblocks(kind, rows, cols, data):
    """The parts of a Q8 or Q4 matrix: integers [np, kp], their multipliers [np, kp / 32] (Q8: ones), scales [np, kp / 256]."""
    n, k = (rows + 15) // 16, (cols + 255) // 256
    raw = np.frombuffer(data, np.uint8).reshape(n, k, -1)
    lines = 64 if kind == 4 else 32
    check(raw.shape[2] == (4160 if kind == 4 else 2176), "bytes of a superblock")
    body = raw[:, :, :64 * lines].reshape(n, k, lines, 16, 4)
    scale = raw[:, :, -64:].copy().view("<u4") & np.uint32(0xFFFFFFFF if kind == 4 else 0xFFFFFF00)
    scale = scale.view("<f4").transpose(0, 2, 1).reshape(16 * n, k)
    if kind == 4:
        q = body.view(np.int8).astype(np.int32)
        m = np.ones((16 * n, 8 * k), np.int32)
    else:
        q = np.stack([body & 15, body >> 4], 3).astype(np.int32) - 8  # [n, k, line, half, row, 4]
        q = q.transpose(0, 1, 2, 4, 3, 5).reshape(n, k, lines, 16, 8)
        bits = raw[:, :, 2048:2112].copy().view("<u4")  # [n, k, row]
        signs = raw[:, :, 2112:].copy().view("<u4")
        m = np.stack([(bits >> (4 * g) & 15).astype(np.int32) * np.where(signs >> g & 1, -1, 1) for g in range(8)], -1)
        m = m.transpose(0, 2, 1, 3).reshape(16 * n, 8 * k)
    return q.transpose(0, 3, 1, 2, 4).reshape(16 * n, 256 * k), m, scale


def quantized(kind, rows, cols, data):
    """The values of a Q8 or Q4 matrix; its rules are checked."""
    q, m, scale = superblocks(kind, rows, cols, data)
    groups = q.reshape(len(q), -1, 256)
    check(np.isfinite(scale).all() and not np.signbit(scale).any(), "scales are finite and not negative")
    check(((scale == 0) == (groups == 0).all(2)).all(), "a scale is 0 where its weights are")
    check((q >= (-127 if kind == 4 else -8)).all() and (q <= (127 if kind == 4 else 7)).all(), "range of the integers")
    check((q[rows:] == 0).all() and (q[:, cols:] == 0).all(), "padding")
    check((m[(q.reshape(len(q), -1, 32) == 0).all(2)] == 1).all(), "multipliers of nothing are 1")
    check((m != 0).all(), "no multiplier is 0")
    whole = (q * np.repeat(m, 32, 1)).astype(np.float32)
    value = whole * np.repeat(scale, 256, 1)
    check(value.dtype == np.float32 and np.isfinite(value).all(), "finite values")
    return value[:rows, :cols]


def matrix(kind, layout, rows, cols, data):
    """The logical [rows, cols] array of a tensor's bytes; None for BYTES."""
    if layout == 4:
        return None
    if kind in (4, 6):
        check(layout == 2, "Q8 and Q4 are BLOCK16")
        return quantized(kind, rows, cols, data)
    if kind == 1:
        flat = np.frombuffer(data, "<f4")
    else:
        flat = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if layout != 2:  # VECTOR, ROWS
        return flat.reshape(rows, -1)[:, :cols]
    blocks = (rows + 15) // 16
    if kind == 1:
        wide = flat.reshape(blocks, -1, 16).transpose(0, 2, 1)
    else:
        wide = flat.reshape(blocks, -1, 16, 2).transpose(0, 2, 1, 3)
    return wide.reshape(blocks * 16, -1)[:rows, :cols]


def read(path, parts=None):
    """(kind, records, {(group, role): array or bytes}) of a .qsae file, its structure checked. parts receives what
    superblocks() says of each Q8 and Q4 matrix."""
    b = path.read_bytes()
    magic, version, endian, size, kind, n_records, n_tensors, z0, index, z1, digest = struct.unpack_from("<8sIIQIIIIQQQ", b)
    check(magic == b"QSAE\r\n\x1a\n" and (version, endian, z0, z1) == (1, 0x01020304, 0, 0), "header")
    check(size == len(b) and index == 256 * n_records + 64 * n_tensors, "sizes")
    check(xxhash.xxh64(b[:56] + bytes(8) + b[64:64 + index]).intdigest() == digest, "header checksum")
    records = [b[64 + 256 * i:64 + 256 * (i + 1)] for i in range(n_records)]
    tensors, at, before = {}, 64 + index, (-1, -1)
    for i in range(n_tensors):
        group, role, t, layout, rows, cols, offset, length, digest, zero = struct.unpack_from(
            "<4I6Q", b, 64 + 256 * n_records + 64 * i)
        data = b[offset:offset + length]
        check(offset == at and length % 64 == 0 and zero == 0 and before < (group, role), f"entry {i}")
        check(xxhash.xxh64(data).intdigest() == digest, f"checksum of {group}, {role}")
        tensors[group, role] = data[:cols] if layout == 4 else matrix(t, layout, rows, cols, data)
        if parts is not None and t in (4, 6):
            parts[group, role] = superblocks(t, rows, cols, data)
        at, before = offset + length, (group, role)
    check(at == size, "end")
    return kind, records, tensors


def same(a, b, what):
    check(a.shape == b.shape and np.array_equal(a, b), what)


def check_model(path, folder):
    kind, records, t = read(path)
    config = json.loads((folder / "config.json").read_text())
    fields = struct.unpack_from("<64s8Idf", records[0])
    check(kind == 1 and fields[1:9] == tuple(config[k] for k in (
        "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
        "intermediate_size", "vocab_size", "max_position_embeddings")), "model record")
    with safe_open(folder / "model.safetensors", "pt") as f:
        get = lambda name: np.atleast_2d(f.get_tensor(name).float().numpy())
        same(t[0, 1], get("model.embed_tokens.weight"), "embed")
        same(t[0, 2], get("model.norm.weight"), "final norm")
        for layer in range(config["num_hidden_layers"]):
            for role, name in NAMES.items():
                same(t[1 + layer, role], get(f"model.layers.{layer}.{name}.weight"), f"layer {layer} {name}")
    dim, theta = config["head_dim"], config["rope_parameters"]["rope_theta"]
    freq = [np.float32(1) / np.float32(theta ** float(np.float32(2 * i) / np.float32(dim))) for i in range(dim // 2)]
    same(t[0, 4], np.array([freq], np.float32), "rope")


def nearest(kind, a, b, what):
    """The values a stand for the weights b as well as the type allows."""
    if a.shape != b.shape or a.shape[0] == 1:  # a vector is as it was
        return same(a, b, what)
    b64, err = b.astype(np.float64), np.abs(a.astype(np.float64) - b)
    pad = -b.shape[1] % 256
    groups = np.pad(b64, ((0, 0), (0, pad))).reshape(len(b), -1, 256)
    if kind == "q8":  # absmax / 127 is the scale; half of it is the farthest
        most = np.repeat(np.abs(groups).max(2) / 127 / 2, 256, 1)[:, :b.shape[1]]
        check((err <= most * (1 + 1e-5)).all(), what)
    else:  # no worse than steps that clip nothing
        parts = np.pad(b64, ((0, 0), (0, pad))).reshape(len(b), -1, 8, 32)
        step = np.maximum(parts.max(3) / 7, -parts.min(3) / 8)
        bound = (32 * (step + step.max(2, keepdims=True) / 16) ** 2 / 4).sum(2)
        error = (np.pad(err, ((0, 0), (0, pad))) ** 2).reshape(len(b), -1, 256).sum(2)
        check((error <= bound * 1.001).all(), what)
    return np.sqrt((err ** 2).mean() / (b64 ** 2).mean())


def check_quantized(path, folder, kind):
    _, _, t = read(path)
    worst = []
    with safe_open(folder / "model.safetensors", "pt") as f:
        get = lambda name: np.atleast_2d(f.get_tensor(name).float().numpy())
        worst.append(nearest(kind, t[0, 1], get("model.embed_tokens.weight"), f"{kind} embed"))
        for (group, role), a in t.items():
            if group:
                name = f"model.layers.{group - 1}.{NAMES[role]}.weight"
                worst.append(nearest(kind, a, get(name), f"{kind} {name}"))
    print(f"{kind}: rms error of a matrix, as a share of its rms: up to {max(w for w in worst if w):.5f}")


def check_sae(path, folder):
    kind, records, t = read(path)
    with safe_open(folder / "sae_weights.safetensors", "pt") as f:
        w = {k: f.get_tensor(k).float().numpy() for k in f.keys()}
    check(kind == 2 and len(records) == 1, "SAE record")
    same(t[1, 32], w["W_enc"].T, "encoder")
    same(t[1, 33], w["W_dec"], "decoder")
    same(t[1, 35][0], w["threshold"], "threshold")
    same(t[1, 38][0], w["b_dec"], "decoder bias")
    config = json.loads((folder / "cfg.json").read_text())
    folded = w["b_enc"].astype(np.float64)
    if config["apply_b_dec_to_input"]:
        folded = folded - w["W_enc"].T.astype(np.float64) @ w["b_dec"].astype(np.float64)
    check(np.abs(t[1, 34][0] - folded).max() <= 1e-6 * np.abs(folded).max(), "encoder bias, b_dec folded in")


def main():
    args = tool.options()
    tool.BUILD.mkdir(parents=True, exist_ok=True)
    for source, check_one in ((tool.TOY, check_model), (tool.TOY.parent / "sae", check_sae)):
        path = tool.BUILD / f"format_{source.name}.qsae"
        tool.run(args.qsae, "convert", source, "-o", path, "--force")
        check_one(path, source)
    for kind in ("q8", "q4"):
        path = tool.BUILD / f"format_{kind}.qsae"
        tool.run(args.qsae, "convert", tool.TOY, "-o", path, "--force", "--type", kind)
        check_quantized(path, tool.TOY, kind)
    CHECKS.done()


if __name__ == "__main__":
    main()
