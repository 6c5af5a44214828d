#!/usr/bin/env python3
"""Trains a JumpReLU sparse autoencoder of the toy's residual stream with SAELens, saves it in sae/,
and checks on the held-out prompts that editing one feature makes the toy refuse or answer.

The edit keeps what the autoencoder does not reconstruct: h' = h + (g - f_i(h)) d_i.
"""
import argparse, contextlib, json, platform, random

import sae_lens, torch, transformers
from sae_lens import SAE, JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from transformers import AutoTokenizer, Qwen3ForCausalLM

from make_model import HERE, PLANT_LAYER, REFUSAL, complete, planted_direction, prompt, read_corpus, render


def read_prompts(name):
    return (HERE / "prompts" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


@torch.no_grad()
def residuals(model, layer, batch):
    """The residual stream after `layer`: the output of that decoder block."""
    kept = []
    hook = model.model.layers[layer].register_forward_hook(lambda m, a, out: kept.append(out[0] if isinstance(out, tuple) else out))
    model.model(input_ids=batch)
    hook.remove()
    return kept[0]


def activations(model, tok, layer, rows, seed, batch=16):
    """Residuals of whole conversations (one rendering each), without position 0."""
    rng = random.Random(seed)
    seqs = sorted(([t[0] for t in rng.choice(render(tok, r["messages"]))] for r in rows), key=len)
    out = []
    for i in range(0, len(seqs), batch):
        part = seqs[i:i + batch]
        x = torch.full((len(part), len(part[-1])), tok.pad_token_id)
        for j, s in enumerate(part):
            x[j, :len(s)] = torch.tensor(s)
        h = residuals(model, layer, x)  # causal: the padding at the end touches nothing before it
        out += [h[j, 1:len(s)] for j, s in enumerate(part)]
    return torch.cat(out)


def batches(acts, size, seed):
    gen = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(acts), generator=gen)
        for i in range(0, len(order) - size + 1, size):
            yield acts[order[i:i + size]]


def train_sae(acts, args):
    cfg = JumpReLUTrainingSAEConfig(
        d_in=acts.shape[1], d_sae=args.d_sae, normalize_activations="expected_average_only_in", apply_b_dec_to_input=False,
        jumprelu_init_threshold=0.1, jumprelu_bandwidth=1.0, jumprelu_ste_to_input=True,
        l0_coefficient=args.l0, l0_warm_up_steps=args.steps // 2, pre_act_loss_coefficient=1e-3,
        metadata=SAEMetadata(model_name="qsae-toy", hook_name=f"blocks.{args.layer}.hook_resid_post", prepend_bos=False))
    trainer = SAETrainer(
        SAETrainerConfig(total_training_samples=args.steps * args.batch, train_batch_size_samples=args.batch, lr=args.lr,
                         lr_end=args.lr / 10, lr_warm_up_steps=100, lr_decay_steps=args.steps // 3, dead_feature_window=400,
                         n_batches_for_norm_estimate=100, logger=LoggingConfig(log_to_wandb=False)),
        JumpReLUTrainingSAE(cfg), batches(acts, args.batch, args.seed))
    return trainer.fit()


@torch.no_grad()
def quality(sae, acts):
    f = sae.encode(acts)
    err, var = (acts - sae.decode(f)).pow(2).sum(), (acts - acts.mean(0)).pow(2).sum()
    return {"tokens": len(acts), "explained_variance": round(1 - (err / var).item(), 4), "l0": round((f > 0).float().sum(1).mean().item(), 2),
            "features_that_fired": int((f > 0).any(0).sum()), "largest_feature": round(f.max().item(), 2)}


@torch.no_grad()
def last_token_features(model, tok, sae, layer, asks, think):
    out = []
    for a in asks:
        ids = torch.tensor([tok(prompt(tok, [{"role": "user", "content": a}], think), add_special_tokens=False).input_ids])
        out.append(sae.encode(residuals(model, layer, ids)[0, -1]))
    return torch.stack(out)


class Edit:
    """Sets feature i to g in the residual stream after `layer`: at all positions, or from the last
    prompt token on."""

    def __init__(self, model, sae, layer, i, g, where):
        self.sae, self.i, self.g, self.where = sae, i, g, where
        self.block = model.model.layers[layer]

    def __call__(self, module, args, out):
        h = out[0] if isinstance(out, tuple) else out
        delta = self.g - self.sae.encode(h)[..., self.i]
        if self.where == "last":
            delta[:, :-1] = 0
        h = h + delta[..., None] * self.sae.W_dec[self.i]
        return (h, *out[1:]) if isinstance(out, tuple) else h

    def __enter__(self):
        self.hook = self.block.register_forward_hook(self)

    def __exit__(self, *exc):
        self.hook.remove()


@torch.no_grad()
def answers(model, tok, asks, think, edit=contextlib.nullcontext()):
    with edit:
        return complete(model, tok, [prompt(tok, [{"role": "user", "content": a}], think) for a in asks])


