"""Tensors as torch, numpy and safetensors save them, read by tools/tensors.h (tests/print_tensors.c): every number equal.
Needs build/tests/print_tensors (`make test` builds it). Ends with "N passed, N failed"."""
import collections, shutil, subprocess, warnings

import numpy as np
import torch
from safetensors.torch import save_file

import tool

OPTIONS = tool.options(("--program", {"default": str(tool.ROOT / "build" / "tests" / "print_tensors")}))
CHECKS = tool.Checks()
check = CHECKS.add
FOLDER = tool.BUILD / "containers"
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int8: "I8", torch.uint8: "U8",
          torch.int16: "I16", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL"}
RNG = np.random.default_rng(1)


def program(path, *more):
    r = subprocess.run([OPTIONS.program, str(path), *map(str, more)], capture_output=True, text=True, timeout=120)
    return r.returncode, r.stdout, r.stderr


def read(path, *more):
    """({name: (type, shape, numbers)}, {key: value}) or None and a failure."""
    code, out, said = program(path, *more)
    if not check(code == 0, f"{path.name}: {said.strip()}"):
        return None, None
    tensors, meta = {}, {}
    for line in out.splitlines():
        kind, name, *rest = line.split("\t")
        if kind == "meta":
            meta[name] = rest[0]
        else:
            shape = tuple(int(x) for x in rest[1].strip("[]").split(", ") if x)
            tensors[name] = rest[0], shape, [float(x) if "F" in rest[0] else int(x) for x in rest[2].split()]
    return tensors, meta


def compare(path, want, meta=None):
    got, said = read(path)
    if got is None:
        return
    check(list(got) == list(want) or set(got) == set(want), f"{path.name}: names {sorted(got)} instead of {sorted(want)}")
    for name, t in want.items():
        if name not in got:
            continue
        t = t.detach()
        kind, shape, values = got[name]
        check(kind == DTYPES[t.dtype] and shape == tuple(t.shape), f"{path.name}: {name} is {kind} {shape}, not {t.dtype} {tuple(t.shape)}")
        check(values == (t.double() if t.is_floating_point() else t.long()).flatten().tolist(), f"{path.name}: values of {name}")
    if meta is not None:
        check(said == meta, f"{path.name}: meta {said} instead of {meta}")


def refused(path, message):
    code, _, said = program(path)
    check(code == 1 and message in said, f"{path.name}: exit {code}, {said.strip()!r} instead of {message!r}")


def random_tensor(dtype, shape):
    x = torch.from_numpy(np.asarray(RNG.standard_normal(shape) * 50))
    return x > 0 if dtype == torch.bool else x.abs().to(dtype) if dtype == torch.uint8 else x.to(dtype)


def random_view(dtype):
    """A tensor with odd strides: sliced, stepped, transposed, permuted, with dimensions of 1 and 0."""
    shape = tuple(int(n) for n in RNG.integers(1, 12, RNG.integers(0, 5)))
    x = random_tensor(dtype, shape)
    for _ in range(RNG.integers(0, 4)):
        way = RNG.integers(0, 5)
        if x.dim() == 0:
            break
        d = int(RNG.integers(0, x.dim()))
        if way == 0:
            x = x.permute(*RNG.permutation(x.dim()).tolist())
        elif way == 1:
            x = x[(slice(None),) * d + (slice(int(RNG.integers(0, x.shape[d] + 1)), None),)]
        elif way == 2:
            x = x[(slice(None),) * d + (slice(None, None, int(RNG.integers(1, 4))),)]
        elif way == 3:
            x = x.unsqueeze(d)
        elif x.shape[d]:
            x = x.select(d, int(RNG.integers(0, x.shape[d])))
    return x


