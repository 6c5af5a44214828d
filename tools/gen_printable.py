#!/usr/bin/env python3
"""Writes tools/printable.h: the characters that Python's repr() of a text escapes.

    python3.11 tools/gen_printable.py > tools/printable.h

The table is that of the Python it runs under. 3.11 (Unicode 14.0) is what the reference runs; later versions
print characters that Unicode has assigned since.
"""
import unicodedata


def ranges():
    out = []
    for c in range(0x80, 0x110000):
        if chr(c).isprintable():
            continue
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def main():
    print("/* Characters from U+0080 on that Python's repr() escapes: first and last of each run. Unicode")
    print(f" * {unicodedata.unidata_version}. Written by gen_printable.py. */\n")
    print("static const uint32_t not_printable[][2] = {")
    line = "   "
    for first, last in ranges():
        item = f" {{0x{first:X}, 0x{last:X}}},"
        if len(line) + len(item) > 88:
            print(line)
            line = "   "
        line += item
    print(line + "\n};")


main()
