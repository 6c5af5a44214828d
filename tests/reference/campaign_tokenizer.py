#!/usr/bin/env python3
"""The long comparison of the tokenizer with Hugging Face's `tokenizers`: every id of every text. `make campaign-tokenizer`.

    campaign_tokenizer.py [--mb 220] [--random 10000000] [--workers 2] [--seed 1] [--only PART] [ROOT ...]

Texts: the files under build/campaign/deb (campaign_fetch.sh), the Python installation that runs this, and any ROOT given; words made
of the letters and marks of every script; all code points one by one and in random pairs; random strings over an alphabet of
hard cases. Each text is encoded with added tokens recognised and without; without, the decoded ids must be its NFC, and its
tokens' bytes must stream without half a character. Bytes that are no UTF-8 are read as Python's errors="replace" reads them.
Differences go to build/campaign/differences.jsonl. Ends with "N passed, N failed"; a unit is a text.
"""
import argparse, collections, json, multiprocessing, os, pathlib, random, subprocess, sys, sysconfig, time, unicodedata

from tokenizers import Tokenizer

import lib
from tool import ROOT

OUT = ROOT / "build" / "campaign"
REAL = pathlib.Path(os.environ.get("QWEN3_TOKENIZER") or ROOT.parent / "shared" / "qwen3-tokenizer")

KINDS = {
    ".c": "C", ".h": "C header", ".cpp": "C++", ".cc": "C++", ".hpp": "C++", ".hxx": "C++", ".tcc": "C++", ".py": "Python", ".pyx": "Cython", ".go": "Go", ".rs": "Rust",
    ".js": "JavaScript", ".mjs": "JavaScript", ".ts": "TypeScript", ".java": "Java", ".pl": "Perl", ".pm": "Perl", ".rb": "Ruby", ".php": "PHP", ".lua": "Lua",
    ".el": "Emacs Lisp", ".lisp": "Common Lisp", ".scm": "Scheme", ".erl": "Erlang", ".hrl": "Erlang", ".ex": "Elixir", ".exs": "Elixir",
    ".adb": "Ada", ".ads": "Ada", ".pas": "Pascal", ".pp": "Pascal", ".inc": "Pascal", ".d": "D", ".f": "Fortran", ".f90": "Fortran", ".r": "R", ".R": "R",
    ".m": "Octave", ".jl": "Julia", ".tcl": "Tcl", ".ml": "OCaml", ".mli": "OCaml", ".hs": "Haskell", ".vim": "Vim script", ".sh": "shell", ".nim": "Nim",
    ".v": "Verilog", ".vhdl": "VHDL", ".vhd": "VHDL", ".fs": "Forth", ".4th": "Forth", ".pro": "Prolog", ".i": "Yorick", ".cr": "Crystal", ".cmake": "CMake", ".mac": "Maxima",
    ".cu": "CUDA", ".cuh": "CUDA", ".css": "CSS", ".html": "HTML", ".xml": "XML", ".json": "JSON", ".toml": "TOML", ".yaml": "YAML", ".yml": "YAML", ".md": "Markdown",
    ".tex": "TeX", ".sql": "SQL", ".awk": "awk", ".s": "assembly", ".S": "assembly", ".asm": "assembly", ".pyi": "Python stubs", ".rst": "reStructuredText", ".mk": "make",
    ".po": "gettext", ".dic": "dictionary", ".aff": "dictionary", ".cwl": "compressed", ".txt": "text", "": "text",
}
SKIP = {".gz", ".so", ".a", ".o", ".png", ".gif", ".jpg", ".pdf", ".pyc", ".zip", ".xz", ".bz2", ".cwl", ".mo", ".elc", ".dat", ".ttf", ".woff2", ".beam", ".whl", ".bin", ".npy", ".npz", ".gmo"}
MAX_TEXT = 1 << 17

