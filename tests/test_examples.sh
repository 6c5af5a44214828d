#!/bin/sh
# Runs every example on the toy and compares what it prints with examples/expected/. Two of
# them are also compiled from nothing but `cc example.c qsae.c -lm`: other flags, same output.
#
# EXPECTED=write stores what is printed now as what is expected.

. tests/lib.sh
begin test_examples


compare() { # name, program
    out=$work/$(basename "$2").out
    case $1 in
    03* | 04*) $RUN "$2" "$BUILD/toy.qsae" "$BUILD/toy-sae.qsae" > "$out" 2> "$out.err" ;;
    *) $RUN "$2" "$BUILD/toy.qsae" > "$out" 2> "$out.err" ;;
    esac || { bad "$1 failed: $(head -n 1 "$out.err")"; return; }
    expected=examples/expected/$1.txt
    if [ "${EXPECTED:-}" = write ]; then
        mkdir -p examples/expected
        cp "$out" "$expected"
    fi
    if cmp -s "$out" "$expected"; then
        ok
    else
        bad "$1 printed something else than $expected"
        diff "$out" "$expected" >&2
    fi
}

for source in examples/[0-9]*.c; do
    name=$(basename "$source" .c)
    check "$name has at most 120 lines" test "$(wc -l < "$source")" -le 120
    compare "$name" "$BUILD/examples/$name"
done

for name in 01_generate 02_capture; do
    check "cc $name.c qsae.c -lm" $CC "examples/$name.c" qsae.c -lm -o "$work/$name-plain"
    compare "$name" "$work/$name-plain"
done

# The README's program, with no flag, prints what the README says.
fence() { awk -v open="$1" '$0 == open { on = 1; next } $0 == "```" { on = 0 } on' README.md; }
fence '```c' | sed "s#build/toy#$BUILD/toy#" > "$work/readme.c"
fence '```text' > "$work/readme.txt"
check "cc app.c qsae.c -lm" $CC -I. "$work/readme.c" qsae.c -lm -o "$work/readme"
$RUN "$work/readme" > "$work/readme.out"
check "the README's program prints what the README says" cmp "$work/readme.out" "$work/readme.txt"
finish
