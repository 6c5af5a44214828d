#!/usr/bin/env python3
"""Write the Unicode tables of qsae.c (section "Tokenizer") as C to stdout.

    pip install tokenizers==0.23.3 unicodedata2==16.0.0
    python3 tools/gen_unicode.py > tables.inc      # about 20 s
    python3 tools/gen_unicode.py --check FILE      # exit 1 unless FILE holds them

Source: the reference itself.  The `tokenizers` package (PyPI, 0.23.3) is asked about
every code point, so the tables are what it does and not what a standard says:

  * \\p{L}, \\p{N}, \\s   its regular expression engine Oniguruma:     Unicode 16.0
  * NFC                   its crate unicode-normalization-alignments:  Unicode 9.0
    (compositions younger than 9.0, such as U+11938, are not made; marks assigned since
    count as starters.)

Both are then compared with the Unicode Character Database as packaged in unicodedata2
16.0.0 (PyPI).  Classes must be equal; normalisation may differ only at code points that
unicodedata2 knows and Unicode 9.0 did not have.  Any other difference stops the script.
"""
import sys

import tokenizers
import unicodedata2 as ucd
from tokenizers import Regex, normalizers, pre_tokenizers

# Canonical combining classes of Unicode; one mark of each that every version agrees on.
# The reference shows only their order, which is also all that normalisation uses.
CLASS_MARK = {
    1: 0x334, 7: 0x93C, 8: 0x3099, 9: 0x94D, 10: 0x5B0, 11: 0x5B1, 12: 0x5B2, 13: 0x5B3,
    14: 0x5B4, 15: 0x5B5, 16: 0x5B6, 17: 0x5B7, 18: 0x5B8, 19: 0x5B9, 20: 0x5BB,
    21: 0x5BC, 22: 0x5BD, 23: 0x5BF, 24: 0x5C1, 25: 0x5C2, 26: 0xFB1E, 27: 0x64B,
    28: 0x64C, 29: 0x64D, 30: 0x64E, 31: 0x64F, 32: 0x650, 33: 0x651, 34: 0x652,
    35: 0x670, 36: 0x711, 84: 0xC55, 91: 0xC56, 103: 0xE38, 107: 0xE48, 118: 0xEB8,
    122: 0xEC8, 129: 0xF71, 130: 0xF72, 132: 0xF74, 202: 0x321, 214: 0x1DCE, 216: 0x31B,
    218: 0x302A, 220: 0x316, 222: 0x59A, 224: 0x302E, 226: 0x1D16D, 228: 0x5AE,
    230: 0x300, 232: 0x315, 233: 0x35C, 234: 0x35D, 240: 0x345,
}
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CJK = ((0xF900, 0xFADA), (0x2F800, 0x2FA1E))     # compatibility ideographs: arrays
HANGUL = range(0xAC00, 0xD7A4)                   # done by arithmetic

nfc = normalizers.NFC().normalize_str
nfd = normalizers.NFD().normalize_str


def require(ok, what):
    if not ok:
        sys.exit(f"gen_unicode.py: {what}")


def members(pattern):
    """The code points that the regular expression matches on their own."""
    split = pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str
    return {c for c in CODE_POINTS if not split(chr(c))}


def classes():
    """code point -> 1 letter, 2 number, 3 blank; everything else is absent."""
    sets = members(r"\p{L}"), members(r"\p{N}"), members(r"\s")
    for got, major in zip(sets, "LN"):
        want = {c for c in CODE_POINTS if ucd.category(chr(c))[0] == major}
        require(got == want, f"\\p{{{major}}} is not Unicode {ucd.unidata_version}'s")
    table = {c: i + 1 for i, s in enumerate(sets) for c in s}
    require(len(table) == sum(map(len, sets)), "letters, numbers and blanks overlap")
    return table


def combining():
    """code point -> canonical combining class, where it is not 0.

    "y x" is reordered to "x y" exactly if 0 < class(x) < class(y)."""
    def swaps(y, x):
        return nfd(chr(y) + chr(x)) == chr(x) + chr(y) and x != y

    low, top = CLASS_MARK[1], CLASS_MARK[240]
    table = {}
    for c in CODE_POINTS:
        if len(nfd(chr(c))) != 1:
            continue                              # never seen by the ordering step
        if c in (low, top) or swaps(top, c) or swaps(c, low):
            known = ucd.combining(chr(c))
            require(known in CLASS_MARK, f"U+{c:04X}: unknown class {known}")
            for k, mark in CLASS_MARK.items():
                require(swaps(mark, c) == (known < k), f"U+{c:04X} against class {k}")
                require(swaps(c, mark) == (k < known), f"U+{c:04X} against class {k}")
            table[c] = known
    return table


def decompositions():
    """code point -> one step of its canonical decomposition, (a,) or (a, b)."""
    table = {}
    for c in CODE_POINTS:
        full = nfd(chr(c))
        if full == chr(c) or c in HANGUL:
            continue
        same = nfc(chr(c))
        if len(same) == 1 and same != chr(c):     # a singleton, such as U+212B
            table[c] = (ord(same),)
            continue
        head = nfc(full[:-1])
        if len(head) == 1:
            table[c] = (ord(head), ord(full[-1]))
        else:                                     # its first part is excluded from NFC
            step = [ord(x) for x in ucd.normalize("NFD", chr(c))]
            part = [int(x, 16) for x in ucd.decomposition(chr(c)).split()]
            require(len(part) == 2 and [ord(x) for x in full] == step,
                    f"U+{c:04X}: no pair to decompose into")
            table[c] = tuple(part)
    return table


