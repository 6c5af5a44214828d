"""qsae_trainer through ctypes, SAELens's trainer at the same weights, and synthetic data with a known dictionary."""
import ctypes as C, os, re, time, warnings

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small products: more threads only wait for each other

import numpy as np, torch

from lib import Failed, Library
from tool import ROOT, Refused

warnings.filterwarnings("ignore")

NAMES = {"W_enc": "ENC", "W_dec": "DEC", "b_enc": "B_ENC", "b_dec": "B_DEC", "threshold": "THETA"}


class Header:
    """Structs and enums of qsae.h, read from its text, so that they are never out of step with it."""
    TYPES = {"size_t": C.c_size_t, "float": C.c_float, "double": C.c_double, "int": C.c_int, "uint64_t": C.c_uint64, "uint32_t": C.c_uint32,
             "int32_t": C.c_int32, "int64_t": C.c_int64}

    def __init__(self):
        self.text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", (ROOT / "qsae.h").read_text(), flags=re.S)
        self.const = {}
        for body in re.findall(r"\benum\b[^{;]*\{([^}]*)\}", self.text):
            value = -1
            for item in filter(None, (i.strip() for i in body.split(","))):
                name, _, given = (s.strip() for s in item.partition("="))
                value = self.const[name] = (self.const[given] if given in self.const else int(given, 0)) if given else value + 1

    def struct(self, name, **bases):
        """bases: nested structs by type name."""
        body = re.search(r"\bstruct\s+" + name + r"\s*\{([^}]*)\}", self.text).group(1)
        fields = []
        for decl in filter(None, (" ".join(d.split()) for d in body.split(";"))):
            call = re.match(r".*\(\s*\*\s*(\w+)\s*\)\s*\(", decl)
            if call:  # a function pointer
                fields.append((call.group(1), C.c_void_p))
                continue
            words = re.sub(r"\b(const|struct|unsigned)\b", "", decl).strip()
            kind, rest = words.split(None, 1) if not words.startswith("enum") else (None, words.split(None, 2)[2])
            for one in rest.split(","):
                one = one.strip()
                many = re.match(r"(\w+)\s*\[\s*(\w+)\s*\]$", one)
                if "*" in one:
                    fields.append((one.strip("* "), C.c_void_p))
                    continue
                t = C.c_int if kind is None else self.TYPES.get(kind) or bases.get(kind) or C.c_int  # what is left are typedefs of enums
                if many:
                    n = many.group(2)
                    one, t = many.group(1), t * (int(n) if n.isdigit() else self.defined(n))
                fields.append((one, t))
        return type(name, (C.Structure,), {"_fields_": fields})

    def defined(self, name):
        return self.const[name] if name in self.const else int(re.search(r"#\s*define\s+" + name + r"\s+(\d+)", self.text).group(1))


class Api:
    """The library and the trainer's structs, opened at first use."""

    def __init__(self):
        self.lib = Library()
        self.so, h = self.lib.so, Header()
        self.const = h.const
        alloc = h.struct("qsae_allocator")
        self.Options = h.struct("qsae_trainer_options", qsae_allocator=alloc)
        self.Stats = h.struct("qsae_train_stats")
        self.so.qsae_trainer_size.restype = C.c_size_t


_api = None


def api():
    global _api
    _api = _api or Api()
    return _api


def attempt(checks, what, call, *args, **kwargs):
    """The call; a refusal by the library is a failure of the check."""
    try:
        return call(*args, **kwargs)
    except (Failed, Refused) as e:
        checks.add(False, f"{what}: {e}")


def pointer(a):
    return None if a is None else a.ctypes.data_as(C.c_void_p)