def torch_files(n):
    for i in range(n):
        want = collections.OrderedDict((f"t{k}.{str(d)[6:]}", random_view(d)) for k, d in enumerate(DTYPES))
        path = FOLDER / f"views{i}.pt"
        torch.save(want if i % 2 else dict(want), path)
        compare(path, want, {})
    big = random_tensor(torch.float32, (700, 900))  # larger than every buffer
    want = {"columns": big.t(), "part": big[3:650, 100:].t(), "stepped": big[::3, ::7], "rows": big, "half": big.bfloat16().t()}
    torch.save(want, FOLDER / "large.pt")
    compare(FOLDER / "large.pt", want)

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7))
    opt = torch.optim.Adam(module.parameters(), lr=1e-3)
    module(torch.randn(4, 5)).sum().backward()
    opt.step()
    state = module.state_dict()
    torch.save(state, FOLDER / "module.pt")
    compare(FOLDER / "module.pt", state, {})
    torch.save(dict(module.named_parameters()), FOLDER / "parameters.pt")
    compare(FOLDER / "parameters.pt", dict(module.named_parameters()), {})
    torch.save({"step": 7, "ae": state, "optimizer": opt.state_dict(), "config": {"k": 3, "lr": 1e-3, "name": "x", "on": True, "none": None,
                "sizes": [1, -2], "dtype": torch.bfloat16, "device": torch.device("cuda", 0), "shape": torch.Size([2, 3]), "big": 2**40}, "norm_factor": 0.1}, FOLDER / "nested.pt")
    want = {f"ae.{k}": v for k, v in state.items()}
    for i, s in opt.state_dict()["state"].items():
        want.update({f"optimizer.state.{i}.{k}": v for k, v in s.items()})
    compare(FOLDER / "nested.pt", want)
    _, meta = read(FOLDER / "nested.pt")
    for key, value in {"step": "7", "norm_factor": "%.17g" % 0.1, "config.k": "3", "config.lr": "%.17g" % 1e-3, "config.name": "x", "config.on": "true",
                       "config.sizes.1": "-2", "config.dtype": "torch.bfloat16", "config.device": "cuda:0", "config.shape.0": "2", "config.big": str(2**40)}.items():
        check(meta and meta.get(key) == value, f"nested.pt: {key} is {meta and meta.get(key)}, not {value}")
    check("config.none" not in (meta or {}), "nested.pt: None is left out")
    torch.save(big[:2], FOLDER / "bare.pt")
    compare(FOLDER / "bare.pt", {"": big[:2]})
    torch.save([big[:1], {"a": big[:1, :2]}], FOLDER / "list.pt")
    compare(FOLDER / "list.pt", {"0": big[:1], "1.a": big[:1, :2]})
    torch.save({f"t{i}": torch.tensor(float(i)) for i in range(3000)}, FOLDER / "many.pt")
    compare(FOLDER / "many.pt", {f"t{i}": torch.tensor(float(i)) for i in range(3000)})

    torch.save(module, FOLDER / "whole.pt")
    refused(FOLDER / "whole.pt", "the pickle names torch.nn.modules.")
    torch.save({"x": np.zeros(3)}, FOLDER / "numpy.pt")
    refused(FOLDER / "numpy.pt", "the pickle names numpy.")
    torch.save({"x": torch.zeros(3, dtype=torch.complex64)}, FOLDER / "complex.pt")
    refused(FOLDER / "complex.pt", "ComplexFloatStorage")
    torch.save({"x": torch.eye(3).to_sparse()}, FOLDER / "sparse.pt")
    refused(FOLDER / "sparse.pt", "the pickle names torch._utils._rebuild_sparse_tensor")
    torch.save({"x": torch.ones(1).expand(4)}, FOLDER / "expanded.pt")
    refused(FOLDER / "expanded.pt", "x: shape [4] repeats the 1 numbers of its storage")
    torch.save(state, FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
    refused(FOLDER / "legacy.pt", "a PyTorch file of before version 1.6")
    torch.save(state, FOLDER / "protocol4.pt", pickle_protocol=4)
    refused(FOLDER / "protocol4.pt", "a pickle of protocol 4")
    torch.save({"x": torch.tensor([[1.0, float("nan")]])}, FOLDER / "nan.pt")
    refused(FOLDER / "nan.pt", "tensor x: element [0, 1] is NaN")
    torch.save({"x": torch.tensor([1.0, -float("inf")])}, FOLDER / "inf.pt")
    refused(FOLDER / "inf.pt", "tensor x: element [1] is infinite")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), FOLDER / "script.pt")
    refused(FOLDER / "script.pt", "TorchScript")


