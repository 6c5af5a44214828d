"""Random sparse autoencoders made, and saved, by SAELens' own classes.

make(spec, x, folder) builds one for activations x [tokens, width] with a sensible number of active features,
and puts every threshold into a gap of the pre-activations of x, so that no feature is on the edge: what then
differs between two right programs is a mistake and not rounding.
"""
import copy, pathlib, warnings
from dataclasses import dataclass, field

import numpy as np, torch
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import (JumpReLUSAE, JumpReLUSAEConfig, JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig)
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.transcoder import (JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig, JumpReLUTranscoder, JumpReLUTranscoderConfig,
                                      SkipTranscoder, SkipTranscoderConfig, Transcoder, TranscoderConfig)

warnings.filterwarnings("ignore")

CLASSES = {
    "standard": (StandardSAE, StandardSAEConfig), "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig),
    "topk": (TopKSAE, TopKSAEConfig), "gated": (GatedSAE, GatedSAEConfig),
    "transcoder": (Transcoder, TranscoderConfig), "skip_transcoder": (SkipTranscoder, SkipTranscoderConfig),
    "jumprelu_transcoder": (JumpReLUTranscoder, JumpReLUTranscoderConfig),
    "jumprelu_skip_transcoder": (JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig),
    "jumprelu_trained": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    "topk_trained": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk_trained": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
}
# our sites by the hook names that SAELens files carry
HOOKS = {"resid_pre": "hook_resid_pre", "attn_z": "attn.hook_z", "attn_out": "hook_attn_out", "resid_mid": "hook_resid_mid",
         "mlp_input": "mlp.hook_in", "mlp_out": "hook_mlp_out", "resid_post": "hook_resid_post"}


@dataclass
class Spec:
    name: str
    arch: str
    site: str = "resid_post"
    layer: int = 1
    d_sae: int = 777
    sub: bool = False            # apply_b_dec_to_input
    norm: str = "none"           # normalize_activations
    l0: float = 20
    k: int = 20
    rescale: bool = False        # rescale_acts_by_decoder_norm
    dtype: str = "float32"
    negative: bool = False       # some thresholds below zero: SAELens' JumpReLU still gives no negative feature
    quick: bool = False
    seed: int = field(default=0)


SPECS = [
    Spec("standard", "standard", sub=True, quick=True),
    Spec("standard_nosub", "standard", "resid_pre", norm="layer_norm"),
    Spec("standard_const", "standard", "resid_mid", sub=True, norm="constant_norm_rescale", d_sae=1000),
    Spec("jumprelu", "jumprelu", "resid_mid", 2, quick=True),
    Spec("jumprelu_sub", "jumprelu", "mlp_out", sub=True, negative=True, d_sae=513),
    Spec("jumprelu_const", "jumprelu", "resid_pre", 0, norm="constant_norm_rescale"),
    Spec("jumprelu_ln", "jumprelu", "attn_out", sub=True, norm="layer_norm"),
    Spec("jumprelu_bf16", "jumprelu", dtype="bfloat16", sub=True),
    Spec("jumprelu_f16", "jumprelu", "mlp_input", dtype="float16"),
    Spec("jumprelu_trained", "jumprelu_trained", dtype="bfloat16"),
    Spec("topk", "topk", k=20, sub=True, quick=True),
    Spec("topk_sparse", "topk", "mlp_out", 0, k=420),            # more than are positive
    Spec("topk_rescale", "topk", "resid_mid", k=17, rescale=True, sub=True),
    Spec("topk_const", "topk", k=33, norm="constant_norm_rescale", rescale=True),
    Spec("topk_trained", "topk_trained", k=25, rescale=True, sub=True),
    Spec("gated", "gated", sub=True, quick=True),
    Spec("gated_ln", "gated", "resid_pre", norm="layer_norm"),
    Spec("batchtopk", "batchtopk_trained", sub=True, quick=True),
    Spec("batchtopk_rescale", "batchtopk_trained", "resid_mid", rescale=True, d_sae=600),
    Spec("hook_z", "jumprelu", "attn_z", 1, quick=True),
    Spec("hook_z_topk", "topk", "attn_z", 2, k=12, sub=True),
    Spec("transcoder", "transcoder", "mlp_input", quick=True),
    Spec("skip_transcoder", "skip_transcoder", "mlp_input", 2),
    Spec("jumprelu_transcoder", "jumprelu_transcoder", "mlp_input", 0),
    Spec("jumprelu_skip", "jumprelu_skip_transcoder", "mlp_input", 1),
]
for i, s in enumerate(SPECS):
    s.seed = 2000 + i


def gap(column, at, reach=8):
    """A value in the widest gap of the sorted column within reach entries of rank `at`."""
    z = np.sort(column)
    lo, hi = max(0, at - reach), min(len(z) - 1, at + reach)
    i = lo + int(np.argmax(np.diff(z[lo:hi + 1])))
    return (z[i] + z[i + 1]) / 2


def gaps(z, l0, rng):
    """One value per feature, exceeded by about l0 features per token, some features much rarer than others."""
    n, f = z.shape
    rate = np.clip(l0 / f * rng.exponential(1.0, f), 1.5 / n, 0.5)
    return np.array([gap(z[:, i], int(n * (1 - rate[i]))) for i in range(f)])


def shaped(sae, x):
    """Activations as sae takes them: hook_z SAEs want the heads apart."""
    x = torch.as_tensor(np.asarray(x))
    return x.reshape(len(x), 2, -1) if sae.cfg.reshape_activations == "hook_z" else x


DOUBLES = {}