class Trainer:
    """One qsae_trainer. Options by the names of qsae_trainer_options; arch="TOPK" for QSAE_TRAIN_TOPK and so on;
    timed: with a clock, for stats.seconds."""

    def __init__(self, timed=False, **o):
        a = api()
        self.so, self.lib, self.const = a.so, a.lib, a.const
        self.keep = []
        if timed:
            self.keep.append(C.CFUNCTYPE(C.c_double, C.c_void_p)(lambda _: time.perf_counter()))
            o["clock"] = C.cast(self.keep[-1], C.c_void_p)
        for name in ("arch", "sparsity"):
            if name in o:
                o[name] = self.const["QSAE_TRAIN_" + o[name]]
        for name, t in (("prefixes", np.uintp), ("prefix_weights", np.float32)):
            if o.get(name) is not None:
                self.keep.append(np.ascontiguousarray(o[name], t))
                if name == "prefixes":
                    o["n_prefixes"] = len(o[name])
                o[name] = self.keep[-1].ctypes.data
        self.options = a.Options(**o)
        self.d_in, self.m = o["d_in"], o["d_sae"]
        self.d_out = o.get("d_out") or self.d_in
        self.one_theta = o["arch"] in (self.const["QSAE_TRAIN_BATCHTOPK"], self.const["QSAE_TRAIN_MATRYOSHKA"])
        self.has_theta = o["arch"] != self.const["QSAE_TRAIN_TOPK"]
        self.size = self.so.qsae_trainer_size(C.byref(self.options), C.byref(self.lib.err))
        self.t = C.c_void_p()
        self.lib.check(self.so.qsae_trainer_create(C.byref(self.options), C.byref(self.t), C.byref(self.lib.err)))

    def close(self):
        if self.t:
            self.so.qsae_trainer_destroy(self.t)
            self.t = C.c_void_p()

    def step(self, x, y=None):
        """One step; the numbers of qsae_train_stats as a dict. x float32, C order."""
        stats = api().Stats()
        for v in (x, y):
            assert v is None or (v.dtype == np.float32 and v.flags.c_contiguous)
        self.lib.check(self.so.qsae_trainer_step(self.t, pointer(x), pointer(y), C.c_size_t(len(x)), C.byref(stats), C.byref(self.lib.err)))
        return {n: list(v) if isinstance(v, C.Array) else v for n, v in ((n, getattr(stats, n)) for n, _ in stats._fields_)}

    def shape(self, part):
        base = part[:-2] if part.endswith(("_M", "_V")) else part
        return {"ENC": (self.m, self.d_in), "DEC": (self.m, self.d_out), "B_DEC": (self.d_out,),
                "THETA": (1,) if self.one_theta else (self.m,)}.get(base, (self.m,))

    def call(self, what, part, a):
        f = getattr(self.so, "qsae_trainer_" + what)
        rows = C.c_size_t(len(a))
        self.lib.check(f(self.t, C.c_int(self.const["QSAE_PART_" + part]), C.c_size_t(0), rows, pointer(a), C.byref(self.lib.err)))

    def get(self, part):
        a = np.full(self.shape(part), np.nan, np.float32)
        self.call("get", part, a)
        return a

    def set(self, part, a):
        self.call("set", part, np.ascontiguousarray(np.broadcast_to(np.asarray(a, np.float32), self.shape(part))))

    def export(self, part):
        a = np.full(self.shape(part), np.nan, np.float32)
        self.call("export", part, a)
        return a

    def export_theta(self):
        """One threshold for each latent, whatever is trained."""
        a = np.full(self.m, np.nan, np.float32)
        self.call("export", "THETA", a)
        return a

    def parts(self):
        """SAELens's names of what is trained."""
        return ["W_enc", "W_dec", "b_enc", "b_dec"] + ["threshold"] * (self.has_theta and not self.one_theta)

    def weights(self, suffix=""):
        """By SAELens's names, [d_sae, d] both matrices."""
        return {n: self.get(NAMES[n] + suffix) for n in self.parts()}

    def set_weights(self, w):
        for n in self.parts():
            self.set(NAMES[n], w[n])


def feature_major(sae):
    """The trained tensors of a SAELens SAE as float arrays, latents first."""
    return {n: (p.detach().T if n == "W_enc" else p.detach()).contiguous().numpy() for n, p in sae.named_parameters()}


@torch.no_grad()
def fill(sae, w, dtype=torch.float32):
    """The weights into a SAELens SAE. SAELens pins thresholds to float32; in float64 they are exact there too."""
    for n, p in sae.named_parameters():
        p.data = torch.tensor(w[n].T if n == "W_enc" else w[n], dtype=dtype).contiguous()
    return sae


def sae_of(arch, d, m, dtype="float32", **cfg):
    """SAELens's training SAE of an architecture."""
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    sae, config = {"JUMPRELU": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig), "TOPK": (TopKTrainingSAE, TopKTrainingSAEConfig),
                   "BATCHTOPK": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
                   "MATRYOSHKA": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig)}[arch]
    return sae(config(d_in=d, d_sae=m, dtype=dtype, device="cpu", **cfg))


def saelens_trainer(sae, batch, steps, lr, warm_up=0, decay=0, betas=(0.9, 0.999), window=1000):
    """SAELens's own SAETrainer; its step() is what fit() calls."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer
    cfg = SAETrainerConfig(total_training_samples=steps * batch, train_batch_size_samples=batch, lr=lr, lr_warm_up_steps=warm_up, lr_decay_steps=decay,
                           adam_beta1=betas[0], adam_beta2=betas[1], dead_feature_window=window)
    cfg.lr_end = cfg.lr_end if cfg.lr_end is not None else lr / 10  # as its runner sets it; a constant rate does not read it
    return SAETrainer(cfg, sae, data_provider=iter(()))


class Dictionary:
    """Rows made of known directions: 3 times overcomplete, frequencies by a power law, plus a mean and noise.
    Scaled so that the mean norm of a row is sqrt(d)."""

    def __init__(self, d, atoms=None, active=12.0, noise=0.05, power=0.7, seed=0):
        g = np.random.default_rng(seed)
        self.d, self.n = d, atoms or 3 * d
        a = g.standard_normal((self.n, d))
        self.atoms = (a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32)
        p = np.arange(1, self.n + 1.0) ** -power
        for _ in range(50):  # no atom more often than half the time, `active` of them in a row
            p = np.minimum(p * active / p.sum(), 0.5)
        self.p, self.mean, self.noise, self.scale = p, 0.3 * g.standard_normal(d), noise, 1.0
        self.scale = np.sqrt(d) / np.linalg.norm(self.rows(4096, 10**9), axis=1).mean()

    def rows(self, n, seed):
        g = np.random.default_rng((seed, 1))
        on = (g.random((n, self.n), dtype=np.float32) < self.p).astype(np.float32)
        f = on * (1 + 0.3 * np.abs(g.standard_normal((n, self.n), dtype=np.float32)))
        x = f @ self.atoms + self.mean + self.noise * g.standard_normal((n, self.d), dtype=np.float32)
        return np.ascontiguousarray(x * self.scale, np.float32)

    def recovered(self, w_dec, least=0.9):
        """The mean over atoms of the largest cosine with a decoder row, and the share of atoms above `least`."""
        norm = np.linalg.norm(w_dec, axis=1, keepdims=True)
        c = (self.atoms @ (w_dec / np.maximum(norm, 1e-20)).T).max(axis=1)
        return float(c.mean()), float((c > least).mean())