HARD = (
    ["'s", "'S", "'\u017f", "'t", "'re", "'RE", "'Ve", "'m", "'ll", "'LL", "'d", "'", "\u2019s", "''", "\u017f", "\u212a", "\u0130", "\u0131", "\u00df", "\u1e9e"]
    + [" ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", "\u000b", "\u000c", "\u0085", "\u00a0", "\u1680", "\u180e", "\u2000", "\u2003", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff", "\u2060"]
    + list("abzAZ019._-!?,;:()[]{}<>/\\|@#$%^&*+=~`\"") + ["the", " the", "Hello", " world", "12", "345", "0x1F", "1e-5", "...", "--", "==", "!=", "://", "();\n", "{\n", "}\n\n"]
    + ["\u0660", "\u0967", "\u0e51", "\u00b2", "\u00bd", "\u2167", "\u2460", "\u3007", "\uff11", "\U0001d7d8", "\U00010107", "\u4e00", "\u4e8c", "\u4f60\u597d", "\u6587", "\u3042", "\u30a2", "\u30fc", "\uff71", "\uff9e", "\uac00", "\uac01", "\ud55c"]
    + ["\u1100", "\u1161", "\u11a8", "\u1112", "\u1175", "\u11c2", "\u1113", "\u11a7", "\ua960", "\ud7b0", "\u302e", "\u3164", "\u115f"]
    + ["\u0300", "\u0301", "\u0302", "\u0303", "\u0304", "\u0306", "\u0307", "\u0308", "\u030a", "\u030c", "\u0315", "\u031b", "\u0323", "\u0327", "\u0328", "\u032d", "\u0331", "\u0338", "\u0340", "\u0341", "\u0343", "\u0344", "\u0345", "\u034f", "\u035c", "\u0360"]
    + ["e", "o", "u", "O", "U", "A", "E", "i", "n", "N", "c", "C", "\u03b1", "\u03b9", "\u0399", "\u03c9", "\u00e9", "\u00c5", "\u00e5", "\u1ea4", "\u1e69", "\u01d5", "\u0915", "\u093c", "\u0928", "\u0930", "\u0958", "\u094d", "\u093f", "\u0903", "\u0901"]
    + ["\u09c7", "\u09be", "\u09d7", "\u0b47", "\u0b56", "\u0b3e", "\u0bc6", "\u0bbe", "\u0bd7", "\u0c46", "\u0c56", "\u0cbf", "\u0cd5", "\u0cc6", "\u0cc2", "\u0d46", "\u0d3e", "\u0dd9", "\u0dca", "\u0dcf", "\u1025", "\u102e", "\u1b05", "\u1b35"]
    + ["\u0e01", "\u0e33", "\u0e34", "\u0e48", "\u0eb3", "\u0ec8", "\u0f40", "\u0f71", "\u0f72", "\u0f73", "\u0f75", "\u0f76", "\u0f77", "\u0f81", "\u0f43", "\u0fb7", "\u05d0", "\u05b8", "\u05bc", "\ufb2a", "\ufb1d", "\u05c1", "\u0627", "\u0653", "\u0654", "\u0655", "\u0644", "\u064e", "\u0651", "\u06d5", "\u0640"]
    + ["\u212b", "\u2126", "\u2000", "\u2329", "\ufb01", "\u1e9b", "\u0385", "\u1fbe", "\u1ffd", "\u037e", "\u0387", "\u2adc", "\u226e", "\u2260", "\u3099", "\u309a", "\u304b", "\u30db", "\u304c", "\uf900", "\ufa0e", "\U0002f800", "\U0002f9ff"]
    + ["\U00011099", "\U000110ba", "\U00011131", "\U00011127", "\U00011347", "\U0001133e", "\U000114b9", "\U000114ba", "\U000115b8", "\U000115af", "\U00011935", "\U00011930", "\U000105d2", "\U00000307", "\U00016120", "\U0001611e", "\U0001d157", "\U0001d165", "\U0001d15e", "\U0001e94a", "\U0001e8d0"]
    + ["\U0001f600", "\U0001f468", "\u200d", "\ufe0f", "\ufe0e", "\U0001f3fd", "\U0001f1e9", "\U0001f1ea", "\u2764", "\u20e3", "\U000e0067", "\U000e007f", "\u00ad", "\u061c", "\u202e", "\u2066", "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\U000f0000", "\ue000", "\ud7ff", "\u0000", "\u0001", "\u007f", "\u0080", "\u0378", "\U00030000"]
    + ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_response>", "<|", "|>", "<|im_", "<|im_start", "<think", "<|fim_prefix|>", "<|vision_pad|>", "<|im_start|", "<<|im_end|>"]
)


class Both:
    """The reference and the library, with the same interface for a list of texts."""

    def __init__(self, model):
        data = json.loads((REAL / "tokenizer.json").read_text(encoding="utf-8"))
        self.special = Tokenizer.from_str(json.dumps(data))
        data["added_tokens"] = []
        self.plain = Tokenizer.from_str(json.dumps(data))
        self.lib = lib.Library()
        self.model = self.lib.open(model)
        self.texts, self.seen = {}, collections.Counter()

    def token(self, i):
        if i not in self.texts:
            self.texts[i] = self.lib.token_text(self.model, i)
        return self.texts[i]

    def decoded(self, ids):
        return b"".join(map(self.token, ids))

    def streams(self, ids):
        """Token by token, only whole characters come out."""
        held, done = b"", []
        for i in ids:
            held += self.token(i)
            n = self.lib.so.qsae_utf8_complete(held, len(held)) if held else 0
            done.append(held[:n].decode())
            held = held[n:]
        return "".join(done) + held.decode()

    def check(self, raw, stream=False):
        """raw: bytes of texts. Yields (text, what) of each difference."""
        texts = [r.decode("utf-8", "replace") for r in raw]
        special = self.special.encode_batch_fast(texts, add_special_tokens=False)
        plain = self.plain.encode_batch_fast(texts, add_special_tokens=False)
        for r, t, s, p in zip(raw, texts, special, plain):
            got = self.lib.tokenize(self.model, r, True)
            if got != s.ids:
                yield t, "special"
            if p.ids != s.ids or "<" in t:
                got = self.lib.tokenize(self.model, r)
            if got != p.ids:
                yield t, "plain"
            nfc = t if t.isascii() else self.plain.normalizer.normalize_str(t)
            if self.decoded(got) != nfc.encode():
                yield t, "decode"
            if stream and self.streams(got) != nfc:
                yield t, "stream"


# ------------------------------------------------------------------------------------------------ where texts come from

def kind_of(path):
    if path.suffix[1:].isdigit():
        return "manual page"
    if path.name.startswith(("Makefile", "makefile")):
        return "make"
    return None if path.suffix in SKIP else KINDS.get(path.suffix, "other")


def read(path):
    data = path.read_bytes() if path.suffix != ".gz" else __import__("gzip").decompress(path.read_bytes())
    return None if b"\0" in data[:4096] else data


def files(roots, limit, seed):
    """(kind, path) up to `limit` bytes in all, no kind with more than its share, in an order that the seed gives."""
    found = collections.defaultdict(list)
    for root in roots:
        for at, dirs, names in os.walk(root):
            dirs.sort()
            for name in sorted(names):
                path = pathlib.Path(at) / name
                plain = path.with_suffix("") if path.suffix == ".gz" else path
                kind = kind_of(plain)
                if kind and not path.is_symlink() and path.is_file():
                    found[kind].append(path)
    rng, out, size = random.Random(seed), [], collections.Counter()
    for kind, paths in sorted(found.items()):
        rng.shuffle(paths)
        cap = limit // 3 if kind == "XML" else limit // 20 # the XML is the locale data: text in all languages
        for path in paths:
            if size[kind] < cap:
                size[kind] += min(path.stat().st_size, 4 * MAX_TEXT)
                out.append((kind, path))
    rng.shuffle(out)
    return out


def scripts():
    """Letters and marks by the first word of their names."""
    found = collections.defaultdict(list)
    for c in range(0x80, 0x110000):
        ch = chr(c)
        if unicodedata.category(ch)[0] in "LM":
            found[unicodedata.name(ch, "NONE").split(" ")[0].split("-")[0]].append(ch)
    return {k: v for k, v in found.items() if len(v) >= 8}


def words(rng, letters, n):
    return "".join("".join(rng.choice(letters) for _ in range(rng.randint(1, 9))) + rng.choice([" ", " ", " ", "\n", ", ", ". ", "-", " 7 "]) for _ in range(n))


# ------------------------------------------------------------------------------------------------ the work

def report(both, raw, result, stream=False):
    result["texts"] += len(raw)
    result["bytes"] += sum(map(len, raw))
    for text, what in both.check(raw, stream):
        result["failed"] += 1
        with open(OUT / "differences.jsonl", "a") as f:
            f.write(json.dumps({"what": what, "text": text}) + "\n")


def batches(items, n):
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == n:
            yield batch
            batch = []
    if batch:
        yield batch


def file_texts(paths, result, letters):
    for kind, path in paths:
        try:
            data = read(path)
        except OSError:
            continue
        if not data:
            continue
        for at in range(0, min(len(data), 4 * MAX_TEXT), MAX_TEXT): # cut anywhere, inside a character too
            text = data[at:at + MAX_TEXT]
            result["kinds"][kind] += len(text)
            for ch in set(text.decode("utf-8", "replace")):
                if ord(ch) > 127 and unicodedata.category(ch)[0] == "L":
                    letters[unicodedata.name(ch, "NONE").split(" ")[0].split("-")[0]].add(ch)
            yield text


def random_text(rng):
    if rng.random() < 0.1: # a piece of few members, often repeated
        few = [rng.choice(HARD) for _ in range(rng.randint(1, 3))]
        return "".join(rng.choice(few) for _ in range(rng.randint(1, 30)))
    return "".join(rng.choices(HARD, k=rng.randint(1, 12)))


def work(job):
    worker, workers, args, paths, model = job
    both = Both(model)
    result = {"texts": 0, "bytes": 0, "failed": 0, "kinds": collections.Counter(), "parts": {}}
    letters = collections.defaultdict(set)
    rng = random.Random(args.seed * 1000 + worker)

    def part(name, texts, batch, stream=False):
        if args.only and args.only not in name:
            return
        before, start = dict(result), time.process_time()
        for b in batches(texts, batch):
            report(both, b, result, stream)
        result["parts"][name] = [result["texts"] - before["texts"], result["bytes"] - before["bytes"], result["failed"] - before["failed"]]
        print(f"  worker {worker}: {name}: {result['parts'][name]} (texts, bytes, differences), {time.process_time() - start:.0f} s", flush=True)

    every = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    part("code points", (c.encode() for c in every[worker::workers]), 20000)
    part("pairs", ((rng.choice(every) + rng.choice(every)).encode() for _ in range(args.pairs // workers)), 20000)
    part("code points in words", (f"a{c}b {c}1{c} e{c}\u0301\n{c}".encode() for c in every[worker::workers]), 10000, True)
    named = sorted(scripts().items())
    part(f"words of {len(named)} scripts", (words(rng, v, 400).encode() for _ in range(3) for k, v in named[worker::workers]), 16, True)
    part("random strings", (random_text(rng).encode() for _ in range(args.random // workers)), 20000)
    part("random bytes", (bytes(rng.choices([0x20, 0x61, 0x80, 0xBF, 0xC2, 0xE0, 0xA0, 0xED, 0x9F, 0xF0, 0x90, 0xF4, 0x8F, 0xFF], k=rng.randint(1, 16)))
                          for _ in range(args.random // workers // 50)), 20000)
    part("files", file_texts(paths[worker::workers], result, letters), 16, True)
    result["letters"] = dict(letters)
    return result


def main():
    a = argparse.ArgumentParser()
    a.add_argument("roots", nargs="*", type=pathlib.Path)
    a.add_argument("--qsae", default=str(ROOT / "build" / "qsae"))
    a.add_argument("--only", help="only the parts that have this in their names")
    for name, default in (("mb", 220), ("random", 10_000_000), ("pairs", 2_000_000), ("workers", 2), ("seed", 1)):
        a.add_argument("--" + name, type=int, default=default)
    args = a.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "differences.jsonl").unlink(missing_ok=True)
    model = OUT / "tokenizer.qsae"
    subprocess.run([args.qsae, "convert", str(REAL), "-o", str(model)], check=True, stdout=subprocess.DEVNULL)
    roots = args.roots + [OUT / "deb", pathlib.Path(sysconfig.get_paths()["purelib"]), pathlib.Path(sysconfig.get_paths()["stdlib"])]
    paths = files([r for r in roots if r.exists()], args.mb * 1_000_000, args.seed)
    with multiprocessing.Pool(args.workers) as pool:
        results = pool.map(work, [(i, args.workers, args, paths, model) for i in range(args.workers)])
    kinds, letters = collections.Counter(), collections.defaultdict(set)
    for r in results:
        kinds += r["kinds"]
        for k, v in r["letters"].items():
            letters[k] |= v
    texts, size, failed = (sum(r[k] for r in results) for k in ("texts", "bytes", "failed"))
    print("files, MB by kind: " + ", ".join(f"{k} {v / 1e6:.1f}" for k, v in kinds.most_common()))
    rich = sorted(k for k, v in letters.items() if len(v) >= 20)
    print(f"scripts of which the files have 20 letters or more: {len(rich)}: {' '.join(rich).lower()}")
    print(f"{texts} texts, {size / 1e6:.1f} MB, {sum(kinds.values()) / 1e6:.1f} MB of them from files; {failed} differences")
    print(f"{texts - failed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
