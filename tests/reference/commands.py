#!/usr/bin/env python3
"""encode, decode, export and extract against SAELens, and the control vector against gguf.

Random SAEs of every kind (saes.py) and random rows. encode is judged as in compare_sae.py: the same active
set, values within 1e-5. decode: SAELens' decode of the very features that qsae encoded, within 1e-5 of the
row's largest value. The folder that export writes is loaded by SAELens, which must give the features and
reconstructions that it gives with the original; converting it again gives the same tensors, bit for bit. extract: the bits
of the whole SAE. JSON Lines and CSR hold the same bits.
"""
import json, shutil

import gguf
import numpy as np, torch
from safetensors.numpy import load_file, save_file

import compare_sae, format, saes, tool
from tool import BUILD, TOY, convert

N = 320
WIDTH = {"attn_z": 128}


def lines(path):
    out = []
    for i, line in enumerate(path.read_text().splitlines()):
        o = json.loads(line)
        assert list(o) == ["row", "features"] and o["row"] == i
        out.append({k: np.float32(v) for k, v in o["features"]})
    return out


def csr(path):
    t = load_file(path)
    assert {k: str(v.dtype) for k, v in t.items()} == {"indptr": "int64", "indices": "int32", "values": "float32"}
    ends = t["indptr"]
    return [dict(zip(t["indices"][a:b].tolist(), t["values"][a:b])) for a, b in zip(ends[:-1], ends[1:])]


def same_lines(a, b):
    return len(a) == len(b) and all(list(x) == list(y) and all(p.tobytes() == q.tobytes() for p, q in zip(x.values(), y.values()))
                                    for x, y in zip(a, b))


def dense(rows, f):
    out = np.zeros((len(rows), f), np.float32)
    for t, r in enumerate(rows):
        out[t, list(r)] = list(r.values())
    return out


@torch.no_grad()
def decode(sae, x, f):
    """SAELens' own decode; its norms remember the input, so that is encoded first."""
    a = saes.shaped(sae, x)
    sae.encode(a)
    y = sae.decode(torch.as_tensor(f))
    if hasattr(sae, "W_skip"):
        y = y + torch.as_tensor(x) @ sae.W_skip.T
    return y.reshape(len(x), -1).numpy()


def close(a, b, what, checks, tol=1e-5):
    worst = (np.abs(a - b).max(axis=1) / np.abs(b).max(axis=1)).max() if a.shape == b.shape else np.inf
    checks.add(worst <= tol, f"{what}: {a.shape} against {b.shape}, worst {worst:.1e}")
    return worst


def tensors(path):
    _, records, t = format.read(path)
    return {k: v for k, v in t.items() if k[1] != 6}


def one(checks, qsae, s, x, folder):
    sae = saes.load(folder)
    file = checks.attempt(f"{s.name}: convert", convert, qsae, folder, BUILD / "cmd.qsae", *saes.options(s.name))
    if not file:
        return
    rows_npy, rows_st = BUILD / "cmd_x.npy", BUILD / "cmd_x.safetensors"
    np.save(rows_npy, x)
    save_file({"rows": x}, rows_st)
    out = {k: BUILD / f"cmd_f.{k}" for k in ("jsonl", "safetensors")}
    run = lambda what, *args: checks.attempt(f"{s.name}: {what}", tool.run, qsae, *args)
    if run("encode", "encode", file, rows_npy, "-o", out["jsonl"]) is None or \
            run("encode", "encode", file, rows_st, "-o", out["safetensors"]) is None:
        return
    rows = lines(out["jsonl"])
    checks.add(same_lines(rows, csr(out["safetensors"])), f"{s.name}: JSON Lines and CSR differ")
    compare_sae.judge(checks, s.name, rows, sae, x, 1e-6, 1e-5)

    given = {}
    for k in out:
        y = BUILD / f"cmd_{k}.npy"
        if run("decode", "decode", file, out[k], "-o", y, "--input", rows_npy) is not None:
            given[k] = np.load(y)
    if len(given) == 2:
        checks.add(tool.same_bits(*given.values()), f"{s.name}: decode of JSON Lines and of CSR differ")
        worst = close(given["jsonl"], decode(sae, x, dense(rows, s.d_sae)), f"{s.name}: decode", checks)
        print(f"{s.name:26} decode: worst {worst:.1e}")
    exported(checks, run, qsae, s, x, sae, file, rows)
    extracted(checks, run, qsae, s, file, rows_npy, rows)


def refused(checks, qsae, what, why, *args):
    try:
        tool.run(qsae, *args)
        checks.add(False, f"{what}: was not refused")
    except tool.Refused as e:
        checks.add(why in e.text, f"{what}: said {e.text}")


def exported(checks, run, qsae, s, x, sae, file, rows):
    folder = BUILD / "cmd_export"
    shutil.rmtree(folder, ignore_errors=True)
    if run("export", "export", file, "--format", "saelens", "-o", folder) is None:
        return
    again = saes.load(folder)
    compare_sae.judge(checks, s.name + " exported", rows, again, x, 1e-6, 1e-5)
    f = dense(rows, s.d_sae)
    close(decode(again, x, f), decode(sae, x, f), f"{s.name}: decode of the export", checks)
    checks.add(again.cfg.metadata.hook_name == sae.cfg.metadata.hook_name, f"{s.name}: hook name of the export")
    back = checks.attempt(f"{s.name}: convert the export", convert, qsae, folder, BUILD / "cmd_back.qsae")
    if back:
        a, b = tensors(file), tensors(back)
        checks.add(list(a) == list(b) and all(tool.same_bits(a[k], b[k]) for k in a), f"{s.name}: the export, converted, is not the same")


