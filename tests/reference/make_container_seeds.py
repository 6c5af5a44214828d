"""Writes tests/corpus/torch and tests/corpus/npy, small files of the real writers, seeds of fuzz_torch and fuzz_npy.
Made with torch 2.13.0 and numpy 2.4.6, seed 0. Run from anywhere; only what is missing in the folders is new to git."""
import collections, pathlib, warnings, zipfile
import numpy as np, torch

ROOT = pathlib.Path(__file__).resolve().parents[1] / "corpus"


def write_torch(to):
    torch.manual_seed(0)
    w = torch.randn(3, 4)
    state = collections.OrderedDict(w=w, tied=w, t=w.t(), part=torch.randn(5, 6)[1:4, ::2], b=torch.randn(3).bfloat16(), k=torch.tensor(5))
    torch.save(state, to / "views.pt")
    lin = torch.nn.Linear(3, 2)
    opt = torch.optim.Adam(lin.parameters())
    lin(torch.randn(2, 3)).sum().backward()
    opt.step()
    torch.save({"step": 3, "ae": lin.state_dict(), "optimizer": opt.state_dict(), "norm_factor": 2.5,
                "config": {"k": 32, "lr": 1e-3, "none": None, "list": [1, -2, True], "device": torch.device("cuda:0"), "dtype": torch.bfloat16}}, to / "nested.pt")
    torch.save({"p": lin.weight, "h": torch.randn(2).half(), "d": torch.randn(2).double(), "e": torch.zeros(0, 3), "bool": torch.tensor([True])}, to / "types.pt")
    torch.save(w, to / "bare.pt")
    torch.save(lin, to / "module.pt")
    torch.save(state, to / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"x": torch.zeros(1).expand(3)}, to / "expanded.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(lin), to / "script.pt")


    for name in ("views", "nested", "types"):  # the pickles alone: see fuzz_torch.c
        with zipfile.ZipFile(to / f"{name}.pt") as z:
            (to / f"{name}.pkl").write_bytes(z.read(f"{name}/data.pkl"))


def write_npy(to):
    r = np.random.default_rng(0)
    np.save(to / "f4.npy", r.standard_normal((3, 4)).astype("f4"))
    np.save(to / "fortran.npy", np.asfortranarray(r.standard_normal((3, 4))))
    np.save(to / "scalar.npy", np.float16(3.5))
    np.save(to / "bool.npy", np.array([True, False]))
    np.save(to / "big_endian.npy", np.arange(3, dtype=">f4"))
    np.save(to / "object.npy", np.array([None, 1], dtype=object))
    np.save(to / "structured.npy", np.zeros(2, dtype=[("a", "<f4")]))
    np.savez(to / "two.npz", W=r.standard_normal((2, 3)).astype("f4"), k=np.int64(5))
    np.savez_compressed(to / "compressed.npz", W=np.zeros(4))
    np.savez(to / "empty.npz")


for name, write in (("torch", write_torch), ("npy", write_npy)):
    (ROOT / name).mkdir(parents=True, exist_ok=True)
    write(ROOT / name)