def double(sae):
    """The same SAE in float64."""
    if sae.dtype == torch.float64:
        return sae
    if id(sae) not in DOUBLES or DOUBLES[id(sae)][0] is not sae:
        d = copy.deepcopy(sae).to(dtype=torch.float64)
        if d.cfg.reshape_activations == "hook_z":
            d.turn_on_forward_pass_hook_z_reshaping()  # the copied closure still speaks to sae
        DOUBLES[id(sae)] = (sae, d)                    # holds sae, so that its id stays its own
    return DOUBLES[id(sae)][1]


@torch.no_grad()
def pre(sae, x):
    """Encoder products without a bias, float64, in SAELens' own input processing."""
    d = copy.deepcopy(sae).to(dtype=torch.float64)  # sae is still being made
    return (d.process_sae_in(shaped(sae, x).double()) @ d.W_enc).numpy()


@torch.no_grad()
def encode(sae, x):
    return sae.encode(shaped(sae, x)).to_dense().numpy()


@torch.no_grad()
def make(s, x, folder, d_out=None):
    g = torch.Generator().manual_seed(s.seed)
    rng = np.random.default_rng(s.seed)
    d, f = x.shape[1], s.d_sae  # a transcoder writes d_out wide rows
    trained, transcoder = s.arch.endswith("_trained"), "transcoder" in s.arch
    d_out = d_out if transcoder and d_out else d
    meta = SAEMetadata(model_name="random-qwen3", hook_name=f"blocks.{s.layer}.{HOOKS[s.site]}", prepend_bos=False)
    if transcoder:
        meta.hook_name_out = f"blocks.{s.layer}.{HOOKS['mlp_out']}"
    kw = dict(d_in=d, d_sae=f, dtype=s.dtype, apply_b_dec_to_input=s.sub, normalize_activations=s.norm, metadata=meta)
    if s.site == "attn_z":
        kw["reshape_activations"] = "hook_z"
    if "topk" in s.arch:
        kw.update(k=s.k, rescale_acts_by_decoder_norm=s.rescale)
    if transcoder:
        kw["d_out"] = d_out
    cls, cfg = CLASSES[s.arch]
    sae = cls(cfg(**kw))

    def put(name, value):
        p = getattr(sae, name)
        p.data = torch.as_tensor(np.asarray(value)).reshape(p.shape).to(p.dtype).contiguous()

    length = 0.5 + torch.rand(f, generator=g)                     # decoder norms that are not 1
    dec = torch.nn.functional.normalize(torch.randn(f, d_out, generator=g), dim=-1) * length[:, None]
    enc = torch.nn.functional.normalize(torch.randn(f, d, generator=g), dim=-1)
    if not transcoder:
        enc = enc * 0.3 + dec / length[:, None]
    put("W_dec", dec)
    put("W_enc", enc.T)
    scale = {"none": x.std(), "layer_norm": 1.0, "constant_norm_rescale": 1.0}[s.norm]
    put("b_dec", 0.3 * scale * torch.randn(d_out if transcoder else d, generator=g))
    if transcoder and "skip" in s.arch:
        put("W_skip", torch.randn(d_out, d, generator=g) * d ** -0.5)
    z = pre(sae, x)
    if s.rescale:
        z = z * sae.W_dec.double().norm(dim=-1).numpy()
    spread = 0.5 * z.std()
    if s.arch == "gated":
        put("b_gate", -gaps(z, s.l0, rng))
        put("r_mag", 0.3 * torch.randn(f, generator=g))
        put("b_mag", np.zeros(f))
        m = z * np.exp(sae.r_mag.double().numpy())
        # a few gated-on features have a negative magnitude
        put("b_mag", [-gap(m[:, i], int(len(m) * rng.uniform(0.5, 0.98))) for i in range(f)])
    elif "topk" in s.arch:
        put("b_enc", spread * torch.randn(f, generator=g))
        if "batch" in s.arch:
            z = z + sae.b_enc.double().numpy() * (sae.W_dec.double().norm(dim=-1).numpy() if s.rescale else 1)
            sae.topk_threshold = torch.tensor(gap(z.reshape(-1), z.size - int(s.l0 * len(z)), int(0.1 * s.l0 * len(z))), dtype=torch.double)
    elif "jumprelu" in s.arch:
        put("b_enc", spread * torch.randn(f, generator=g))
        theta = gaps(z + sae.b_enc.double().numpy(), s.l0, np.random.default_rng(s.seed))
        # no threshold below zero, unless asked for: those go up together with their bias
        put("b_enc", sae.b_enc.double().numpy() + np.maximum(0.1 * spread - theta, 0))
        theta = gaps(z + sae.b_enc.double().numpy(), s.l0, np.random.default_rng(s.seed))
        if s.negative:
            # gaps at zero instead for a few features, whose threshold is then set below zero
            b = sae.b_enc.double().numpy()
            b[::50] = -gaps(z[:, ::50], s.l0, rng)
            put("b_enc", b)
            theta[::50] = -0.7
        put("threshold", theta)
    else:
        put("b_enc", -gaps(z, s.l0, rng))
    folder = pathlib.Path(folder)
    for old in folder.glob("*") if folder.exists() else ():
        old.unlink()
    (sae.save_inference_model if trained else sae.save_model)(folder)
    return folder


def load(folder):
    """As SAELens loads it, in float32."""
    return SAE.load_from_disk(folder, dtype="float32")


def options(name):
    """What `qsae convert` must be told of this SAE: some thresholds of jumprelu_sub are below 0 on purpose."""
    return ("--negative-thresholds", "zero") if name == "jumprelu_sub" else ()