def numpy_files(n):
    kinds = ["<f2", "<f4", "<f8", "|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8"]
    names = {"<u2": "U16", "<u4": "U32", "<u8": "U64"}
    for i in range(n):
        want = {}
        for kind in kinds:
            shape = tuple(int(k) for k in RNG.integers(0 if i % 4 == 0 else 1, 9, RNG.integers(0, 5)))
            x = np.asarray(RNG.standard_normal(shape) * 50)
            x = (x > 0 if kind == "|b1" else np.abs(x)).astype(kind) if kind[1] in "bu" else x.astype(kind)
            want[f"a{kind[1:]}"] = np.asfortranarray(x) if i % 2 else x
        np.savez(FOLDER / f"many{i}.npz", **want)
        files = [(FOLDER / f"many{i}.npz", want)]
        for name, x in want.items():
            np.save(FOLDER / f"{name}.npy", x)
            files.append((FOLDER / f"{name}.npy", {"": x}))
        for path, arrays in files:
            got, _ = read(path)
            if got is None:
                continue
            check(list(got) == list(arrays), f"{path.name}: names {list(got)}")
            for name, x in arrays.items():
                kind, shape, values = got[name]
                right = names.get(x.dtype.str) or DTYPES[torch.from_numpy(np.zeros(1, x.dtype)).dtype]
                check(kind == right and shape == x.shape and values == x.flatten().tolist(), f"{path.name}: {name} {x.dtype} {x.shape}")
    for version in ((1, 0), (2, 0), (3, 0)):
        with open(FOLDER / "version.npy", "wb") as f:
            np.lib.format.write_array(f, np.arange(6.0).reshape(2, 3), version=version)
        got, _ = read(FOLDER / "version.npy")
        check(got and got[""] == ("F64", (2, 3), [0, 1, 2, 3, 4, 5]), f"version {version}")
    np.savez_compressed(FOLDER / "compressed.npz", W=np.zeros(3))
    refused(FOLDER / "compressed.npz", "member W.npy: it is compressed (deflate)")
    for name, x, message in (("big", np.arange(3, dtype=">f4"), "big-endian numbers"), ("object", np.array([None]), "Python objects"),
                             ("text", np.array(["abc"]), "text, not numbers"), ("complex", np.zeros(2, "c8"), "not supported"),
                             ("structured", np.zeros(2, [("a", "f4")]), "a structured array"), ("raw", np.zeros(2, "V2"), "raw bytes (numpy has no bf16)")):
        np.save(FOLDER / f"{name}.npy", x)
        refused(FOLDER / f"{name}.npy", message)


def safetensors_files(n):
    for i in range(n):
        want = {f"t{k}": random_view(d).contiguous() for k, d in enumerate(DTYPES)}
        save_file(want, FOLDER / f"s{i}.safetensors", metadata={"format": "pt", "i": str(i)})
        compare(FOLDER / f"s{i}.safetensors", want, {"format": "pt", "i": str(i)})


def written(n):
    """What our own writer of .npz makes, read by numpy."""
    for i in range(n):
        want = {f"t{k}": random_view(torch.float32) for k in range(5)}
        torch.save(want, FOLDER / "source.pt")
        if read(FOLDER / "source.pt", FOLDER / "written.npz")[0] is None:
            continue
        with np.load(FOLDER / "written.npz", allow_pickle=False) as z:
            check(list(z) == list(want), "written.npz: names")
            check(z.zip.testzip() is None, "written.npz: CRC")
            for name, t in want.items():
                check(z[name].dtype == np.float32 and z[name].shape == tuple(t.shape) and np.array_equal(z[name], t.numpy()), f"written.npz: {name}")


n = 4 if OPTIONS.quick else 25
shutil.rmtree(FOLDER, ignore_errors=True)
FOLDER.mkdir(parents=True)
torch_files(n)
numpy_files(max(2, n // 5))
safetensors_files(n)
written(n)
CHECKS.done()