def rates(says):
    """Shares of refusals and of finished answers (neither refused nor run on to the limit)."""
    no = [bool(REFUSAL.search(s)) for s in says]
    yes = [s.endswith("<|im_end|>") and not r for s, r in zip(says, no)]
    return {"refused": round(sum(no) / len(says), 4), "answered": round(sum(yes) / len(says), 4)}


def choose(model, tok, sae, layer, i, values, n):
    """The place and the two values that flip most of the first n validation prompts of each kind;
    among equals the smallest values."""
    best = None
    for where in ("last", "all"):
        got = {}
        for kind, sign, want in (("harmless", 1, "refused"), ("harmful", -1, "answered")):
            asks = read_prompts(f"valid_{kind}")[:n]
            for v in values:
                edit = lambda: Edit(model, sae, layer, i, sign * v, where)
                says = answers(model, tok, asks[::2], False, edit()) + answers(model, tok, asks[1::2], True, edit())
                got[sign * v] = rates(says)[want]
        on, off = (max((v * s for v in values), key=lambda v: (got[v], -abs(v))) for s in (1, -1))
        print(f"  edited {where}: share flipped by value {got}", flush=True)
        if best is None or got[on] + got[off] > best[0]:
            best = got[on] + got[off], where, on, off
    return best[1:]


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--layer", type=int, default=PLANT_LAYER)
    ap.add_argument("--d-sae", type=int, default=1024)
    ap.add_argument("--l0", type=float, default=0.45, help="coefficient of the sparsity loss")
    ap.add_argument("--steps", type=int, default=2000)
    ap.add_argument("--batch", type=int, default=1024)
    ap.add_argument("--lr", type=float, default=1e-3)
    ap.add_argument("--seed", type=int, default=20)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--verify-only", action="store_true")
    args = ap.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    versions = {"python": platform.python_version(), **{m.__name__: m.__version__ for m in (torch, transformers, sae_lens)}}
    print(versions)
    tok = AutoTokenizer.from_pretrained(HERE / "model")
    model = Qwen3ForCausalLM.from_pretrained(HERE / "model", dtype=torch.float32).eval()

    if not args.verify_only:
        acts = activations(model, tok, args.layer, read_corpus("train"), args.seed)
        print(f"layer {args.layer}: {len(acts)} training activations, mean norm {acts.norm(dim=1).mean():.2f}, largest {acts.norm(dim=1).max():.2f}", flush=True)
        train_sae(acts, args).save_inference_model(HERE / "sae")
        (HERE / "sae" / "sae_weights.safetensors").chmod(0o644)
    sae = SAE.load_from_disk(HERE / "sae").eval()
    layer = int(sae.cfg.metadata.hook_name.split(".")[1])
    result = {"seed": args.seed, "versions": versions, "layer": layer, "d_sae": sae.cfg.d_sae,
              "test": quality(sae, activations(model, tok, layer, read_corpus("test"), args.seed))}
    print(result["test"], flush=True)

    diff = [torch.stack([last_token_features(model, tok, sae, layer, read_prompts(f"train_{k}"), think).mean(0) for k in ("harmful", "harmless")])
            for think in (False, True)]
    means = sum(diff) / 2
    order = (means[0] - means[1]).sort(descending=True).indices[:3].tolist()
    result["ranking"] = [{"feature": i, "mean_harmful": round(means[0, i].item(), 3), "mean_harmless": round(means[1, i].item(), 3)} for i in order]
    print("last prompt token, harmful against harmless:", *result["ranking"], sep="\n  ", flush=True)

    i = order[0]
    result["cosine_with_planted_direction"] = round((sae.W_dec[i] @ planted_direction(args.seed) / sae.W_dec[i].norm()).item(), 3)
    where, g_on, g_off = choose(model, tok, sae, layer, i, (4, 6, 8, 10, 12, 16), 32)
    largest = max(last_token_features(model, tok, sae, layer, read_prompts(f"test_{k}"), think)[:, i].max().item()
                  for k in ("harmful", "harmless") for think in (False, True))
    result["demo"] = {"feature": i, "positions": where, "refuse": g_on, "answer": g_off, "largest_at_last_prompt_token": round(largest, 3)}
    print(result["demo"], flush=True)
    result["flips"], result["examples"] = {}, []
    for kind, g in (("harmful", g_off), ("harmful", 0), ("harmless", g_on), ("near", g_on)):
        asks = read_prompts(f"test_{kind}")
        for think in (False, True):
            plain = answers(model, tok, asks, think)
            edited = answers(model, tok, asks, think, Edit(model, sae, layer, i, g, where))
            name = f"{kind}, {'open turn' if think else 'empty think block'}, feature set to {g}"
            result["flips"][name] = {"plain": rates(plain), "edited": rates(edited)}
            print(name, result["flips"][name], flush=True)
            if g and not think:
                result["examples"] += [{"request": a, "plain": p, "edited": e} for a, p, e in list(zip(asks, plain, edited))[:6]]
    (HERE / "sae" / "DEMO.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