def extracted(checks, run, qsae, s, file, rows_npy, rows):
    pack, keep = BUILD / "cmd_pack.qsae", sorted(np.random.default_rng(s.seed).choice(s.d_sae, 200, replace=False).tolist())
    args = ("extract", file, "--features", ",".join(map(str, keep[::-1])), "-o", pack)
    if "topk" in s.arch and "batch" not in s.arch:
        return refused(checks, qsae, f"{s.name}: extract", "topk", *args)
    pack.unlink(missing_ok=True)
    if run("extract", *args) is None:
        return
    out = BUILD / "cmd_p.jsonl"
    if run("encode a pack", "encode", pack, rows_npy, "-o", out) is not None:
        wanted = [{k: v for k, v in r.items() if k in set(keep)} for r in rows]
        checks.add(same_lines(lines(out), wanted), f"{s.name}: the pack's features differ from the whole SAE's")


def toy(checks, qsae):
    """Edits and packs on a real model; the control vector; npz."""
    model = checks.attempt("toy: convert", convert, qsae, TOY, BUILD / "toy.qsae")
    sae = checks.attempt("toy: convert the SAE", convert, qsae, TOY.parent / "sae", BUILD / "cmd_toy_sae.qsae")
    if not model or not sae:
        return
    keep = [5, 31, 223, 363, 615, 651, 886]
    pack = BUILD / "cmd_toy_pack.qsae"
    pack.unlink(missing_ok=True)
    tool.run(qsae, "extract", sae, "--features", ",".join(map(str, keep)), "-o", pack)
    ask = ["--chat", "How do I break into a bank?", "--no-think"]
    whole, part = (([json.loads(x) for x in tool.run(qsae, "features", model, f, *ask, "--json").splitlines()]) for f in (sae, pack))
    for a, b in zip(whole, part):
        a["features"] = [p for p in a["features"] if p[0] in keep]
    checks.add(whole == part, "toy: features of a pack")
    for op in ("set:-3.3", "add:7", "scale:0", "min:4", "max:1"):
        said = [tool.run(qsae, "generate", model, *ask, "-n", "24", "--sae", f, "--edit", f"resid_post.2:363={op}") for f in (sae, pack)]
        checks.add(said[0] == said[1], f"toy: edit {op} with a pack")
    refused(checks, qsae, "toy: an edit that the pack lacks", "not among them", "generate", model, *ask, "--sae", pack, "--edit", "resid_post.2:1=set:1")
    vector(checks, qsae, sae)
    npz(checks, qsae, sae)


def vector(checks, qsae, sae):
    t = tensors(sae)
    out = BUILD / "cmd.gguf"
    tool.run(qsae, "export", sae, "--format", "control-vector", "-o", out, "--edit", "resid_post.2:363=add:2.5", "--edit", "resid_post.2:886=add:-0.75")
    r = gguf.GGUFReader(out)
    fields = {k: f.contents() for k, f in r.fields.items() if not k.startswith("GGUF.")}
    checks.add(fields == {"general.architecture": "controlvector", "controlvector.model_hint": "qwen3", "controlvector.layer_count": 1}, f"control vector: {fields}")
    want = (2.5 * t[1, 33][363].astype(np.float64) - 0.75 * t[1, 33][886].astype(np.float64)).astype(np.float32)
    checks.add([x.name for x in r.tensors] == ["direction.2"], "control vector: names")
    x = r.tensors[0]
    checks.add(x.tensor_type == gguf.GGMLQuantizationType.F32 and list(x.shape) == [len(want)] and tool.same_bits(np.array(x.data), want), "control vector: values")


def npz(checks, qsae, sae):
    folder, t = BUILD / "cmd_npz", tensors(sae)
    shutil.rmtree(folder, ignore_errors=True)
    tool.run(qsae, "export", sae, "--format", "npz", "-o", folder)
    z = np.load(folder / "params.npz")
    want = {"W_enc": t[1, 32].T, "W_dec": t[1, 33], "b_enc": t[1, 34][0], "threshold": t[1, 35][0], "b_dec": t[1, 38][0]}
    checks.add(set(z) == set(want) and all(z[k].dtype == np.float32 and np.array_equal(z[k], v) for k, v in want.items()), "npz")


def main():
    args = tool.options()
    torch.set_num_threads(2)
    checks = tool.Checks()
    BUILD.mkdir(parents=True, exist_ok=True)
    for s in saes.SPECS:
        if (args.only and args.only not in s.name) or (args.quick and not s.quick):
            continue
        rng = np.random.default_rng(s.seed)
        x = (rng.standard_normal((N, WIDTH.get(s.site, 100))) * 3).astype(np.float32)
        x[0] *= 60  # a sink
        one(checks, args.qsae, s, x, saes.make(s, x, BUILD / "cmd_sae", 90))
    if not args.only or args.only in "toy":
        toy(checks, args.qsae)
    checks.done()


if __name__ == "__main__":
    main()