def compositions(steps):
    """(a, b) -> c for every pair that the reference composes."""
    table = {}
    for c, parts in steps.items():
        if len(parts) == 2 and nfc(chr(parts[0]) + chr(parts[1])) == chr(c):
            require(nfc(chr(c)) == chr(c), f"U+{c:04X} composes but is not stable")
            table[parts] = c
    return table


def check_against_ucd(ccc, steps, pairs):
    """Differences from Unicode 16.0 are allowed only in one direction: 9.0 lacks it."""
    old = set(ccc) | set(steps)
    for c in CODE_POINTS:
        if c in HANGUL:
            continue
        new_ccc, new_dec = ucd.combining(chr(c)), ucd.decomposition(chr(c))
        if new_dec.startswith("<"):
            new_dec = ""
        if c in old:
            require(c in steps or ccc[c] == new_ccc, f"U+{c:04X}: class {new_ccc}")
            want = tuple(int(x, 16) for x in new_dec.split())
            require(steps.get(c, ()) == want, f"U+{c:04X}: {steps.get(c)} and {want}")
    for c, parts in steps.items():
        full, size = nfd(chr(c)), len(chr(c).encode())
        require(len(full) <= 4, f"U+{c:04X}: decomposes into more than 4")
        # what qs_tok_scratch counts on
        require(2 * len(full) <= 3 * size and len(full.encode()) <= 3 * size,
                f"U+{c:04X}: grows beyond the bounds of qs_tok_scratch")
        require(len(parts) == 1 or parts[1] not in steps, f"U+{c:04X}: second part")
    for (a, b), c in pairs.items():
        require(ucd.normalize("NFC", chr(a) + chr(b)) == chr(c), f"U+{c:04X} composed")
    return sum(1 for c in CODE_POINTS if ucd.combining(chr(c)) and c not in ccc)


def runs(values, last):
    """[(start, value)] of maximal runs of equal value, from 0 on; default value 0."""
    out = [(0, values.get(0, 0))]
    for c in range(1, last + 2):
        v = values.get(c, 0)
        if v != out[-1][1]:
            out.append((c, v))
    return out


def emit(decl, numbers, comment):
    print(f"/* {comment} */")
    print(f"static const {decl}[] = {{")
    line = "   "
    for n in numbers:
        item = f" {n},"
        if len(line) + len(item) > 88:
            print(line)
            line = "   "
        line += item
    print(line)
    print("};\n")


def tables():
    cls = classes()
    ccc = combining()
    steps = decompositions()
    pairs = compositions(steps)
    missing = check_against_ucd(ccc, steps, pairs)

    print(f"/* Unicode tables, written by tools/gen_unicode.py from tokenizers "
          f"{tokenizers.__version__}:\n"
          f"   classes as Unicode {ucd.unidata_version}, NFC as Unicode 9.0 "
          f"({len(pairs)} pairs; {missing} younger marks are\n"
          f"   starters).  Do not edit. */\n")
    emit("uint32_t qs_uni_class", [c << 2 | v for c, v in runs(cls, max(cls))],
         "runs of one class, (first << 2 | class): 1 letter, 2 number, 3 blank")

    # NFC quick check: a code point is inert unless it has a class, may compose with
    # what stands before it (Maybe), or is replaced on its own (No).
    second = {b for _, b in pairs}
    composite = set(pairs.values())
    norm = dict(ccc)
    for c in CODE_POINTS:
        moves = c in second or (c in steps and c not in composite)
        moves = moves or 0x1161 <= c <= 0x1175 or 0x11A8 <= c <= 0x11C2
        if moves:
            norm[c] = ccc.get(c, 0) | 256
    for c in CODE_POINTS:                         # the same, said by the reference
        if c not in norm:
            require(nfc(chr(c)) == chr(c), f"U+{c:04X} is not inert")
    emit("uint32_t qs_uni_norm", [c << 9 | v for c, v in runs(norm, max(norm))],
         "runs, (first << 9 | not NFC_QC=Yes << 8 | combining class)")

    order = sorted(composite)
    by_c = {c: p for p, c in pairs.items()}
    emit("uint32_t qs_uni_comp", [n for c in order for n in (c, *by_c[c])],
         "primary composites, ascending: composite, its first, its second")
    pos = {c: i for i, c in enumerate(order)}
    emit("uint16_t qs_uni_pair", [pos[pairs[p]] for p in sorted(pairs)],
         "indices of qs_uni_comp, ascending by (first, second)")

    rest = {c: p for c, p in steps.items() if c not in composite}
    for name, (lo, hi) in zip(("qs_uni_cjk1", "qs_uni_cjk2"), CJK):
        for c in range(lo, hi):
            require(len(rest.get(c, (0,))) == 1, f"U+{c:04X}: a pair among the singles")
        emit(f"uint32_t {name}", [rest.pop(c, (0,))[0] for c in range(lo, hi)],
             f"U+{lo:04X} and on: the ideograph each is replaced by, 0 for none")
    emit("uint32_t qs_uni_excl",
         [n for c in sorted(rest) for n in (c, *rest[c], *(0,) * (2 - len(rest[c])))],
         "decomposed and never composed: code point, first, second or 0")


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--check":
        import contextlib
        import io
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            tables()
        with open(sys.argv[2], encoding="utf-8") as f:
            require(text.getvalue().strip() in f.read(), f"{sys.argv[2]} differs")
    else:
        require(len(sys.argv) == 1, "usage: gen_unicode.py [--check FILE]")
        tables()


if __name__ == "__main__":
    main()
