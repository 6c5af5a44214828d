"""Runs the qsae program and counts checks; shared by the scripts here."""
import argparse, os, pathlib, platform, subprocess, sys

import numpy as np
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "reference"
TOY = ROOT / "examples" / "toy" / "model"
SITES = ["resid_pre", "attn_z", "attn_out", "resid_mid", "mlp_input", "mlp_out", "resid_post"]
TIMEOUT = 300


class Refused(Exception):
    """The program said no: exit code not 0. text is what it said."""

    def __init__(self, code, text):
        super().__init__(f"exit {code}: {text.strip()}")
        self.code, self.text = code, text


class Checks:
    def __init__(self):
        self.passed = self.failed = 0

    def add(self, ok, what=""):
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            print("FAILED:", what, flush=True)
        return ok

    def attempt(self, what, call, *args, **kwargs):
        """The call's result, or None and a failure if the program refuses."""
        try:
            return call(*args, **kwargs)
        except (Refused, subprocess.TimeoutExpired) as e:
            self.add(False, f"{what}: {e}")

    def done(self):
        if not self.passed + self.failed:
            self.failed = 1  # a run that checked nothing has not passed
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        sys.exit(1 if self.failed else 0)


def options(*more):
    p = argparse.ArgumentParser()
    p.add_argument("--qsae", default=str(ROOT / "build" / "qsae"))
    p.add_argument("--only", help="only what has this in its name")
    p.add_argument("--quick", action="store_true")
    for name, kw in more:
        p.add_argument(name, **kw)
    return p.parse_args()


def run(qsae, *args, text=True):
    r = subprocess.run([qsae, *map(str, args)], capture_output=True, timeout=TIMEOUT)
    if r.returncode != 0:
        raise Refused(r.returncode, r.stderr.decode("utf-8", "replace"))
    return r.stdout.decode("utf-8") if text else r.stdout


def convert(qsae, source, out, *more):
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    run(qsae, "convert", source, "-o", out, *more)
    return out


def capture(qsae, model, out, ids=None, text=None, sites=SITES, logits=True, more=()):
    """The captured tensors; file out stays."""
    args = ["capture", model] + (["--tokens", ",".join(map(str, ids))] if text is None else ["--text", text])
    for s in sites:
        args += ["--site", s, "--layer", "all"]
    out.unlink(missing_ok=True)
    run(qsae, *args, *(["--logits"] if logits else []), *more, "-o", out)
    return load_file(out)


def machine_isas():
    """The instruction sets that this machine has, by its own word, so that a program that does not find
    one is caught."""
    if platform.machine() in ("aarch64", "arm64"):
        return ["scalar", "neon"]
    flags = set()
    if os.path.exists("/proc/cpuinfo"):
        for line in open("/proc/cpuinfo"):
            if line.startswith("flags"):
                flags = set(line.split())
                break
    return ["scalar"] + ["avx2"] * ({"avx2", "fma"} <= flags) + ["avx512"] * ("avx512f" in flags)


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def toy_tokens(n):
    """Ids of ordinary toy text: its first test conversations, chat template and all."""
    import json
    from transformers import AutoTokenizer
    tok = AutoTokenizer.from_pretrained(TOY)
    ids = []
    for line in (TOY.parent / "corpus" / "test.jsonl").read_text(encoding="utf-8").splitlines():
        ids += tok(tok.apply_chat_template(json.loads(line)["messages"], tokenize=False), add_special_tokens=False).input_ids
        if len(ids) >= n:
            return ids[:n]
    raise SystemExit("the toy's corpus is too short")
